"""X-Twilio-Signature: that a webhook or a handshake comes from Twilio.

Always over the URL that we are configured to have in public, never over what the request says about itself: a proxy
changes scheme and host, and an attacker chooses them. Source: www.twilio.com/docs/usage/security.
"""

import hmac
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from twilio.request_validator import (
    HMAC_SHA1,
    SIGNATURE_HEADER,
    SIGNATURE_SETTINGS_HEADER,
    RequestValidator,
    get_signature_algorithm,
)

_PORT = re.compile(r":\d+$")
_DEFAULT_PORTS = {"https": "443", "wss": "443", "http": "80", "ws": "80"}


def valid_signature(
    url: str, fields: Iterable[tuple[str, str]], headers: Mapping[str, str], tokens: Sequence[str]
) -> bool:
    """Whether a webhook's form is signed with one of our auth tokens (two while rotating; an empty one counts for
    nothing). `url` is the public one with its query as received; `fields` are the form's, blank ones included;
    `headers` are looked up as an ASGI server gives them, without regard to case.
    """
    return _signed(_spellings(url), fields, headers, tokens)


def valid_socket_signature(stream_url: str, headers: Mapping[str, str], tokens: Sequence[str]) -> bool:
    """The same for the media stream's handshake. Twilio signs the `wss://` URL of our TwiML, sometimes with a slash
    added."""
    bare = stream_url.rstrip("/")
    return _signed((*_spellings(bare), *_spellings(f"{bare}/")), (), headers, tokens)


def sign(url: str, fields: Iterable[tuple[str, str]], token: str) -> str:
    """The header that Twilio would send."""
    signature: str = RequestValidator(token).compute_signature(url, _Form(fields))
    return signature


def _signed(
    urls: Iterable[str], fields: Iterable[tuple[str, str]], headers: Mapping[str, str], tokens: Sequence[str]
) -> bool:
    shown = headers.get(SIGNATURE_HEADER, "").encode(errors="surrogatepass")
    # Another algorithm means another key as well: what we cannot check is refused.
    if get_signature_algorithm(headers.get(SIGNATURE_SETTINGS_HEADER)) != HMAC_SHA1:
        return False
    fields, urls = tuple(fields), tuple(urls)
    try:
        ours = [sign(url, fields, token).encode() for token in tokens if token for url in urls]
    except UnicodeEncodeError:
        return False  # half a surrogate pair: nothing that Twilio could have sent
    matches = [hmac.compare_digest(shown, signature) for signature in ours]
    return any(matches)


def _spellings(url: str) -> Iterator[str]:
    """One URL as Twilio may have signed it: the login dropped; the port as written, dropped, or the default one."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    given = authority.rpartition("@")[2]
    bare = _PORT.sub("", given)
    for host in dict.fromkeys((given, bare, f"{bare}:{_DEFAULT_PORTS.get(scheme, '443')}")):
        yield f"{scheme}://{host}{slash}{path}"


class _Form(dict[str, list[str]]):
    """A form in the shape that the library's validator reads repeated names from."""

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        super().__init__()
        for name, value in fields:
            self.setdefault(name, []).append(value)

    def getall(self, name: str) -> list[str]:
        return self[name]
