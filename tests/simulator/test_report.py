"""What a call's report makes of what was said and heard."""

import pytest

from app.simulator.playout import Playout
from app.simulator.report import CallReport, Refusal, Turn, greeting_of, turns_of
from app.simulator.script import Utterance
from app.simulator.wire import Violation
from tests.simulator.far_side import tone

BEGAN = 100.0


def only_turn(playout: Playout, onset: float = 102.0, end: float = 103.0) -> Turn:
    [turn] = turns_of([Utterance("words", onset, end)], playout, BEGAN)
    return turn


def test_an_answer_is_measured_from_the_end_of_speech_to_its_first_sound() -> None:
    playout = Playout()
    playout.play(tone(500), 101.0)  # the greeting
    playout.play(tone(500), 103.4)
    turn = only_turn(playout)

    assert (turn.said, turn.onset_ms, turn.end_ms) == ("words", 2000, 3000)
    assert turn.answer_ms == pytest.approx(400)
    assert not turn.interrupted
    assert turn.clear_ms is None
    assert greeting_of([], playout, BEGAN) == pytest.approx(1000)


def test_an_interruption_is_measured_from_the_onset_to_the_clear() -> None:
    playout = Playout()
    playout.play(tone(4000), 101.0)
    playout.clear(102.15)
    playout.play(tone(100), 103.5)
    turn = only_turn(playout)

    assert turn.interrupted
    assert turn.clear_ms == pytest.approx(150)
    assert turn.answer_ms == pytest.approx(500)


def test_a_bot_that_does_not_give_way_was_interrupted_without_a_clear() -> None:
    playout = Playout()
    playout.play(tone(1500), 101.0)
    turn = only_turn(playout)

    assert turn.interrupted
    assert turn.clear_ms is None
    assert turn.answer_ms is None


def test_an_answer_that_comes_too_early_is_negative() -> None:
    playout = Playout()
    playout.play(tone(1000), 102.8)

    assert only_turn(playout).answer_ms == pytest.approx(-200)


def test_an_answer_belongs_to_the_last_words_before_it() -> None:
    playout = Playout()
    playout.play(tone(100), 105.0)
    said = [Utterance("one", 101.0, 102.0), Utterance("two", 103.0, 104.0)]

    assert [turn.answer_ms for turn in turns_of(said, playout, BEGAN)] == [None, pytest.approx(1000)]


def test_without_a_sound_before_our_words_there_was_no_greeting() -> None:
    playout = Playout()
    said = [Utterance("words", 101.0, 102.0)]
    assert greeting_of(said, playout, BEGAN) is None
    playout.play(tone(100), 103.0)
    assert greeting_of(said, playout, BEGAN) is None


@pytest.mark.parametrize(
    ("report", "ok"),
    [
        (CallReport("CA", ended_by="caller"), True),
        (CallReport("CA", ended_by="bot", close_code=1000), True),
        (CallReport("CA", ended_by="bot", close_code=1011), False),
        (CallReport("CA", ended_by="bot", close_code=1006), False),
        (CallReport("CA", ended_by="caller", violations=[Violation(31951, "json", "")]), False),
        (CallReport("CA", refusal=Refusal("voice", 403, "")), False),
    ],
)
def test_a_call_is_ok_when_the_server_did_all_it_should(report: CallReport, ok: bool) -> None:
    assert report.ok is ok
