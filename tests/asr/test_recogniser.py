"""The real faster_whisper on the demo model, and the rules for not believing it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from faster_whisper import WhisperModel

from app.asr.models import DEMO_FOLDER
from app.asr.recogniser import MAX_DECODE_TOKENS, Decoded, Recogniser, believe, token_budget
from app.errors import ConfigError
from tests.asr.sample_calls import RATE, SampleCall, nobody, sample_calls, spoken


@pytest.fixture(scope="module")
def demo() -> Recogniser:
    return Recogniser.load(DEMO_FOLDER, "demo")


def whisper() -> WhisperModel:
    return WhisperModel(str(DEMO_FOLDER), device="cpu", compute_type="int8", cpu_threads=1)


def samples_of(call: SampleCall) -> Any:
    return soxr.resample(np.frombuffer(call.pcm, "<i2").astype(np.float32) / 32768, RATE, 16_000)


@pytest.mark.parametrize("beam", [1, 2])
def test_hears_what_was_said(demo: Recogniser, beam: int) -> None:
    for call in sample_calls()[beam::4]:
        assert demo.decode(call.pcm, RATE, call.language, beam=beam).text == call.text


def test_hears_nothing_where_nobody_speaks(demo: Recogniser) -> None:
    assert [demo.decode(call.pcm, RATE, "ko", beam=2).text for call in nobody()] == [""] * len(nobody())
    assert demo.decode(b"", RATE, "ko", beam=2) == Decoded("", "ko")


def test_finds_the_language_itself(demo: Recogniser) -> None:
    for text, language in [("안녕하세요.", "ko"), ("Hello.", "en")]:
        decoded = demo.decode(spoken(text).pcm, RATE, "auto", beam=1)
        assert (decoded.text, decoded.language) == (text, language)


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_takes_audio_of_any_rate(demo: Recogniser, rate: int) -> None:
    call = spoken("영업시간이 어떻게 되나요?")
    samples = np.frombuffer(call.pcm, "<i2").astype(np.float32)
    pcm = soxr.resample(samples, RATE, rate).astype("<i2").tobytes()
    assert demo.decode(pcm, rate, "ko", beam=1).text == call.text


def test_tells_how_sure_it_is(demo: Recogniser) -> None:
    decoded = demo.decode(spoken("안녕하세요.").pcm, RATE, "ko", beam=2)
    assert decoded.confidence is not None
    assert 0.5 < decoded.confidence <= 1
    assert decoded.decode_ms > 0
    assert Decoded("", "ko").confidence is None


def test_the_usual_length_penalty_would_cost_a_beam_its_words() -> None:
    """Why finals are decoded with length_penalty 0: BEAM_SIZE=2 with 1 ends at two early endings (CTranslate2)."""
    model = whisper()

    def right(length_penalty: float) -> int:
        count = 0
        for call in [call for call in sample_calls() if call.text][::3]:
            segments, _ = model.transcribe(
                samples_of(call),
                language=call.language,
                beam_size=2,
                length_penalty=length_penalty,
                temperature=0.0,
                without_timestamps=True,
            )
            count += "".join(segment.text for segment in segments).strip() == call.text
        return count

    assert right(0.0) == 18
    assert right(1.0) < 18


# ---------------------------------------------------------------- what is not believed


@dataclass
class Segment:
    text: str
    tokens: list[int]
    avg_logprob: float = -0.2
    compression_ratio: float = 1.0
    no_speech_prob: float = 0.0


def test_believes_ordinary_words() -> None:
    segments = [Segment(" 네,", [1, 2]), Segment(" 맞아요.", [3, 4]), Segment(" ", [5])]
    assert believe(segments, token_budget(1.0)) == ("네, 맞아요.", "")


def test_does_not_believe_a_loop_or_more_words_than_anyone_can_say() -> None:
    assert believe([Segment("네 네 네 네", [1], compression_ratio=2.5)], 23) == ("", "loop")
    assert believe([Segment("너무 많은 말", list(range(23)))], 23) == ("", "too_many_words")


def test_the_budget_follows_the_length_of_the_audio() -> None:
    assert token_budget(1.0) == 23
    assert token_budget(30.0) == MAX_DECODE_TOKENS


def test_faster_whisper_stops_at_half_of_what_it_is_given() -> None:
    """Why a budget is asked for as twice its tokens: CTranslate2 halves prompt and max_new_tokens together."""
    model = whisper()
    segments, _ = model.transcribe(
        samples_of(spoken("내일 오후 세 시에 예약해 주세요.")),
        language="ko",
        beam_size=1,
        temperature=0.0,
        without_timestamps=True,
        max_new_tokens=2 * 5,
    )
    prompt = 4  # start, language, task, no timestamps
    assert [len(segment.tokens) for segment in segments] == [(prompt + 2 * 5) // 2]


# ---------------------------------------------------------------- loading


def test_warms_up(demo: Recogniser) -> None:
    assert demo.warm_up() > 0


@pytest.mark.parametrize("file", ["model.bin", "tokenizer.json", "config.json"])
def test_an_incomplete_folder_is_named(tmp_path: Path, file: str) -> None:
    shutil.copytree(DEMO_FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).unlink()
    with pytest.raises(ConfigError, match=rf"MODEL_NAME: .*{tmp_path.name}.* {file} missing; name a folder"):
        Recogniser.load(tmp_path, "mine")


def test_a_broken_model_is_named(tmp_path: Path) -> None:
    shutil.copytree(DEMO_FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.bin").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"MODEL_NAME: mine cannot be used from .* on DEVICE=cpu"):
        Recogniser.load(tmp_path, "mine")


class Broken:
    """Loads, and fails at the first decode, as a model does on a GPU without its libraries."""

    def __init__(self, words: str) -> None:
        self.words = words

    def transcribe(self, audio: object, **options: object) -> None:
        raise RuntimeError(self.words)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("Library libcublas.so.12 is not found or cannot be loaded", r"DEVICE: .*pip install 'malgil\[cuda\]'"),
        ("CUDA failed with error out of memory", "MODEL_NAME: .*smaller model"),
        ("Requested int8_float16 compute type, but", "COMPUTE_TYPE: .*auto chooses"),
    ],
)
def test_what_fails_at_the_first_decode_says_what_to_do(words: str, advice: str) -> None:
    recogniser = Recogniser(Broken(words), name="medium", device="cuda", compute_type="int8_float16")
    with pytest.raises(ConfigError, match=advice):
        recogniser.warm_up()
