"""What is told, what a final confirms, and what a successor hears."""

from hypothesis import given
from hypothesis import strategies as st

from app.audio.types import AudioFrame
from app.services.ai_call.backlog import Backlog, BacklogOptions, Cue, Item, Paused, Resumed, Started, Stopped

FRAME_MS = 20


def frame(at_ms: int) -> AudioFrame:
    return AudioFrame(bytes(320), 8000, at_ms)


def told(backlog: Backlog) -> list[Item]:
    items = []
    while (item := backlog.take()) is not None:
        items.append(item)
    return items


def times(items: list[Item] | list[AudioFrame]) -> list[int | str]:
    """Frames by their moment, cues by their names."""
    return [item.at_ms if isinstance(item, AudioFrame) else type(item).__name__ for item in items]


def backlog_of(*items: int | Cue, **options: int) -> Backlog:
    backlog = Backlog(FRAME_MS, BacklogOptions(**options))
    for item in items:
        backlog.put(frame(item) if isinstance(item, int) else item)
    return backlog


UTTERANCE = (0, 20, Started(0), 40, Paused(60), 60, Stopped(60))
SECOND = (200, 220, Started(200), 240, Paused(60), Stopped(60))


def test_everything_is_told_once_in_order() -> None:
    backlog = backlog_of(*UTTERANCE)
    assert times(told(backlog)) == [0, 20, "Started", 40, "Paused", 60, "Stopped"]
    assert backlog.take() is None


def test_a_final_confirms_its_utterance_and_the_rest_is_told_again() -> None:
    backlog = backlog_of(*UTTERANCE, *SECOND)
    told(backlog)
    assert backlog.owed == 2
    assert backlog.confirm_utterance()
    backlog.rewind()
    assert times(told(backlog)) == [200, 220, "Started", 240, "Paused", "Stopped"]
    assert backlog.confirm_utterance()
    assert not backlog.confirm_utterance(), "there was nothing to confirm"


def test_a_vendors_final_confirms_what_lies_before_its_end() -> None:
    backlog = backlog_of(*range(0, 400, 20))
    told(backlog)
    assert backlog.confirm_until(200)
    backlog.rewind()
    assert times(told(backlog)) == list(range(200, 400, 20))
    assert not backlog.confirm_until(100)


def test_a_vendors_final_that_ends_too_early_takes_the_last_syllable_with_it() -> None:
    backlog = backlog_of(*UTTERANCE, 80, 100)
    told(backlog)
    assert backlog.confirm_until(30)
    backlog.rewind()
    assert times(told(backlog)) == [80, 100]


def test_the_whole_of_a_short_word_goes_with_a_final_that_ends_too_early() -> None:
    backlog = backlog_of(0, 20, 40, Started(0), 60, Paused(80), 80, Stopped(80), 100)
    told(backlog)
    assert backlog.confirm_until(10)
    backlog.rewind()
    assert times(told(backlog)) == [100]


def test_the_last_syllable_of_a_final_that_came_before_our_own_end_of_speech() -> None:
    backlog = backlog_of(*range(0, 400, 20), Started(0), Paused(400), 400)
    told(backlog)
    assert backlog.confirm_until(350)
    for item in (frame(420), Stopped(400), frame(440)):
        backlog.put(item)
    told(backlog)
    backlog.rewind()
    assert times(told(backlog)) == [440]


def test_but_not_an_utterance_that_began_since() -> None:
    backlog = backlog_of(*UTTERANCE, 180, *SECOND)
    told(backlog)
    assert backlog.confirm_until(70)
    backlog.rewind()
    assert times(told(backlog)) == [180, 200, 220, "Started", 240, "Paused", "Stopped"]


def test_what_waits_is_bounded_and_the_oldest_audio_goes_first() -> None:
    backlog = backlog_of(keep_ms=100)
    given_up = sum(backlog.put(frame(at)) for at in range(0, 400, 20))
    backlog.put(Stopped(60))
    assert given_up == 14 * FRAME_MS
    assert times(told(backlog)) == [*range(280, 400, 20), "Stopped"]


def test_cues_outlive_the_audio_that_is_given_up_for_a_successor() -> None:
    backlog = backlog_of(keep_ms=100)
    for item in (*UTTERANCE, *range(80, 400, 20)):
        backlog.put(frame(item) if isinstance(item, int) else item)
        backlog.take()
    backlog.trim(idle=False)
    backlog.rewind()
    assert times(told(backlog)) == ["Started", "Paused", "Stopped", *range(300, 400, 20)]


def test_an_utterance_is_kept_while_its_answer_may_come_and_then_forgotten_as_a_noise() -> None:
    backlog = backlog_of(-40, -20, *UTTERANCE, *range(80, 400, 20), idle_keep_ms=100, answer_ms=500)
    told(backlog)
    backlog.trim(idle=True)
    backlog.rewind()
    assert times(told(backlog)) == [0, 20, "Started", 40, "Paused", 60, "Stopped", *range(80, 400, 20)]
    for at in range(400, 600, 20):
        backlog.put(frame(at))
    told(backlog)
    backlog.trim(idle=True)
    backlog.rewind()
    assert backlog.owed == 0
    assert times(told(backlog)) == list(range(480, 600, 20))


def test_what_was_answered_is_not_waited_for() -> None:
    backlog = backlog_of(*UTTERANCE, *range(80, 400, 20), idle_keep_ms=100, answer_ms=500)
    told(backlog)
    backlog.confirm_until(60)
    backlog.trim(idle=True)
    backlog.rewind()
    assert times(told(backlog)) == list(range(280, 400, 20))


# ---------------------------------------------------------------- for one that hears speech only


def test_silence_is_left_out_and_the_end_of_it_may_become_a_preroll() -> None:
    backlog = backlog_of(*range(0, 100, 20), 100, 120, Started(80), 140, Stopped(60), 160, 180)
    told(backlog)
    backlog.rewind()
    assert times(backlog.leave_out_silence()) == [160, 180]
    assert times(told(backlog)) == [80, 100, 120, "Started", 140, "Stopped"]


def test_an_utterance_that_goes_on_stays_open() -> None:
    backlog = backlog_of(0, 20, 40, Started(20), 60, Paused(40), Resumed(), 80)
    assert backlog.leave_out_silence() == []
    assert times(told(backlog)) == [20, 40, "Started", 60, "Paused", "Resumed", 80]


def test_the_midst_of_an_utterance_is_speech_although_its_beginning_is_confirmed() -> None:
    backlog = backlog_of(0, 20, Started(0), *range(40, 800, 20), Paused(800), 800, Stopped(800), 820)
    told(backlog)
    assert backlog.confirm_until(50)  # a vendor that cuts long speech
    backlog.rewind()
    assert times(backlog.leave_out_silence()) == [820]
    assert times(told(backlog)) == [*range(60, 800, 20), "Paused", 800, "Stopped"]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 30))
def test_no_frame_of_speech_is_lost_or_doubled_wherever_a_vendor_stops(lengths: list[int], taken: int) -> None:
    """Utterances of some frames, with two frames of silence between; `taken` items were told when it broke."""
    backlog, at, speech = backlog_of(), 0, list[int]()
    for length in lengths:
        start = at
        for number in range(length):
            backlog.put(frame(at))
            speech.append(at)
            at += FRAME_MS
            if number == 0:
                backlog.put(Started(start))
        backlog.put(Stopped(length * FRAME_MS))
        for _ in range(2):
            backlog.put(frame(at))
            at += FRAME_MS
    for _ in range(taken):
        backlog.take()
    backlog.rewind()
    backlog.leave_out_silence()
    assert [item for item in times(told(backlog)) if isinstance(item, int)] == speech
