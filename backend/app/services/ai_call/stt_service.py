"""One batch request for one utterance: STT_BATCH_PROVIDER, behind STT_PROVIDER=legacy.

Each vendor's client is imported when it is used first, beside the loop: OpenAI's takes 0.8 s, Google's as much.
"""

import asyncio
import io
import re
import wave
from collections.abc import Awaitable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

import structlog

from app.errors import SttError
from app.services.ai_call.google_client import LANGUAGES, GoogleOptions, connect, reach, require, translated

if TYPE_CHECKING:
    from google.cloud.speech_v1 import SpeechAsyncClient
    from openai import AsyncOpenAI

log = structlog.get_logger(__name__)

_Result = TypeVar("_Result")


class BatchTranscriber(Protocol):
    """One vendor. Sets no bound on the whole: STTService does."""

    name: str

    async def transcribe(self, wav: bytes, language: str) -> str:
        """`language` is `ko`, `en` or `auto`. Raises SttError."""

    async def check(self) -> None:
        """As `Checkable`; free of charge."""

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SttServiceOptions:
    """Seconds. `request_s` bounds an utterance, a second try included."""

    request_s: float = 10.0
    check_s: float = 5.0
    retry_after_s: float = 0.3
    longest_retry_after_s: float = 1.0


class _AskLater(SttError):
    """The vendor said how many seconds to wait."""

    def __init__(self, message: str, *, provider: str, kind: str, wait_s: float) -> None:
        super().__init__(message, provider=provider, kind=kind, retryable=True)
        self.wait_s = wait_s


class STTService:
    """Serves all calls at once; owns the vendor's connections until `aclose`."""

    def __init__(self, batch: BatchTranscriber, options: SttServiceOptions | None = None) -> None:
        self._batch = batch
        self._options = options or SttServiceOptions()

    async def aclose(self) -> None:
        await self._batch.aclose()

    async def check(self) -> None:
        """Raises SttError."""
        await self._bounded(self._batch.check(), self._options.check_s)

    async def transcribe_audio_chunk(self, wav: bytes, language: str) -> str:
        """The words of one utterance, at most 30 s of 16-bit mono WAV; empty where there are none. Asks once more where
        that may help. Raises SttError."""
        return await self._bounded(self._ask_twice(wav, language), self._options.request_s)

    async def _ask_twice(self, wav: bytes, language: str) -> str:
        try:
            return await self._batch.transcribe(wav, language)
        except SttError as error:
            wait_s = error.wait_s if isinstance(error, _AskLater) else self._options.retry_after_s
            if not error.retryable or wait_s > self._options.longest_retry_after_s:
                raise
            log.info("x batch recogniser asked again", provider=error.provider, kind=error.kind)
        await asyncio.sleep(wait_s)
        return await self._batch.transcribe(wav, language)

    async def _bounded(self, request: Awaitable[_Result], bound_s: float) -> _Result:
        try:
            async with asyncio.timeout(bound_s):
                return await request
        except TimeoutError as error:
            name = self._batch.name
            message = f"no answer from {name} in {bound_s:g} s"
            raise SttError(message, provider=name, kind="timeout", retryable=True) from error


# ---------------------------------------------------------------- Google


class GoogleBatch:
    """STT_BATCH_PROVIDER=google: `recognize` of Speech-to-Text v1. Raises ConfigError."""

    name = "google"

    def __init__(self, options: GoogleOptions) -> None:
        require(options)
        self._options = options
        self._opening = asyncio.Lock()
        self._client: SpeechAsyncClient | None = None

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.transport.close()  # type: ignore[no-untyped-call]

    async def check(self) -> None:
        """That Google can be reached. Proving the key would cost a recognition."""
        await reach(await self._connected(), self._options.connect_s)

    async def transcribe(self, wav: bytes, language: str) -> str:
        from google.cloud.speech_v1 import RecognitionAudio, RecognitionConfig

        client = await self._connected()
        await reach(client, self._options.connect_s)
        spoken, *alternatives = LANGUAGES[language]
        pcm, rate = _unwrapped(wav)
        config = RecognitionConfig(
            encoding=RecognitionConfig.AudioEncoding.LINEAR16,
            sample_rate_hertz=rate,
            language_code=spoken,
            alternative_language_codes=alternatives,
            model=self._options.model,
            enable_automatic_punctuation=True,
        )
        with translated():
            audio = RecognitionAudio(content=pcm)
            response = await client.recognize(config=config, audio=audio, retry=None, timeout=None)
        # One result for each stretch of speech, one after the other.
        best = (result.alternatives[0].transcript.strip() for result in response.results if result.alternatives)
        return " ".join(words for words in best if words)

    async def _connected(self) -> "SpeechAsyncClient":
        async with self._opening:
            if self._client is None:
                self._client = await connect(self._options)
            return self._client


def _unwrapped(wav: bytes) -> tuple[bytes, int]:
    """The samples and their rate: LINEAR16 says the same as a WAV's header, and one of them is enough."""
    with wave.open(io.BytesIO(wav)) as file:
        return file.readframes(file.getnframes()), int(file.getframerate())


# ---------------------------------------------------------------- OpenAI

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_KEEPALIVE_S = 60.0
"""Longer than a caller speaks: the next utterance finds a connection open."""


@dataclass(frozen=True, slots=True)
class OpenAiOptions:
    """`base_url` with its `/v1`; a server that speaks OpenAI's API will do."""

    api_key: str = field(repr=False)
    base_url: str = "https://api.openai.com/v1"
    model: str = "gpt-transcribe"
    connect_s: float = 3.0
    max_connections: int = 100


class OpenAiBatch:
    """STT_BATCH_PROVIDER=openai: POST /audio/transcriptions through the official client."""

    name = "openai"

    def __init__(self, options: OpenAiOptions) -> None:
        self._options = options
        self._opening = asyncio.Lock()
        self._client: AsyncOpenAI | None = None

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def check(self) -> None:
        """Reads the model's description: proves the address, the key and the model, and costs nothing."""
        client = await self._opened()
        try:
            await client.models.retrieve(self._options.model)
        except _vendor_errors() as error:
            # A restricted key may be allowed to transcribe and not to read models.
            if "api.model.read" not in _message(error):
                raise self._translated(error) from error

    async def transcribe(self, wav: bytes, language: str) -> str:
        client = await self._opened()
        spoken: dict[str, Any] = {} if language == "auto" else {"language": language}
        try:
            answer: object = await client.audio.transcriptions.create(
                file=("speech.wav", wav, "audio/wav"),  # the name says what it is
                model=self._options.model,
                response_format="json",
                **spoken,
            )
        except _vendor_errors() as error:
            raise self._translated(error) from error
        text = getattr(answer, "text", None)  # the client hands on whatever came
        if not isinstance(text, str):
            raise _error("format", "OpenAI answered something else than a transcript: see OPENAI_BASE_URL")
        return text.strip()

    async def _opened(self) -> "AsyncOpenAI":
        async with self._opening:
            if self._client is None:
                self._client = await asyncio.to_thread(_openai_client, self._options)
            return self._client

    # ------------------------------------------------------------ errors

    def _translated(self, error: Exception) -> SttError:
        """Ours for the client's. The message is free of the words, the key and the vendor's prose."""
        import openai

        match error:
            case openai.APIStatusError():
                return self._refused(error.status_code, error.code or "", error.response.headers.get("retry-after"))
            case openai.APIConnectionError():
                return self._unreachable(error.__cause__)
            case UnicodeEncodeError():
                return _error("auth", "OPENAI_API_KEY holds a letter that no key has", retryable=False)
        return _error("format", f"OpenAI answered nonsense ({type(error).__name__})")

    def _unreachable(self, cause: BaseException | None) -> SttError:
        import httpx2

        why = type(cause).__name__
        if isinstance(cause, httpx2.LocalProtocolError):  # the client would not send such a header
            return _error("auth", "OPENAI_API_KEY is no key: it holds a space or a line's end", retryable=False)
        if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
            host = urlsplit(self._options.base_url).hostname
            return _error("connect", f"{host} cannot be reached ({why}): see OPENAI_BASE_URL")
        return _error("reset", f"the connection to OpenAI broke ({why})")

    def _refused(self, status: int, code: str, retry_after: str | None) -> SttError:
        said = f"OpenAI answered {status}" + (f" {code}" if re.fullmatch(r"[a-z0-9_]{1,60}", code) else "")
        match status:
            case 429 if code == "insufficient_quota":
                return _error("quota", f"{said}: the account has no credit left", retryable=False)
            case 429:
                message = f"{said}: more requests than the account may make"
                if retry_after and re.fullmatch(r"\d{1,6}(\.\d{1,6})?", retry_after):
                    return _AskLater(message, provider=self.name, kind="throttled", wait_s=float(retry_after))
                return _error("throttled", message)
            case 401 | 403:
                return _error("auth", f"{said}: see OPENAI_API_KEY", retryable=False)
            case 404:
                message = f"{said}: no model {self._options.model} there, see OPENAI_STT_MODEL (and OPENAI_BASE_URL)"
                return _error("missing_model", message, retryable=False)
            case _ if status in (408, 409) or status >= 500:
                return _error("unavailable", said)
        return _error("rejected", f"{said}: see OPENAI_STT_MODEL and OPENAI_BASE_URL", retryable=False)


def _openai_client(options: OpenAiOptions) -> "AsyncOpenAI":
    import httpx2
    from openai import AsyncOpenAI

    for module in ("openai.resources.audio", "openai.resources.models"):
        import_module(module)  # else the first request does it, on the loop
    return AsyncOpenAI(
        api_key=options.api_key,
        base_url=options.base_url,
        timeout=httpx2.Timeout(None, connect=options.connect_s),  # the whole is bounded by STTService
        max_retries=0,
        http_client=httpx2.AsyncClient(
            follow_redirects=False,  # a redirect would carry the caller's words to another host
            limits=httpx2.Limits(max_connections=options.max_connections, keepalive_expiry=_KEEPALIVE_S),
            trust_env=urlsplit(options.base_url).hostname not in _LOOPBACK,  # a proxy cannot reach it
        ),
    )


def _vendor_errors() -> tuple[type[Exception], ...]:
    """ValueError: the client parses whatever calls itself JSON, and encodes whatever is called a key."""
    import openai

    return openai.OpenAIError, ValueError


def _message(error: Exception) -> str:
    return str(getattr(error, "message", ""))


def _error(kind: str, message: str, *, retryable: bool = True) -> SttError:
    return SttError(message, provider=OpenAiBatch.name, kind=kind, retryable=retryable)
