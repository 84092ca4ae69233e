"""One recogniser for all calls: worker threads behind one bounded queue.

The event loop never decodes. It puts a job into the queue and gets a future; a thread takes the most urgent job,
decodes, and settles the future on the loop. Finals go before guesses, guesses before partials, and among equals the
earliest first. When the queue is full the engine refuses: it never grows and never makes a caller wait for room.
"""

import asyncio
import functools
import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import structlog

from app.asr.recogniser import Decoded
from app.errors import SttError

log = structlog.get_logger(__name__)


class Decoder(Protocol):
    """What the worker threads call: a Recogniser, or something that answers like one."""

    workers: int

    def decode(self, pcm: bytes, rate: int, language: str, *, beam: int) -> Decoded: ...


class Kind(IntEnum):
    """How urgent a decode is; the lowest goes first."""

    FINAL = 0  # the utterance is over and a caller waits
    GUESS = 1  # it may be over
    PARTIAL = 2  # it goes on; greedy


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`beam` is for finals and guesses. `timeout_s` bounds a job from its submission to its result."""

    beam: int = 2
    max_queued: int = 64
    timeout_s: float = 10.0


@dataclass(eq=False, slots=True)
class Job:
    """`future` carries the result; cancelling it drops a queued job. A decode that runs cannot be stopped: its result
    is thrown away."""

    kind: Kind
    number: int
    pcm: bytes
    rate: int
    language: str
    future: asyncio.Future[Decoded]

    def __lt__(self, other: "Job") -> bool:
        return (self.kind, self.number) < (other.kind, other.number)


class DecodeEngine:
    """Belongs to the event loop that called `start`; only the worker threads are elsewhere."""

    def __init__(self, decoder: Decoder, options: EngineOptions | None = None, *, expected_ms: float = 0.0) -> None:
        self._decoder = decoder
        self._options = options or EngineOptions()
        self._changed = threading.Condition()  # guards all that follows
        self._queue: list[Job] = []
        self._running: set[Job] = set()
        self._closing = False
        self._numbers = 0
        self._threads: list[threading.Thread] = []
        self._ended = asyncio.Event()
        self.decode_ms = expected_ms
        """What a decode takes here, lately; `expected_ms` before the first one."""

    # ------------------------------------------------------------ life

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._threads = [
            threading.Thread(target=self._work, name=f"decode-{number}", daemon=True)
            for number in range(self._decoder.workers)
        ]
        for thread in self._threads:
            thread.start()

    async def aclose(self) -> None:
        """Refuse new jobs, drop those in the queue, and wait for the threads: at most one decode long."""
        with self._changed:
            self._closing = True
            left = [*self._queue, *self._running]
            self._queue.clear()
            self._changed.notify_all()
        for job in left:
            _settle(job, _closed())
        try:
            async with asyncio.timeout(self._options.timeout_s):
                while self._threads:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            log.error("x decode threads still busy at the end", threads=len(self._threads))

    # ------------------------------------------------------------ work

    @property
    def queue_depth(self) -> int:
        """Jobs that wait; those that a thread has taken do not count."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether a partial would keep nobody waiting: nothing is queued, and another thread stays free if there is
        more than one."""
        spare = self._decoder.workers - len(self._running)
        return not self._queue and not self._closing and spare >= min(2, self._decoder.workers)

    def submit(self, pcm: bytes, rate: int, language: str, kind: Kind) -> Job:
        """Raises SttError when the queue is full or the engine closed. The job's future fails with SttError alone; it
        need not be awaited."""
        with self._changed:
            if self._closing:
                raise _closed()
            if len(self._queue) >= self._options.max_queued:
                raise _error("too many utterances wait for the recogniser", kind="busy", retryable=True)
            self._numbers += 1
            job = Job(kind, self._numbers, pcm, rate, language, self._loop.create_future())
            heapq.heappush(self._queue, job)
            self._changed.notify()
        timer = self._loop.call_later(self._options.timeout_s, _settle, job, self._late())
        job.future.add_done_callback(lambda _: self._forget(job, timer))
        return job

    async def decode(self, pcm: bytes, rate: int, language: str, kind: Kind = Kind.FINAL) -> Decoded:
        """Submit and wait. Cancelling the caller drops the job. Raises SttError."""
        return await self.submit(pcm, rate, language, kind).future

    def promote(self, job: Job) -> None:
        """A guess that turned out to be right: from now on it is as urgent as a final."""
        with self._changed:
            job.kind = Kind.FINAL
            heapq.heapify(self._queue)

    def _forget(self, job: Job, timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        with self._changed:
            if job in self._queue:
                self._queue.remove(job)
                heapq.heapify(self._queue)
        if not job.future.cancelled():
            job.future.exception()  # seen, so that a guess nobody asked for again is not reported as lost

    def _late(self) -> SttError:
        return _error(f"no words within {self._options.timeout_s:g} s", kind="timeout", retryable=True)

    # ------------------------------------------------------------ the worker threads

    def _work(self) -> None:
        while (job := self._take()) is not None:
            outcome: Decoded | SttError
            try:
                beam = 1 if job.kind is Kind.PARTIAL else self._options.beam
                outcome = self._decoder.decode(job.pcm, job.rate, job.language, beam=beam)
            except Exception as error:
                # the edge of a thread: whatever a model raises fails this decode, never the ones after it
                log.exception("x decode failed")
                outcome = _error(f"the recogniser failed: {type(error).__name__}", kind="decode", retryable=True)
                outcome.__cause__ = error
            with self._changed:
                self._running.discard(job)
                if isinstance(outcome, Decoded):
                    # down at once, since the first decode is slow; up slowly, since a busy moment passes
                    self.decode_ms = min(outcome.decode_ms, 0.7 * self.decode_ms + 0.3 * outcome.decode_ms)
            if not self._on_loop(functools.partial(_settle, job, outcome)):
                return  # nobody is left to ask for more
        self._on_loop(functools.partial(self._join, threading.current_thread()))

    def _join(self, thread: threading.Thread) -> None:
        thread.join()  # it is in its last line
        self._threads.remove(thread)
        self._ended.set()

    def _take(self) -> Job | None:
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            if self._closing:
                return None
            job = heapq.heappop(self._queue)
            self._running.add(job)
            return job

    def _on_loop(self, act: Callable[[], None]) -> bool:
        """False where the loop is gone."""
        try:
            self._loop.call_soon_threadsafe(act)
        except RuntimeError:
            log.debug("- a decode outlived its event loop")
            return False
        return True


def _settle(job: Job, outcome: Decoded | SttError) -> None:
    if job.future.done():
        return
    if isinstance(outcome, Decoded):
        job.future.set_result(outcome)
    else:
        job.future.set_exception(outcome)


def _closed() -> SttError:
    return _error("the recogniser is being closed", kind="closed", retryable=False)


def _error(message: str, *, kind: str, retryable: bool) -> SttError:
    return SttError(message, provider="local", kind=kind, retryable=retryable)
