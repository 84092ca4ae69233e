import importlib.util
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from app.audio.chunker import Chunker
from app.audio.endpoint import Endpointer, EndpointEvent, EndpointOptions, SpeechStarted, SpeechStopped
from app.audio.vad import (
    BundledSilero,
    EnergyDetector,
    NativeSilero,
    SileroModel,
    SpeechDetector,
    double_rate,
    load_silero,
)
from app.errors import ConfigError

if TYPE_CHECKING:
    from tests.audio.conftest import SampleCall


@pytest.fixture(scope="module")
def native() -> SileroModel:
    return load_silero()


@pytest.fixture(scope="module")
def bundled() -> SileroModel:
    """What load_silero gives to a machine that lacks the silero-vad package."""
    with pytest.MonkeyPatch.context() as without:
        without.setitem(sys.modules, "silero_vad", None)
        return load_silero()


@pytest.fixture(params=["native", "bundled"])
def silero(request: pytest.FixtureRequest) -> SileroModel:
    model: SileroModel = request.getfixturevalue(request.param)
    return model


def probabilities(detector: SpeechDetector, pcm: bytes) -> list[float]:
    return [detector.probability(frame) for frame in Chunker(detector.frame_bytes).push(pcm)]


def utterances(detector: SpeechDetector, pcm: bytes) -> list[EndpointEvent]:
    endpointer = Endpointer(EndpointOptions())
    return [
        event
        for probability in probabilities(detector, pcm)
        for event in endpointer.process(probability, detector.frame_ms)
    ]


def lags(
    new_detector: Callable[[], SpeechDetector], calls: "Sequence[SampleCall]"
) -> tuple[list[int], list[int], int, int]:
    """Onset and offset lags in milliseconds, calls in which nothing was heard, calls heard in two pieces."""
    onsets, offsets, deaf, split = [], [], 0, 0
    for call in calls:
        assert call.speech_ms is not None
        events = utterances(new_detector(), call.pcm)
        starts = [event.at_ms for event in events if isinstance(event, SpeechStarted)]
        stops = [event.at_ms for event in events if isinstance(event, SpeechStopped)]
        assert len(starts) == len(stops)
        if not starts:
            deaf += 1
            continue
        split += len(starts) > 1
        onsets.append(starts[0] - call.speech_ms[0])
        offsets.append(stops[-1] - call.speech_ms[1])
    return sorted(onsets), sorted(offsets), deaf, split


# ---------------------------------------------------------------- Silero on real calls


def test_silero_hears_every_sample_call_in_one_piece(native: SileroModel, spoken: "list[SampleCall]") -> None:
    onsets, offsets, deaf, split = lags(native.detector, spoken)
    assert (deaf, split) == (0, 0)
    assert -50 <= statistics.median(onsets) <= 50
    assert onsets[len(onsets) * 9 // 10] <= 150
    assert max(onsets) <= 500
    assert 50 <= statistics.median(offsets) <= 130
    assert max(offsets) <= 200


def test_the_fallback_hears_nearly_as_well(bundled: SileroModel, spoken: "list[SampleCall]") -> None:
    onsets, offsets, deaf, split = lags(bundled.detector, spoken)
    assert deaf <= 1  # one voice says "No." as nobody would
    assert split == 0
    assert -50 <= statistics.median(onsets) <= 50
    assert onsets[len(onsets) * 9 // 10] <= 200
    assert 20 <= statistics.median(offsets) <= 100
    assert max(offsets) <= 150


def test_silero_hears_nobody_where_nobody_speaks(silero: SileroModel, unspoken: "list[SampleCall]") -> None:
    assert len(unspoken) == 5
    for call in unspoken:
        assert utterances(silero.detector(), call.pcm * 3) == [], call.name


def test_a_call_that_begins_with_a_word(silero: SileroModel, spoken: "list[SampleCall]") -> None:
    """With an empty memory in place of a primed one the median doubles and the fallback misses five calls."""
    onsets = []
    for call in spoken:
        assert call.speech_ms is not None
        events = utterances(silero.detector(), call.pcm[call.speech_ms[0] * 16 :])
        onsets += [event.at_ms for event in events[:1]]
    assert len(onsets) >= len(spoken) - 1
    assert statistics.median(onsets) <= 40
    assert sorted(onsets)[len(onsets) * 9 // 10] <= 130


# ---------------------------------------------------------------- Silero's interface


@pytest.mark.parametrize("size", [0, 320, 511, 513, 1024])
def test_silero_refuses_any_other_frame(silero: SileroModel, size: int) -> None:
    detector = silero.detector()
    assert detector.frame_bytes == 512
    assert detector.frame_ms == 32
    with pytest.raises(ValueError, match="512"):
        detector.probability(bytes(size))


def test_calls_do_not_hear_each_other(silero: SileroModel, spoken: "list[SampleCall]") -> None:
    first, second = (call.pcm[:24_576] for call in spoken[:2])
    alone = probabilities(silero.detector(), first)
    one, other = silero.detector(), silero.detector()
    frames = zip(Chunker(512).push(first), Chunker(512).push(second), strict=True)
    together = []
    for mine, theirs in frames:
        together.append(one.probability(mine))
        other.probability(theirs)
    assert together == alone


def test_frames_of_many_calls_share_a_run(silero: SileroModel, spoken: "list[SampleCall]") -> None:
    """Runs of one, three and five calls in turn give each call what it gets alone."""
    pieces = [Chunker(512).push(call.pcm[:24_576]) for call in spoken[:5]]
    alone = [probabilities(silero.detector(), call.pcm[:24_576]) for call in spoken[:5]]
    memories = [silero.fresh() for _ in pieces]
    shared: list[list[float]] = [[] for _ in pieces]
    for number in range(len(pieces[0])):
        for group in ((0,), (1, 2, 3), (4,)) if number % 2 else ((4, 3, 2, 1, 0),):
            answers = silero.probabilities([pieces[call][number] for call in group], [memories[call] for call in group])
            for call, answer in zip(group, answers, strict=True):
                shared[call].append(answer)
    np.testing.assert_allclose(shared, alone, atol=1e-4)
    assert silero.probabilities([], []) == []


def test_reset_forgets_the_call(silero: SileroModel, spoken: "list[SampleCall]") -> None:
    detector = silero.detector()
    first = probabilities(detector, spoken[0].pcm)
    detector.reset()
    assert probabilities(detector, spoken[0].pcm) == first


def test_the_model_is_found_without_importing_its_package(native: SileroModel, bundled: SileroModel) -> None:
    assert isinstance(native, NativeSilero)
    assert isinstance(bundled, BundledSilero)
    assert native.name != bundled.name
    assert "silero_vad" not in sys.modules


def test_no_model_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(ConfigError, match=r"install silero-vad.*VAD=energy"):
        load_silero()


def test_a_package_without_the_file_counts_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importable, but not the package we know: an old one, or a folder of that name."""
    (tmp_path / "silero_vad").mkdir()
    (tmp_path / "silero_vad" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    spec = importlib.util.find_spec("silero_vad")
    assert spec is not None
    assert spec.origin == str(tmp_path / "silero_vad" / "__init__.py")
    assert isinstance(load_silero(), BundledSilero)


# ---------------------------------------------------------------- upsampling for the fallback


@pytest.mark.parametrize("hz", [100, 440, 1000, 2500, 3400])
def test_doubling_the_rate_keeps_the_signal(hz: int) -> None:
    signal = np.sin(2 * np.pi * hz * np.arange(1000) / 8000).astype(np.float32)
    doubled = double_rate(signal)
    expected = np.sin(2 * np.pi * hz * (np.arange(len(doubled)) / 2 + 15) / 8000)
    np.testing.assert_allclose(doubled, expected, atol=0.002)


def test_overlapping_blocks_make_one_signal() -> None:
    signal = np.random.default_rng(3).normal(size=256 * 8 + 31).astype(np.float32)
    blocks = [double_rate(signal[at : at + 256 + 31]) for at in range(0, 256 * 8, 256)]
    np.testing.assert_allclose(np.concatenate(blocks), double_rate(signal), atol=1e-5)


# ---------------------------------------------------------------- loudness


@pytest.mark.parametrize("frame_ms", [10, 20, 30, 60])
def test_loudness_finds_the_sample_calls(frame_ms: int, spoken: "list[SampleCall]") -> None:
    onsets, offsets, deaf, split = lags(lambda: EnergyDetector(frame_ms), spoken)
    assert deaf == 0
    assert split <= 3
    assert -10 <= statistics.median(onsets) <= 40
    assert -40 <= statistics.median(offsets) <= 40


@pytest.mark.parametrize("frame_ms", [10, 20, 30])
def test_loudness_hears_nobody_where_nobody_speaks(frame_ms: int, unspoken: "list[SampleCall]") -> None:
    for call in unspoken:  # without the silence behind each, from which noise would begin anew
        assert utterances(EnergyDetector(frame_ms), call.pcm[:-16_000] * 4) == [], call.name


def noise(seconds: float, rms: float) -> bytes:
    samples = np.random.default_rng(1).normal(0, rms, int(8000 * seconds))
    return samples.astype("<i2").tobytes()


def test_steady_noise_becomes_silence_after_two_seconds() -> None:
    detector = EnergyDetector()
    quiet = probabilities(detector, noise(1, 30))
    assert max(quiet) < 0.1
    loud = probabilities(detector, noise(4, 1000))
    assert min(loud[2:50]) > 0.9
    assert max(loud[70:]) < 0.1


def test_a_voice_is_heard_over_noise_only_when_it_is_louder(spoken: "list[SampleCall]") -> None:
    def starts(scale: float) -> int:
        heard = 0
        for call in spoken[:10]:
            voice = np.frombuffer(call.pcm, "<i2") * scale
            mixed = voice + np.frombuffer(noise(len(voice) / 8000, 300), "<i2")
            pcm = np.clip(mixed, -32768, 32767).astype("<i2").tobytes()
            heard += any(isinstance(event, SpeechStarted) for event in utterances(EnergyDetector(), pcm))
        return heard

    assert starts(1.0) == 10
    assert starts(0.02) == 0


def test_loudness_of_digital_silence_is_nothing() -> None:
    assert set(probabilities(EnergyDetector(), bytes(48_000))) == {0.0}


def test_loudness_forgets_the_call_on_reset(spoken: "list[SampleCall]") -> None:
    detector = EnergyDetector()
    first = probabilities(detector, spoken[0].pcm)
    detector.reset()
    assert probabilities(detector, spoken[0].pcm) == first


@pytest.mark.parametrize("frame_ms", [0, 9, 61])
def test_frames_of_odd_lengths_are_refused(frame_ms: int) -> None:
    with pytest.raises(ValueError, match="10 to 60"):
        EnergyDetector(frame_ms)


def test_loudness_refuses_any_other_frame() -> None:
    with pytest.raises(ValueError, match="480"):
        EnergyDetector().probability(bytes(512))
