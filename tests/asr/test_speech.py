"""Where speech is found, at any rate and however the audio is cut."""

import numpy as np
import pytest
import soxr

from app.asr.formats import RATES
from app.asr.speech import PREROLL_MS, Downsampler, Heard, SpeechFinder
from app.audio.endpoint import Endpointer, EndpointOptions, SpeechPaused, SpeechResumed, SpeechStarted, SpeechStopped
from app.audio.types import SAMPLE_BYTES, AudioFrame
from app.audio.vad import EnergyDetector, load_silero
from tests.asr.sample_calls import RATE, spoken

MODEL = load_silero()
VOICE = spoken("안녕하세요.").pcm
SILENCE = bytes(RATE * SAMPLE_BYTES)
TWICE = SILENCE + VOICE + SILENCE + VOICE


def at_rate(pcm: bytes, rate: int) -> bytes:
    samples = np.frombuffer(pcm, "<i2").astype(np.float32)
    resampled: bytes = soxr.resample(samples, RATE, rate).clip(-32768, 32767).astype("<i2").tobytes()
    return resampled


def found(pcm: bytes, rate: int = RATE, step: int = 3200, finder: SpeechFinder | None = None) -> list[Heard]:
    finder = finder or SpeechFinder(MODEL.detector(), Endpointer(EndpointOptions()), rate)
    pieces = (pcm[at : at + step] for at in range(0, len(pcm), step))
    return [*(one for piece in pieces for one in finder.push(piece)), *finder.finish()]


def kinds(heard: list[Heard]) -> str:
    names = {SpeechStarted: "S", SpeechPaused: "p", SpeechResumed: "r", SpeechStopped: "."}
    return "".join(names.get(type(one), "") for one in heard)


def frames(heard: list[Heard]) -> list[AudioFrame]:
    return [one for one in heard if isinstance(one, AudioFrame)]


def test_two_utterances_are_two_though_the_second_ends_with_the_audio() -> None:
    heard = found(TWICE)
    assert kinds(heard).replace("pr", "") == "Sp.Sp."
    first, second = (one for one in heard if isinstance(one, SpeechStarted))
    assert 1000 <= first.at_ms <= 1300
    assert 2000 + len(VOICE) / 16 <= second.at_ms <= 2400 + len(VOICE) / 16
    stops = [one for one in heard if isinstance(one, SpeechStopped)]
    assert all(one.speech_ms >= 200 for one in stops)


def test_an_utterance_begins_with_what_was_before_its_onset() -> None:
    heard = found(TWICE)
    first, *_ = frames(heard)
    onset = next(one for one in heard if isinstance(one, SpeechStarted)).at_ms
    assert onset - PREROLL_MS <= first.at_ms <= onset - PREROLL_MS + 32


@pytest.mark.parametrize("rate", [RATE, 16_000, 44_100])
def test_the_recogniser_gets_the_audio_as_it_came(rate: int) -> None:
    pcm = at_rate(TWICE, rate) if rate != RATE else TWICE
    for frame in frames(found(pcm, rate)):
        begin = frame.at_ms * rate // 1000 * SAMPLE_BYTES
        assert frame.rate == rate
        assert frame.pcm.rstrip(b"\0") == pcm[begin : begin + len(frame.pcm)].rstrip(b"\0")


@pytest.mark.parametrize("rate", RATES)
def test_at_any_rate_speech_is_found_where_it_is(rate: int) -> None:
    expected = [one for one in found(TWICE) if isinstance(one, SpeechStarted)]
    got = [one for one in found(at_rate(TWICE, rate), rate) if isinstance(one, SpeechStarted)]
    assert len(got) == len(expected)
    assert all(abs(one.at_ms - other.at_ms) <= 96 for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("rate", [RATE, 11_025, 48_000])
def test_how_the_audio_was_cut_makes_no_difference(rate: int) -> None:
    pcm = at_rate(TWICE, rate) if rate != RATE else TWICE
    assert found(pcm, rate, 2 * 777) == found(pcm, rate, len(pcm))


def test_silence_gives_nothing() -> None:
    assert found(SILENCE * 3) == []
    assert found(b"") == []


def test_the_loudness_detector_serves_too() -> None:
    finder = SpeechFinder(EnergyDetector(30), Endpointer(EndpointOptions()), RATE)
    assert kinds(found(TWICE, finder=finder)).endswith(".")


def test_speech_up_to_the_end_is_ended_even_by_a_detector_that_hears_no_end() -> None:
    class Deaf:
        frame_ms, frame_bytes = 32, 512

        def probability(self, pcm: bytes) -> float:
            return 1.0

        def reset(self) -> None: ...

    finder = SpeechFinder(Deaf(), Endpointer(EndpointOptions()), RATE)
    assert kinds(found(VOICE, finder=finder)) == "Sp."


# ---------------------------------------------------------------- for the detector's ears


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate != RATE])
@pytest.mark.parametrize(("hz", "low_db", "high_db"), [(300, -0.5, 0.5), (2000, -0.5, 0.5), (5200, -99, -35)])
def test_what_8_khz_can_hold_passes_and_the_rest_does_not_fold_back(
    rate: int, hz: int, low_db: float, high_db: float
) -> None:
    if hz * 2 >= rate:
        return
    tone = (10_000 * np.sin(2 * np.pi * hz * np.arange(rate) / rate)).astype("<i2")
    out = np.frombuffer(Downsampler(rate).push(tone.tobytes()), "<i2").astype(float)[100:-100]
    level_db = 20 * np.log10(np.sqrt((out**2).mean()) / (10_000 / np.sqrt(2)) + 1e-9)
    assert low_db <= level_db <= high_db


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate != RATE])
def test_the_downsampler_holds_back_a_few_samples_and_loses_none(rate: int) -> None:
    rng = np.random.default_rng(1)
    pcm = rng.integers(-9000, 9000, rate).astype("<i2").tobytes()
    whole = Downsampler(rate).push(pcm)
    assert RATE - 12 <= len(whole) // SAMPLE_BYTES <= RATE
    cut, at, pieces = Downsampler(rate), 0, []
    while at < len(pcm):
        step = int(rng.integers(1, 400)) * SAMPLE_BYTES
        pieces.append(cut.push(pcm[at : at + step]))
        at += step
    assert b"".join(pieces) == whole
