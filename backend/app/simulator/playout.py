"""What the far side does with our audio: it buffers, plays 8,000 bytes a second, and tells what was played.

Pure: each method takes the time in seconds of one clock, and times never go back. A mark waits behind the audio
that was sent before it and is echoed when that was played; at once when nothing is buffered; and with all the others
when a `clear` empties the buffer.
"""

import functools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from app.audio import g711

BYTES_PER_S = 8_000
AUDIBLE = 260
"""A 16-bit sample of this magnitude is sound, about -42 dB under full scale; fainter ones are a silent line."""
PAUSE_S = 0.3
"""A shorter silence inside speech does not part it."""
UNDERRUN_S = 1.0
"""A longer gap in which no mark came is a pause that the sender meant."""


@dataclass(slots=True)
class Run:
    """Audio that is played without a gap: mu-law, from `at` on."""

    at: float
    audio: bytearray = field(default_factory=bytearray)

    @property
    def until(self) -> float:
        return self.at + len(self.audio) / BYTES_PER_S


@dataclass(slots=True)
class Sound:
    """A stretch in which the sender can be heard, silences under PAUSE_S included."""

    at: float
    until: float


class Playout:
    def __init__(self) -> None:
        self._runs: list[Run] = []
        self._sounds: list[Sound] = []
        self._clears: list[float] = []
        self._marks: deque[tuple[float, str]] = deque()
        self._piece_over = True  # a mark, a clear or nothing at all came since the last audio
        self._part = True  # the next sound begins a stretch of its own
        self.underruns = 0
        self.underrun_s = 0.0

    # ------------------------------------------------------------ what the sender asks for

    def play(self, audio: bytes, now: float) -> None:
        if not audio:
            return
        at = self._empty_at(now)
        if not self._runs or self._runs[-1].until < now:
            if not self._piece_over and now - self._runs[-1].until <= UNDERRUN_S:
                self.underruns += 1
                self.underrun_s += now - self._runs[-1].until
            self._runs.append(Run(now))
        self._runs[-1].audio += audio
        self._piece_over = False
        self._note_sound(audio, at)

    def mark(self, name: str, now: float) -> None:
        self._marks.append((self._empty_at(now), name))
        self._piece_over = True

    def clear(self, now: float) -> None:
        self.stop(now)
        self._clears.append(now)
        self._marks = deque((now, name) for _, name in self._marks)

    def stop(self, now: float) -> None:
        """Nothing that is still buffered will be heard: the buffer is emptied, or the line has gone."""
        while self._runs and self._runs[-1].at >= now:
            self._runs.pop()
        if self._runs:
            del self._runs[-1].audio[round((now - self._runs[-1].at) * BYTES_PER_S) :]
        while self._sounds and self._sounds[-1].at >= now:
            self._sounds.pop()
        if self._sounds:
            self._sounds[-1].until = min(self._sounds[-1].until, now)
        self._piece_over = self._part = True

    # ------------------------------------------------------------ what was played

    @property
    def next_echo_at(self) -> float | None:
        return self._marks[0][0] if self._marks else None

    def take_echoes(self, now: float) -> list[str]:
        """The marks that are due, in the order in which they came; each is returned once."""
        names = []
        while self._marks and self._marks[0][0] <= now:
            names.append(self._marks.popleft()[1])
        return names

    @property
    def runs(self) -> Sequence[Run]:
        """In order and apart from each other. The last may reach into the future: it is still buffered."""
        return self._runs

    @property
    def sounds(self) -> Sequence[Sound]:
        """As `runs`, but only what can be heard."""
        return self._sounds

    @property
    def clears(self) -> Sequence[float]:
        return self._clears

    def _empty_at(self, now: float) -> float:
        return max(now, self._runs[-1].until) if self._runs else now

    def _note_sound(self, audio: bytes, at: float) -> None:
        first = len(audio) - len(audio.lstrip(_quiet()))
        if first == len(audio):
            return
        begins = at + first / BYTES_PER_S
        ends = at + len(audio.rstrip(_quiet())) / BYTES_PER_S
        if not self._part and begins - self._sounds[-1].until <= PAUSE_S:
            self._sounds[-1].until = ends
        else:
            self._sounds.append(Sound(begins, ends))
        self._part = False


@functools.cache
def _quiet() -> bytes:
    """Every mu-law code that is fainter than AUDIBLE."""
    samples = np.abs(g711.decode_table().astype(np.int32))
    return np.flatnonzero(samples < AUDIBLE).astype(np.uint8).tobytes()
