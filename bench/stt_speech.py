"""What is said to the recognisers: the sample calls, one phrase after the other on one line, of which it is known to
the millisecond when each phrase ends."""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.audio import g711
from app.audio.types import SAMPLE_BYTES
from app.simulator.clip import Clip

SAMPLES = Path(__file__).parents[1] / "tests" / "data" / "calls"
RATE = 8_000
LINE_LEVEL = 55.0
"""Root mean square of the line's noise where nobody speaks: that of the samples."""
LEAD_MS = 500
GAP_MS = 1300
"""Of the line alone behind each sample; a sample itself has 300 ms of it before the speech and 700 ms after."""


@dataclass(frozen=True, slots=True)
class Said:
    """A phrase. Milliseconds of the audio that it is in."""

    text: str
    begins_ms: float
    ends_ms: float


@dataclass(frozen=True, slots=True)
class Recorded:
    """Speech on a line: 16-bit PCM at 8 kHz. A sample holds one phrase, a call several."""

    language: str
    pcm: bytes
    said: tuple[Said, ...]

    @property
    def ms(self) -> float:
        return len(self.pcm) * 1000 / (SAMPLE_BYTES * RATE)


def sample(mulaw: bytes, language: str, text: str, spoken_ms: Sequence[int]) -> Recorded:
    """`spoken_ms`: where the voice's own audio began and ended, faded sounds and silence included. The speech ends
    with the last sound that the line's noise does not hide, and not later than that."""
    clip = Clip.of(mulaw, text)
    begins = mulaw.find(clip.mulaw)
    ends_ms = min((begins + clip.end) * 1000 / RATE, spoken_ms[1])
    begins_ms = max((begins + clip.onset) * 1000 / RATE, spoken_ms[0])
    return Recorded(language, g711.decode(mulaw), (Said(text, begins_ms, ends_ms),))


@functools.cache
def samples() -> dict[str, Recorded]:
    """Those in which somebody speaks, by their file's name."""
    rows = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))
    return {
        row["file"]: sample((SAMPLES / row["file"]).read_bytes(), row["lang"], row["text"], row["speech_ms"])
        for row in rows
        if row["text"]
    }


def recorded_calls(each: int, seed: int, most: int | None = None) -> list[Recorded]:
    """Calls of `each` phrases, every sample once; `most` calls of them at most."""
    rng = np.random.default_rng(seed)
    calls = []
    for language in ("ko", "en"):
        spoken = [one for one in samples().values() if one.language == language]
        rng.shuffle(spoken)
        calls += [joined(spoken[at : at + each], rng) for at in range(0, len(spoken), each)]
    return calls[:most]


def joined(spoken: Sequence[Recorded], rng: np.random.Generator) -> Recorded:
    """One call, in the language of the first."""
    pieces, said = [_line(LEAD_MS, rng)], []
    at_ms = float(LEAD_MS)
    for one in spoken:
        said += [Said(each.text, at_ms + each.begins_ms, at_ms + each.ends_ms) for each in one.said]
        pieces += [one.pcm, _line(GAP_MS, rng)]
        at_ms += one.ms + GAP_MS
    return Recorded(spoken[0].language, b"".join(pieces), tuple(said))


def _line(ms: float, rng: np.random.Generator) -> bytes:
    return rng.normal(0, LINE_LEVEL, round(ms * RATE / 1000)).astype("<i2").tobytes()


# ---------------------------------------------------------------- single utterances


_OF_LENGTH = {1: ("ko_18.ulaw",), 3: ("ko_16.ulaw",), 6: ("ko_16.ulaw", "ko_12.ulaw")}
LENGTHS_S = tuple(_OF_LENGTH)


def utterance(seconds: int) -> bytes:
    """A sentence or two that fill so many seconds, but for what a caller leaves free."""
    return _fitted(b"".join(_trimmed(samples()[name]) for name in _OF_LENGTH[seconds]), seconds)


def utterances(seed: int, shortest_s: float, longest_s: float) -> Iterator[bytes]:
    """Without end: stretches of speech, all lengths between the two equally likely."""
    rng = np.random.default_rng(seed)
    speech = b"".join(_trimmed(one) for one in samples().values())
    while True:
        length = int(rng.uniform(shortest_s, longest_s) * RATE) * SAMPLE_BYTES
        begin = int(rng.integers(0, (len(speech) - length) // SAMPLE_BYTES)) * SAMPLE_BYTES
        yield speech[begin : begin + length]


def _trimmed(one: Recorded) -> bytes:
    (said,) = one.said
    return one.pcm[_bytes(said.begins_ms) : _bytes(said.ends_ms)]


def _fitted(pcm: bytes, seconds: float) -> bytes:
    rest_ms = max(0.0, seconds * 1000 - len(pcm) * 1000 / (SAMPLE_BYTES * RATE))
    return (pcm + _line(rest_ms, np.random.default_rng(0)))[: _bytes(seconds * 1000)]


def _bytes(ms: float) -> int:
    return round(ms * RATE / 1000) * SAMPLE_BYTES
