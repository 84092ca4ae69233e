"""A recording, whole: its speech is found, and each utterance decoded by itself, a long one in pieces (pieces.py)."""

import asyncio
from dataclasses import dataclass

from app.asr.engine import DecodeEngine
from app.asr.pieces import find_cut, join
from app.asr.recogniser import Decoded, Request
from app.asr.schemas import Segment
from app.asr.speech import SpeechFinder
from app.audio.endpoint import SpeechStarted, SpeechStopped
from app.audio.types import SAMPLE_BYTES, AudioFrame

MAX_UTTERANCE_MS = 120_000
"""An endpointer for recordings cuts there, be it in a word: nobody speaks for so long without a pause."""
WINDOW_S = 15
OVERLAP_MS = 120
SLICE_S = 10
DUE_S = 2.0
"""A recording can wait: whoever speaks right now goes first."""
BUSY_S = 20.0


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
            heard = await _hear(engine, one, rate, language)
            text = join([(decoded.text, in_pause) for decoded, in_pause in heard])
            if text:
                segments.append(Segment(text, one.start_ms, min(one.end_ms, last_ms)))
            for decoded, _ in heard:
                if decoded.text:
                    spoken_ms[decoded.language] = spoken_ms.get(decoded.language, 0) + one.speech_ms // len(heard)
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


async def _hear(engine: DecodeEngine, utterance: Utterance, rate: int, language: str) -> list[tuple[Decoded, bool]]:
    """Of each piece in order, and whether the cut after it was in a pause."""
    heard = []
    for pcm, in_pause in cut_up(utterance.pcm, rate):
        whole = len(pcm) == len(utterance.pcm)  # of a piece it is not known how much of it is speech
        request = Request(pcm, rate, language, utterance.speech_ms if whole else None)
        job = await engine.submit_patiently(request, due_s=DUE_S, busy_s=BUSY_S)
        heard.append((await job.future, in_pause))
    return heard


def cut_up(pcm: bytes, rate: int) -> list[tuple[bytes, bool]]:
    """Pieces of at most a window, as a stream cuts them, each with whether the cut after it was in a pause."""
    limit = WINDOW_S * rate * SAMPLE_BYTES
    pieces = []
    while len(pcm) > limit:
        cut = find_cut(pcm[:limit], rate, OVERLAP_MS)
        pieces.append((pcm[: cut.head_end], cut.in_pause))
        pcm = pcm[cut.rest_start :]
    return [*pieces, (pcm, True)]
