"""STT_PROVIDER=local: our own recogniser, in this process, as the stream that a call listens through.

The final is decoded before it is needed. `pause` (the first silent frame) starts a decode of the utterance so far,
on the guess that it is over. If the caller goes on, `resume` voids the guess; if not, only silence came after it and
its text is the final at `flush`. So the wait of the endpointer and the decode run side by side.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog

from app.asr.engine import DecodeEngine, Job, Kind
from app.asr.recogniser import Decoded
from app.audio.types import SAMPLE_BYTES, AudioFrame, Transcript
from app.errors import SttError

log = structlog.get_logger(__name__)


class EngineSource(Protocol):
    """Where the engine comes from: a ModelShelf."""

    @property
    def loaded(self) -> bool: ...

    def borrow(self) -> AbstractAsyncContextManager[DecodeEngine]:
        """The engine that is current now, kept alive until it is given back."""


@dataclass(frozen=True, slots=True)
class LocalSttOptions:
    """`partial_ms` is PARTIAL_FLUSH_MS. `settled_ms`: so much audio after a pause, and the caller has gone on."""

    partial_ms: int = 250
    settled_ms: int = 600
    max_utterance_ms: int = 30_000  # what Whisper hears at once
    retry_s: float = 0.25
    busy_s: float = 10.0  # a full queue is waited for, not taken for a dead recogniser


@dataclass(slots=True)
class _Utterance:
    """One that is over. `job` decodes it, as a guess or as its final; None where it was refused."""

    pcm: bytes
    start_ms: int
    end_ms: int
    job: Job | None


class LocalStt:
    name = "local"
    hears: Literal["everything", "speech"] = "speech"

    def __init__(self, source: EngineSource, options: LocalSttOptions | None = None) -> None:
        self._source = source
        self._options = options or LocalSttOptions()

    @asynccontextmanager
    async def open(self, rate: int, language: str) -> AsyncIterator["LocalSttStream"]:
        async with self._source.borrow() as engine:
            stream = LocalSttStream(engine, rate, language, self._options)
            try:
                yield stream
            finally:
                stream.close()

    async def check(self) -> None:
        if not self._source.loaded:
            raise SttError("no model is loaded yet", provider=self.name, kind="not_loaded", retryable=True)


class LocalSttStream:
    """Starts no task. `send`, `pause` and `flush` only submit; waiting happens in the iteration."""

    def __init__(self, engine: DecodeEngine, rate: int, language: str, options: LocalSttOptions) -> None:
        self._engine = engine
        self._rate = rate
        self._language = language
        self._options = options
        self._changed = asyncio.Event()
        self._over: deque[_Utterance] = deque()
        self._last_text = ""  # the partial that the listener knows
        self._early: Job | None = None  # a partial or a guess of which the listener has not heard
        self._guess: Job | None = None
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._frames: deque[AudioFrame] = deque()
        self._bytes = 0
        self._paused_bytes: int | None = None  # what the guess covers
        self._next_partial_ms: float = 2 * self._options.partial_ms  # the first half of it is pre-roll

    # ------------------------------------------------------------ audio in

    async def send(self, frame: AudioFrame) -> None:
        self._frames.append(frame)
        self._bytes += len(frame.pcm)
        while self._ms(self._bytes) > self._options.max_utterance_ms:
            self._bytes -= len(self._frames.popleft().pcm)
        if self._partial_is_due():
            self._next_partial_ms = self._ms(self._bytes) + self._options.partial_ms
            self._early = self._submit(self._audio(), Kind.PARTIAL)

    def _partial_is_due(self) -> bool:
        """While the caller speaks, and only where it keeps nobody's final waiting: a machine whose decodes take
        longer than two partials has no time for any."""
        paused = self._paused_bytes
        return (
            self._ms(self._bytes) >= self._next_partial_ms
            and (paused is None or self._ms(self._bytes - paused) >= self._options.settled_ms)
            and self._early is None
            and not self._over
            and self._engine.idle
            and self._engine.decode_ms <= 2 * self._options.partial_ms
        )

    async def pause(self) -> None:
        """Guess that the utterance is over, from all of its audio so far."""
        self._drop_early_jobs()
        self._paused_bytes = self._bytes
        self._guess = self._early = self._submit(self._audio(), Kind.GUESS)

    async def resume(self) -> None:
        self._guess = self._paused_bytes = None  # its words may still be told as a partial

    async def flush(self) -> None:
        job, self._guess = self._guess, None
        if job is not self._early:
            self._drop_early_jobs()
        self._early = None
        pcm = self._audio()
        if job is None or _failed(job):
            job = self._submit(pcm, Kind.FINAL)
        else:
            self._engine.promote(job)
        self._over.append(_Utterance(pcm, self._start_ms(), self._end_ms(), job))
        self._last_text = ""
        self._begin()
        self._changed.set()

    def close(self) -> None:
        """Drop what is queued. The iteration ends."""
        self._closed = True
        self._drop_early_jobs()
        for utterance in self._over:
            if utterance.job is not None:
                utterance.job.future.cancel()
        self._changed.set()

    def _submit(self, pcm: bytes, kind: Kind) -> Job | None:
        try:
            job = self._engine.submit(pcm, self._rate, self._language, kind)
        except SttError as error:
            log.debug("x decode refused", kind=error.kind, of=kind.name)
            return None
        job.future.add_done_callback(lambda _: self._changed.set())
        return job

    def _drop_early_jobs(self) -> None:
        for job in (self._early, self._guess):
            if job is not None:
                job.future.cancel()
        self._early = self._guess = None

    # ------------------------------------------------------------ words out

    async def __aiter__(self) -> AsyncIterator[Transcript]:
        """Partials and guesses as they come, replacing each other; exactly one final for each flush, in order.
        Raises SttError for a final that failed twice."""
        while not self._closed:
            self._changed.clear()
            if self._over:
                yield await self._final(self._over[0])
            elif (partial := self._news()) is not None:
                yield partial
            else:
                await self._changed.wait()

    def _news(self) -> Transcript | None:
        """What a partial or the guess found, unless it is known already."""
        job = self._early
        if job is None or not job.future.done():
            return None
        self._early = None
        if _failed(job):
            return None
        decoded = job.future.result()
        if decoded.text == self._last_text:
            return None
        self._last_text = decoded.text
        return Transcript(decoded.text, False, self._start_ms(), self._end_ms(), decoded.confidence)

    async def _final(self, utterance: _Utterance) -> Transcript:
        decoded = await self._decode(utterance)
        self._over.popleft()
        if decoded.dropped:
            log.info("x words not believed", reason=decoded.dropped)
        return Transcript(decoded.text, True, utterance.start_ms, utterance.end_ms, decoded.confidence)

    async def _decode(self, utterance: _Utterance) -> Decoded:
        if utterance.job is not None:
            try:
                return await utterance.job.future
            except SttError as error:
                log.warning("x decode failed, trying again", kind=error.kind)
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._options.busy_s
        while True:
            try:
                return await self._engine.decode(utterance.pcm, self._rate, self._language, Kind.FINAL)
            except SttError as error:
                if error.kind != "busy" or loop.time() >= give_up_at:
                    raise
            await asyncio.sleep(self._options.retry_s)

    # ------------------------------------------------------------ the buffer

    def _audio(self) -> bytes:
        return b"".join(frame.pcm for frame in self._frames)

    def _ms(self, size: int) -> float:
        return size * 1000 / (SAMPLE_BYTES * self._rate)

    def _start_ms(self) -> int:
        return self._frames[0].at_ms if self._frames else 0

    def _end_ms(self) -> int:
        return round(self._frames[-1].at_ms + self._frames[-1].duration_ms) if self._frames else 0


def _failed(job: Job) -> bool:
    if not job.future.done():
        return False
    if job.future.cancelled():
        return True
    error = job.future.exception()
    if error is not None:
        log.debug("x early decode failed", of=job.kind.name, error=str(error))
    return error is not None
