"""Who hears a call next, and after how long."""

from app.services.ai_call.breaker import Breaker
from app.services.ai_call.succession import EOF, Candidate, StreamEnd, Succession
from tests.fakes import ScriptedStt


class Calls:
    """A call's recognisers, by name, and the clock."""

    def __init__(self, *names: str) -> None:
        self.now = 0.0
        self.faults: list[tuple[str, str]] = []
        self.candidates = {name: Candidate(name, ScriptedStt()) for name in names}

    def begin(self) -> Succession:
        return Succession(
            list(self.candidates.values()),
            lambda: self.now,
            on_fault=lambda name, kind: self.faults.append((name, kind)),
        )

    def breaker(self, name: str) -> Breaker:
        return self.candidates[name].breaker


def end(kind: str = "reset", *, curable: bool = True, useful: bool = False, lived_s: float = 0.1) -> StreamEnd:
    return StreamEnd(kind, curable, useful, lived_s)


def test_the_only_one_has_its_row_of_tries() -> None:
    calls = Calls("local")
    call = calls.begin()
    assert [call.ended(end()) for _ in range(5)] == [0.0, 0.2, 0.5, 1.0, None]
    assert calls.faults == [("local", "reset")] * 5


def test_one_that_did_its_work_or_lived_starts_the_row_anew() -> None:
    call = Calls("local").begin()
    call.ended(end())
    assert call.ended(end(useful=True)) == 0.0
    call.ended(end())
    assert call.ended(end(lived_s=5.0)) == 0.0


def test_an_end_after_each_utterance_is_no_fault() -> None:
    calls = Calls("legacy")
    call = calls.begin()
    assert [call.ended(end(EOF, useful=True)) for _ in range(20)] == [0.0] * 20
    assert calls.faults == []


def test_with_a_successor_one_more_try_then_it_takes_over_at_once() -> None:
    call = Calls("rtzr", "local").begin()
    assert (call.ended(end()), call.current.name) == (0.0, "rtzr")
    assert (call.ended(end()), call.current.name) == (0.0, "local")


def test_no_second_try_where_none_can_help() -> None:
    for hopeless in (end("auth", curable=False), end("timeout")):
        call = Calls("rtzr", "local").begin()
        assert (call.ended(hopeless), call.current.name) == (0.0, "local")


def test_no_second_long_wait_for_one_that_is_slow() -> None:
    for kind in ("stall", "mute"):
        call = Calls("remote", "local").begin()
        assert (call.ended(end(kind, lived_s=9.0)), call.current.name) == (0.0, "local")


def test_who_is_known_to_be_broken_by_now_is_left_at_once() -> None:
    calls = Calls("remote", "local")
    call = calls.begin()
    calls.breaker("remote").failed(0.0, "auth", curable=False)
    assert (call.ended(end()), call.current.name) == (0.0, "local")


def test_a_call_never_goes_back() -> None:
    calls = Calls("rtzr", "google", "local")
    call = calls.begin()
    call.ended(end("auth", curable=False))
    call.ended(end("auth", curable=False))
    calls.breaker("rtzr").succeeded()
    assert call.current.name == "local"
    assert [call.ended(end()) for _ in range(5)][-1] is None


def test_what_is_broken_is_passed_over_by_the_next_calls() -> None:
    calls = Calls("rtzr", "google", "local")
    calls.begin().ended(end("throttled", curable=False))
    assert calls.breaker("rtzr").open
    assert calls.begin().current.name == "google"
    calls.breaker("rtzr").succeeded()
    assert calls.begin().current.name == "rtzr"


def test_quick_failures_of_several_calls_add_up() -> None:
    calls = Calls("rtzr", "local")
    for _ in range(3):
        calls.begin().ended(end(EOF))
    assert calls.begin().current.name == "local"


def test_one_that_opens_well_and_fails_at_the_first_words_is_broken_too() -> None:
    calls = Calls("legacy", "local")
    calls.begin().ended(end("auth", curable=False, lived_s=90.0))
    assert calls.breaker("legacy").open
    calls = Calls("local")
    for _ in range(3):
        calls.begin().ended(end("worker", lived_s=20.0))
    assert calls.breaker("local").open


def test_streams_of_silent_callers_that_are_closed_after_minutes_break_nothing() -> None:
    calls = Calls("rtzr", "local")
    for kind in (EOF, "reset", EOF, "reset", EOF, "reset"):
        calls.begin().ended(end(kind, lived_s=180.0))
    calls.begin().ended(end(EOF, lived_s=6.0))
    assert not calls.breaker("rtzr").open


def test_where_all_are_broken_the_last_one_is_tried() -> None:
    calls = Calls("rtzr", "local")
    for name in ("rtzr", "local"):
        calls.breaker(name).failed(0.0, "auth", curable=False)
    assert calls.begin().current.name == "local"


def test_latency_is_that_of_the_last_finals() -> None:
    candidate = Candidate("local", ScriptedStt())
    assert candidate.latency_ms() is None
    candidate.heard(300.0)
    assert candidate.latency_ms() == (300, 300)
    for ms in range(1000):
        candidate.heard(float(ms))
    assert candidate.latency_ms() == (900, 989)
