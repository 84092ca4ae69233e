"""The ears of a call: audio of the line in; speech events and words out; a recogniser that never goes deaf.

`hear` is the media path (50 times a second): it finds speech and hands audio on, and never waits. `run` keeps one
recogniser's stream open for the whole call. A stream that ends, by error or cleanly after an utterance, is opened
again, perhaps at the next recogniser, and the audio for which no final came is sent once more: nothing said is lost.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import structlog

from app.audio.chunker import Chunker
from app.audio.endpoint import Endpointer, SpeechPaused, SpeechResumed, SpeechStarted, SpeechStopped
from app.audio.types import AudioFrame, Transcript
from app.audio.vad import SpeechDetector
from app.errors import SttError
from app.services.ai_call.backlog import Backlog, BacklogOptions, Item, Paused, Resumed, Started, Stopped
from app.services.ai_call.completeness import EndpointWaits
from app.services.ai_call.ports import Guessing, SttStream
from app.services.ai_call.succession import EOF, Candidate, StreamEnd, Succession
from app.services.ai_call.types import Event, Heard, RecogniserChanged, RecogniserLost

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ListenerOptions:
    """A recogniser that hears everything is left when `mute_after` utterances, each with `clear_speech_ms` of speech,
    had no words within `answer_s`."""

    preroll_ms: int = 300
    open_s: float = 3.0
    clear_speech_ms: int = 500
    answer_s: float = 5.0
    mute_after: int = 2
    backlog: BacklogOptions = field(default_factory=BacklogOptions)


class Listener:
    def __init__(
        self,
        recognisers: Succession,
        detector: SpeechDetector,
        endpointer: Endpointer,
        post: Callable[[Event], None],
        *,
        rate: int,
        language: str,
        waits: EndpointWaits | None = None,
        options: ListenerOptions | None = None,
        on_drop: Callable[[float], None] = lambda ms: None,
    ) -> None:
        self._recognisers = recognisers
        self._detector = detector
        self._endpointer = endpointer
        self._post = post
        self._rate = rate
        self._language = language
        self._waits = waits or EndpointWaits()
        self._options = options or ListenerOptions()
        self._on_drop = on_drop
        self._hears = recognisers.current.stt.hears
        self._windows = Chunker(detector.frame_bytes)
        self._heard_ms = 0
        self._preroll: deque[AudioFrame] = deque(maxlen=1 + (self._options.preroll_ms + 200) // detector.frame_ms)
        self._in_speech = False
        self._paused_ms: int | None = None
        """Where the present pause began, or the last one that ended an utterance."""
        self._speech_ended_at: float | None = None
        self._backlog = Backlog(detector.frame_ms, self._options.backlog)
        self._arrived = asyncio.Event()
        self._useful = False  # the stream gave a final for something it was sent
        self._guesses = False  # a stream is open that tells a guess for each pause
        self._unanswered: list[float] = []  # when the answers to utterances without words so far are overdue

    # ------------------------------------------------------------ the media path

    def hear(self, frame: AudioFrame) -> None:
        for pcm in self._windows.push(frame.pcm):
            self._hear_window(AudioFrame(pcm, self._rate, self._heard_ms))
            self._heard_ms += self._detector.frame_ms

    def _hear_window(self, window: AudioFrame) -> None:
        events = self._endpointer.process(self._detector.probability(window.pcm), self._detector.frame_ms)
        forwards = self._in_speech or self._hears == "everything"
        if forwards:
            self._hand_on(window)
        else:
            self._preroll.append(window)
        for event in events:
            self._cue(event, forwards)
            self._post(event)

    def _cue(self, event: SpeechStarted | SpeechPaused | SpeechResumed | SpeechStopped, forwards: bool) -> None:
        match event:
            case SpeechStarted(at_ms):
                self._in_speech = True
                from_ms = max(0, at_ms - self._options.preroll_ms)
                if not forwards:
                    self._hand_on_preroll(from_ms)
                self._hand_on(Started(from_ms))
                self._speech_ended_at = None
            case SpeechPaused(at_ms, speech_ms):
                self._paused_ms = at_ms
                self._speech_ended_at = self._moment(at_ms)
                if self._guesses:  # words that come late still say how long to wait; without them nothing is won
                    self._endpointer.wait(self._waits.most_ms)
                self._hand_on(Paused(speech_ms))
            case SpeechResumed():
                self._paused_ms = self._speech_ended_at = None
                self._hand_on(Resumed())
            case SpeechStopped(at_ms, speech_ms):
                self._in_speech = False
                self._speech_ended_at = self._moment(at_ms)
                if speech_ms >= self._options.clear_speech_ms and len(self._unanswered) < self._options.mute_after:
                    self._unanswered.append(self._speech_ended_at + self._options.answer_s)
                self._hand_on(Stopped(speech_ms))

    def _hand_on_preroll(self, from_ms: int) -> None:
        for window in self._preroll:
            if window.at_ms >= from_ms:
                self._hand_on(window)
        self._preroll.clear()

    def _hand_on(self, item: Item) -> None:
        """Never waits: should the recogniser take nothing, its oldest audio is given up."""
        if given_up_ms := self._backlog.put(item):
            self._on_drop(given_up_ms)
        self._arrived.set()

    def _moment(self, at_ms: int) -> float:
        """When, by the loop's clock, this was heard."""
        return asyncio.get_running_loop().time() - (self._endpointer.media_ms - at_ms) / 1000

    # ------------------------------------------------------------ the recogniser

    async def run(self) -> None:
        """Keep a recogniser's stream open. Returns when the last one is given up, after RecogniserLost was posted."""
        self._tell_who_ends_turns()
        while True:
            candidate = self._recognisers.current
            end = await self._one_stream(candidate)
            wait_s = self._recognisers.ended(end)
            if wait_s is None:
                log.error("x recogniser given up", provider=candidate.name, kind=end.kind)
                self._post(RecogniserLost(end.kind))
                return
            following = self._recognisers.current.name
            if end.useful and end.kind == EOF:
                log.debug("- recogniser reopened", provider=following)  # some end after each utterance
            else:
                log.warning("- recogniser reopened", provider=following, was=candidate.name, kind=end.kind)
            await asyncio.sleep(wait_s)
            self._begin_again()

    async def _one_stream(self, candidate: Candidate) -> StreamEnd:
        """Serve one stream to its end."""
        loop = asyncio.get_running_loop()
        opened_at = loop.time()
        kind, curable = EOF, True
        self._useful = False
        self._unanswered.clear()
        candidate.calls += 1
        try:
            async with AsyncExitStack() as opened, asyncio.TaskGroup() as group:
                stream = await self._open(candidate, opened)
                self._guesses = isinstance(candidate.stt, Guessing)
                feeder = group.create_task(self._feed(stream))
                async for transcript in stream:
                    self._take(transcript, candidate)
                feeder.cancel()
        except* SttError as failed:
            error = _first(failed)
            kind, curable = error.kind, error.retryable
            log.debug("x recogniser failed", provider=candidate.name, kind=kind, error=str(error))
        except* Exception as bugs:  # the edge of a recogniser: a bug of one is no reason for the call to be deaf
            kind, curable = "bug", False
            log.error("x recogniser broke", provider=candidate.name, exc_info=bugs)
        finally:
            candidate.calls -= 1
            if self._guesses and self._endpointer.paused:
                self._endpointer.wait(self._waits.unknown_ms)  # nobody will tell
            self._guesses = False
        return StreamEnd(kind, curable, self._useful, loop.time() - opened_at)

    async def _open(self, candidate: Candidate, opened: AsyncExitStack) -> SttStream:
        try:
            async with asyncio.timeout(self._options.open_s):
                return await opened.enter_async_context(candidate.stt.open(self._rate, self._language))
        except TimeoutError as error:
            raise SttError(
                "the recogniser does not answer", provider=candidate.name, kind="timeout", retryable=True
            ) from error

    def _take(self, transcript: Transcript, candidate: Candidate) -> None:
        if transcript.text:
            self._unanswered.clear()
        if transcript.final:
            everything = self._hears == "everything"
            backlog = self._backlog
            covers = backlog.confirm_until(transcript.end_ms) if everything else backlog.confirm_utterance()
            self._useful |= covers
            if self._speech_ended_at is not None and transcript.text:
                candidate.heard(1000 * (asyncio.get_running_loop().time() - self._speech_ended_at))
                self._speech_ended_at = None
        elif self._paused_ms is not None and self._hears == "speech" and transcript.end_ms >= self._paused_ms:
            self._endpointer.wait(self._waits.wait_ms(transcript.text))  # the guess: its text says whether to wait
        self._post(Heard(transcript))

    async def _feed(self, stream: SttStream) -> None:
        while True:
            while (item := self._backlog.take()) is not None:
                match item:
                    case Started():
                        pass
                    case Paused(speech_ms):
                        await stream.pause(speech_ms)
                    case Resumed():
                        await stream.resume()
                    case Stopped(speech_ms):
                        await stream.flush(speech_ms)
                    case frame:
                        await stream.send(frame)
            if self._is_mute():
                raise SttError(
                    "no words for clear speech", provider=self._recognisers.current.name, kind="mute", retryable=True
                )
            self._backlog.trim(idle=self._hears == "everything" and not self._in_speech)
            self._arrived.clear()
            await self._arrived.wait()

    def _is_mute(self) -> bool:
        overdue = self._unanswered
        return (
            self._hears == "everything"
            and len(overdue) >= self._options.mute_after
            and asyncio.get_running_loop().time() >= overdue[-1]
        )

    # ------------------------------------------------------------ the next one

    def _begin_again(self) -> None:
        self._backlog.rewind()
        self._speech_ended_at = None  # a final of what is told again would measure the one that was lost
        hears = self._recognisers.current.stt.hears
        if hears != self._hears:
            self._hears = hears
            if hears == "speech":
                self._preroll.extend(self._backlog.leave_out_silence())
            else:  # what may become the beginning of an utterance is silence like any other
                while self._preroll:
                    self._hand_on(self._preroll.popleft())
            self._tell_who_ends_turns()
        self._arrived.set()

    def _tell_who_ends_turns(self) -> None:
        self._post(RecogniserChanged(self._hears == "everything", self._backlog.owed))


def _first(group: BaseExceptionGroup[SttError]) -> SttError:
    error = group.exceptions[0]
    return error if isinstance(error, SttError) else _first(error)
