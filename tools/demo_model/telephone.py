"""A telephone line in numbers: noise of many kinds, the 300-3400 Hz band, mu-law, lost packets."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import soxr

from app.audio import g711
from tools.demo_model.espeak import Signal

RATE = 8000
MODEL_RATE = 16000
PACKET = 160
"""Samples in 20 ms."""

_CROWD = 300
_TALKERS = 5

Choice = TypeVar("Choice")


def pick(rng: np.random.Generator, options: Sequence[Choice], weights: Sequence[float] | None = None) -> Choice:
    return options[int(rng.choice(len(options), p=weights))]


def amplitude(decibels: float) -> float:
    return float(10 ** (decibels / 20))


def silence(seconds: float) -> Signal:
    return np.zeros(int(seconds * RATE), np.float32)


def seconds_of(count: int) -> Signal:
    """The time of each of `count` samples."""
    time: Signal = (np.arange(count) / RATE).astype(np.float32)
    return time


def two_tones(low: float, high: float, count: int) -> Signal:
    time = seconds_of(count)
    tones: Signal = (np.sin(2 * np.pi * low * time) + np.sin(2 * np.pi * high * time)).astype(np.float32)
    return tones


def normalised(signal: Signal) -> Signal:
    """At an RMS of one (of its deviation from the mean)."""
    scaled: Signal = (signal / (signal.std() + 1e-9)).astype(np.float32)
    return scaled


def coloured(rng: np.random.Generator, count: int, kind: str) -> Signal:
    """White, pink (1/f) or brown (1/f^2) noise of unit RMS."""
    white = rng.standard_normal(count).astype(np.float32)
    if kind == "white":
        return white
    hertz = np.fft.rfftfreq(count, 1 / RATE)
    hertz[0] = hertz[1] if count > 1 else 1
    slope = np.sqrt(hertz) if kind == "pink" else hertz
    return normalised(np.fft.irfft(np.fft.rfft(white) / slope, count).astype(np.float32))


class NoiseSource:
    """Background noise of unit RMS. It murmurs with the voices that it has overheard."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._crowd: list[Signal] = []

    def overhear(self, speech: Signal) -> None:
        if len(self._crowd) < _CROWD:
            self._crowd.append(normalised(speech))

    def draw(self, count: int) -> Signal:
        kinds = ("white", "pink", "brown", "hum", "babble")
        kind = pick(self._rng, kinds, (0.3, 0.25, 0.15, 0.1, 0.2))
        if kind == "hum":
            return self._hum(count)
        if kind == "babble":
            return self._babble(count) if len(self._crowd) > 8 else coloured(self._rng, count, "pink")
        return coloured(self._rng, count, kind)

    def _hum(self, count: int) -> Signal:
        base = pick(self._rng, (50, 60, 120, 400))
        hum = np.zeros(count, np.float32)
        for harmonic in (1, 2, 3, 5):
            phase = self._rng.uniform(0, 6)
            hum += np.sin(2 * np.pi * base * harmonic * seconds_of(count) + phase) / harmonic
        return normalised(hum)

    def _babble(self, count: int) -> Signal:
        babble = np.zeros(count, np.float32)
        for _ in range(_TALKERS):
            voice = pick(self._rng, self._crowd)
            looped = np.tile(voice, -(-count // len(voice)) + 1)
            offset = int(self._rng.integers(len(looped) - count + 1))
            babble += looped[offset : offset + count]
        return normalised(babble)


def band_limited(signal: Signal) -> Signal:
    """The band of an analogue line: a fourth order Butterworth magnitude at 300 and at 3400 Hz, no phase."""
    hertz = np.fft.rfftfreq(len(signal), 1 / RATE)
    low = np.divide(300, hertz, out=np.full_like(hertz, 1e6), where=hertz > 0)
    gain = 1 / np.sqrt((1 + low**8) * (1 + (hertz / 3400) ** 8))
    return np.fft.irfft(np.fft.rfft(signal) * gain, len(signal)).astype(np.float32)


def to_mulaw(signal: Signal) -> bytes:
    """G.711 of samples in -1..1; what is louder is clipped."""
    return g711.encode((np.clip(signal, -1, 1) * 32767).round().astype("<i2").tobytes())


def from_mulaw(mulaw: bytes) -> Signal:
    return (np.frombuffer(g711.decode(mulaw), "<i2") / 32768).astype(np.float32)


def heard(mulaw: bytes) -> Signal:
    """What the recogniser is given for a stretch of a call: 16 kHz, resampled in one piece."""
    resampled: Signal = soxr.resample(from_mulaw(mulaw), RATE, MODEL_RATE)
    return resampled


class Line:
    """A call's way from the mouth to the recogniser, different each time."""

    def __init__(self, rng: np.random.Generator, noise: NoiseSource, *, worst_snr: float) -> None:
        """`worst_snr`: the lowest ratio of speech to noise, in dB; the highest is 45."""
        self._rng = rng
        self._noise = noise
        self._worst_snr = worst_snr

    def carry(self, speech: Signal) -> tuple[Signal, float]:
        """Speech at 8 kHz in; out, the call at 16 kHz and how many seconds into it the speech begins."""
        rng = self._rng
        speech = speech / (np.abs(speech).max() + 1e-9) * amplitude(rng.uniform(-22, -1))
        lead = 0.0 if rng.random() < 0.15 else rng.uniform(0, 0.7)
        tail = 0.0 if rng.random() < 0.1 else rng.uniform(0, 0.9)
        call = np.concatenate([silence(lead), speech, silence(tail)]).astype(np.float32)
        if rng.random() < 0.85:
            voiced = np.abs(speech) > 1e-4
            loudness = float(speech[voiced].std()) if voiced.any() else 0.02
            below = rng.uniform(self._worst_snr, 45)
            call += self._noise.draw(len(call)) * np.float32(loudness * amplitude(-below))
        return self.transmit(call), lead

    def transmit(self, call: Signal) -> Signal:
        """The line alone: 8 kHz in, 16 kHz out, nothing added but what a line does."""
        rng = self._rng
        if len(call) < 5 * PACKET:
            call = np.pad(call, (0, 5 * PACKET - len(call)))
        if rng.random() < 0.6:
            call = band_limited(call)
        if rng.random() < 0.9:
            call = from_mulaw(to_mulaw(call))
        if rng.random() < 0.08 and len(call) > 2000:
            for _ in range(rng.integers(1, 4)):
                lost = int(rng.integers(len(call) - PACKET))
                call[lost : lost + PACKET] = 0
        quality = pick(rng, ("LQ", "MQ", "HQ"))
        wide: Signal = soxr.resample(call, RATE, MODEL_RATE, quality=quality)
        return np.clip(wide, -1, 1).astype(np.float32)
