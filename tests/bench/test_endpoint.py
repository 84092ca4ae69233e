"""The labels, the rests and the arithmetic of the endpoint bench; the speech is real, but there is little of it."""

import hashlib
import json
import subprocess
import sys
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from app.audio import g711
from app.audio.vad import SileroModel, load_silero
from app.services.ai_call.completeness import EndpointWaits
from bench import endpoint
from bench.endpoint import Cell, Guess, Outcome, Policy, fixed, judge, measure, ours, probabilities
from bench.endpoint_speech import (
    DIGIT_GAP_MS,
    LEAD_MS,
    REST_MS,
    TAIL_MS,
    Rest,
    Utterance,
    Word,
    mobile,
    recorded,
    studio,
    synthetic,
)

FRAME_MS = 32
SENTENCES = """
네, 맞아요.
저는 | 내일 저녁 일곱 시에 | 두 명이요.
몸이 안 좋아서 | 예약을 취소하고 싶어요.
안녕하세요. / 예약 좀 하려고요.
"""
ORACLE = Policy("oracle", 3000, lambda guess: 0 if guess.over else 3000)


@pytest.fixture(scope="module")
def model() -> SileroModel:
    return load_silero()


@pytest.fixture(scope="module")
def spoken() -> list[Utterance]:
    return list(synthetic(studio(1), "ko", SENTENCES, 1, takes=2))


def labelled(*words: tuple[str, int], rests: Sequence[tuple[int, int]] = (), begins_ms: int = 320) -> Utterance:
    return Utterance(tuple(Word(f" {text}", end) for text, end in words), tuple(Rest(*at) for at in rests), begins_ms)


def heard_exactly(utterance: Utterance, tail_ms: int = 2000) -> list[float]:
    """What a detector without any lag would hear."""
    frames = int((utterance.ends_ms + tail_ms) / FRAME_MS)
    return [
        float(
            utterance.begins_ms <= at < utterance.ends_ms
            and not any(rest.start_ms <= at < rest.end_ms for rest in utterance.rests)
        )
        for at in range(0, frames * FRAME_MS, FRAME_MS)
    ]


RESTING = labelled(("예약을", 960), ("하고", 1280), ("싶어요.", 2560), rests=[(1280, 1920)])
"""640 ms of rest behind a connective, then the end."""


def judged(policy: Policy, utterance: Utterance = RESTING) -> Outcome:
    return judge(policy, utterance, heard_exactly(utterance), FRAME_MS)


# ---------------------------------------------------------------- the verdict


def test_a_wait_shorter_than_the_rest_cuts_and_a_longer_one_delays() -> None:
    assert judged(fixed(0)) == Outcome("예약을 하고", None)
    assert judged(fixed(600)) == Outcome("예약을 하고", None)
    assert judged(fixed(672)) == Outcome(None, 672)
    assert judged(ORACLE) == Outcome(None, 2 * FRAME_MS)  # the wait is known one frame after the pause


def test_the_words_so_far_set_the_wait() -> None:
    by_words, *_ = ours(EndpointWaits(), decode_ms=100)
    assert judged(by_words) == Outcome(None, 224)  # 200 ms in whole frames
    unknown = labelled(("내일", 1280), ("오후", 2560), rests=[(1280, 1920)])
    assert judged(by_words, unknown) == Outcome("내일", None)


def test_the_words_come_when_they_are_decoded() -> None:
    asked: list[tuple[str, bool]] = []

    def wait_ms(guess: Guess) -> int:
        asked.append((guess.text, guess.over))
        return 5000

    assert judged(Policy("late", 350, wait_ms, decode_ms=400)).cut_after == "예약을 하고"
    assert asked == []
    assert judged(Policy("in time", 350, wait_ms, decode_ms=300)) == Outcome(None, None)
    assert asked == [("예약을 하고", False), ("예약을 하고 싶어요.", True)]


def test_a_slow_decode_can_be_awaited() -> None:
    *_, too_late, awaited = ours(EndpointWaits(), decode_ms=100)
    assert judged(too_late).cut_after == "예약을 하고"
    assert judged(awaited) == Outcome(None, 448)  # the first frame that ends later than 32 + 400


def test_words_of_a_rest_that_was_too_short_for_the_decode_are_not_used() -> None:
    brief = labelled(("네", 640), ("저는", 2560), rests=[(640, 800)])
    asked: list[str] = []

    def wait_ms(guess: Guess) -> int:
        asked.append(guess.text)
        return 350

    judged(Policy("slow", 350, wait_ms, decode_ms=250), brief)
    assert asked == ["네 저는"]


def test_a_cell_counts() -> None:
    outcomes = [Outcome(None, 200), Outcome("a", None), Outcome(None, None), Outcome(None, 400), Outcome(None, 300)]
    assert Cell.of(outcomes) == Cell(utterances=5, cut=1, none=1, p50_ms=300, p90_ms=400)


# ---------------------------------------------------------------- the speech


def test_the_mix_has_the_rests_of_its_label(spoken: list[Utterance]) -> None:
    assert [len(utterance.rests) for utterance in spoken] == [0, 2, 1, 1] * 2
    assert [[rest.between_sentences for rest in utterance.rests] for utterance in spoken[:4]] == [
        *([], [False, False], [False], [True])
    ]
    for utterance in spoken:
        pcm = np.abs(np.frombuffer(g711.decode(utterance.mulaw), "<i2").astype(float))
        assert len(utterance.mulaw) == pytest.approx((utterance.ends_ms + TAIL_MS) * 8, abs=8)
        speech = pcm[LEAD_MS * 8 : round(utterance.ends_ms * 8)].mean()
        for rest in utterance.rests:
            assert REST_MS[0] - 1 <= rest.ms <= REST_MS[1] + 1
            assert pcm[round(rest.start_ms * 8) : round(rest.end_ms * 8)].mean() < speech / 2


def test_the_text_grows_with_the_words(spoken: list[Utterance]) -> None:
    utterance = spoken[1]
    first, second = utterance.rests
    assert utterance.said_by(utterance.begins_ms) == ""
    assert utterance.said_by(first.start_ms) == utterance.said_by(first.end_ms) == "저는"
    assert utterance.said_by(second.end_ms) == "저는 내일 저녁 일곱 시에"
    assert utterance.said_by(utterance.ends_ms) == "저는 내일 저녁 일곱 시에 두 명이요."
    assert spoken[0].said_by(spoken[0].words[0].end_ms) == "네"  # the comma is not heard


def test_silero_and_the_policies_at_both_ends(spoken: list[Utterance], model: SileroModel) -> None:
    resting = [utterance for utterance in spoken if any(rest.ms > 400 for rest in utterance.rests)]
    assert len(resting) >= 3
    results = measure([ORACLE, fixed(0), fixed(1000)], resting, model)
    assert all(outcome.cut_after is None and outcome.delay_ms is not None for outcome in results["oracle"])
    assert all(outcome.cut_after is not None for outcome in results["fixed 0 ms"])
    delays = [outcome.delay_ms for outcome in results["fixed 1000 ms"] if outcome.delay_ms is not None]
    assert len(delays) == len(resting)
    assert all(1000 < delay < 1400 for delay in delays)


DIGEST = """
import hashlib
from bench.endpoint_speech import studio, synthetic
for utterance in synthetic(studio({seed}), "ko", "저는 | 두 명이요.", {seed}, 2):
    print(utterance.ends_ms, hashlib.sha256(utterance.mulaw).hexdigest())
"""


def test_the_same_seed_gives_the_same_speech() -> None:
    def digest(seed: int) -> str:
        command = [sys.executable, "-c", DIGEST.format(seed=seed)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=50).stdout

    assert digest(1) == digest(1) != digest(2)


# ---------------------------------------------------------------- recordings


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Two speakers of tones, one of whom never says a seven."""
    time = np.arange(2400) / 8000
    for speaker, hertz in (("ann", 300), ("bob", 200), ("cy", 250)):
        for digit in range(10):
            if speaker == "cy" and digit == 7:
                continue
            tone = np.sin(2 * np.pi * (hertz + 20 * digit) * time) * np.hanning(2400)
            quiet = np.zeros(800)
            with wave.open(str(tmp_path / f"{digit}_{speaker}_0.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes((np.concatenate([quiet, tone, quiet]) * 20000).astype("<i2").tobytes())
    return tmp_path


def test_numbers_are_read_in_groups(recordings: Path) -> None:
    numbers = list(recorded(recordings, seed=1, count=12))
    for number in numbers:
        text = number.said_by(number.ends_ms)
        groups = text.split()
        assert 2 <= len(groups) <= 4
        assert {len(group) for group in groups} <= {3, 4}
        assert len(number.rests) == len(groups) - 1
        assert all(REST_MS[0] - 1 <= rest.ms <= REST_MS[1] + 1 for rest in number.rests)
        assert number.said_by(number.rests[0].end_ms) == groups[0]
        lengths = np.diff([number.begins_ms, *(word.end_ms for word in number.words)])
        assert min(lengths) < 300 + DIGIT_GAP_MS[1]  # what was silent in the recordings is gone
    assert len({number.said_by(number.ends_ms) for number in numbers}) == 12
    assert [hashlib.md5(number.mulaw).digest() for number in recorded(recordings, seed=1, count=12)] == [
        hashlib.md5(number.mulaw).digest() for number in numbers
    ]


def test_a_mobile_number_has_its_shape(recordings: Path) -> None:
    for number in mobile(recordings, seed=1, count=4):
        first, *others = number.said_by(number.ends_ms).split()
        assert first == "010"
        assert [len(group) for group in others] == [4, 4]


def test_a_folder_without_recordings_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "3_george_0.wav").write_bytes(b"no wave")
    arguments = ["--takes", "0", "--json", str(tmp_path / "out.json"), "--speech-dir"]
    assert endpoint.main([*arguments, str(tmp_path)]) == 2
    assert endpoint.main([*arguments, str(tmp_path / "none")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "3_george_0.wav: " in first
    assert "named like 3_george_0.wav" in second


def test_the_command_prints_one_table_and_writes_it(
    tmp_path: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(endpoint, "KOREAN", SENTENCES)
    monkeypatch.setattr(endpoint, "ENGLISH", "Yes, please.\nIt is for | two people.")
    out = tmp_path / "out.json"
    arguments = ["--takes", "1", "--numbers", "2", "--cuts", "--json", str(out)]
    assert endpoint.main([*arguments, "--speech-dir", str(recordings)]) == 0
    printed = capsys.readouterr().out
    parts = json.loads(out.read_text(encoding="utf-8"))["parts"]
    assert list(parts) == ["Korean, synthetic", "English, synthetic", "numbers, recorded", "010 numbers, recorded"]
    for part in parts.values():
        assert list(part)[:2] == ["fixed 200 ms", "fixed 350 ms"]
    assert parts["Korean, synthetic"]["by the words"]["utterances"] == 4
    assert all(policy in printed for policy in parts["Korean, synthetic"])


def test_probabilities_are_one_a_frame(model: SileroModel) -> None:
    assert len(probabilities(model, b"\xff" * 8000)) == 1000 // FRAME_MS
