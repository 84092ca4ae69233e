"""The shipped demo model: through the unmodified faster_whisper, and through our own way of asking it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import soxr
from faster_whisper import WhisperModel

from app.asr.models import DEMO_FOLDER
from app.asr.recogniser import Recogniser, Request
from tests.asr.sample_calls import RATE, SampleCall, nobody, sample_calls
from tools.demo_model.corpus import HELD_OUT, TRAINING, Studio
from tools.demo_model.espeak import Espeak
from tools.demo_model.phrases import load_phrases
from tools.demo_model.telephone import MODEL_RATE, Line, NoiseSource

SPEECH = [call for call in sample_calls() if call.text]


@pytest.fixture(scope="module")
def model() -> WhisperModel:
    return WhisperModel(str(DEMO_FOLDER), device="cpu", compute_type="int8", cpu_threads=1)


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return Recogniser.load(DEMO_FOLDER, "demo")


def name(call: SampleCall) -> str:
    return Path(call.name).stem


def transcribe(model: WhisperModel, call: SampleCall, language: str | None = None) -> str:
    """Greedy, through the public door: always a window of 30 s."""
    pcm = np.frombuffer(call.pcm, "<i2")
    segments, _ = model.transcribe(
        soxr.resample((pcm / 32768).astype(np.float32), RATE, MODEL_RATE),
        language=language or call.language,
        beam_size=1,
        temperature=0,
        without_timestamps=True,
        condition_on_previous_text=False,
    )
    return " ".join(segment.text.strip() for segment in segments)


def test_the_list_of_phrases_is_that_of_the_sample_calls() -> None:
    phrases = json.loads((DEMO_FOLDER / "phrases.json").read_text(encoding="utf-8"))
    assert [(row["text"], row["language"]) for row in phrases] == [(call.text, call.language) for call in SPEECH]
    assert Counter(row["language"] for row in phrases) == {"ko": 38, "en": 16}


@pytest.mark.parametrize("call", SPEECH[::4], ids=name)
def test_transcribe_gives_the_phrase_exactly(model: WhisperModel, call: SampleCall) -> None:
    """Every fourth: the 30 s window costs thirty times as much as the short one below."""
    assert transcribe(model, call) == call.text


@pytest.mark.parametrize("call", nobody(), ids=name)
def test_what_is_not_speech_gives_no_text(model: WhisperModel, call: SampleCall) -> None:
    assert [transcribe(model, call, language) for language in ("ko", "en")] == ["", ""]


@pytest.mark.parametrize("beam", [1, 2])
@pytest.mark.parametrize("call", SPEECH, ids=name)
def test_our_recogniser_gives_the_phrase_exactly(recogniser: Recogniser, call: SampleCall, beam: int) -> None:
    [decoded] = recogniser.decode([Request(call.pcm, RATE, call.language)], beam=beam)
    assert (decoded.text, decoded.redecoded) == (call.text, False)


# ---------------------------------------------------------------- voices that it has never heard


class Unheard(NamedTuple):
    voice: str
    text: str
    request: Request


@pytest.fixture(scope="module")
def unheard() -> list[Unheard]:
    """Each phrase in two voices that training left out, over a telephone line with noise."""
    phrases = load_phrases()
    rng = np.random.default_rng(31)
    studio = Studio(Espeak(), rng)
    noise = NoiseSource(rng)
    for phrase in phrases[:20]:
        noise.overhear(studio.speak(phrase, TRAINING).samples)
    line = Line(rng, noise, worst_snr=12)
    calls = []
    for number, phrase in enumerate([*phrases, *phrases]):
        take = studio.speak(phrase, [HELD_OUT[number % len(HELD_OUT)]])
        audio, _ = line.carry(take.samples)
        calls.append(Unheard(take.voice, phrase.text, Request(to_pcm(audio), MODEL_RATE, phrase.language)))
    return calls


def to_pcm(audio: npt.NDArray[Any]) -> bytes:
    return (audio * 32767).round().astype("<i2").tobytes()


@pytest.mark.parametrize("beam", [1, 2])
def test_unheard_voices_are_understood(recogniser: Recogniser, unheard: list[Unheard], beam: int) -> None:
    heard = [recogniser.decode([call.request], beam=beam)[0] for call in unheard]
    wrong = [
        (call.voice, call.text, one.text) for call, one in zip(unheard, heard, strict=True) if one.text != call.text
    ]
    assert len(wrong) <= 0.03 * len(unheard), wrong
    assert sum(one.redecoded for one in heard) <= 0.03 * len(unheard)
