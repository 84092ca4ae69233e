"""A recording, whole: its speech is found, and each utterance decoded by itself."""

import asyncio
from dataclasses import dataclass

from app.asr.engine import DecodeEngine, Kind
from app.asr.recogniser import Decoded, Request
from app.asr.schemas import Segment
from app.asr.speech import PREROLL_MS, SpeechFinder
from app.audio.endpoint import SpeechStarted, SpeechStopped
from app.audio.types import SAMPLE_BYTES, AudioFrame
from app.errors import SttError

MAX_UTTERANCE_MS = 30_000 - PREROLL_MS - 100
"""Whisper hears 30 s at once, the pre-roll among them; an endpointer for recordings cuts there."""
SLICE_S = 10
DUE_S = 2.0
"""A recording can wait: whoever speaks right now goes first."""
BUSY_S = 20.0
RETRY_S = 0.25


@dataclass(frozen=True, slots=True)
class Utterance:
    pcm: bytes
    start_ms: int
    end_ms: int
    speech_ms: int


async def transcribe(
    engine: DecodeEngine, finder: SpeechFinder, pcm: bytes, rate: int, language: str
) -> tuple[list[Segment], str]:
    """The segments in which something was said, and the language. Raises SttError; cancelling it drops the decode."""
    utterances = Utterances(finder)
    segments: list[Segment] = []
    spoken_ms: dict[str, int] = {}
    size = SLICE_S * rate * SAMPLE_BYTES
    last_ms = len(pcm) * 1000 // (SAMPLE_BYTES * rate)
    for at in range(0, len(pcm) + 1, size):
        for one in await asyncio.to_thread(utterances.push, pcm[at : at + size], at + size > len(pcm)):
            decoded = await _decode(engine, Request(one.pcm, rate, language, one.speech_ms))
            if decoded.text:
                segments.append(Segment(decoded.text, one.start_ms, min(one.end_ms, last_ms)))
                spoken_ms[decoded.language] = spoken_ms.get(decoded.language, 0) + one.speech_ms
    return segments, max(spoken_ms, key=spoken_ms.__getitem__, default=language)


class Utterances:
    """What a finder finds, put together."""

    def __init__(self, finder: SpeechFinder) -> None:
        self._finder = finder
        self._frames: list[AudioFrame] = []
        self._start_ms = 0

    def push(self, pcm: bytes, last: bool) -> list[Utterance]:
        """Blocking. Those that end in this stretch."""
        found = []
        for heard in (*self._finder.push(pcm), *(self._finder.finish() if last else ())):
            match heard:
                case AudioFrame():
                    self._frames.append(heard)
                case SpeechStarted(at_ms):
                    self._start_ms = at_ms
                case SpeechStopped(at_ms, speech_ms):
                    audio = b"".join(frame.pcm for frame in self._frames)
                    found.append(Utterance(audio, self._start_ms, at_ms, speech_ms))
                    self._frames.clear()
        return found


async def _decode(engine: DecodeEngine, request: Request) -> Decoded:
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + BUSY_S
    while True:
        try:
            return await engine.submit(request, Kind.FINAL, due_s=DUE_S).future
        except SttError as error:
            if error.kind != "busy" or loop.time() >= give_up_at:
                raise
        await asyncio.sleep(RETRY_S)
