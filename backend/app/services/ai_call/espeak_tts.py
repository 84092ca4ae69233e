"""TTS_PROVIDER=espeak: the keyless voice, in a worker process of its own (see espeak_worker for why).

All calls share one worker. That is enough: it speaks a thousand times faster than real time, so a clause
holds it for a few milliseconds. A clause's audio is taken into memory whole before any of it is handed on; a
slow consumer therefore never holds the worker, and a long text is spoken clause by clause.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType

import structlog

from app.audio.types import SAMPLE_BYTES, AudioFrame
from app.errors import InvalidState, TtsError
from app.services.ai_call import espeak_worker
from app.services.ai_call.espeak_worker import END, FAILED, HEADER, LENGTH, READY
from app.services.ai_call.language import language_of
from app.services.ai_call.sentences import SentenceSplitter

log = structlog.get_logger(__name__)

RATES = range(8000, 48001)
FRAME_MS = 100
_READ_BYTES = 65536

Request = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class EspeakVoice:
    """`name` is espeak-ng's, with a variant behind a plus: `ko`, `ko+f3`. `speed` is in words a minute (80 to
    450), `pitch` 0 to 99. `pause_ms` of silence follow each clause."""

    name: str
    speed: int = 175
    pitch: int = 50
    pause_ms: int = 150


BOT_VOICES: Mapping[str, EspeakVoice] = MappingProxyType(
    {"ko": EspeakVoice("ko", speed=185, pitch=48), "en": EspeakVoice("en-us", speed=165, pitch=48)}
)


class WorkerDied(Exception):
    """The worker's end of the pipe closed. Stays inside this module."""


class EspeakTts:
    """`language` is what a text without letters of its own is spoken in."""

    name = "espeak"

    def __init__(
        self,
        language: str = "ko",
        voices: Mapping[str, EspeakVoice] = BOT_VOICES,
        *,
        start_s: float = 10.0,
        first_audio_s: float = 3.0,
        idle_s: float = 2.0,
    ) -> None:
        self._language = language if language in voices else next(iter(voices))
        self._voices = voices
        self._start_s = start_s
        self._first_audio_s = first_audio_s
        self._idle_s = idle_s
        self._turn = asyncio.Lock()
        self._worker: _Worker | None = None
        self._closed = False

    @property
    def worker_pid(self) -> int | None:
        return self._worker.pid if self._worker else None

    async def open(self) -> None:
        """Start the worker. Raises TtsError."""
        async with self._turn:
            await self._running(self._start_s)

    async def aclose(self) -> None:
        self._closed = True
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.stop()

    async def check(self) -> None:
        """Speaks a word. Raises TtsError."""
        await self._say("네", 8000)

    async def speak(self, text: str, rate: int) -> AsyncGenerator[AudioFrame, None]:
        if rate not in RATES:
            raise ValueError(f"a rate from {RATES.start} to {RATES.stop - 1}, not {rate}")
        splitter = SentenceSplitter(first_comma=None)
        for clause in [*splitter.feed(text), *splitter.finish()]:
            if not any(char.isalnum() for char in clause):
                continue
            pcm = await self._say(clause, rate)
            step = rate * FRAME_MS // 1000 * SAMPLE_BYTES
            for start in range(0, len(pcm), step):
                yield AudioFrame(pcm[start : start + step], rate)

    async def _say(self, clause: str, rate: int) -> bytes:
        """One clause, whole, with its pause. A worker that died is replaced once."""
        try:
            return await self._ask(clause, rate)
        except WorkerDied:
            log.warning("x espeak worker died, starting another")
        try:
            return await self._ask(clause, rate)
        except WorkerDied as error:
            raise _error("unavailable", "the espeak worker died twice", retryable=True) from error

    async def _ask(self, clause: str, rate: int) -> bytes:
        voice = self._voices.get(language_of(clause, self._language), self._voices[self._language])
        request: Request = {
            "text": clause,
            "voice": voice.name,
            "speed": voice.speed,
            "pitch": voice.pitch,
            "rate": rate,
        }
        try:
            async with asyncio.timeout(self._first_audio_s) as waiting, self._turn:
                waiting.reschedule(None)
                worker = await self._running(self._first_audio_s)
                audio = await self._collect(worker, request)
        except TimeoutError as error:
            raise _error("timeout", "the espeak worker was busy for too long", retryable=True) from error
        if not any(audio):
            raise _error("silent", "espeak made no sound of a text with words", retryable=False)
        return audio + bytes(rate * voice.pause_ms // 1000 * SAMPLE_BYTES)

    async def _collect(self, worker: "_Worker", request: Request) -> bytes:
        """Needs the turn. Whatever happens, the worker is left free for the next request, or replaced."""
        loop = asyncio.get_running_loop()
        audio = bytearray()
        number = 0
        try:
            number = worker.ask(request)
            async with asyncio.timeout(self._first_audio_s) as bound:
                while True:
                    kind, body = await worker.next_reply(number)
                    if kind == FAILED:
                        raise _error("rejected", body.decode(errors="replace"), retryable=False)
                    if kind == END:
                        return bytes(audio)
                    audio += body
                    bound.reschedule(loop.time() + self._idle_s)
        except asyncio.CancelledError:
            worker.cancel(number)
            raise
        except TimeoutError as error:
            await self._replace(worker)
            raise _error("timeout", "the espeak worker did not answer in time", retryable=True) from error
        except WorkerDied:
            await self._replace(worker)
            raise

    async def _running(self, start_s: float) -> "_Worker":
        """The worker, started if there is none. Needs the turn."""
        if self._closed:
            raise InvalidState("the espeak voice is closed")
        if self._worker is None:
            try:
                async with asyncio.timeout(start_s):
                    self._worker = await _Worker.start()
            except TimeoutError as error:
                raise _error("timeout", "the espeak worker did not start in time", retryable=True) from error
            except (OSError, WorkerDied) as error:
                raise _error("unavailable", f"no espeak worker started: {error}", retryable=True) from error
        return self._worker

    async def _replace(self, worker: "_Worker") -> None:
        if self._worker is worker:
            self._worker = None
        await worker.stop(grace_s=0)


class _Worker:
    """The process and its pipe. Requests are numbered from one; replies to an abandoned one are skipped."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._received = bytearray()
        self._asked = 0
        self.pid = process.pid

    @classmethod
    async def start(cls) -> "_Worker":
        # By path and with -P, not -m: neither the current folder nor ours may be searched for modules.
        worker = cls(
            await asyncio.create_subprocess_exec(
                sys.executable, "-P", str(espeak_worker.__file__), stdin=PIPE, stdout=PIPE, env=_environment()
            )
        )
        try:
            kind, body = await worker.next_reply(0)
            if kind != READY:
                raise _error(
                    "unavailable",
                    f"espeak-ng cannot be used ({body.decode(errors='replace')}): install espeakng-loader, "
                    "or set TTS_PROVIDER=elevenlabs",
                    retryable=False,
                )
        except BaseException:
            await worker.stop(grace_s=0)
            raise
        return worker

    def ask(self, request: Request) -> int:
        """Raises WorkerDied."""
        if self._process.returncode is not None or self._stdin.is_closing():
            raise WorkerDied(f"exit code {self._process.returncode}")
        self._asked += 1
        self._write({"id": self._asked, **request})
        return self._asked

    def cancel(self, number: int) -> None:
        """The worker drops what it has not sent of this request; the next speaker skips what it has."""
        self._write({"cancel": number})

    def _write(self, message: Request) -> None:
        body = json.dumps(message).encode()
        self._stdin.write(LENGTH.pack(len(body)) + body)

    async def next_reply(self, number: int) -> tuple[bytes, bytes]:
        """Kind and body of the next reply to this request. Cancelling loses nothing. Raises WorkerDied."""
        while True:
            while len(self._received) >= HEADER.size:
                owner, kind, length = HEADER.unpack_from(self._received)
                end = HEADER.size + length
                if len(self._received) < end:
                    break
                body = bytes(self._received[HEADER.size : end])
                del self._received[:end]
                if owner == number:
                    return kind, body
            data = await self._stdout.read(_READ_BYTES)
            if not data:
                raise WorkerDied(f"the pipe closed after {self._asked} requests")
            self._received += data

    async def stop(self, grace_s: float = 1.0) -> None:
        """The end of its stdin ends it; if not, it is killed."""
        self._stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._process.wait()
                return
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


def _environment() -> dict[str, str]:
    """What the worker needs to start, and none of our keys. One thread: it does no linear algebra."""
    kept = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "HOME", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"OPENBLAS_NUM_THREADS": "1"}


def _error(kind: str, message: str, *, retryable: bool) -> TtsError:
    return TtsError(message, provider=EspeakTts.name, kind=kind, retryable=retryable)
