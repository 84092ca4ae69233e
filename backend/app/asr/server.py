"""The recogniser as a service: POST /transcribe, POST /transcribe-sync, GET /health, GET /models.

`create_app` opens and closes nothing; `asr_service.py` does. What goes over the wire is in docs/asr-service.md.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

import structlog
from fastapi import Depends, FastAPI, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.asr import hub
from app.asr.duplex import Answer, Body, DuplexResponse, RefusedResponse, as_refused
from app.asr.engine import DecodeEngine
from app.asr.formats import format_of_type
from app.asr.live import LiveLimits, LiveStream, PcmBody
from app.asr.models import REPOSITORIES, ModelStatus
from app.asr.recording import MAX_UTTERANCE_MS, transcribe
from app.asr.schemas import LANGUAGES, Health, Models, Refused, Transcription, busy, shutdown
from app.asr.speech import SpeechFinder
from app.asr.stream import RecogniserStream, StreamOptions
from app.asr.uploads import RATE, UploadLimits, Uploads, decode_file, file_of, read_upload
from app.audio.endpoint import Endpointer, EndpointOptions
from app.audio.types import SAMPLE_BYTES
from app.audio.vad import SpeechDetector
from app.errors import SttError

log = structlog.get_logger(__name__)

T = TypeVar("T")

_bearer = HTTPBearer(auto_error=False, description="ASR_API_KEY")


class Shelf(Protocol):
    """Where the model is: a ModelShelf."""

    @property
    def loaded(self) -> bool: ...

    @property
    def status(self) -> ModelStatus: ...

    @property
    def trouble(self) -> str:
        """Why nothing would be recognised now, in words; empty if it would."""

    @property
    def engine(self) -> DecodeEngine: ...

    def borrow(self) -> AbstractAsyncContextManager[DecodeEngine]: ...


@dataclass(frozen=True, slots=True)
class AsrOptions:
    """`api_key`: ASR_API_KEY; empty: nobody is asked. `language`: where a request names none (LANG_HINT). `cache`:
    where the model hub's files lie, None for huggingface_hub's own folder."""

    api_key: str = ""
    language: str = "ko"
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    stream: StreamOptions = field(default_factory=StreamOptions)
    live: LiveLimits = field(default_factory=LiveLimits)
    uploads: UploadLimits = field(default_factory=UploadLimits)
    cache: Path | None = None


class AsrService:
    """What the routes have in common."""

    def __init__(self, shelf: Shelf, new_detector: Callable[[], SpeechDetector], options: AsrOptions) -> None:
        self.shelf = shelf
        self.options = options
        self.uploads = Uploads(options.uploads)
        self._new_detector = new_detector
        self._streams = 0
        self._live: set[LiveStream] = set()
        self._told_nothing: set[asyncio.Timeout] = set()

    def finder(self, rate: int, endpoint: EndpointOptions) -> SpeechFinder:
        return SpeechFinder(self._new_detector(), Endpointer(endpoint), rate)

    def language(self, request: Request) -> str:
        language = request.query_params.get("language") or self.options.language
        if language != "auto" and language not in LANGUAGES:
            raise Refused(400, "unknown_language", "language: send a code such as ko or en, or auto")
        return language

    def ready_engine(self) -> DecodeEngine:
        """Raises Refused (503) where nothing can be recognised now."""
        if not self.shelf.loaded:
            raise busy("no model is loaded yet", "not_loaded")
        engine = self.shelf.engine
        if engine.stuck:
            raise busy("the recogniser does not come back from a decode", "stuck")
        if trouble := self.shelf.trouble:
            raise busy(trouble, "unavailable")
        return engine

    # ------------------------------------------------------------ /transcribe

    async def stream(self, request: Request, body: Body, answer: Answer) -> None:
        """What DuplexResponse is given."""
        language = self.language(request)
        form = format_of_type(request.headers.get("content-type", ""))
        if self.ready_engine().full or self._streams >= self.options.live.streams:
            raise busy("as many speak already as can be understood; try again in a moment")
        self._streams += 1
        try:
            async with self.shelf.borrow() as engine:
                pcm = PcmBody(body, form, self.options.live)
                rate = await self._unless_we_leave(pcm.open())
                stream = RecogniserStream(engine, rate, language, self.options.stream)
                finder = self.finder(rate, self.options.endpoint)
                live = LiveStream(pcm, answer, finder, stream, rate)
                self._live.add(live)
                try:
                    await live.run(self.options.live)
                finally:
                    self._live.discard(live)
                    stream.close()
        finally:
            self._streams -= 1

    # ------------------------------------------------------------ leaving

    def end_all(self) -> None:
        """Tell those who speak, and those who wait for the words of a file, that we leave."""
        for live in self._live:
            live.end(shutdown())
        while self._told_nothing:
            self._told_nothing.pop().reschedule(asyncio.get_running_loop().time())

    async def _unless_we_leave(self, work: Awaitable[T]) -> T:
        """For what comes before the answer begins. Raises Refused (503) when we leave first."""
        bound = asyncio.timeout(None)
        self._told_nothing.add(bound)
        try:
            async with bound:
                return await work
        except TimeoutError as error:
            raise shutdown() from error
        finally:
            self._told_nothing.discard(bound)

    # ------------------------------------------------------------ /transcribe-sync

    async def file(self, request: Request, body: Body, answer: Answer) -> None:
        """What DuplexResponse is given."""
        language = self.language(request)
        content_type = request.headers.get("content-type", "")
        self.ready_engine()
        await answer.whole(await self._unless_we_leave(self._words_of(body, content_type, language)))

    async def _words_of(self, body: Body, content_type: str, language: str) -> Transcription:
        limits = self.options.uploads
        async with self.uploads.admitted() as turns:
            data = await read_upload(body, limits)
            loop = asyncio.get_running_loop()
            began = loop.time()
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(body.left())
                try:
                    async with asyncio.timeout(limits.work_s), turns:
                        pcm = await decode_file(await file_of(content_type, data), limits)
                        heard = await self._transcribe(pcm, language)
                except TimeoutError as error:
                    raise busy("the recogniser has too much to do") from error
                watching.cancel()
        return replace(heard, took_ms=round((loop.time() - began) * 1000))

    async def _transcribe(self, pcm: bytes, language: str) -> Transcription:
        endpoint = replace(self.options.endpoint, max_utterance_ms=MAX_UTTERANCE_MS)
        async with self.shelf.borrow() as engine:
            finder = self.finder(RATE, endpoint)
            segments, heard = await transcribe(engine, finder, pcm, RATE, language)
        text = " ".join(segment.text for segment in segments)
        duration_s = round(len(pcm) / (SAMPLE_BYTES * RATE), 3)
        return Transcription(text, segments, heard, duration_s, took_ms=0)

    # ------------------------------------------------------------ the rest

    def health(self) -> Health:
        if not self.shelf.loaded:
            return Health("not_loaded", "", "", "", 0, False)
        status, engine = self.shelf.status, self.shelf.engine
        well: Literal["ok", "unavailable"] = "unavailable" if self.shelf.trouble else "ok"
        return Health(
            "stuck" if engine.stuck else well,
            status.name,
            status.device,
            status.compute_type,
            engine.queue_depth,
            True,
        )

    def models(self) -> Models:
        """Blocking: looks on the disk."""
        cached = [name for name, at in REPOSITORIES.items() if hub.find_cached(at, self.options.cache)]
        current = self.shelf.status.name if self.shelf.loaded else ""
        return Models([*dict.fromkeys(("demo", *cached, *([current] if current else [])))], current)


def create_app(shelf: Shelf, new_detector: Callable[[], SpeechDetector], options: AsrOptions | None = None) -> FastAPI:
    """`app.state.service` is its AsrService."""
    service = AsrService(shelf, new_detector, options or AsrOptions())
    app = FastAPI(title="Malgil recogniser", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(SttError, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    needs_key = [Depends(_key_check(service.options.api_key))]

    @app.post("/transcribe", dependencies=needs_key)
    async def transcribe_stream(request: Request) -> Response:
        return DuplexResponse(lambda body, answer: service.stream(request, body, answer))

    @app.post("/transcribe-sync", dependencies=needs_key)
    async def transcribe_file(request: Request) -> Response:
        return DuplexResponse(lambda body, answer: service.file(request, body, answer))

    @app.get("/health")
    async def health(response: Response) -> Health:
        answer = service.health()
        response.status_code = 200 if answer.status == "ok" else 503
        return answer

    @app.get("/models", dependencies=needs_key)
    async def models() -> Models:
        return await asyncio.to_thread(service.models)

    return app


def _key_check(key: str) -> Callable[..., Any]:
    async def check(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
        if not key:
            return
        if credentials is None:
            raise Refused(
                401,
                "no_key",
                "this needs a key: send the header Authorization: Bearer ASR_API_KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if not hmac.compare_digest(credentials.credentials.encode(), key.encode()):
            raise Refused(403, "wrong_key", "that is not the key (ASR_API_KEY)")

    return check


async def _refused(_request: Request, error: Exception) -> Response:
    return RefusedResponse(as_refused(error))


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    headers = dict(error.headers or {})
    return RefusedResponse(Refused(status, status.name.lower(), f"{status.phrase}: {error.detail}", headers=headers))
