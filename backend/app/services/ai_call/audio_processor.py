"""STT_PROVIDER=legacy: half a second of silence ends the utterance, then one batch request for the whole of it.

Kept as it was, as the baseline that the others are measured against: a caller waits the half second, the upload and
the vendor's batch time, one after the other. There are no partials and nothing is guessed.
"""

import asyncio
import io
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import structlog

from app.audio.chunker import Chunker
from app.audio.endpoint import Endpointer, EndpointOptions, SpeechStarted, SpeechStopped
from app.audio.timeline import Timeline
from app.audio.types import SAMPLE_BYTES, AudioFrame, Transcript
from app.audio.vad import RATE, EnergyDetector
from app.services.ai_call.stt_service import STTService

log = structlog.get_logger(__name__)

FRAME_MS = 25


@dataclass(frozen=True, slots=True)
class ProcessorOptions:
    """`preroll_ms` before the onset belongs to the utterance: loudness hears an onset up to 150 ms late. No utterance
    is longer than `max_utterance_ms`, pre-roll included; Google takes a minute."""

    silence_ms: int = 500
    preroll_ms: int = 300
    min_speech_ms: int = 100
    max_utterance_ms: int = 30_000


@dataclass(frozen=True, slots=True)
class Utterance:
    """`wav` is the audio from the pre-roll to the end of the silence; `start_ms` is where it begins and `end_ms` where
    the speech in it ends, in media time."""

    wav: bytes = field(repr=False)
    start_ms: int
    end_ms: int


class AudioProcessor:
    """One call's audio in, its finished utterances out. Counts audio, not time; how it was cut makes no difference.

    Speech is what is loud (EnergyDetector), and no more is known about it.
    """

    def __init__(self, rate: int, options: ProcessorOptions | None = None) -> None:
        if rate != RATE:
            raise ValueError(f"loudness is measured at {RATE} samples a second, not at {rate}")
        self._options = options or ProcessorOptions()
        self._detector = EnergyDetector(FRAME_MS)
        self._endpointer = Endpointer(
            EndpointOptions(
                min_speech_ms=self._options.min_speech_ms,
                resume_ms=2 * FRAME_MS,
                silence_ms=self._options.silence_ms,
                max_utterance_ms=self._options.max_utterance_ms - self._options.preroll_ms,
            )
        )
        self._windows = Chunker(self._detector.frame_bytes)
        self._timeline = Timeline()
        self._audio = bytearray()
        self._audio_from_ms = 0  # where it begins, counted in audio heard
        self._start_ms = 0  # of the present utterance, likewise

    @property
    def held_ms(self) -> float:
        """Audio in memory."""
        return len(self._audio) * 1000 / (SAMPLE_BYTES * RATE)

    def push(self, frame: AudioFrame) -> list[Utterance]:
        self._timeline.sent(frame)
        return [utterance for pcm in self._windows.push(frame.pcm) for utterance in self._hear(pcm)]

    def _hear(self, pcm: bytes) -> list[Utterance]:
        self._audio += pcm
        found = []
        for event in self._endpointer.process(self._detector.probability(pcm), FRAME_MS):
            match event:
                case SpeechStarted(at_ms):
                    self._start_ms = max(self._audio_from_ms, at_ms - self._options.preroll_ms)
                case SpeechStopped(at_ms, forced=forced):
                    to_ms = at_ms if forced else self._endpointer.media_ms
                    found.append(self._utterance(at_ms, to_ms))
                    if forced:  # what follows is an utterance of its own, without a word of this one
                        self._forget_before(to_ms)
        if not self._endpointer.speaking:
            kept_ms = self._options.preroll_ms + self._options.min_speech_ms + FRAME_MS
            self._forget_before(self._endpointer.media_ms - kept_ms)
        return found

    def _utterance(self, end_ms: int, to_ms: int) -> Utterance:
        pcm = bytes(self._audio[_bytes(self._start_ms - self._audio_from_ms) : _bytes(to_ms - self._audio_from_ms)])
        return Utterance(_wav(pcm), self._timeline.media_ms(self._start_ms), self._timeline.media_ms(end_ms))

    def _forget_before(self, ms: int) -> None:
        if ms > self._audio_from_ms:
            del self._audio[: _bytes(ms - self._audio_from_ms)]
            self._audio_from_ms = ms


def _bytes(ms: int) -> int:
    return ms * RATE // 1000 * SAMPLE_BYTES


def _wav(pcm: bytes) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(SAMPLE_BYTES)
        wav.setframerate(RATE)
        wav.writeframes(pcm)
    return file.getvalue()


# ---------------------------------------------------------------- the recogniser


@dataclass(frozen=True, slots=True)
class LegacyOptions:
    """So many finished utterances wait for the one that is at the vendor; then `send` waits too."""

    processor: ProcessorOptions = field(default_factory=ProcessorOptions)
    max_waiting: int = 4


class LegacyStt:
    """Owns the service until `aclose`."""

    name = "legacy"
    hears: Literal["everything", "speech"] = "everything"

    def __init__(self, service: STTService, options: LegacyOptions | None = None) -> None:
        self._service = service
        self._options = options or LegacyOptions()

    async def aclose(self) -> None:
        await self._service.aclose()

    async def check(self) -> None:
        """Raises SttError."""
        await self._service.check()

    @asynccontextmanager
    async def open(self, rate: int, language: str) -> AsyncIterator["LegacySttStream"]:
        """Reaches nobody: that the vendor is ill shows with the first utterance, or in `check`."""
        stream = LegacySttStream(self._service, rate, language, self._options)
        try:
            yield stream
        finally:
            stream.close()


class LegacySttStream:
    """Starts no task: utterances are found in `send` and sent to the vendor in the iteration, one after the other. A
    caller who hangs up in the middle of one leaves nothing; a request that runs ends with the iteration."""

    def __init__(self, service: STTService, rate: int, language: str, options: LegacyOptions) -> None:
        self._service = service
        self._language = language
        self._processor = AudioProcessor(rate, options.processor)
        self._finished: asyncio.Queue[Utterance | None] = asyncio.Queue(options.max_waiting)
        self._closed = False

    async def send(self, frame: AudioFrame) -> None:
        """Waits only where the vendor is slower than the caller speaks."""
        for utterance in self._processor.push(frame):
            if not self._closed:
                await self._finished.put(utterance)

    async def pause(self, speech_ms: int) -> None: ...

    async def resume(self) -> None: ...

    async def flush(self, speech_ms: int) -> None: ...

    def close(self) -> None:
        """Drop what waits. The iteration ends."""
        self._closed = True
        while not self._finished.empty():
            self._finished.get_nowait()
        self._finished.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Transcript]:
        """One final for each utterance, in order; empty where the vendor heard no words. Raises SttError."""
        while (utterance := await self._finished.get()) is not None and not self._closed:
            text = await self._service.transcribe_audio_chunk(utterance.wav, self._language)
            if not text:
                log.info("x no words heard", ms=utterance.end_ms - utterance.start_ms)
            yield Transcript(text, True, utterance.start_ms, utterance.end_ms)
