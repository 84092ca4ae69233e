"""An utterance of the caller: mu-law of which it is known when speech begins and ends."""

from dataclasses import dataclass

import numpy as np

from app.audio import g711

RATE = 8_000
_WINDOW = 80  # samples: 10 ms
_MARGIN = 240  # samples kept around the speech, for its soft edges
_RUN = 3  # loud windows on end that are speech; fewer are a click
_FLOOR_DBFS = -50.0
_UNDER_PEAK_DB = 35.0
_OVER_NOISE_DB = 8.0
_SURELY_SPEECH_DB = 15.0  # under the peak: no noise is taken to be louder


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
        begin = max(0, onset - _MARGIN)
        return cls(mulaw[begin : end + _MARGIN], onset - begin, end - begin, text)


def _speech(mulaw: bytes) -> tuple[int, int]:
    """The first sample of the speech and the one behind its last: louder than the line's noise, and not too far under
    the loudest."""
    samples = np.frombuffer(g711.decode(mulaw), "<i2").astype(np.float64)
    samples = np.pad(samples, (0, -len(samples) % _WINDOW + _RUN * _WINDOW))
    power = np.square(samples.reshape(-1, _WINDOW) / 32768).mean(axis=1)
    level = 10 * np.log10(power + 1e-12)
    noise = min(np.percentile(level, 10) + _OVER_NOISE_DB, level.max() - _SURELY_SPEECH_DB)
    loud = level >= max(_FLOOR_DBFS, level.max() - _UNDER_PEAK_DB, noise)
    runs = np.flatnonzero(np.convolve(loud, np.ones(_RUN), "valid") == _RUN)
    if not runs.size:
        raise ValueError("there is no speech in it")
    return int(runs[0]) * _WINDOW, min(len(mulaw), (int(runs[-1]) + _RUN) * _WINDOW)
