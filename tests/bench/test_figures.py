"""The bench's arithmetic, on numbers small enough to be checked by hand."""

import pytest

from bench.figures import Decision, Decisions, Latencies, Reading, Spoken, Spread, Usage, percentile


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, None), ([7], 95, 7), ([3, 1, 2], 50, 2), (list(range(1, 101)), 95, 95), (list(range(1, 21)), 95, 19)],
)
def test_a_percentile_is_one_of_the_values(values: list[float], percent: float, expected: float | None) -> None:
    assert percentile(values, percent) == expected


def test_a_spread_of_nothing_has_no_figures() -> None:
    assert Spread.of([]) == Spread(0, None, None, None)
    assert Spread.of([5.0, 1.0]) == Spread(2, 1.0, 5.0, 5.0)


def test_usage_is_counted_for_each_frame_that_was_due() -> None:
    usage = Usage.between(Reading(100.0, 3.0, 50.0), Reading(110.0, 3.5, 50.8), calls=10)
    assert usage.window_s == pytest.approx(10.0)
    assert usage.cpu_us_per_frame == pytest.approx(100.0)  # 0.5 s over 10 calls x 500 frames
    assert usage.cpu_ms_per_call_s == pytest.approx(5.0)
    assert usage.core_share == pytest.approx(0.05)
    assert usage.foreign_share == pytest.approx(0.03)


def test_a_decision_can_be_made_when_the_frame_that_completes_its_audio_is_sent() -> None:
    assert Decision(heard_ms=1952, of_ms=1600).sent_ms == 1960
    assert Decision(heard_ms=1960, of_ms=1600).sent_ms == 1960


ONE_TURN = Decisions(begins=[Decision(1120, 1024)], ends=[Decision(1952, 1600)])


def test_waits_run_from_the_end_of_speech_and_from_the_decision() -> None:
    latencies = Latencies()
    latencies.add_call([Spoken(1000, 1500, 1963.5, None)], ONE_TURN, 0, 9_000)
    assert (latencies.heard, latencies.beyond) == ([463.5], [3.5])


def test_a_clear_is_counted_from_three_moments() -> None:
    latencies = Latencies()
    latencies.add_call([Spoken(1000, 1500, 1963.5, 1122)], ONE_TURN, 0, 9_000)
    assert (latencies.clear_heard, latencies.clear_onset, latencies.clear_beyond) == ([122], [98], [2])


def test_turns_that_reach_out_of_the_window_do_not_count() -> None:
    latencies = Latencies()
    turns = [Spoken(1000, 1500, 1963.5, None)]
    latencies.add_call(turns, ONE_TURN, 1_001, 9_000)
    latencies.add_call(turns, ONE_TURN, 0, 1_963)
    latencies.add_call([Spoken(1000, 1500, None, None)], ONE_TURN, 0, 3_000)  # its answer may still come
    assert latencies == Latencies()


def test_what_is_missing_or_impossible_is_counted() -> None:
    latencies = Latencies()
    latencies.add_call([Spoken(1000, 1500, None, None)], ONE_TURN, 0, 9_000)
    latencies.add_call([Spoken(1000, 1500, 1900, 1100)], ONE_TURN, 0, 9_000)
    assert (latencies.unanswered, latencies.unexplained) == (1, 2)
    assert latencies.heard == latencies.clear_heard == []
