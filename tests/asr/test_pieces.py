"""Where long speech is cut, on the sample calls and on made sounds; and how its words are joined."""

import random
import struct

import pytest

from app.asr.pieces import Cut, find_cut, join
from tests.asr.sample_calls import RATE, SampleCall, nobody, spoken

MS = 2 * RATE // 1000


def speech(ms: int) -> bytes:
    """Of somebody who does not pause: two sentences without the silence around them, over and over."""
    first, second = spoken("이지은이에요.").pcm, spoken("환불하고 싶어요.").pcm
    both = first[300 * MS : 907 * MS] + second[300 * MS : 1435 * MS]
    return (both * (1 + ms * MS // len(both)))[: ms * MS]


def hiss(ms: int, level: int) -> bytes:
    noise = random.Random(7)
    return b"".join(struct.pack("<h", noise.randint(-level, level)) for _ in range(ms * RATE // 1000))


def times(cut: Cut) -> tuple[float, float]:
    return cut.head_end / MS, cut.rest_start / MS


def test_the_cut_is_in_the_middle_of_the_longest_pause() -> None:
    pcm = speech(1500) + hiss(250, 30) + speech(1200) + hiss(400, 30) + speech(1500) + hiss(250, 30) + speech(700)
    cut = find_cut(pcm, RATE, 120)
    assert cut.in_pause
    head_ms, rest_ms = times(cut)
    assert head_ms - rest_ms == 240
    assert (head_ms + rest_ms) / 2 == pytest.approx(2950 + 200, abs=40)


def test_the_overlap_stays_inside_a_short_pause() -> None:
    cut = find_cut(speech(1500) + hiss(180, 30) + speech(1200), RATE, 500)
    head_ms, rest_ms = times(cut)
    assert cut.in_pause
    assert 1480 <= rest_ms <= head_ms <= 1700


@pytest.mark.parametrize("noise", [5, 60, 300])
def test_a_pause_is_found_over_the_noise_of_the_line(noise: int) -> None:
    cut = find_cut(speech(2000) + hiss(300, noise) + speech(1500), RATE, 100)
    assert cut.in_pause
    assert sum(times(cut)) / 2 == pytest.approx(2150, abs=60)


def test_lost_frames_hide_no_pause() -> None:
    lost = bytes(20 * MS)
    pcm = speech(900) + lost + speech(1000) + hiss(300, 300) + speech(800) + lost + speech(700)
    cut = find_cut(pcm, RATE, 100)
    assert cut.in_pause
    assert sum(times(cut)) / 2 == pytest.approx(900 + 20 + 1000 + 150, abs=60)


def test_preroll_is_no_pause_worth_a_cut() -> None:
    cut = find_cut(hiss(600, 30) + speech(3000), RATE, 120)
    assert not cut.in_pause


def test_without_a_pause_it_is_the_quietest_place_of_the_second_half() -> None:
    pcm = hiss(700, 3000) + hiss(60, 50) + hiss(800, 3000) + hiss(60, 400) + hiss(380, 3000)
    cut = find_cut(pcm, RATE, 120)
    assert not cut.in_pause
    head_ms, rest_ms = times(cut)
    assert head_ms - rest_ms == 240
    assert (head_ms + rest_ms) / 2 == pytest.approx(1590, abs=20)


@pytest.mark.parametrize("one", nobody(), ids=lambda one: one.name)
def test_steady_sounds_are_cut_somewhere(one: SampleCall) -> None:
    pcm = one.pcm[: 2900 * MS]
    cut = find_cut(pcm, RATE, 120)
    assert len(pcm) // 4 <= cut.rest_start < cut.head_end <= len(pcm)


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("overlap_ms", [0, 120, 500])
@pytest.mark.parametrize("ms", [100, 500, 1000, 30_000])
def test_at_any_size_something_is_done_and_something_left(rate: int, overlap_ms: int, ms: int) -> None:
    pcm = struct.pack("<hh", 900, -900) * (rate * ms // 2000)
    cut = find_cut(pcm, rate, overlap_ms)
    assert len(pcm) // 8 <= cut.rest_start <= cut.head_end <= len(pcm)
    assert cut.head_end % 2 == cut.rest_start % 2 == 0
    assert (cut.head_end - cut.rest_start) <= len(pcm) // 4


IN_PAUSE, IN_SPEECH = True, False


@pytest.mark.parametrize(
    ("head", "seam", "rest", "joined"),
    [
        # nothing in both
        ("내일 오후", IN_SPEECH, "세 시에 예약해 주세요.", "내일 오후 세 시에 예약해 주세요."),
        ("", IN_SPEECH, "감사합니다.", "감사합니다."),
        ("감사합니다.", IN_SPEECH, "", "감사합니다."),
        ("...", IN_SPEECH, "네.", "... 네."),
        # words in both
        ("내일 오후", IN_SPEECH, "오후 세 시에", "내일 오후 세 시에"),
        ("내일 오후 세", IN_SPEECH, "오후 세 시에", "내일 오후 세 시에"),
        ("내일 오후.", IN_SPEECH, "오후, 세 시에", "내일 오후, 세 시에"),
        ("I would like", IN_SPEECH, "Like to book", "I would Like to book"),
        ("네", IN_SPEECH, "네", "네"),
        # a part of a word in both
        ("영업시", IN_SPEECH, "영업시간이 어떻게", "영업시간이 어떻게"),
        ("오늘 영업시간이.", IN_SPEECH, "시간이 어떻게", "오늘 영업시간이 어떻게"),
        ("오늘 영업시", IN_SPEECH, "업시간이 어떻게", "오늘 영업시간이 어떻게"),
        ("my reser", IN_SPEECH, "servation please", "my reservation please"),
        # the overlap holds one digit, and no more
        ("010 1212", IN_SPEECH, "1234 5678", "010 1212 1234 5678"),
        ("010 1234 12", IN_SPEECH, "12", "010 1234 12 12"),
        ("010", IN_SPEECH, "010-0000", "010 010-0000"),
        ("010-1010", IN_SPEECH, "10-10", "010-1010 10-10"),
        ("02-02", IN_SPEECH, "02-02", "02-02 02-02"),
        ("공일공 일이이이", IN_SPEECH, "이이 삼사오육", "공일공 일이이이 이이 삼사오육"),
        ("공일공 이이", IN_SPEECH, "이이 삼사오육", "공일공 이이 이이 삼사오육"),
        ("five five", IN_SPEECH, "five five six", "five five five six"),
        ("0 1 0 8", IN_SPEECH, "8 1 2", "0 1 0 8 1 2"),
        ("오후 12시", IN_SPEECH, "2시에", "오후 12시에"),
        # one syllable is a coincidence
        ("학교가", IN_SPEECH, "가요", "학교가 가요"),
        # repeated on purpose
        ("네.", IN_PAUSE, "네.", "네. 네."),
        ("010", IN_PAUSE, "010", "010 010"),
        ("여보세요?", IN_PAUSE, "여보세요?", "여보세요? 여보세요?"),
        ("빨리", IN_PAUSE, "빨리 와 주세요", "빨리 빨리 와 주세요"),
    ],
)
def test_two_pieces_are_joined(head: str, seam: bool, rest: str, joined: str) -> None:
    assert join([(head, seam), (rest, IN_PAUSE)]) == joined


def test_on_either_side_of_a_piece_without_words_nothing_is_shared() -> None:
    assert join([("네", IN_SPEECH), ("", IN_SPEECH), ("네", IN_SPEECH)]) == "네 네"
    assert join([("", IN_SPEECH), ("네", IN_PAUSE)]) == "네"
    assert join([]) == ""
