"""When a vendor is left alone, and when it is tried again; the clock is a number."""

from app.services.ai_call.breaker import Breaker, BreakerOptions


def broken(at: float = 100.0) -> Breaker:
    breaker = Breaker(BreakerOptions(failures=1, wait_s=5.0, longest_wait_s=30.0))
    assert breaker.failed(at, "reset", curable=True)
    return breaker


def test_some_failures_in_a_row_open_it() -> None:
    breaker = Breaker()
    assert [breaker.failed(at, "reset", curable=True) for at in (1, 2, 3, 4)] == [False, False, True, False]
    assert breaker.open
    assert breaker.reason == "reset"


def test_a_success_in_between_starts_the_row_anew() -> None:
    breaker = Breaker()
    for at in range(20):
        breaker.failed(at, "reset", curable=True)
        breaker.failed(at, "reset", curable=True)
        breaker.succeeded()
    assert not breaker.open


def test_one_failure_that_no_retry_cures_is_enough() -> None:
    breaker = Breaker()
    assert breaker.failed(1, "auth", curable=False)
    assert breaker.open


def test_probes_come_at_longer_and_longer_intervals_up_to_a_bound() -> None:
    breaker, at, waits = broken(0.0), 0.0, []
    for _ in range(6):
        began = at
        while not breaker.probe_due(at):
            at += 0.5
        waits.append(at - began)
        breaker.probe_failed(at, "refused")
    assert waits == [5, 10, 20, 30, 30, 30]
    assert breaker.reason == "refused"


def test_a_probe_that_succeeds_closes_it_and_forgets() -> None:
    breaker = broken()
    breaker.probe_failed(105, "reset")
    breaker.succeeded()
    assert not breaker.open
    assert not breaker.probe_due(10_000)
    assert breaker.reason == ""
    assert breaker.failed(200, "reset", curable=True)
    assert breaker.probe_due(205)
