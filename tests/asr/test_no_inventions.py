"""Ten minutes in which nobody speaks, through all that stands before a turn: Silero, the endpointer, the recogniser.

Nothing may become words: neither at once, because no sound is taken for speech, nor later, because no decode of it is
believed. The second is tested on the same sounds without the first.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pytest

from app.asr.models import DEMO_FOLDER
from app.asr.recogniser import Recogniser, Request
from app.asr.recording import Utterance, Utterances
from app.asr.speech import SpeechFinder
from app.audio import g711
from app.audio.endpoint import Endpointer, EndpointOptions
from app.audio.vad import load_silero

RATE = 8000
SECONDS = 75

Sound = npt.NDArray[np.float64]
TIME: Sound = np.arange(SECONDS * RATE) / RATE


def noise(seed: int) -> Sound:
    return np.random.default_rng(seed).standard_normal(len(TIME))


def tones(*hertz: float) -> Sound:
    return sum((np.sin(2 * np.pi * one * TIME) for one in hertz), silence())


def silence() -> Sound:
    return np.zeros(len(TIME))


def white() -> Sound:
    """From a whisper of a line to a roaring one."""
    return noise(1) * np.logspace(-3, -1, len(TIME))


def pink() -> Sound:
    hertz = np.fft.rfftfreq(len(TIME), 1 / RATE)
    hertz[0] = hertz[1]
    shaped: Sound = np.fft.irfft(np.fft.rfft(noise(2)) / np.sqrt(hertz), len(TIME))
    shaped *= 0.08 / shaped.std()
    return shaped


def swelling() -> Sound:
    """Wind, or traffic."""
    return noise(3) * 0.1 * (0.5 + 0.5 * np.sin(2 * np.pi * 0.4 * TIME)) ** 2


def music() -> Sound:
    """A tune of plucked notes over a chord, as while a call is on hold."""
    scale = (262, 294, 330, 392, 440, 523)
    picked = np.random.default_rng(4).choice(scale, SECONDS * 3)
    melody = np.repeat(picked, RATE // 3 + 1)[: len(TIME)]
    pluck = np.exp(-4 * (TIME % (1 / 3)))
    notes = sum((np.sin(2 * np.pi * melody * part * TIME) / part for part in (1, 2, 3, 4)), silence())
    return 0.15 * notes * pluck + 0.05 * tones(131, 165, 196)


def ring_back() -> Sound:
    """Korea's, 440 and 480 Hz: one second of three."""
    return 0.15 * tones(440, 480) * (TIME % 3 < 1)


def dtmf() -> Sound:
    """A number dialled over and over, 120 ms a key."""
    low = np.repeat([697, 770, 852, 941, 697], RATE // 4)
    high = np.repeat([1209, 1336, 1477, 1336, 1477], RATE // 4)
    keys = len(TIME) // len(low) + 1
    dialled = (np.sin(2 * np.pi * np.tile(group, keys)[: len(TIME)] * TIME) for group in (low, high))
    return 0.15 * sum(dialled, silence()) * (TIME % 0.25 < 0.12)


def clicks() -> Sound:
    """Knocks and crackles, about one a second, over a hum."""
    random = np.random.default_rng(5)
    sound = 0.01 * tones(60, 120, 180)
    for at in random.integers(0, len(TIME) - RATE, SECONDS):
        length = int(random.integers(40, 800))
        sound[at : at + length] += random.standard_normal(length) * np.hanning(length) * random.uniform(0.05, 0.4)
    return sound


SOUNDS: Mapping[str, Callable[[], Sound]] = {
    sound.__name__: sound for sound in (silence, white, pink, swelling, music, ring_back, dtmf, clicks)
}


def over_the_line(sound: Sound) -> bytes:
    pcm = (np.clip(sound, -1, 1) * 32767).round().astype("<i2").tobytes()
    return g711.decode(g711.encode(pcm))


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return Recogniser.load(DEMO_FOLDER, "demo")


def utterances(pcm: bytes) -> list[Utterance]:
    finder = SpeechFinder(load_silero().detector(), Endpointer(EndpointOptions()), RATE)
    return Utterances(finder).push(pcm, last=True)


def test_it_is_ten_minutes() -> None:
    assert SECONDS * len(SOUNDS) == 600


@pytest.mark.parametrize("name", SOUNDS)
def test_nothing_becomes_words(recogniser: Recogniser, name: str) -> None:
    found = utterances(over_the_line(SOUNDS[name]()))
    asked = [Request(one.pcm, RATE, "ko", one.speech_ms) for one in found]
    assert [one.text for request in asked for one in recogniser.decode([request], beam=2) if one.text] == []


@pytest.mark.parametrize("name", SOUNDS)
def test_no_decode_of_it_is_believed(recogniser: Recogniser, name: str) -> None:
    """Two seconds of it each time, as though the detector had been taken in."""
    pcm = over_the_line(SOUNDS[name]())
    pieces = [pcm[at : at + 4 * RATE] for at in (0, len(pcm) // 2)]
    asked = [Request(piece, RATE, language) for piece, language in zip(pieces, ("ko", "auto"), strict=True)]
    assert [recogniser.decode([request], beam=2)[0].text for request in asked] == ["", ""]
