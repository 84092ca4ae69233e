"""A recogniser in a process of its own, for a GPU: it can be killed and started anew (see worker_child.py for why).

    child                           decodes that it had           next decodes
    says a CUDA error, out of       tried once more (a batch      wait for the new child
    memory; dies; does not answer   one by one, by the engine)
    cannot be started               fail                          fail at once, until a later start works

One thread owns the child from its start to its end. It starts the next one by itself, without being asked for a
decode: a server that is not ready gets no calls, so nobody would ask.
"""

import sys
import threading
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import structlog

from app.asr import worker_child
from app.asr.recogniser import Decoded, RecogniserOptions, Request
from app.asr.worker_child import Load
from app.asr.worker_link import DEATH_S, Child, ChildLost
from app.errors import ConfigError, SttError

log = structlog.get_logger(__name__)

FREE_RESTARTS = 3
"""Children in a row that may end without a decode before the next start waits. So many does one utterance end: in a
batch, by itself, and in its second try."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Seconds: for a child to load and warm its model; for a decode to wait for a child, and then for its answer;
    before a start that follows several failures, doubled each time up to a bound."""

    load_s: float = 120.0
    wait_s: float = 10.0
    answer_s: float = 6.0
    backoff_s: float = 1.0
    max_backoff_s: float = 30.0
    command: tuple[str, ...] = (sys.executable, "-P", "-m", worker_child.__name__)


class WorkerProcess:
    """A Decoder. Its methods block: call them from the engine's threads. `restarts` counts children after the first.

    `trouble` says in words why it cannot decode now; it is empty while it can.
    """

    def __init__(self, load: Load, options: WorkerOptions | None = None) -> None:
        self.name = load.name
        self.device = load.device
        self.compute_type = load.compute_type
        self.workers = load.workers
        self.max_batch = 1  # the child knows
        self.restarts = 0
        self.trouble = "its process is being started"
        self._load = load
        self._options = options or WorkerOptions()
        self._changed = threading.Condition()  # guards what follows, `restarts` and `trouble`
        self._process: Child | None = None  # the one there is, ready or not
        self._ready: Child | None = None
        self._decode_ms = 0.0
        self._failures = 0  # children in a row that have not decoded anything
        self._refused = ""  # why decodes fail at once instead of waiting for the next child
        self._closing = False
        self._second_try = threading.Lock()
        self._first_start: Future[None] = Future()
        self._owner = threading.Thread(target=self._own, name=f"recogniser-{load.name}", daemon=True)

    @classmethod
    def load(
        cls,
        folder: Path,
        name: str,
        device: str = "cpu",
        compute_type: str = "int8",
        workers: int = 1,
        options: RecogniserOptions | None = None,
        limits: WorkerOptions | None = None,
    ) -> Self:
        """As `Recogniser.load`, and warmed up already. Raises ConfigError; then no process is left."""
        load = Load(str(folder.absolute()), name, device, compute_type, workers, options or RecogniserOptions())
        worker = cls(load, limits)
        worker._owner.start()
        try:
            worker._first_start.result(worker._options.load_s + 3 * DEATH_S)  # at load_s the child is killed
        except TimeoutError:
            raise ConfigError(f"MODEL_NAME: {name} is not loaded, and its process cannot be killed") from None
        return worker

    def warm_up(self) -> float:
        """Each child warms up before it is ready; this is what its decode took, in milliseconds."""
        return self._decode_ms

    def close(self) -> None:
        """End the child, in the middle of a decode if need be, which then fails."""
        with self._changed:
            self._closing = True
            process = self._process
            self._changed.notify_all()
        if process is not None:
            process.kill("closed")
        self._owner.join(self._options.answer_s)
        if self._owner.is_alive():
            log.error("x the recogniser's process does not end", model=self.name)

    # ------------------------------------------------------------ decoding

    def batch_key(self, request: Request) -> Hashable:
        """As the Recogniser's, without a model: only the child can count the tokens of `previous`, and prompts must be
        of one length, so requests with it are decoded alone."""
        return object() if request.previous else self._load.options.window_s(request, self.device)

    def decode(self, requests: Sequence[Request], *, beam: int) -> list[Decoded]:
        """Raises SttError: for this request alone where two children failed at it, and at once where no child can be
        had. Several requests are not tried again together: they may have been too many for the memory, or one of them
        may be to blame. The engine then decodes each by itself."""
        try:
            return self._decode_once(requests, beam)
        except ChildLost as error:
            if self._closing:
                raise _closed() from error
            log.warning("x decode lost with the recogniser's process", model=self.name, size=len(requests))
            if len(requests) > 1:
                raise _error(f"the recogniser's process failed: {error}", kind="worker") from error
        # one at a time: what kills a child must not take the second try of another with it
        with self._second_try:
            try:
                return self._decode_once(requests, beam)
            except ChildLost as error:
                raise _error(f"the recogniser's process failed twice at this: {error}", kind="worker") from error

    def _decode_once(self, requests: Sequence[Request], beam: int) -> list[Decoded]:
        child = self._wait_for_child()
        try:
            decoded = child.decode(requests, beam, self._options.answer_s)
        except ChildLost as error:
            with self._changed:
                if self._ready is child:
                    self._ready = None  # so that the second try waits for another
                    self.trouble = f"its process is being started again ({error})"
            raise
        with self._changed:
            self._failures = 0
        return decoded

    def _wait_for_child(self) -> Child:
        with self._changed:
            in_time = self._changed.wait_for(
                lambda: self._ready or self._refused or self._closing, timeout=self._options.wait_s
            )
            if self._closing:
                raise _closed()
            if self._ready is not None:
                return self._ready
            why = self._refused if in_time else "it is still being started"
        raise _error(f"the recogniser's process cannot decode now: {why}", kind="worker")

    # ------------------------------------------------------------ the child's life, on a thread of its own

    def _own(self) -> None:
        while (why := self._one_life()) is not None and not self._closing:
            delay_s = self._fail(why)
            log.error(
                "x the recogniser's process is started again",
                model=self.name,
                why=why,
                restarts=self.restarts,
                in_s=round(delay_s, 1),
            )
            with self._changed:
                self._changed.wait_for(lambda: self._closing, timeout=delay_s)

    def _one_life(self) -> str | None:
        """Why the child has ended, or could not be had; None when there will be no other."""
        child = None
        try:
            child = Child(self._options.command)
            with self._changed:
                self._process = child
                if self._closing:
                    return None
            self._succeed(child, child.start(self._load, self._options.load_s))
            return child.serve()
        except Exception as error:
            # the edge of the thread: were it to end, no child would ever be started again
            return self._lose(error)
        finally:
            if child is not None:
                child.close()

    def _lose(self, error: Exception) -> str | None:
        why = str(error)
        if not isinstance(error, ChildLost | ConfigError | OSError):  # OSError: no process to be had
            log.exception("x the recogniser's process says what nobody understands", model=self.name)
            why = f"nobody understands what it says: {type(error).__name__}"
        if self._first_start.done():
            return why
        if not isinstance(error, ConfigError):
            error = ConfigError(f"MODEL_NAME: {self.name} could not be loaded in a process of its own: {why}")
        self._first_start.set_exception(error)
        return None

    def _succeed(self, child: Child, facts: dict[str, Any]) -> None:
        with self._changed:
            self._ready = child
            self.max_batch = facts["max_batch"]
            self._decode_ms = facts["decode_ms"]
            self._refused = self.trouble = ""
            self._changed.notify_all()
        if self._first_start.done():
            log.info("- the recogniser's process is ready again", model=self.name, restarts=self.restarts)
        else:
            self._first_start.set_result(None)

    def _fail(self, why: str) -> float:
        """Seconds until the next start."""
        with self._changed:
            self._ready = self._process = None
            self.restarts += 1
            self._failures += 1
            more = self._failures - FREE_RESTARTS
            delay_s = 0.0 if more <= 0 else min(self._options.max_backoff_s, self._options.backoff_s * 2 ** (more - 1))
            self.trouble = f"its process is being started again ({why})"
            self._refused = self.trouble if delay_s else ""
            self._changed.notify_all()
        return delay_s


def _error(message: str, *, kind: str) -> SttError:
    return SttError(message, provider="local", kind=kind, retryable=True)


def _closed() -> SttError:
    return SttError("the recogniser is being closed", provider="local", kind="closed", retryable=False)
