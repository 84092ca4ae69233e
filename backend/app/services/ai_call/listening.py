"""The ears of a call: audio of the line in; speech events and words out; a recogniser that never goes deaf.

`hear` is the media path (50 times a second): it finds speech and hands audio on, and never waits. `run` keeps one
recogniser's stream open for the whole call. A stream that ends, by error or cleanly after an utterance, is opened
again, and the audio for which no final came is sent once more: nothing said is lost.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import Enum

import structlog

from app.audio.chunker import Chunker
from app.audio.endpoint import Endpointer, SpeechPaused, SpeechResumed, SpeechStarted, SpeechStopped
from app.audio.types import AudioFrame
from app.audio.vad import SpeechDetector
from app.errors import SttError
from app.services.ai_call.ports import SpeechToText, SttStream
from app.services.ai_call.types import Event, Heard, RecogniserLost

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ListenerOptions:
    """`reopen_s`: the waits before the 2nd, 3rd … opening in a row. A stream that lived `healthy_s` or gave a final
    for what it was sent starts the row anew; when the row is used up the recogniser is given up."""

    preroll_ms: int = 300
    replay_ms: int = 30_000
    idle_replay_ms: int = 5_000
    open_s: float = 3.0
    healthy_s: float = 5.0
    reopen_s: tuple[float, ...] = (0.0, 0.2, 0.5, 1.0)


EOF = "eof"
"""The recogniser ended its stream without an error."""


class _Cue(Enum):
    PAUSE = "pause"
    RESUME = "resume"
    FLUSH = "flush"


class Listener:
    def __init__(
        self,
        stt: SpeechToText,
        detector: SpeechDetector,
        endpointer: Endpointer,
        post: Callable[[Event], None],
        *,
        rate: int,
        language: str,
        options: ListenerOptions | None = None,
        on_fault: Callable[[str], None] = lambda kind: None,
        on_drop: Callable[[float], None] = lambda ms: None,
    ) -> None:
        self._stt = stt
        self._detector = detector
        self._endpointer = endpointer
        self._post = post
        self._rate = rate
        self._language = language
        self._options = options or ListenerOptions()
        self._on_fault = on_fault
        self._on_drop = on_drop
        self._windows = Chunker(detector.frame_bytes)
        self._heard_ms = 0
        self._preroll: deque[AudioFrame] = deque(maxlen=1 + (self._options.preroll_ms + 200) // detector.frame_ms)
        self._in_speech = False
        self._outbox: deque[AudioFrame | _Cue] = deque()
        self._unconfirmed: deque[AudioFrame | _Cue] = deque()
        self._arrived = asyncio.Event()
        self._useful = False  # the stream gave a final for something it was sent

    # ------------------------------------------------------------ the media path

    def hear(self, frame: AudioFrame) -> None:
        for pcm in self._windows.push(frame.pcm):
            self._hear_window(AudioFrame(pcm, self._rate, self._heard_ms))
            self._heard_ms += self._detector.frame_ms

    def _hear_window(self, window: AudioFrame) -> None:
        events = self._endpointer.process(self._detector.probability(window.pcm), self._detector.frame_ms)
        forwards = self._in_speech or self._stt.hears == "everything"
        if forwards:
            self._hand_on(window)
        else:
            self._preroll.append(window)
        for event in events:
            match event:
                case SpeechStarted(at_ms):
                    self._in_speech = True
                    if not forwards:
                        self._hand_on_preroll(at_ms - self._options.preroll_ms)
                case SpeechPaused():
                    self._hand_on(_Cue.PAUSE)
                case SpeechResumed():
                    self._hand_on(_Cue.RESUME)
                case SpeechStopped():
                    self._in_speech = False
                    self._hand_on(_Cue.FLUSH)
            self._post(event)

    def _hand_on_preroll(self, from_ms: int) -> None:
        for window in self._preroll:
            if window.at_ms >= from_ms:
                self._hand_on(window)
        self._preroll.clear()

    def _hand_on(self, item: AudioFrame | _Cue) -> None:
        """Never waits: should the recogniser take nothing, its oldest audio is given up. Cues stay, they are few."""
        if len(self._outbox) * self._detector.frame_ms > self._options.replay_ms and isinstance(item, AudioFrame):
            self._outbox.remove(next(waiting for waiting in self._outbox if isinstance(waiting, AudioFrame)))
            self._on_drop(self._detector.frame_ms)
        self._outbox.append(item)
        self._arrived.set()

    # ------------------------------------------------------------ the recogniser

    async def run(self) -> None:
        """Keep the recogniser's stream open. Returns when it is given up, after RecogniserLost was posted."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            opened = loop.time()
            kind = await self._one_stream()
            if self._useful or loop.time() - opened >= self._options.healthy_s:
                failures = 0
            if failures >= len(self._options.reopen_s):
                self._on_fault(kind)
                log.error("x recogniser given up", provider=self._stt.name, kind=kind)
                self._post(RecogniserLost(kind))
                return
            if self._useful and kind == EOF:
                log.debug("- recogniser reopened", provider=self._stt.name)  # some end after each utterance
            else:
                self._on_fault(kind)
                log.warning("- recogniser reopened", provider=self._stt.name, kind=kind)
            await asyncio.sleep(self._options.reopen_s[failures])
            failures += 1
            self._replay()

    async def _one_stream(self) -> str:
        """Serve one stream to its end; the kind of end."""
        kind = EOF
        self._useful = False
        try:
            async with AsyncExitStack() as opened, asyncio.TaskGroup() as group:
                stream = await self._open(opened)
                feeder = group.create_task(self._feed(stream))
                async for transcript in stream:
                    if transcript.final:
                        self._useful |= self._confirm(transcript.end_ms)
                    self._post(Heard(transcript))
                feeder.cancel()
        except* SttError as failed:
            kind = _first(failed).kind
        return kind

    async def _open(self, opened: AsyncExitStack) -> SttStream:
        try:
            async with asyncio.timeout(self._options.open_s):
                return await opened.enter_async_context(self._stt.open(self._rate, self._language))
        except TimeoutError as error:
            raise SttError(
                "the recogniser does not answer", provider=self._stt.name, kind="timeout", retryable=True
            ) from error

    async def _feed(self, stream: SttStream) -> None:
        while True:
            while self._outbox:
                item = self._outbox.popleft()
                self._unconfirmed.append(item)
                match item:
                    case _Cue.PAUSE:
                        await stream.pause()
                    case _Cue.RESUME:
                        await stream.resume()
                    case _Cue.FLUSH:
                        await stream.flush()
                    case frame:
                        await stream.send(frame)
            self._trim()
            self._arrived.clear()
            await self._arrived.wait()

    # ------------------------------------------------------------ what a successor must hear again

    def _confirm(self, end_ms: int) -> bool:
        """A final came: what it covers needs no replay. Whether it covers anything."""
        kept = len(self._unconfirmed)
        if self._stt.hears == "everything":
            while self._unconfirmed and not _after(self._unconfirmed[0], end_ms):
                self._unconfirmed.popleft()
        else:
            while self._unconfirmed and self._unconfirmed.popleft() is not _Cue.FLUSH:
                pass
        return len(self._unconfirmed) < kept

    def _replay(self) -> None:
        # a guess that belonged to the lost stream is worth nothing to the next one, but the audio is
        self._outbox.extendleft(reversed(self._unconfirmed))
        self._unconfirmed.clear()
        self._arrived.set()

    def _trim(self) -> None:
        """Bound what is kept: an utterance by `replay_ms`; where silence is sent too, and no final will ever cover
        it, by `idle_replay_ms`. Cues stay: a final is owed for each."""
        idle = self._stt.hears == "everything" and not self._in_speech
        keep_ms = self._options.idle_replay_ms if idle else self._options.replay_ms
        excess = len(self._unconfirmed) - keep_ms // self._detector.frame_ms
        if excess > 0:
            kept = [item for index, item in enumerate(self._unconfirmed) if index >= excess or isinstance(item, _Cue)]
            self._unconfirmed = deque(kept)


def _after(item: AudioFrame | _Cue, end_ms: int) -> bool:
    return isinstance(item, AudioFrame) and item.at_ms >= end_ms


def _first(group: BaseExceptionGroup[SttError]) -> SttError:
    error = group.exceptions[0]
    return error if isinstance(error, SttError) else _first(error)
