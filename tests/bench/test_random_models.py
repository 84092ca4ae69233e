"""A random model of a small shape, in the real Recogniser: what it hears is nonsense of a definite length."""

from pathlib import Path

import pytest
from faster_whisper import WhisperModel

from app.asr.recogniser import Recogniser, RecogniserOptions, Request
from app.audio import g711
from bench.random_models import SHAPES, Shape, random_model

RATE = 8000
SMALL = Shape(64, 1, 2, 2)
LARGE_V3 = Shape(64, 1, 1, 2, mels=128, languages=100)
NOISE = [g711.decode(bytes((at * at * step) % 256 for at in range(RATE * 2))) for step in (3, 7)]
SILENCE = bytes(RATE * 2 * 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("tokens", [3, 12])
@pytest.mark.parametrize("beam", [1, 2])
def test_each_decode_has_the_same_number_of_tokens(folder: Path, tokens: int, beam: int) -> None:
    recogniser = Recogniser.load(random_model(folder, "mini", SMALL, tokens=tokens), "mini")
    requests = [Request(pcm, RATE, language) for pcm in (*NOISE, SILENCE) for language in ("ko", "auto")]
    for request in requests:
        [decoded] = recogniser.decode([request], beam=beam)
        assert len(decoded.text) == tokens  # each a syllable
        assert len(set(decoded.text)) == tokens
        assert (decoded.language, decoded.dropped, decoded.redecoded) == ("ko", "", False)
        assert decoded.avg_logprob > -0.5
    batch = recogniser.decode([Request(pcm, RATE, "ko") for pcm in NOISE], beam=beam)
    assert [len(decoded.text) for decoded in batch] == [tokens, tokens]


def test_a_full_window_too(folder: Path) -> None:
    path = random_model(folder, "mini", SMALL)
    recogniser = Recogniser.load(path, "mini", options=RecogniserOptions(encoder_window="full"))
    [decoded] = recogniser.decode([Request(NOISE[0], RATE, "ko")], beam=2)
    assert (len(decoded.text), decoded.window_s) == (12, 30)


def test_large_v3_has_more_mel_bands_and_one_language_more(folder: Path) -> None:
    path = random_model(folder, "like-large-v3", LARGE_V3)
    recogniser = Recogniser.load(path, "like-large-v3")
    [decoded] = recogniser.decode([Request(NOISE[0], RATE, "auto")], beam=1)
    assert (len(decoded.text), decoded.language) == (12, "ko")
    assert WhisperModel(str(path), device="cpu").model.n_mels == 128


def test_what_was_made_is_kept(folder: Path) -> None:
    path = random_model(folder, "mini", SMALL)
    made = (path / "model.bin").stat().st_mtime_ns
    assert random_model(folder, "mini", SMALL) == path
    assert (path / "model.bin").stat().st_mtime_ns == made
    assert not list(folder.glob(".random-*"))


def test_the_vocabularies_are_whispers() -> None:
    assert {name: shape.vocabulary for name, shape in SHAPES.items()} == {
        **dict.fromkeys(("tiny", "base", "small", "medium"), 51_865),
        **dict.fromkeys(("large-v3", "large-v3-turbo"), 51_866),
    }
