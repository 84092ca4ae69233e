"""An utterance of the caller: mu-law of which it is known when speech begins and ends."""

from dataclasses import dataclass

import numpy as np

from app.audio import g711

RATE = 8_000
_WINDOW = 80  # samples: 10 ms
_UNDER_PEAK_DB = 35.0
_FLOOR_DBFS = -50.0


@dataclass(frozen=True, slots=True)
class Clip:
    """`onset` and `end` are samples: the speech lies between them. `text` is what is said, where that is known."""

    mulaw: bytes
    onset: int
    end: int
    text: str = ""

    @classmethod
    def of(cls, mulaw: bytes, text: str = "") -> "Clip":
        """Finds the speech by its energy, and cuts off the silence around it. Raises ValueError if there is none."""
        onset, end = _speech(mulaw)
        margin = _WINDOW  # a soft onset keeps its first 10 ms
        begin = max(0, onset - margin)
        return cls(mulaw[begin : end + margin], onset - begin, end - begin, text)


def _speech(mulaw: bytes) -> tuple[int, int]:
    """The first sample of the first loud window and the one behind the last: within 35 dB of the loudest."""
    samples = np.frombuffer(g711.decode(mulaw), "<i2").astype(np.float64)
    samples = np.pad(samples, (0, -len(samples) % _WINDOW))
    power = np.square(samples.reshape(-1, _WINDOW) / 32768).mean(axis=1)
    level = 10 * np.log10(power + 1e-12)
    loud = np.flatnonzero(level >= max(_FLOOR_DBFS, float(level.max(initial=-120)) - _UNDER_PEAK_DB))
    if not loud.size:
        raise ValueError("there is no speech in it: silent from end to end")
    return int(loud[0]) * _WINDOW, min(len(mulaw), (int(loud[-1]) + 1) * _WINDOW)
