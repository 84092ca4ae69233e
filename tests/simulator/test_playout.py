"""The far side's buffer, as a table of times and as properties. No clock runs here."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.simulator.playout import BYTES_PER_S, Playout
from tests.simulator.far_side import silence, tone

AUDIO_100_MS = b"\x80" * 800


def test_audio_is_played_from_when_it_arrives_at_8000_bytes_a_second() -> None:
    playout = Playout()
    playout.play(AUDIO_100_MS, 5.0)
    playout.play(AUDIO_100_MS, 5.02)

    assert [(run.at, run.until) for run in playout.runs] == [(5.0, 5.2)]


def test_audio_that_comes_when_all_was_played_begins_anew() -> None:
    playout = Playout()
    playout.play(AUDIO_100_MS, 5.0)
    playout.play(AUDIO_100_MS, 7.0)

    assert [(run.at, run.until) for run in playout.runs] == [(5.0, 5.1), (7.0, 7.1)]


def test_a_mark_on_an_empty_buffer_is_due_at_once() -> None:
    playout = Playout()
    playout.mark("a", 3.0)

    assert playout.next_echo_at == 3.0
    assert playout.take_echoes(3.0) == ["a"]
    assert playout.next_echo_at is None


def test_a_mark_waits_for_the_audio_before_it_and_for_no_other() -> None:
    playout = Playout()
    playout.play(AUDIO_100_MS, 1.0)
    playout.mark("first", 1.0)
    playout.play(AUDIO_100_MS, 1.01)
    playout.mark("second", 1.01)

    assert playout.take_echoes(1.0999) == []
    assert playout.take_echoes(1.1) == ["first"]
    assert playout.take_echoes(1.1999) == []
    assert playout.take_echoes(1.2) == ["second"]
    assert playout.take_echoes(9.0) == []


def test_clear_empties_the_buffer_and_returns_every_mark_in_order() -> None:
    playout = Playout()
    for name in "abc":
        playout.play(AUDIO_100_MS, 1.0)
        playout.mark(name, 1.0)
    assert playout.take_echoes(1.1) == ["a"]
    playout.clear(1.15)

    assert playout.take_echoes(1.15) == ["b", "c"]
    assert [(run.at, run.until) for run in playout.runs] == [(1.0, 1.15)]
    assert list(playout.clears) == [1.15]


def test_what_comes_after_a_clear_is_played_at_once() -> None:
    playout = Playout()
    playout.play(AUDIO_100_MS * 10, 1.0)
    playout.clear(1.25)
    playout.play(AUDIO_100_MS, 1.3)

    assert [(run.at, len(run.audio)) for run in playout.runs] == [(1.0, 2000), (1.3, 800)]


def test_clear_drops_whole_runs_that_were_never_begun() -> None:
    playout = Playout()
    playout.play(AUDIO_100_MS, 1.0)
    playout.clear(1.0)

    assert list(playout.runs) == []
    assert list(playout.sounds) == []


@pytest.mark.parametrize(
    ("between", "gap_s", "underruns"),
    [
        ((), 0.05, 1),
        ((), 0.0, 0),
        ((), 2.0, 0),  # the sender paused
        (("mark",), 0.05, 0),  # a piece was over
        (("clear",), 0.05, 0),
    ],
)
def test_underruns_are_gaps_inside_a_piece(between: tuple[str, ...], gap_s: float, underruns: int) -> None:
    playout = Playout()
    playout.play(AUDIO_100_MS, 1.0)
    for event in between:
        playout.mark("m", 1.05) if event == "mark" else playout.clear(1.1)
    playout.play(AUDIO_100_MS, 1.1 + gap_s)

    assert playout.underruns == underruns
    assert playout.underrun_s == pytest.approx(gap_s if underruns else 0.0)


def test_sound_begins_with_the_first_loud_byte_and_not_with_the_first_byte() -> None:
    playout = Playout()
    playout.play(silence(40) + tone(100) + silence(60), 2.0)

    [sound] = playout.sounds
    assert sound.at == pytest.approx(2.04, abs=0.001)
    assert sound.until == pytest.approx(2.14, abs=0.001)


@pytest.mark.parametrize(("pause_ms", "stretches"), [(100, 1), (290, 1), (320, 2)])
def test_short_pauses_do_not_part_speech(pause_ms: int, stretches: int) -> None:
    playout = Playout()
    for audio in (tone(100), silence(pause_ms), tone(100)):
        playout.play(audio, 1.0)

    assert len(playout.sounds) == stretches


def test_sound_after_a_clear_is_never_joined_to_that_before_it() -> None:
    playout = Playout()
    playout.play(tone(500), 1.0)
    playout.clear(1.2)
    playout.play(tone(100), 1.3)

    assert [(sound.at, round(sound.until, 3)) for sound in playout.sounds] == [(1.0, 1.2), (1.3, 1.4)]


def test_a_silent_line_makes_no_sound() -> None:
    playout = Playout()
    playout.play(silence(500) + bytes([0x7F]) * 800, 1.0)

    assert list(playout.sounds) == []


Operation = tuple[str, int, float]
operations = st.lists(
    st.tuples(
        st.sampled_from(["play", "mark", "clear", "echo"]),
        st.integers(1, 2000),
        st.floats(0, 0.5, allow_nan=False),
    ),
    max_size=40,
)


@given(operations)
def test_whatever_comes_audio_is_heard_in_order_and_each_mark_once(steps: list[Operation]) -> None:
    playout = Playout()
    now, sent, echoed, waiting = 100.0, 0, list[Any](), dict[str, float]()
    cleared_at = float("-inf")
    for index, (what, size, later) in enumerate(steps):
        now += later
        if what == "play":
            playout.play(b"\x80" * size, now)
            sent += size
        elif what == "mark":
            waiting[str(index)] = max(now, playout.runs[-1].until if playout.runs else now)
            playout.mark(str(index), now)
        elif what == "clear":
            playout.clear(now)
            cleared_at = now
        else:
            due = playout.take_echoes(now)
            echoed += due
            assert all(waiting[name] <= now or cleared_at <= now for name in due)
            assert playout.next_echo_at is None or playout.next_echo_at > now
    echoed += playout.take_echoes(now + 1000)

    assert echoed == list(waiting)
    assert sum(len(run.audio) for run in playout.runs) <= sent
    for before, after in zip(playout.runs, list(playout.runs)[1:], strict=False):
        assert before.until <= after.at + 1 / BYTES_PER_S
