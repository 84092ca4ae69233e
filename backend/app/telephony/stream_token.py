"""The media stream's token: proof that a socket belongs to a call that our own webhook answered.

    v1.{expires}.{nonce}.{HMAC-SHA256 of "v1|{call_sid}|{expires}|{nonce}", in hex}

It travels in a `<Parameter>`, as Twilio drops a query string. That it is used once is the registry's work: the nonce
is the registry's key.
"""

import hmac
import re
from typing import Literal

from app.errors import MalgilError

SKEW_S = 30
"""A token lives this much past its end. Webhook and socket may reach two machines, and the one whose clock is ahead
would else turn real callers away; single use bounds the harm. Nothing is tolerated at the other end: no token says
when it begins."""

_TOKEN = re.compile(r"v1\.([0-9]{1,12})\.([A-Za-z0-9_-]{1,64})\.([0-9a-f]{64})")
_NONCE = re.compile(r"[A-Za-z0-9_-]{1,64}")

Reason = Literal["malformed", "forged", "expired"]


class TokenRefused(MalgilError):
    """`forged` is every token that this secret did not make for this call: a foreign call's looks the same."""

    code = "token"

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"stream token {reason}")
        self.reason = reason


def mint(secret: bytes, call_sid: str, expires: int, nonce: str) -> str:
    """`expires` in Unix seconds; `nonce` in base64url's alphabet, 64 characters at most. ValueError otherwise, and
    for an empty secret."""
    if not secret or not _NONCE.fullmatch(nonce) or not 0 <= expires < 10**12:
        raise ValueError("a token needs a secret, a base64url nonce and an end in Unix seconds")
    return f"v1.{expires}.{nonce}.{_mac(secret, call_sid, str(expires), nonce)}"


def verify(secret: bytes, token: str, call_sid: str, now: float) -> str:
    """The token's nonce. `now` in Unix seconds. Raises TokenRefused."""
    parts = _TOKEN.fullmatch(token)
    if not secret or parts is None:
        raise TokenRefused("malformed")
    expires, nonce, shown = parts.groups()
    if not hmac.compare_digest(_mac(secret, call_sid, expires, nonce).encode(), shown.encode()):
        raise TokenRefused("forged")
    if now > int(expires) + SKEW_S:
        raise TokenRefused("expired")
    return nonce


def _mac(secret: bytes, call_sid: str, expires: str, nonce: str) -> str:
    return hmac.new(secret, f"v1|{call_sid}|{expires}|{nonce}".encode(errors="surrogatepass"), "sha256").hexdigest()
