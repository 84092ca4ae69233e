"""RTZR (VITO): the token, the WebSocket's handshake, and what the vendor's messages mean.

A token lives for six hours and is shared by all calls; it counts at the handshake only, so one that expires leaves
running streams alone. All settings of a stream are query parameters; there is no start message.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

import httpx
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from app.errors import ConfigError, SttError

log = structlog.get_logger(__name__)

Fault = Literal[
    "connect",  # nobody answers at the address
    "timeout",  # no token, or no stream, in time
    "throttled",  # the plan's streams, or its hours, are used up
    "auth",
    "rejected",  # the settings of a stream
    "unavailable",  # a failure that the vendor reports as its own
    "stall",  # it takes no more audio
    "reset",  # a connection that broke off
    "format",  # answers that are none
]

NAME = "rtzr"
API_BASE = "https://openapi.vito.ai"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
MAX_KEYWORDS = 100
MAX_KEYWORD_CHARS = 20
MAX_SCORE = 5.0
LIFE_S = 6 * 3600.0
"""Of a token, as documented. What the vendor says of one counts where it is shorter."""
REFRESHED_AT = 0.8
"""Of a token's life."""
REFRESH_RETRY_S = 30.0
"""The next try after a refresh that failed, while the old token still serves."""
RECEIVED_BYTES = 4 * 2**20
LONGEST_MESSAGE = 64 * 1024
"""Longer than any transcript. One that is longer is dropped; one that the client does not take at all, being longer
than RECEIVED_BYTES, costs the connection."""

STREAM = "a stream"
AUTHENTICATION = "the authentication"
_HANGUL = re.compile(r"[가-힣]+(?: +[가-힣]+)*")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_CODE = re.compile(r"\b[AEH]\d{3,4}\b")
_THROTTLED = ("A0001", "A0002")


@dataclass(frozen=True, slots=True)
class RtzrOptions:
    """`keywords` come from `parse_keywords`. `epd_s` of silence end an utterance: the vendor's own default is told
    differently in different places, so ours is always sent. `connect_s` bounds all of `connect`, the token and the
    second try included."""

    client_id: str = field(repr=False)
    client_secret: str = field(repr=False)
    api_base: str = API_BASE
    keywords: tuple[str, ...] = ()
    epd_s: float = 0.5
    authenticate_s: float = 2.0
    connect_s: float = 3.0
    ping_s: float = 5.0  # between pings, and for each answer: a dead connection is found within twice that
    close_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Result:
    """One message of words. `seq` numbers the utterances of a stream; an interim's text is all of its utterance so
    far. Milliseconds count the audio that the vendor was sent; `duration_ms` is 0 where it is not told, as in every
    interim."""

    seq: int
    final: bool
    text: str = field(repr=False)
    start_ms: float
    duration_ms: float
    confidence: float | None


@dataclass(frozen=True, slots=True)
class _Token:
    """Moments are the loop's."""

    value: str = field(repr=False)
    refresh_at: float
    expires_at: float


def parse_keywords(value: str) -> tuple[str, ...]:
    """RTZR_KEYWORDS, `word` or `word:score` separated by commas, as the vendor takes them. Raises ConfigError: the
    vendor refuses the whole stream for one keyword that it does not like."""
    entries = [entry.strip() for entry in value.split(",") if entry.strip()]
    if len(entries) > MAX_KEYWORDS:
        raise ConfigError(f"RTZR_KEYWORDS holds {len(entries)} keywords; RTZR takes at most {MAX_KEYWORDS}")
    return tuple(_keyword(entry, place) for place, entry in enumerate(entries, 1))


def _keyword(entry: str, place: int) -> str:
    word, colon, score = (part.strip() for part in entry.partition(":"))
    if not _HANGUL.fullmatch(word):
        raise ConfigError(f"RTZR_KEYWORDS, number {place}: write it as it sounds, in Hangul and spaces only")
    if len(word) > MAX_KEYWORD_CHARS:
        raise ConfigError(f"RTZR_KEYWORDS, number {place}: longer than {MAX_KEYWORD_CHARS} characters")
    if not colon:
        return word
    try:
        number = float(score)
    except ValueError:
        number = float("nan")
    if not -MAX_SCORE <= number <= MAX_SCORE:
        raise ConfigError(f"RTZR_KEYWORDS, number {place}: its score is not a number from -5 to 5")
    return f"{word}:{number:g}"


class RtzrSttService:
    """One for all calls. Owns the HTTP client until `aclose`; a connection belongs to whoever asked for it."""

    def __init__(self, options: RtzrOptions) -> None:
        self.options = options
        base = urlsplit(options.api_base)
        self._base = options.api_base.rstrip("/")
        self._direct = base.hostname in LOOPBACK  # a proxy cannot reach it
        self._http = httpx.AsyncClient(trust_env=not self._direct, timeout=None, follow_redirects=False)
        self._token: _Token | None = None
        self._one_at_a_time = asyncio.Lock()
        self._requests_done = 0
        self._last_outcome: _Token | SttError | None = None

    async def aclose(self) -> None:
        await self._http.aclose()

    async def check(self) -> None:
        """Authenticates, which costs nothing and leaves a fresh token for the calls. Raises SttError."""
        await self._authenticate()

    async def connect(self, rate: int, language: str) -> ClientConnection:
        """An open stream. Its owner closes it. Raises SttError."""
        url = f"ws{self._base.removeprefix('http')}/v1/transcribe:streaming?{self._query(rate, language)}"
        try:
            async with asyncio.timeout(self.options.connect_s):
                return await self._connect_twice(url)
        except TimeoutError as error:
            raise stt_error("timeout", "RTZR did not open a stream in time: RTZR_API_BASE", retryable=True) from error

    def _query(self, rate: int, language: str) -> str:
        # `auto` is Whisper with a hint: streams have no documented value for finding the language.
        korean_only = language == "ko"
        spoken = "en" if language == "en" else "ko"
        settings = {
            "sample_rate": str(rate),
            "encoding": "LINEAR16",
            "model_name": "sommers_ko" if korean_only else "whisper",
            "domain": "CALL",
            "language": spoken,
            "use_itn": "true",
            "use_disfluency_filter": "true",
            "use_profanity_filter": "false",
            "use_punctuation": "true",
            "epd_time": f"{self.options.epd_s:g}",
        }
        if self.options.keywords and spoken == "ko":  # no other language has them
            settings["keywords"] = ",".join(self.options.keywords)
        return urlencode(settings, quote_via=quote)

    async def _connect_twice(self, url: str) -> ClientConnection:
        """A token may be refused before its time: then one more handshake, with a new one."""
        token = await self._current_token()
        try:
            return await self._handshake(url, token)
        except InvalidStatus as error:
            if error.response.status_code != 401:
                raise _refused(STREAM, error.response.status_code, error.response.body) from error
        log.info("x rtzr refused its token, asking for another")
        if self._token is token:
            self._token = None
        token = await self._current_token()
        try:
            return await self._handshake(url, token)
        except InvalidStatus as error:
            raise _refused(STREAM, error.response.status_code, error.response.body) from error

    async def _handshake(self, url: str, token: _Token) -> ClientConnection:
        try:
            return await connect(
                url,
                additional_headers={"Authorization": f"Bearer {token.value}"},
                proxy=None if self._direct else True,
                compression=None,  # PCM does not shrink, and it would cost each frame time
                open_timeout=None,
                ping_interval=self.options.ping_s,
                ping_timeout=self.options.ping_s,
                close_timeout=self.options.close_s,
                max_size=RECEIVED_BYTES,
            )
        except InvalidStatus:
            raise
        except OSError as error:
            raise _unreachable(error) from error
        except WebSocketException as error:
            raise stt_error("reset", f"RTZR broke the handshake ({type(error).__name__})", retryable=True) from error

    # ------------------------------------------------------------ the token

    async def _current_token(self) -> _Token:
        loop = asyncio.get_running_loop()
        token = self._token
        if token is not None and loop.time() < token.refresh_at:
            return token
        try:
            return await self._authenticate()
        except SttError as error:
            if token is None or loop.time() >= token.expires_at:
                raise
            log.warning("x rtzr token not renewed, the old one still serves", kind=error.kind)
            if self._token is token:
                self._token = replace(token, refresh_at=loop.time() + REFRESH_RETRY_S)
            return token

    async def _authenticate(self) -> _Token:
        """One request at a time: whoever comes while one is under way shares its outcome, be it an error."""
        done = self._requests_done
        async with self._one_at_a_time:
            if self._requests_done == done:
                try:
                    self._last_outcome = self._token = await self._request_token()
                except SttError as error:
                    self._last_outcome = error
                self._requests_done += 1
            outcome = self._last_outcome
        if isinstance(outcome, _Token):
            return outcome
        assert outcome is not None
        # Not the same error for all: each call that raises one adds to its traceback.
        raise SttError(str(outcome), provider=NAME, kind=outcome.kind, retryable=outcome.retryable) from outcome

    async def _request_token(self) -> _Token:
        credentials = {"client_id": self.options.client_id, "client_secret": self.options.client_secret}
        try:
            async with asyncio.timeout(self.options.authenticate_s):
                response = await self._http.post(f"{self._base}/v1/authenticate", data=credentials)
        except TimeoutError as error:
            raise stt_error("timeout", "RTZR did not authenticate in time: RTZR_API_BASE", retryable=True) from error
        except httpx.ConnectError as error:
            raise _unreachable(error) from error
        except httpx.HTTPError as error:
            said = f"RTZR broke off the authentication ({type(error).__name__})"
            raise stt_error("reset", said, retryable=True) from error
        if response.status_code != 200:
            raise _refused(AUTHENTICATION, response.status_code, response.content)
        body = _object(response.content)
        value = body.get("access_token")
        if not isinstance(value, str) or not _TOKEN.fullmatch(value):
            raise stt_error("format", "RTZR authenticated without a token: see RTZR_API_BASE", retryable=False)
        now, life_s = asyncio.get_running_loop().time(), _life_s(body.get("expire_at"), response.headers.get("date"))
        return _Token(value, now + REFRESHED_AT * life_s, now + life_s)


def _life_s(expire_at: Any, sent_at: str | None) -> float:
    """From the moment that the vendor answered, by the vendor's own clock: ours may be wrong."""
    try:
        left_s = expire_at - parsedate_to_datetime(sent_at or "").timestamp()
    except (TypeError, ValueError, OverflowError):
        return LIFE_S  # a token that is refused before that is replaced anyway
    return float(min(max(left_s, 0.0), LIFE_S))


# ---------------------------------------------------------------- what the vendor says


def read_message(message: str | bytes) -> Result | None:
    """None for what is no result. Raises SttError where the vendor reports a failure: as `{"error"}` or as
    `{"type": "error"}`, both are about."""
    if isinstance(message, bytes) or len(message) > LONGEST_MESSAGE:
        return None
    body = _object(message)
    if body.get("error") or body.get("type") == "error":
        raise _reported(body)
    seq, final = body.get("seq"), body.get("final")
    if type(seq) is not int or seq < 0 or not isinstance(final, bool):
        return None
    best = _first_alternative(body)
    text = best.get("text")
    return Result(
        seq=seq,
        final=final,
        text=text.strip() if isinstance(text, str) else "",
        start_ms=_ms(body.get("start_at")),
        duration_ms=_ms(body.get("duration")),
        confidence=_confidence(best.get("confidence")) if final else None,
    )


def _object(data: str | bytes | bytearray) -> Mapping[str, Any]:
    """Empty for what is no JSON object; a deep nest is a RecursionError."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _first_alternative(body: Mapping[str, Any]) -> Mapping[str, Any]:
    alternatives = body.get("alternatives")
    first = alternatives[0] if isinstance(alternatives, list) and alternatives else None
    return first if isinstance(first, dict) else {}


def _ms(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e10 else 0.0


def _confidence(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None


def _reported(body: Mapping[str, Any]) -> SttError:
    """The vendor's prose is left out: it may quote the caller."""
    found = _CODE.search(" ".join(str(body.get(name)) for name in ("code", "error", "message", "msg")))
    code = found[0] if found else ""
    said = "RTZR reports an error" + (f" {code}" if code else "")
    if code in _THROTTLED:
        return _throttled(said)
    if code == "H0002":
        return stt_error("auth", f"{said}: see RTZR_CLIENT_ID and RTZR_CLIENT_SECRET", retryable=False)
    return stt_error("unavailable", said, retryable=True)


def _refused(what: str, status: int, body: bytes | bytearray | None) -> SttError:
    code = _object(body or b"").get("code")
    code = code if isinstance(code, str) and _CODE.fullmatch(code) else ""
    said = f"RTZR answered {what} with {status}" + (f" {code}" if code else "")
    if status == 429 or code in _THROTTLED:
        return _throttled(said)
    if status in (401, 403) or (status == 400 and code == "H0001" and what == AUTHENTICATION):
        return stt_error("auth", f"{said}: see RTZR_CLIENT_ID and RTZR_CLIENT_SECRET", retryable=False)
    if status >= 500:
        return stt_error("unavailable", said, retryable=True)
    if status in (400, 414, 431):  # too many keywords make a URL that some gateways do not take
        return stt_error("rejected", f"{said}: see RTZR_KEYWORDS and RTZR_EPD_TIME", retryable=False)
    return stt_error("rejected", f"{said}: see RTZR_API_BASE", retryable=False)


def _throttled(said: str) -> SttError:
    return stt_error("throttled", f"{said}: more streams at once, or more use, than the plan allows", retryable=False)


def _unreachable(error: Exception) -> SttError:
    said = f"RTZR cannot be reached ({type(error).__name__}): RTZR_API_BASE"
    return stt_error("connect", said, retryable=True)


def stt_error(kind: Fault, message: str, *, retryable: bool) -> SttError:
    return SttError(message, provider=NAME, kind=kind, retryable=retryable)
