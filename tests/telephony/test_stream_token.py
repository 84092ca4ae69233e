import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.telephony.stream_token import SKEW_S, TokenRefused, mint, verify
from app.telephony.twiml import MAX_PARAMETER_CHARS

SECRET = b"a secret of a test, long enough."
CALL = "CA" + "1" * 32
NONCE = "k9-_Qx3fZl0aB7cD2eFg1h"
EXPIRES = 1_800_000_000
TOKEN = mint(SECRET, CALL, EXPIRES, NONCE)


def refusal(token: str, *, secret: bytes = SECRET, call_sid: str = CALL, now: float = EXPIRES - 1) -> str:
    with pytest.raises(TokenRefused) as refused:
        verify(secret, token, call_sid, now)
    return refused.value.reason


def test_the_documented_form() -> None:
    mac = hmac.new(SECRET, f"v1|{CALL}|{EXPIRES}|{NONCE}".encode(), hashlib.sha256).hexdigest()
    assert mint(SECRET, CALL, EXPIRES, NONCE) == f"v1.{EXPIRES}.{NONCE}.{mac}"
    assert len(TOKEN) < MAX_PARAMETER_CHARS / 2


@pytest.mark.parametrize("now", [0.0, EXPIRES - 60.0, EXPIRES, EXPIRES + SKEW_S])
def test_it_opens_until_the_skew_is_used_up(now: float) -> None:
    assert verify(SECRET, TOKEN, CALL, now) == NONCE


def test_it_expires() -> None:
    assert refusal(TOKEN, now=EXPIRES + SKEW_S + 0.1) == "expired"


def test_another_call_or_another_secret_is_forged() -> None:
    assert refusal(TOKEN, call_sid="CA" + "2" * 32) == "forged"
    assert refusal(TOKEN, call_sid="") == "forged"
    assert refusal(TOKEN, call_sid="\ud800") == "forged"
    assert refusal(TOKEN, secret=b"another") == "forged"


def test_an_expired_forgery_does_not_learn_that_it_expired() -> None:
    assert refusal(TOKEN[:-1] + ("0" if TOKEN[-1] != "0" else "1"), now=EXPIRES + 1e6) == "forged"


@pytest.mark.parametrize("part", [1, 2])
def test_no_part_can_be_changed(part: int) -> None:
    parts = TOKEN.split(".")
    parts[part] = "1" + parts[part][1:] if parts[part][0] != "1" else "2" + parts[part][1:]
    assert refusal(".".join(parts)) == "forged"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "v1",
        "v1...",
        TOKEN[:-1],
        f"{TOKEN}\n",
        f" {TOKEN}",
        f"{TOKEN}0",
        TOKEN.upper(),
        TOKEN.replace("v1", "v2", 1),
        TOKEN.replace(str(EXPIRES), "-1"),
        TOKEN.replace(str(EXPIRES), "1" * 13),
        TOKEN.replace(str(EXPIRES), "١٨٠٠"),  # digits, but not ours
        TOKEN.replace(NONCE, "a|b"),
        TOKEN.replace(NONCE, "n" * 65),
        "v1." + "9" * 100_000,
    ],
)
def test_what_is_not_a_token(token: str) -> None:
    assert refusal(token) == "malformed"


def test_an_empty_secret_opens_nothing_and_mints_nothing() -> None:
    assert refusal(TOKEN, secret=b"") == "malformed"
    with pytest.raises(ValueError, match="secret"):
        mint(b"", CALL, EXPIRES, NONCE)


@pytest.mark.parametrize(("expires", "nonce"), [(-1, NONCE), (10**12, NONCE), (1, ""), (1, "a.b"), (1, "n" * 65)])
def test_what_cannot_be_minted(expires: int, nonce: str) -> None:
    with pytest.raises(ValueError, match="token needs"):
        mint(SECRET, CALL, expires, nonce)


@given(
    token=st.text(max_size=200) | st.from_regex(r"v1\.[0-9]{1,12}\.[A-Za-z0-9_-]{1,64}\.[0-9a-f]{64}", fullmatch=True)
)
def test_no_guess_opens_and_none_raises_anything_else(token: str) -> None:
    assert refusal(token) in ("malformed", "forged")
