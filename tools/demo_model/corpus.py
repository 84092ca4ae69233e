"""The training material: phrases in many voices, whole, cut short or doubled, and no speech at all."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr
from faster_whisper.feature_extractor import FeatureExtractor

from tools.demo_model.espeak import Espeak, Signal
from tools.demo_model.phrases import Phrase
from tools.demo_model.telephone import (
    RATE,
    Line,
    NoiseSource,
    amplitude,
    coloured,
    pick,
    seconds_of,
    silence,
    two_tones,
)

# fmt: off
HELD_OUT = (
    "m4", "f3", "klatt2", "Annie", "benjamin", "iven3", "Mario", "pablo", "steph2", "travis",
    "linda", "Michael",
)
"""Variants of espeak's voices that training never hears: what the model is measured with."""

TRAINING = (
    "m1", "m2", "m3", "m5", "m6", "m7", "m8", "f1", "f2", "f4", "f5", "klatt", "klatt3", "klatt4",
    "adam", "Alex", "Alicia", "Andrea", "Andy", "announcer", "antonio", "aunty", "belinda", "boris",
    "caleb", "david", "ed", "edward", "edward2", "fast", "grandma", "grandpa", "gustave", "Gene",
    "Gene2", "Denis", "Diogo", "Henrique", "Hugo", "iven", "iven2", "iven4", "Jacky", "john",
    "kaukovalta", "Lee", "Marco", "marcelo", "max", "michel", "miguel", "Mike", "norbert", "paul",
    "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "steph3", "victor", "zac",
    "Nguyen", "RicishayMax", "RicishayMax2", "croak",
)
# fmt: on

_BASES = {
    "ko": ("ko",),
    "en": ("en-us", "en-us", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc"),
}

_CALL_PROGRESS = (
    (440, 480),  # ringback
    (480, 620),  # busy
    (350, 440),  # dial tone
    (425, 425),  # most of the world's tones
    (697, 1209),  # DTMF 1, 5, 8 and 0
    (770, 1336),
    (852, 1336),
    (941, 1336),
)

KOREAN_SHARE = 0.68
NON_SPEECH_SHARE = 0.10
CUT_SHARE = 0.14
DOUBLED_SHARE = 0.10


@dataclass(frozen=True, slots=True)
class Take:
    """A phrase spoken once: samples at 8 kHz, the seconds at which its words begin, and who spoke."""

    samples: Signal
    word_starts: tuple[float, ...]
    voice: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing to learn: log-mel [80, frames of 10 ms], and what is said from `start` to `end`, seconds."""

    mel: npt.NDArray[np.float16]
    text: str
    language: str
    start: float
    end: float


class Studio:
    """Speaks phrases, each time with another variant, speed, pitch and intonation."""

    def __init__(self, espeak: Espeak, rng: np.random.Generator) -> None:
        self._espeak = espeak
        self._rng = rng

    def speak(self, phrase: Phrase, variants: Sequence[str]) -> Take:
        rng = self._rng
        voice = f"{pick(rng, _BASES[phrase.language])}+{pick(rng, variants)}"
        reading = self._espeak.say(
            phrase.text,
            voice,
            rate=int(rng.integers(125, 215)),
            pitch=int(rng.integers(20, 82)),
            swing=int(rng.integers(20, 80)),
        )
        # Played a little too fast or too slow: the formants move with it, which no setting of espeak does.
        stretch = rng.uniform(0.93, 1.07)
        samples: Signal = soxr.resample(reading.samples, self._espeak.rate * stretch, RATE)
        return Take(_trimmed(samples), tuple(start / stretch for start in reading.word_starts), voice)


def _trimmed(samples: Signal) -> Signal:
    """Without the silence that espeak adds at the end, but for 25 ms."""
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    return samples[: loud[-1] + 200] if len(loud) else samples


class SampleMaker:
    """Draws training samples. The same seed gives the same samples."""

    def __init__(self, espeak: Espeak, phrases: Sequence[Phrase], seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._phrases = {language: [phrase for phrase in phrases if phrase.language == language] for language in _BASES}
        self._studio = Studio(espeak, self._rng)
        self._noise = NoiseSource(self._rng)
        self._line = Line(self._rng, self._noise, worst_snr=6)
        self._features = FeatureExtractor()

    def draw(self) -> Sample:
        if self._rng.random() < NON_SPEECH_SHARE:
            audio = self._line.transmit(draw_non_speech(self._rng, self._noise))
            return Sample(self._mel(audio), "", pick(self._rng, tuple(_BASES)), 0, 0)
        language = "ko" if self._rng.random() < KOREAN_SHARE else "en"
        samples, text = self._speech(language)
        audio, start = self._line.carry(samples)
        return Sample(self._mel(audio), text, language, start, start + len(samples) / RATE)

    def _speech(self, language: str) -> tuple[Signal, str]:
        """A phrase, sometimes cut short (so that partial transcripts make sense), sometimes two phrases."""
        phrase = pick(self._rng, self._phrases[language])
        take = self._studio.speak(phrase, TRAINING)
        self._noise.overhear(take.samples)
        chance = self._rng.random()
        if chance < CUT_SHARE:
            return cut_short(take, phrase.text, self._rng.uniform(0.25, 1))
        if chance < CUT_SHARE + DOUBLED_SHARE:
            second = pick(self._rng, self._phrases[language])
            pause = silence(self._rng.uniform(0.15, 0.7))
            samples = [take.samples, pause, self._studio.speak(second, TRAINING).samples]
            return np.concatenate(samples), f"{phrase.text} {second.text}"
        return take.samples, phrase.text

    def _mel(self, audio: Signal) -> npt.NDArray[np.float16]:
        mel: npt.NDArray[np.float16] = self._features(audio).astype(np.float16)
        return mel


def cut_short(take: Take, text: str, share: float) -> tuple[Signal, str]:
    """About the first `share` of it, with the words that are whole (to 60 ms) by then.

    The sound ends at most 120 ms into the next word. The whole take, where espeak's words are not the text's.
    """
    words = text.split(" ")
    if len(words) < 2 or len(words) != len(take.word_starts):
        return take.samples, text
    length = len(take.samples) / RATE
    ends = [*take.word_starts[1:], length]
    cut = share * length
    kept = sum(cut >= end - 0.06 for end in ends)
    if kept == 0:
        return take.samples, text
    said = " ".join(words[:kept])
    cut = min(cut, ends[kept - 1] + 0.12)
    return take.samples[: int(cut * RATE)], said if kept == len(words) else said.rstrip(",")


def draw_non_speech(rng: np.random.Generator, noise: NoiseSource) -> Signal:
    """0.3 to 4 s of what a line carries when nobody speaks."""
    count = int(rng.uniform(0.3, 4) * RATE)
    kind = pick(rng, ("nothing", "noise", "noise", "tones", "clicks", "swell"))
    if kind == "nothing":
        return np.zeros(count, np.float32)
    if kind == "tones":
        return _tones(rng, count)
    if kind == "clicks":
        return _clicks(rng, noise, count)
    if kind == "swell":
        pace = rng.uniform(0.5, 5)
        swell = 0.5 + 0.5 * np.sin(2 * np.pi * pace * seconds_of(count))
        swelling: Signal = (noise.draw(count) * swell * amplitude(rng.uniform(-50, -25))).astype(np.float32)
        return swelling
    return noise.draw(count) * np.float32(amplitude(rng.uniform(-60, -20)))


def _tones(rng: np.random.Generator, count: int) -> Signal:
    low, high = pick(rng, _CALL_PROGRESS)
    tones = two_tones(low, high, count) * np.float32(rng.uniform(0.02, 0.3))
    if rng.random() < 0.5:
        tones *= (seconds_of(count) % rng.uniform(0.3, 1.2)) < rng.uniform(0.1, 0.6)
    return tones


def _clicks(rng: np.random.Generator, noise: NoiseSource, count: int) -> Signal:
    clicks = noise.draw(count) * np.float32(amplitude(rng.uniform(-60, -40)))
    for _ in range(rng.integers(1, 4)):
        offset = int(rng.integers(max(1, count - 900)))
        length = min(int(rng.integers(40, 800)), count - offset)
        burst = coloured(rng, length, "pink") * np.hanning(length) * rng.uniform(0.02, 0.3)
        clicks[offset : offset + length] += burst.astype(np.float32)
    return clicks


def write_pool(path: Path, samples: Sequence[Sample]) -> None:
    with path.open("wb") as file:
        pickle.dump(list(samples), file, protocol=4)


def read_pool(path: Path) -> list[Sample]:
    """Only for a pool that this tool wrote: a pickle runs what it likes."""
    with path.open("rb") as file:
        samples: list[Sample] = pickle.load(file)
    return samples
