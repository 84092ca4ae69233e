"""The vectors of Twilio's documents and its library, and what an attacker would try."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from twilio.request_validator import RequestValidator

from app.telephony.signature import sign, valid_signature, valid_socket_signature

TOKEN = "12345"
URL = "https://example.com/myapp.php?foo=1&bar=2"
FORM = [
    ("CallSid", "CA1234567890ABCDE"),
    ("Caller", "+14158675310"),
    ("Digits", "1234"),
    ("From", "+14158675310"),
    ("To", "+18005551212"),
]
SIGNED = "L/OH5YylLD5NRKLltdqwSvS0BnU="
SOCKET = "wss://example.com/ws/twilio"
SOCKET_SIGNED = "UAB6CyYaIqjwuABy5XGywJDQcS0="
SOCKET_SLASH_SIGNED = "GXBTs5keFdxulO3nrHIhKrp6l80="
JSON_BODY = '{"CallSid":"CA1234567890ABCDE","Caller":"+12349013030"}'
JSON_SHA = "5ccde7145dfb8f56479710896586cb9d5911809d83afbe34627818790db0aec9"


def header(signature: str, **more: str) -> Headers:
    return Headers({"x-twilio-signature": signature, **more})


@pytest.mark.parametrize(
    ("url", "form", "signature"),
    [
        (URL, FORM, SIGNED),
        (SOCKET, [], SOCKET_SIGNED),
        (f"{SOCKET}/", [], SOCKET_SLASH_SIGNED),
        ("https://example.com/ws/twilio", [], "LBTfgaXMLLE39/KADTd+dqrS/m8="),
        (f"https://example.com/myapp?bodySHA256={JSON_SHA}", [], "hPXmLwIy3Fgqv1i9KPmH/HhQ6zo="),
    ],
)
def test_published_vectors(url: str, form: list[tuple[str, str]], signature: str) -> None:
    assert sign(url, form, TOKEN) == signature
    assert valid_signature(url, form, header(signature), [TOKEN])


def test_the_json_vector_is_about_this_body() -> None:
    assert hashlib.sha256(JSON_BODY.encode()).hexdigest() == JSON_SHA


def test_the_order_of_a_form_does_not_matter_but_its_content_does() -> None:
    assert valid_signature(URL, FORM[::-1], header(SIGNED), [TOKEN])
    for changed in (FORM[:-1], [*FORM, ("New", "")], [*FORM[:-1], ("To", "+18005551213")]):
        assert not valid_signature(URL, changed, header(SIGNED), [TOKEN])


def test_repeated_names_are_sorted_and_counted_once_as_the_library_does() -> None:
    class Multi(dict[str, list[str]]):
        def getall(self, name: str) -> list[str]:
            return self[name]

    form = [("b", "2"), ("a", "z"), ("a", "y"), ("a", "z"), ("B", ""), ("A", "x ")]
    theirs = RequestValidator(TOKEN).compute_signature(URL, Multi(b=["2"], a=["z", "y", "z"], B=[""], A=["x "]))
    assert sign(URL, form, TOKEN) == theirs
    assert valid_signature(URL, form, header(theirs), [TOKEN])


@pytest.mark.parametrize("tokens", [[TOKEN, "67890"], ["67890", TOKEN], ["", TOKEN], (TOKEN,)])
def test_either_token_will_do_while_rotating(tokens: list[str]) -> None:
    assert valid_signature(URL, FORM, header(SIGNED), tokens)
    assert valid_socket_signature(SOCKET, header(SOCKET_SIGNED), tokens)


@pytest.mark.parametrize("tokens", [[], [""], ["", ""], ["67890"]])
def test_no_token_validates_nothing(tokens: list[str]) -> None:
    for token in ("", TOKEN):
        assert not valid_signature(URL, FORM, header(sign(URL, FORM, token)), tokens)
        assert not valid_socket_signature(SOCKET, header(sign(SOCKET, [], token)), tokens)


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "=",
        SIGNED[:-1],
        f"{SIGNED} ",
        SIGNED.lower(),
        SOCKET_SIGNED,
        "é" * 28,
        "\udcff",
        "L/OH5YylLD5NRKLltdqwSvS0BnÜ=",
    ],
)
def test_a_wrong_signature_is_invalid_and_never_an_error(signature: str) -> None:
    assert not valid_signature(URL, FORM, {"X-Twilio-Signature": signature}, [TOKEN])
    assert not valid_socket_signature("wss://example.com/other", {"X-Twilio-Signature": signature}, [TOKEN])


def test_a_missing_signature_is_invalid() -> None:
    assert not valid_signature(URL, FORM, Headers({}), [TOKEN])
    assert not valid_socket_signature(SOCKET, Headers({}), [TOKEN])


@pytest.mark.parametrize(
    ("configured", "signed", "valid"),
    [
        ("https://example.com/v", "https://example.com:443/v", True),
        ("https://example.com:8443/v", "https://example.com/v", True),
        ("https://example.com:8443/v", "https://example.com:8443/v", True),
        ("http://example.com:8000/v", "http://example.com:8000/v", True),
        ("https://user:secret@example.com/v", "https://example.com/v", True),
        ("https://[2001:db8::1]/v", "https://[2001:db8::1]:443/v", True),
        ("https://example.com/v", "https://example.com:8443/v", False),
        ("https://example.com/v", "http://example.com/v", False),
        ("https://example.com/v", "https://example.com/v/", False),
        ("https://example.com/v", "https://example.org/v", False),
        ("https://example.com/v?a=1", "https://example.com/v", False),
    ],
)
def test_spellings_of_a_webhook_url(configured: str, signed: str, valid: bool) -> None:
    assert valid_signature(configured, FORM, header(sign(signed, FORM, TOKEN)), [TOKEN]) == valid


@pytest.mark.parametrize(
    ("configured", "signed", "valid"),
    [
        (SOCKET, SOCKET, True),
        (SOCKET, f"{SOCKET}/", True),
        (f"{SOCKET}/", SOCKET, True),
        (SOCKET, "wss://example.com:443/ws/twilio", True),
        (SOCKET, "wss://example.com:443/ws/twilio/", True),
        ("wss://example.com:443/ws/twilio", SOCKET, True),
        ("ws://127.0.0.1:8000/ws", "ws://127.0.0.1:8000/ws", True),
        (SOCKET, "https://example.com/ws/twilio", False),
        (SOCKET, "ws://example.com/ws/twilio", False),
        (SOCKET, f"{SOCKET}?x=1", False),
        (SOCKET, f"{SOCKET}//", False),
        (SOCKET, "wss://example.com/ws", False),
    ],
)
def test_spellings_of_the_stream_url(configured: str, signed: str, valid: bool) -> None:
    assert valid_socket_signature(configured, header(sign(signed, [], TOKEN)), [TOKEN]) == valid


@pytest.mark.parametrize(
    ("settings", "valid"),
    [
        ("", True),
        ("key=abc", True),
        ("key=abc,algorithm=HMAC_SHA1", True),
        ("key=abc,algorithm=HMAC_SHA256", False),
        ("algorithm=none", False),
        ("algorithm=é", False),
    ],
)
def test_an_algorithm_that_we_cannot_check_is_refused(settings: str, valid: bool) -> None:
    headers = {"X-Twilio-Webhooks-Signature-Settings": settings}
    assert valid_signature(URL, FORM, {"X-Twilio-Signature": SIGNED, **headers}, [TOKEN]) == valid
    assert valid_socket_signature(SOCKET, {"X-Twilio-Signature": SOCKET_SIGNED, **headers}, [TOKEN]) == valid


@given(url=st.text(), form=st.lists(st.tuples(st.text(), st.text())), signature=st.text())
def test_nothing_that_comes_in_is_an_error(url: str, form: list[tuple[str, str]], signature: str) -> None:
    assert not valid_signature(f"https://example.com/{url}", form, {"X-Twilio-Signature": signature}, [TOKEN])


@pytest.mark.parametrize(("url", "form"), [("https://example.com/\ud800", FORM), (URL, [("To", "\udcff")])])
def test_half_a_surrogate_pair_is_invalid_and_never_an_error(url: str, form: list[tuple[str, str]]) -> None:
    assert not valid_signature(url, form, header(SIGNED), [TOKEN])


@given(form=st.lists(st.tuples(st.text(), st.text())))
def test_what_is_signed_is_valid(form: list[tuple[str, str]]) -> None:
    try:
        signature = sign(URL, form, TOKEN)
    except UnicodeEncodeError:
        return
    assert valid_signature(URL, form, {"X-Twilio-Signature": signature}, [TOKEN])
