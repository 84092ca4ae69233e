"""One recogniser for all calls: worker threads behind one bounded queue.

The event loop never decodes. It puts a job into the queue and gets a future; a thread takes the most urgent job and
those that can share its decode, and settles their futures on the loop. The earliest due moment goes first, and
partials after everything else. A batch is what is waiting, it never waits for more. When the queue is full the engine
refuses: it never grows and never makes a caller wait for room.

What looks wrong after a short window is no result yet: it goes back into the queue for a second look over the full
one, a little behind those who have had none, while the rest of its batch has its words. A partial has one look.
"""

import asyncio
import functools
import heapq
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Protocol

import structlog

from app.asr.recogniser import Decoded, Request
from app.errors import SttError

log = structlog.get_logger(__name__)

SECOND_LOOK_S = 0.3
"""Whose words come for the first time goes so long before a second look, and no longer: noise is seldom words."""
RETRY_S = 0.25


class Decoder(Protocol):
    """What the worker threads call: a Recogniser, or something that answers like one."""

    workers: int
    max_batch: int

    def batch_key(self, request: Request) -> Hashable: ...

    def decode(self, requests: Sequence[Request], *, beam: int) -> list[Decoded]: ...


class Kind(IntEnum):
    FINAL = 0  # the utterance is over and a caller waits
    GUESS = 1  # it may be over
    PARTIAL = 2  # it goes on; greedy, and after everything else


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`beam` is for finals and guesses. `timeout_s` bounds a job from its submission to its result. `late_s`: what
    waits so long after it was due shows that one more call would be too many."""

    beam: int = 2
    max_queued: int = 64
    timeout_s: float = 10.0
    late_s: float = 1.0


@dataclass(eq=False, slots=True)
class Job:
    """`future` carries the result; cancelling it drops a queued job. A decode that runs cannot be stopped: its result
    is thrown away. `due` is a moment of the loop's clock; `key` says with which others it may be decoded."""

    request: Request
    kind: Kind
    due: float
    number: int
    key: Hashable
    future: asyncio.Future[Decoded]

    @property
    def urgency(self) -> tuple[bool, float, int]:
        """The lowest goes first."""
        return self.kind is Kind.PARTIAL, self.due, self.number

    def __lt__(self, other: "Job") -> bool:
        return self.urgency < other.urgency


@dataclass(eq=False, slots=True)
class _Batch:
    """At least one job. `started` is a moment of the loop's clock."""

    jobs: list[Job]
    started: float

    @property
    def partial(self) -> bool:
        return self.jobs[0].kind is Kind.PARTIAL


_Settled = tuple[Job, Decoded | SttError]


class DecodeEngine:
    """Belongs to the event loop that called `start`; only the worker threads are elsewhere.

    `decodes`, `batches` and `redecodes` count what was decoded: utterances, groups of them that had their first look
    together, and utterances that took a second one. `refused` counts jobs for which there was no room.
    """

    def __init__(self, decoder: Decoder, options: EngineOptions | None = None, *, expected_ms: float = 0.0) -> None:
        self._decoder = decoder
        self._options = options or EngineOptions()
        self._changed = threading.Condition()  # guards all that follows
        self._queue: list[Job] = []
        self._running: set[_Batch] = set()
        self._closing = False
        self._numbers = 0
        self._threads: list[threading.Thread] = []
        self._ended = asyncio.Event()
        self.decodes = self.batches = self.redecodes = self.refused = 0
        self.decode_ms = expected_ms
        """What a first look takes here, lately: of a whole batch, since each of it waits for all. `expected_ms`
        before the first one."""

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
            left = [*self._queue, *(job for batch in self._running for job in batch.jobs)]
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
        """Whether there is time for partials: nothing more urgent waits. Those of several callers wait together, so
        that they share a decode."""
        with self._changed:
            return not self._closing and (not self._queue or self._queue[0].kind is Kind.PARTIAL)

    @property
    def full(self) -> bool:
        """Whether one more call would be too many: the queue is nearly full, partials apart (they make room), or
        finals come late."""
        with self._changed:
            owed = sum(job.kind is not Kind.PARTIAL for job in self._queue)
            if 4 * owed >= 3 * self._options.max_queued:
                return True
            first = self._queue[0] if self._queue else None
        if first is None or first.kind is Kind.PARTIAL:
            return False
        return self._loop.time() - first.due > self._options.late_s

    @property
    def stuck(self) -> bool:
        """Whether a decode has been running for longer than any may take."""
        with self._changed:
            started = min((batch.started for batch in self._running), default=None)
        return started is not None and self._loop.time() - started > self._options.timeout_s

    def submit(self, request: Request, kind: Kind, *, due_s: float = 0.0) -> Job:
        """`due_s`: how soon the words are needed, in seconds. Raises SttError when the queue is full or the engine
        closed. The job's future fails with SttError alone; it need not be awaited.

        Room for a final or a guess is made at the cost of the last partial.
        """
        due = self._loop.time() + due_s
        request = replace(request, look="first")
        key = self._decoder.batch_key(request)
        evicted = None
        with self._changed:
            if self._closing:
                raise _closed()
            if len(self._queue) >= self._options.max_queued:
                self.refused += 1
                last = max(self._queue)
                if kind is Kind.PARTIAL or last.kind is not Kind.PARTIAL:
                    raise _full()
                self._remove(last)
                evicted = last
            self._numbers += 1
            job = Job(request, kind, due, self._numbers, key, self._loop.create_future())
            heapq.heappush(self._queue, job)
            self._changed.notify()
        if evicted is not None:
            _settle(evicted, _full())
        timer = self._loop.call_later(self._options.timeout_s, _settle, job, self._late())
        job.future.add_done_callback(lambda _: self._forget(job, timer))
        return job

    async def decode(self, request: Request, kind: Kind = Kind.FINAL) -> Decoded:
        """Submit and wait. Cancelling the caller drops the job. Raises SttError."""
        return await self.submit(request, kind).future

    async def submit_patiently(
        self, request: Request, kind: Kind = Kind.FINAL, *, due_s: float = 0.0, busy_s: float, retry_s: float = RETRY_S
    ) -> Job:
        """As `submit`, but a full queue is waited for, up to `busy_s`: it is no dead recogniser. Raises SttError."""
        give_up_at = self._loop.time() + busy_s
        while True:
            try:
                return self.submit(request, kind, due_s=due_s)
            except SttError as error:
                if error.kind != "busy" or self._loop.time() >= give_up_at:
                    raise
            await asyncio.sleep(retry_s)

    def promote(self, job: Job) -> None:
        """A guess that turned out to be right: from now on it is as urgent as a final."""
        with self._changed:
            job.kind = Kind.FINAL
            job.due = min(job.due, self._loop.time())
            heapq.heapify(self._queue)

    def _remove(self, job: Job) -> None:
        self._queue.remove(job)
        heapq.heapify(self._queue)

    def _forget(self, job: Job, timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        with self._changed:
            if job in self._queue:
                self._remove(job)
        if not job.future.cancelled():
            job.future.exception()  # seen, so that a guess nobody asked for again is not reported as lost

    def _late(self) -> SttError:
        return _error(f"no words within {self._options.timeout_s:g} s", kind="timeout", retryable=True)

    # ------------------------------------------------------------ the worker threads

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            outcomes = self._decode(batch.jobs)
            with self._changed:
                self._running.discard(batch)
                self.batches += batch.jobs[0].request.look == "first"
                pairs = zip(batch.jobs, outcomes, strict=True)
                settled = [(job, outcome) for job, outcome in pairs if not self._again(job, outcome)]
                self._count(outcomes, settled)
                self._changed.notify_all()
            if not self._on_loop(functools.partial(_settle_all, settled)):
                return  # nobody is left to ask for more
        self._on_loop(functools.partial(self._join, threading.current_thread()))

    def _decode(self, jobs: Sequence[Job]) -> list[Decoded | SttError]:
        """A batch that fails is decoded again one by one, so that one bad utterance costs no other its words."""
        beam = 1 if jobs[0].kind is Kind.PARTIAL else self._options.beam
        try:
            decoded = self._decoder.decode([job.request for job in jobs], beam=beam)
            return [one for _, one in zip(jobs, decoded, strict=True)]
        except Exception as error:
            # the edge of a thread: whatever a model raises fails this decode, never the ones after it
            if len(jobs) == 1:
                if isinstance(error, SttError):  # it says what is wrong: a recogniser that is away fails each decode
                    log.warning("x decode failed", kind=error.kind, error=str(error))
                else:
                    log.exception("x decode failed")
                return [_failed(error)]
            log.warning("x batch failed, decoding one by one", size=len(jobs), error=type(error).__name__)
            # those that nobody waits for any more have timed out: no time is left for them
            return [_failed(error) if job.future.done() else self._decode([job])[0] for job in jobs]

    def _again(self, job: Job, outcome: Decoded | SttError) -> bool:
        """Whether the job went back into the queue for a second look. Where there is no room the first one stands."""
        if not isinstance(outcome, Decoded) or not outcome.suspect or job.kind is Kind.PARTIAL:
            return False
        if self._closing or len(self._queue) >= self._options.max_queued:
            return False
        job.request = replace(job.request, look="second")
        job.key = self._decoder.batch_key(job.request)
        job.due = max(job.due, self._loop.time() + SECOND_LOOK_S)
        heapq.heappush(self._queue, job)
        return True

    def _count(self, outcomes: Sequence[Decoded | SttError], settled: Sequence[_Settled]) -> None:
        decoded = [one for _, one in settled if isinstance(one, Decoded)]
        self.decodes += len(decoded)
        self.redecodes += sum(one.redecoded for one in decoded)
        first_looks = (one.decode_ms for one in outcomes if isinstance(one, Decoded) and not one.redecoded)
        if (decode_ms := next(first_looks, None)) is not None:
            # down at once, since the first decode is slow; up slowly, since a busy moment passes
            self.decode_ms = min(decode_ms, 0.7 * self.decode_ms + 0.3 * decode_ms)

    def _join(self, thread: threading.Thread) -> None:
        thread.join()  # it is in its last line
        self._threads.remove(thread)
        self._ended.set()

    def _take(self) -> _Batch | None:
        with self._changed:
            while not self._closing:
                if self._may_start():
                    batch = _Batch(self._take_jobs(), self._loop.time())
                    self._running.add(batch)
                    return batch
                self._changed.wait()
            return None

    def _may_start(self) -> bool:
        """Partials leave a thread free for what is more urgent, if there is more than one."""
        if any(job.future.done() for job in self._queue):  # cancelled, and the loop has not come round to it
            self._queue = [job for job in self._queue if not job.future.done()]
            heapq.heapify(self._queue)
        if not self._queue or self._queue[0].kind is not Kind.PARTIAL:
            return bool(self._queue)
        return sum(batch.partial for batch in self._running) < max(1, self._decoder.workers - 1)

    def _take_jobs(self) -> list[Job]:
        """The most urgent job, and after it, in their order, those that can share its decode. Partials only share
        with partials, nobody's final shall take longer for them, and not where the next final waits for the only
        thread."""
        first = heapq.heappop(self._queue)
        partial = first.kind is Kind.PARTIAL
        most = 1 if partial and self._decoder.workers == 1 else self._decoder.max_batch
        alike = (job for job in self._queue if job.key == first.key and (job.kind is Kind.PARTIAL) is partial)
        more = heapq.nsmallest(most - 1, alike)
        if more:
            self._queue = [job for job in self._queue if job not in more]
            heapq.heapify(self._queue)
        return [first, *more]

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


def _settle_all(settled: Sequence[_Settled]) -> None:
    for job, outcome in settled:
        _settle(job, outcome)


def _failed(error: Exception) -> SttError:
    if isinstance(error, SttError):
        return error
    failed = _error(f"the recogniser failed: {type(error).__name__}", kind="decode", retryable=True)
    failed.__cause__ = error
    return failed


def _closed() -> SttError:
    return _error("the recogniser is being closed", kind="closed", retryable=False)


def _full() -> SttError:
    return _error("too many utterances wait for the recogniser", kind="busy", retryable=True)


def _error(message: str, *, kind: str, retryable: bool) -> SttError:
    return SttError(message, provider="local", kind=kind, retryable=retryable)
