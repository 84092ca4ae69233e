"""How long a window is, what fills it, and the trap that it must not fall into."""

import ctranslate2
import numpy as np
import pytest
import soxr
from faster_whisper import WhisperModel
from faster_whisper.feature_extractor import FeatureExtractor

from app.asr.models import DEMO_FOLDER
from app.asr.windows import FRAMES_PER_S, FULL_S, WINDOWS_S, choose_window, fill, find_trap, is_trap
from tests.asr.sample_calls import RATE, spoken


@pytest.mark.parametrize(
    ("audio_s", "window_s"),
    [(0.0, 5), (2.5, 5), (2.51, 8), (5.5, 8), (5.6, 12), (9.5, 12), (9.51, 30), (27.6, 30), (30.0, 30), (40.0, 30)],
)
def test_the_smallest_window_with_a_margin(audio_s: float, window_s: int) -> None:
    assert choose_window(audio_s, full=False) == window_s
    assert choose_window(audio_s, full=True) == FULL_S


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("window_s", WINDOWS_S)
def test_no_window_of_ours_is_a_trap(window_s: int, n_mels: int) -> None:
    assert not is_trap(window_s * FRAMES_PER_S, n_mels)
    assert find_trap(n_mels) is None


@pytest.mark.parametrize(("frames", "n_mels"), [(160, 80), (256, 128)])
def test_the_traps_of_whisper_are_known(frames: int, n_mels: int) -> None:
    assert is_trap(frames, n_mels)


def test_a_model_with_which_a_window_would_be_a_trap_is_found() -> None:
    assert [find_trap(window_s * FRAMES_PER_S // 2) for window_s in WINDOWS_S] == list(WINDOWS_S)


def test_ctranslate2_does_fall_into_the_trap() -> None:
    """When this fails, CTranslate2 has learnt to tell its own output from features, and the check can go."""
    model = WhisperModel(str(DEMO_FOLDER), device="cpu", compute_type="int8", cpu_threads=1)
    call = spoken("안녕하세요.")
    audio = soxr.resample(np.frombuffer(call.pcm, "<i2").astype(np.float32) / 32768, RATE, 16_000)
    heard = model.feature_extractor(audio)

    def same(frames: int) -> bool:
        features = ctranslate2.StorageView.from_array(np.ascontiguousarray(heard[None, :, :frames]))
        told = [dict(model.model.detect_language(seen)[0]) for seen in (features, model.model.encode(features))]
        return told[0] == pytest.approx(told[1], abs=1e-5)

    assert same(158)
    assert same(162)
    assert not same(160)


@pytest.mark.parametrize("window_s", WINDOWS_S[:-1])
@pytest.mark.parametrize("level", [0.0, 0.001, 0.3])
def test_a_short_window_goes_on_with_silence(window_s: int, level: float) -> None:
    """The same, bit by bit, as features of the audio with zeros behind it."""
    extract = FeatureExtractor()
    audio = (np.random.default_rng(1).standard_normal(2 * 16_000) * level).astype(np.float32)
    padded = np.pad(audio, (0, int((window_s - 2) * 16_000)))
    filled = fill(extract(np.pad(audio, (0, 480)), padding=0), window_s)
    assert np.array_equal(filled, extract(padded, padding=0))


def test_the_full_window_is_filled_as_faster_whisper_does() -> None:
    features = np.ones((80, 200), np.float32)
    filled = fill(features, FULL_S)
    assert filled.shape == (80, 3000)
    assert filled[:, :200].all()
    assert not filled[:, 200:].any()


def test_what_is_too_long_is_cut() -> None:
    assert fill(np.ones((80, 3100), np.float32), FULL_S).shape == (80, 3000)
