"""One child process (worker_child.py) from the parent's side: what goes in, what comes out, and its death."""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import structlog

from app.asr.recogniser import Decoded, Request
from app.asr.worker_child import Load, read_frame, to_wire, write_frame
from app.errors import ConfigError, SttError

log = structlog.get_logger(__name__)

DEATH_S = 2.0
"""Seconds from SIGKILL, or from the end of its output, to the end of a process; a driver that hangs keeps it longer."""

PYTHON_PATH = str(Path(__file__).parents[2])


class ChildLost(Exception):
    """The child is gone, and with it what was asked of it."""


class Child:
    """One process. `decode` may be called by several threads; `start`, `serve` and `close` by its owner."""

    def __init__(self, command: Sequence[str]) -> None:
        """Raises OSError."""
        path = os.pathsep.join(part for part in (PYTHON_PATH, os.environ.get("PYTHONPATH", "")) if part)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert self._process.stdin is not None  # asked for above, like the other two
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._writing = threading.Lock()
        self._state = threading.Lock()  # guards what follows
        self._asked: dict[int, Future[list[Decoded]]] = {}
        self._numbers = 0
        self._why = ""
        self._ended = False
        self._last_words = ""
        self._listening = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listening.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self, why: str) -> None:
        """From any thread. Also ends a child that is stopped, and whoever writes to it or reads from it."""
        with self._state:
            self._why = self._why or why
        self._process.kill()

    def start(self, load: Load, bound_s: float) -> dict[str, Any]:
        """What it says of itself once it is ready. Raises ConfigError with its own words, or ChildLost."""
        with self._killed_after(bound_s, f"not ready within {bound_s:g} s"):
            self._write(asdict(load))
            frame = read_frame(self._from)
        if frame is None:
            raise ChildLost(self._epitaph())
        if "failed" in frame[0]:
            raise ConfigError(frame[0]["failed"])
        facts: dict[str, Any] = frame[0]["ready"]
        return facts

    def serve(self) -> str:
        """Hand its answers to those who asked, until it ends. Returns why it did; raises for nonsense that it said."""
        why = "it spoke nonsense"
        try:
            while (frame := read_frame(self._from)) is not None:
                self._answer(frame[0])
            why = self._epitaph()
        finally:
            with self._state:
                self._ended = True
                lost = list(self._asked.values())
                self._asked.clear()
            for future in lost:
                future.set_exception(ChildLost(why))
        return why

    def decode(self, requests: Sequence[Request], beam: int, bound_s: float) -> list[Decoded]:
        """Raises ChildLost, and SttError for what failed while the child is well."""
        future: Future[list[Decoded]] = Future()
        with self._state:
            if self._ended:
                raise ChildLost(self._why or "it has ended")
            self._numbers += 1
            number = self._numbers
            self._asked[number] = future
        told, audio = to_wire(requests)
        with self._killed_after(bound_s, f"no answer within {bound_s:g} s"):
            self._write({"id": number, "beam": beam, "requests": told}, audio)
            try:
                return future.result(bound_s + DEATH_S)
            except TimeoutError:
                raise ChildLost(f"no answer within {bound_s:g} s, and it cannot be killed") from None

    def close(self) -> None:
        self.kill("closed")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(DEATH_S)
        self._listening.join(DEATH_S)
        for stream in (self._to, self._from):
            with contextlib.suppress(OSError):  # what it was not told any more
                stream.close()

    def _write(self, header: dict[str, Any], body: bytes = b"") -> None:
        with self._writing, contextlib.suppress(OSError):  # it has ended: whoever reads from it notices
            write_frame(self._to, header, body)

    def _answer(self, told: dict[str, Any]) -> None:
        with self._state:
            future = self._asked.pop(told["id"])
        if "decoded" in told:
            future.set_result([Decoded(**one) for one in told["decoded"]])
        elif told["fatal"]:
            future.set_exception(ChildLost(told["error"]))
            self.kill(told["error"])
        else:
            failed = f"the recogniser failed: {told['error']}"
            future.set_exception(SttError(failed, provider="local", kind="decode", retryable=True))

    @contextlib.contextmanager
    def _killed_after(self, bound_s: float, why: str) -> Iterator[None]:
        timer = threading.Timer(bound_s, self.kill, (why,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _listen(self, stderr: IO[bytes]) -> None:
        """Libraries complain on standard error; the child itself writes nothing there."""
        with stderr:
            for line in stderr:
                self._last_words = line.decode(errors="replace").strip()[:300] or self._last_words
                log.info("- the recogniser's process says", pid=self.pid, line=self._last_words)

    def _epitaph(self) -> str:
        try:
            code = self._process.wait(DEATH_S)
        except subprocess.TimeoutExpired:
            self.kill("it closed its output")
        if self._why:
            return self._why
        self._listening.join(DEATH_S)
        ended = f"killed by signal {-code}" if code < 0 else f"ended with status {code}"
        return f"{ended}; {self._last_words}" if self._last_words else ended
