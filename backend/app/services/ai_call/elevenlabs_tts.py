"""TTS_PROVIDER=elevenlabs: the vendor's voice over its streaming HTTP endpoint, through the real client.

POST /v1/text-to-speech/{voice_id}/stream answers with raw mu-law in chunks. The output format is a query
parameter; without it the vendor sends MP3. Neither a status of 200 nor a content type proves what the bytes
are, so the first ones are looked at before any is played.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
import structlog

from app.audio import g711
from app.audio.types import AudioFrame
from app.errors import TtsError
from app.services.ai_call.language import language_of

log = structlog.get_logger(__name__)

RATE = 8000
OUTPUT_FORMAT = "ulaw_8000"
CHUNK_BYTES = 640
"""80 ms. The client hands on nothing smaller before the end of the stream."""
KEEPALIVE_S = 60.0
"""Longer than a caller speaks: the next answer finds a connection open and saves the TLS handshake."""

_TAKES_LANGUAGE = ("eleven_flash_v2_5", "eleven_turbo_v2_5", "eleven_v3")
"""Models that support `language_code`, by prefix; multilingual_v2 does not."""
_TEXT_TYPES = ("application/json", "text/", "application/problem")
_CONTAINERS = (b"ID3", b"RIFF", b"OggS", b"fLaC", b'{"', b"<!", b"<h")
_MPEG_1_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG_2_KBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


@dataclass(frozen=True, slots=True)
class ElevenLabsOptions:
    """`language` is for a text without letters of its own. Bounds are in seconds."""

    api_key: str = field(repr=False)
    voice_id: str
    model: str = "eleven_flash_v2_5"
    base_url: str = "https://api.elevenlabs.io"
    language: str = "ko"
    max_connections: int = 100
    first_byte_s: float = 3.0
    idle_s: float = 2.0
    longest_retry_after_s: float = 1.0
    retry_after_s: float = 0.3  # waited after a 429 that does not say how long


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer whose first audio has come. `close` owns the connection."""

    first: bytes
    rest: AsyncIterator[bytes]
    close: AsyncExitStack


class ElevenLabsTts:
    """Owns its connections until `aclose`. Speaks at 8,000 samples a second only."""

    name = "elevenlabs"

    def __init__(self, options: ElevenLabsOptions) -> None:
        # Here, not above: the client takes most of a second to import, and only this provider needs it.
        from elevenlabs.client import AsyncElevenLabs
        from elevenlabs.core import ApiError
        from elevenlabs.core.parse_error import ParsingError

        self._options = options
        # ValueError: the client reads JSON where it finds an error status, whatever the vendor sent.
        self._errors = (TimeoutError, httpx.HTTPError, ApiError, ParsingError, ValueError)
        self._http = httpx.AsyncClient(
            follow_redirects=False,  # a redirect would carry the key to another host
            limits=httpx.Limits(max_connections=options.max_connections, keepalive_expiry=KEEPALIVE_S),
        )
        self._client = AsyncElevenLabs(
            api_key=options.api_key,  # the client's own default is read from the environment at import
            base_url=options.base_url,
            timeout=options.first_byte_s,
            httpx_client=self._http,
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def check(self) -> None:
        """Reads the voice: proves the address, the key and the voice, and costs nothing. Raises TtsError."""
        try:
            async with asyncio.timeout(self._options.first_byte_s):
                await self._client.voices.get(_segment(self._options.voice_id), request_options={"max_retries": 0})
        except self._errors as error:
            # A key may be allowed to speak and not to read voices.
            if _vendor_status(error) != "missing_permissions":
                raise _translated(error) from error

    async def speak(self, text: str, rate: int) -> AsyncGenerator[AudioFrame, None]:
        """Closing the generator closes the HTTP stream, so the vendor stops working (and counting)."""
        if rate != RATE:
            raise ValueError(f"ElevenLabs is asked for {OUTPUT_FORMAT} only, not for a rate of {rate}")
        if not text.strip():
            return
        answer = await self._ask_twice(text)
        async with answer.close:
            chunk = answer.first
            while chunk:
                yield AudioFrame(g711.decode(chunk), RATE)
                chunk = await self._next(answer)

    async def _next(self, answer: _Answer) -> bytes:
        """The next audio; empty at the end. What came before was heard: the request must not be repeated."""
        try:
            async with asyncio.timeout(self._options.idle_s):
                return await anext(answer.rest, b"")
        except self._errors as error:
            raise _error("cut", f"the audio broke off: {type(error).__name__}", retryable=False) from error

    async def _ask_twice(self, text: str) -> _Answer:
        """One more attempt where the vendor was busy, or a connection gave no answer."""
        try:
            return await self._ask(text)
        except self._errors as error:
            wait_s = self._wait_before_retry(error)
            if wait_s is None:
                raise _translated(error) from error
            log.info("x elevenlabs asked again", kind=_translated(error).kind, wait_s=wait_s)
        await asyncio.sleep(wait_s)
        try:
            return await self._ask(text)
        except self._errors as error:
            raise _translated(error) from error

    async def _ask(self, text: str) -> _Answer:
        options = self._options
        language: dict[str, Any] = {}
        if options.model.startswith(_TAKES_LANGUAGE):
            language["language_code"] = language_of(text, options.language)
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(options.first_byte_s):
                response = await stack.enter_async_context(
                    self._client.text_to_speech.with_raw_response.stream(
                        _segment(options.voice_id),
                        text=text,
                        model_id=options.model,
                        output_format=OUTPUT_FORMAT,
                        request_options={"chunk_size": CHUNK_BYTES, "max_retries": 0},
                        **language,
                    )
                )
                first = await anext(response.data, b"")
            _check_audio(first, response.headers)
            return _Answer(first, response.data, stack.pop_all())

    def _wait_before_retry(self, error: Exception) -> float | None:
        """Seconds, or None where the same request would fail again or has been answered."""
        if isinstance(error, TimeoutError | httpx.TimeoutException):
            return 0.0
        if isinstance(error, httpx.TransportError):
            # A connection kept alive may have been dropped by the vendor in the meantime.
            return None if isinstance(error, httpx.ConnectError) else 0.0
        if _http_status(error) != 429:
            return None
        asked = {k.lower(): v for k, v in (getattr(error, "headers", None) or {}).items()}.get("retry-after")
        if asked is None:
            return self._options.retry_after_s
        seconds = float(asked) if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", asked) else float("inf")
        return seconds if seconds <= self._options.longest_retry_after_s else None


def _check_audio(first: bytes, headers: Mapping[str, str]) -> None:
    """Raises TtsError if this is not mu-law. The content type counts for text only: gateways call any audio
    `audio/mpeg`."""
    if not first:
        raise _error("silent", "ElevenLabs sent no audio for a text with words", retryable=True)
    content_type = {name.lower(): value for name, value in headers.items()}.get("content-type", "").lower()
    if content_type.startswith(_TEXT_TYPES) or first.startswith(_CONTAINERS) or _is_mp3(first):
        raise _error("format", f"ElevenLabs sent something else than {OUTPUT_FORMAT}", retryable=False)


def _is_mp3(first: bytes) -> bool:
    """Two MPEG layer III frames in a row. One header alone could be quiet mu-law, which is full of 0xFF."""
    if len(first) < 4 or first[0] != 0xFF or first[1] & 0xE6 != 0xE2:
        return False
    version, bitrate, rate, padding = first[1] >> 3 & 3, first[2] >> 4, first[2] >> 2 & 3, first[2] >> 1 & 1
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return False
    kbits = (_MPEG_1_KBITS if version == 3 else _MPEG_2_KBITS)[bitrate]
    samples_a_second = (44100, 48000, 32000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    length = (144 if version == 3 else 72) * kbits * 1000 // samples_a_second + padding
    return first[length : length + 2] == first[:2]


def _translated(error: Exception) -> TtsError:
    """Ours for the client's. The message is free of the text, the key and the vendor's prose."""
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return _error("timeout", "ElevenLabs did not answer in time", retryable=True)
    if isinstance(error, httpx.TransportError):
        return _error(
            "unavailable",
            f"ElevenLabs cannot be reached ({type(error).__name__}): ELEVENLABS_BASE_URL",
            retryable=True,
        )
    status, reason = _http_status(error), _vendor_status(error)
    said = f"ElevenLabs answered {status}" + (f" {reason}" if reason else "")
    if status == 402 or reason == "quota_exceeded":
        return _error("quota", f"{said}: the plan's characters are used up", retryable=False)
    if status in (401, 403):
        return _error("auth", f"{said}: see ELEVENLABS_API_KEY", retryable=False)
    if status == 429:
        return _error("throttled", f"{said}: more requests at once than the plan allows", retryable=True)
    if status is None:
        return _error("format", f"ElevenLabs answered nonsense ({type(error).__name__})", retryable=False)
    if status >= 500:
        return _error("unavailable", said, retryable=True)
    return _error("rejected", f"{said}: see ELEVENLABS_VOICE_ID and ELEVENLABS_MODEL", retryable=False)


def _http_status(error: Exception) -> int | None:
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def _vendor_status(error: Exception) -> str:
    """`detail.status` of the error's body, where it is a plain word."""
    body = getattr(error, "body", None)
    detail = body.get("detail") if isinstance(body, dict) else None
    status = detail.get("status") if isinstance(detail, dict) else None
    return status if isinstance(status, str) and re.fullmatch(r"[a-z0-9_]{1,60}", status) else ""


def _segment(voice_id: str) -> str:
    """The client puts the id into the path as it is."""
    return quote(voice_id, safe="")


def _error(kind: str, message: str, *, retryable: bool) -> TtsError:
    return TtsError(message, provider=ElevenLabsTts.name, kind=kind, retryable=retryable)
