"""The shipped demo model, through the unmodified faster_whisper, on the 59 sample calls (held-out voices)."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import ctranslate2
import numpy as np
import numpy.typing as npt
import pytest
import soxr
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer

import app.asr
from app.audio import g711

MODEL = Path(app.asr.__path__[0]) / "demo_model"
CALLS = Path(__file__).parents[1] / "data" / "calls"

Audio = npt.NDArray[np.float32]


class Call(NamedTuple):
    file: str
    language: str
    text: str

    def __str__(self) -> str:
        return self.file.removesuffix(".ulaw")

    def audio(self) -> Audio:
        """As the recogniser wants it: 16 kHz, -1 to 1."""
        pcm = np.frombuffer(g711.decode((CALLS / self.file).read_bytes()), "<i2")
        audio: Audio = soxr.resample((pcm / 32768).astype(np.float32), 8000, 16000)
        return audio


def read_calls() -> list[Call]:
    rows = json.loads((CALLS / "samples.json").read_text(encoding="utf-8"))
    return [Call(row["file"], row["lang"], row["text"]) for row in rows]


SPEECH = [call for call in read_calls() if call.text]
NON_SPEECH = [call for call in read_calls() if not call.text]


@pytest.fixture(scope="module")
def model() -> WhisperModel:
    return WhisperModel(str(MODEL), device="cpu", compute_type="int8", cpu_threads=1)


def transcribe(model: WhisperModel, call: Call, language: str | None = None) -> str:
    """Greedy, through the public door: always a window of 30 s."""
    segments, _ = model.transcribe(
        call.audio(),
        language=language or call.language,
        beam_size=1,
        temperature=0,
        without_timestamps=True,
        condition_on_previous_text=False,
    )
    return " ".join(segment.text.strip() for segment in segments)


def transcribe_short(model: WhisperModel, call: Call, **settings: Any) -> str:
    """Over the call's own length, as a telephone turn is decoded."""
    tokenizer = Tokenizer(model.hf_tokenizer, True, task="transcribe", language=call.language)
    features = model.feature_extractor(call.audio())
    even = features[None, :, : features.shape[1] // 2 * 2].astype(np.float32)
    window = ctranslate2.StorageView.from_array(np.ascontiguousarray(even))
    prompt = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
    result = model.model.generate(window, [prompt], **settings)
    text: str = tokenizer.decode(result[0].sequences_ids[0])
    return text.strip()


def test_the_list_of_phrases_is_that_of_the_sample_calls() -> None:
    phrases = json.loads((MODEL / "phrases.json").read_text(encoding="utf-8"))
    assert [(row["text"], row["language"]) for row in phrases] == [(call.text, call.language) for call in SPEECH]
    assert Counter(row["language"] for row in phrases) == {"ko": 38, "en": 16}


@pytest.mark.parametrize("call", SPEECH[::3], ids=str)
def test_transcribe_gives_the_phrase_exactly(model: WhisperModel, call: Call) -> None:
    """Every third: the 30 s window costs thirty times as much as the short one below."""
    assert transcribe(model, call) == call.text


@pytest.mark.parametrize("call", SPEECH, ids=str)
def test_greedy_gives_the_phrase_exactly(model: WhisperModel, call: Call) -> None:
    assert transcribe_short(model, call, beam_size=1) == call.text


@pytest.mark.parametrize("call", SPEECH, ids=str)
def test_beam_two_without_length_penalty_gives_the_phrase_exactly(model: WhisperModel, call: Call) -> None:
    """With the usual length_penalty of 1, two junk early endings win the beam in a quarter of these calls."""
    assert transcribe_short(model, call, beam_size=2, length_penalty=0) == call.text


@pytest.mark.parametrize("call", NON_SPEECH, ids=str)
def test_what_is_not_speech_gives_no_text(model: WhisperModel, call: Call) -> None:
    assert [transcribe(model, call, language) for language in ("ko", "en")] == ["", ""]
