"""Which recogniser new calls get: chosen, switched, followed, probed and switched back, on the virtual clock."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.errors import ConfigError, ProviderError, SttError
from app.services.ai_call.in_use import InUse
from app.services.ai_call.ports import Choice
from app.services.ai_call.preflight import TEXTS
from app.services.ai_call.recognition import (
    NotConfigured,
    Offer,
    Opened,
    Recognition,
    RecognitionOptions,
    SwitchedElsewhere,
    UnknownRecogniser,
)
from app.services.ai_call.succession import EOF, StreamEnd, Succession
from tests.conversation import VIRTUAL
from tests.fakes import Parrot

pytestmark = VIRTUAL


class MemoryChoices:
    """A ChoiceStore that several workers share."""

    def __init__(self) -> None:
        self.stored: Choice | None = None
        self.down = False

    async def get(self, name: str) -> Choice | None:
        self._work()
        return self.stored

    async def put(self, name: str, choice: Choice) -> Choice | None:
        self._work()
        if choice.version != (self.stored.version if self.stored else 0):
            return None
        self.stored = Choice(
            choice.value, choice.before, choice.setting, choice.why, choice.changed_at, choice.version + 1
        )
        return self.stored

    def _work(self) -> None:
        if self.down:
            raise ProviderError("the database: unavailable", provider="database", kind="unavailable", retryable=True)


class Sound(Parrot):
    """A recogniser that understands, until it is `ill`; `checked` is what its check says."""

    def __init__(self) -> None:
        super().__init__(TEXTS["ko"], hears="speech")
        self.ill = False
        self.broken: Exception | None = None
        self.checked: Exception | None = None
        self.full = False
        self.probes = 0
        self.waits_for: asyncio.Event | None = None

    @asynccontextmanager
    async def open(self, rate: int, language: str) -> AsyncIterator[Parrot]:
        self.probes += 1
        if self.waits_for is not None:
            await self.waits_for.wait()
        if self.broken is not None:
            raise self.broken
        if self.ill:
            raise SttError("refused", provider=self.name, kind="refused", retryable=True)
        async with super().open(rate, language) as stream:
            yield stream

    async def check(self) -> None:
        if self.checked is not None:
            raise self.checked


class Worker:
    """One process. Workers that share `choices` are workers of one server."""

    def __init__(self, choices: MemoryChoices | None = None, **options: Any) -> None:
        self.choices = choices or MemoryChoices()
        self.stts = {name: Sound() for name in ("local", "rtzr", "google")}
        self.opened: list[str] = []
        self.unopenable: set[str] = set()
        self.missing: dict[str, tuple[str, ...]] = {}
        self.options = RecognitionOptions(**({"chosen": "local"} | options))

    async def __aenter__(self) -> "Worker":
        self.loop = asyncio.get_running_loop()
        self.recognition = Recognition(
            [Offer(name, self.missing.get(name, ()), self._opener(name)) for name in self.stts],
            self.options,
            self.choices,
            now=self.loop.time,
            utc_now=lambda: datetime(2025, 3, 1, tzinfo=UTC) + timedelta(seconds=self.loop.time()),
            start=self._start,
        )
        await self.recognition.open()
        self.running = self.loop.create_task(self.recognition.run())
        return self

    async def __aexit__(self, *error: object) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)

    def _opener(self, name: str) -> Any:
        async def opener() -> Opened:
            if name in self.unopenable:
                raise ConfigError(f"{name}: pip install it")
            self.opened.append(name)
            return Opened(self.stts[name], lambda: InUse(f"{name}: a recogniser", "STT_PROVIDER"))

        return opener

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        raise AssertionError("these have no chores")

    def call(self, callee: str = "+82701") -> Succession:
        return Succession(self.recognition.for_call(callee), self.loop.time)

    def names(self, callee: str = "+82701") -> list[str]:
        return [candidate.name for candidate in self.recognition.for_call(callee)]

    def breaks(self, name: str) -> None:
        """Calls fail on it until nobody is given it any more."""
        self.stts[name].ill = True
        for candidate in self.recognition.for_call(""):
            if candidate.name == name:
                Succession([candidate], self.loop.time).ended(StreamEnd("auth", False, False, 0.1))


# ---------------------------------------------------------------- choosing


async def test_what_the_settings_name_is_opened_and_nothing_else() -> None:
    async with Worker(chosen="rtzr", fallback=("local",), by_number={"+82702": "local"}) as worker:
        assert worker.opened == ["rtzr", "local"]
        assert worker.names() == ["rtzr", "local"]
        assert worker.names("+82702") == ["local"]


async def test_what_cannot_be_opened_stops_the_start() -> None:
    worker = Worker()
    worker.unopenable.add("local")
    with pytest.raises(ConfigError):
        await worker.__aenter__()


async def test_the_report_says_what_is_missing_and_how_each_one_is() -> None:
    worker = Worker(fallback=("rtzr",))
    worker.missing["google"] = ("GOOGLE_APPLICATION_CREDENTIALS",)
    async with worker:
        worker.call().current.heard(310.0)
        worker.breaks("rtzr")
        local, rtzr, google = worker.recognition.report()
    assert (local.chosen, local.healthy, local.latency_ms, local.note) == (True, True, (310, 310), "")
    assert (rtzr.chosen, rtzr.healthy, rtzr.note) == (False, False, "it failed (auth); it is being probed")
    assert (google.missing, google.healthy) == (("GOOGLE_APPLICATION_CREDENTIALS",), None)


async def test_ready_as_long_as_one_of_them_is_well() -> None:
    async with Worker(chosen="rtzr", fallback=("local",)) as worker:
        worker.stts["rtzr"].checked = SttError("RTZR_CLIENT_ID: wrong", provider="rtzr", kind="auth", retryable=False)
        await worker.recognition.check()
        assert [one.note for one in worker.recognition.report()] == ["", "RTZR_CLIENT_ID: wrong", ""]
        worker.breaks("local")
        with pytest.raises(SttError, match=r"RTZR_CLIENT_ID: wrong; it failed \(auth\)"):
            await worker.recognition.check()


async def test_full_is_what_the_one_that_would_hear_the_call_says() -> None:
    async with Worker(fallback=("rtzr",)) as worker:
        assert not worker.recognition.full("+82701")
        worker.stts["local"].full = True
        assert worker.recognition.full("+82701")
        worker.breaks("local")
        assert not worker.recognition.full("+82701")


# ---------------------------------------------------------------- switching


async def test_a_switch_is_for_new_calls_and_says_so() -> None:
    async with Worker() as worker:
        before = worker.call()
        await worker.recognition.switch("rtzr")
        assert before.current.name == "local"
        assert worker.call().current.name == "rtzr"
        assert worker.recognition.row() == InUse("rtzr: a recogniser", "switched from local by an admin")
        assert worker.stts["rtzr"].probes == 1, "tried with a spoken sentence"
        assert worker.names() == ["rtzr", "local"], "on trial, the one before stands behind it"
        await asyncio.sleep(601)
        assert worker.names() == ["rtzr"]


@pytest.mark.parametrize(
    ("name", "error"), [("whisper", UnknownRecogniser), ("google", NotConfigured), ("rtzr", SttError)]
)
async def test_a_switch_that_cannot_be_made_changes_nothing(name: str, error: type[Exception]) -> None:
    worker = Worker()
    worker.missing["google"] = ("GOOGLE_APPLICATION_CREDENTIALS",)
    async with worker:
        worker.stts["rtzr"].ill = True
        with pytest.raises(error):
            await worker.recognition.switch(name)
        assert worker.recognition.chosen == "local"
        assert worker.choices.stored is None


async def test_what_stands_in_the_way_of_opening_is_told() -> None:
    worker = Worker()
    worker.unopenable.add("google")
    async with worker:
        with pytest.raises(NotConfigured, match="pip install it"):
            await worker.recognition.switch("google")


async def test_a_choice_that_cannot_be_stored_is_not_made() -> None:
    async with Worker() as worker:
        worker.choices.down = True
        with pytest.raises(ProviderError):
            await worker.recognition.switch("rtzr")
        assert worker.recognition.chosen == "local"
        await asyncio.sleep(30)
        worker.choices.down = False
        await worker.recognition.switch("rtzr")


async def test_a_switch_to_what_serves_already_tries_it_and_stores_nothing() -> None:
    async with Worker() as worker:
        await worker.recognition.switch("local")
        assert worker.stts["local"].probes == 1
        assert worker.choices.stored is None


# ---------------------------------------------------------------- other workers, restarts


async def test_a_switch_reaches_every_worker() -> None:
    choices = MemoryChoices()
    async with Worker(choices) as one, Worker(choices) as other:
        await one.recognition.switch("rtzr")
        await asyncio.sleep(2.1)
        assert other.call().current.name == "rtzr"
        await other.recognition.switch("local")
        await asyncio.sleep(2.1)
        assert one.call().current.name == "local"


async def test_a_worker_that_did_not_know_yet_switches_after_the_other() -> None:
    choices = MemoryChoices()
    async with Worker(choices) as one, Worker(choices) as other:
        await one.recognition.switch("rtzr")
        await other.recognition.switch("google")
        assert choices.stored is not None
        assert (choices.stored.value, choices.stored.before, choices.stored.version) == ("google", "rtzr", 2)


async def test_a_switch_made_during_another_ones_trial_sentence_is_not_written_over() -> None:
    choices = MemoryChoices()
    async with Worker(choices) as one, Worker(choices) as other:
        slow = asyncio.Event()
        one.stts["rtzr"].waits_for = slow
        switching = one.loop.create_task(one.recognition.switch("rtzr"))
        await asyncio.sleep(0.1)
        await other.recognition.switch("google")
        slow.set()
        with pytest.raises(SwitchedElsewhere):
            await switching
        assert choices.stored is not None
        assert choices.stored.value == "google"


async def test_what_a_worker_knew_of_a_recogniser_before_does_not_undo_the_switch() -> None:
    choices = MemoryChoices()
    async with Worker(choices) as one, Worker(choices, by_number={"+82702": "rtzr"}) as other:
        candidate = other.recognition.for_call("+82702")[0]
        candidate.breaker.failed(other.loop.time(), "auth", curable=False)
        await one.recognition.switch("rtzr")
        await asyncio.sleep(10)
        assert [worker.recognition.chosen for worker in (one, other)] == ["rtzr", "rtzr"]


async def test_of_two_at_the_same_moment_one_is_told_so() -> None:
    choices = MemoryChoices()
    async with Worker(choices) as one, Worker(choices) as other:
        results = await asyncio.gather(
            one.recognition.switch("rtzr"), other.recognition.switch("google"), return_exceptions=True
        )
        refused = [result for result in results if result is not None]
        assert all(isinstance(error, SwitchedElsewhere) for error in refused)
        assert len(refused) <= 1
        await asyncio.sleep(2.1)
        assert one.recognition.chosen == other.recognition.chosen


async def test_a_switch_survives_a_restart_but_not_a_newer_setting() -> None:
    choices = MemoryChoices()
    async with Worker(choices) as worker:
        await worker.recognition.switch("rtzr")
    async with Worker(choices) as worker:
        assert worker.call().current.name == "rtzr"
    async with Worker(choices, chosen="google") as worker:
        assert worker.call().current.name == "google", "STT_PROVIDER was changed after it"
        await worker.recognition.switch("local")
        assert worker.call().current.name == "local"


async def test_a_choice_that_cannot_be_used_any_more_is_given_up() -> None:
    choices = MemoryChoices()
    async with Worker(choices) as worker:
        await worker.recognition.switch("rtzr")
    for prepare in ("missing", "unopenable"):
        worker = Worker(choices)
        if prepare == "missing":
            worker.missing["rtzr"] = ("RTZR_CLIENT_ID",)
        else:
            worker.unopenable.add("rtzr")
        async with worker:
            assert worker.call().current.name == "local"
            assert worker.recognition.report()[1].note


# ---------------------------------------------------------------- failing


async def test_a_switch_that_fails_on_trial_is_taken_back_once_and_for_all_workers() -> None:
    choices = MemoryChoices()
    async with Worker(choices) as one, Worker(choices) as other:
        await one.recognition.switch("rtzr")
        await asyncio.sleep(60)
        one.breaks("rtzr")
        assert one.call().current.name == "local", "at once, for the next call"
        await asyncio.sleep(4.1)
        assert [worker.recognition.chosen for worker in (one, other)] == ["local", "local"]
        assert "switched back from rtzr, which failed (auth)" in one.recognition.row().why
        one.breaks("local")
        await asyncio.sleep(10)
        assert one.recognition.chosen == "local", "there is no way back and forth"


async def test_one_that_fails_long_after_the_switch_is_left_to_its_successors() -> None:
    async with Worker(fallback=("google",)) as worker:
        await worker.recognition.switch("rtzr")
        await asyncio.sleep(601)
        worker.breaks("rtzr")
        await asyncio.sleep(10)
        assert worker.recognition.chosen == "rtzr"
        assert worker.call().current.name == "google"


async def test_a_probe_brings_the_first_one_back() -> None:
    async with Worker(fallback=("rtzr",)) as worker:
        worker.breaks("local")
        assert worker.call().current.name == "rtzr"
        await asyncio.sleep(60)
        assert worker.call().current.name == "rtzr"
        tried = worker.stts["local"].probes
        assert 2 <= tried <= 4, "less and less often"
        worker.stts["local"].ill = False
        await asyncio.sleep(60)
        assert worker.call().current.name == "local"
        assert worker.stts["local"].probes == tried + 1


async def test_a_call_that_works_closes_the_breaker_without_a_probe() -> None:
    async with Worker() as worker:
        for _ in range(2):
            worker.call().ended(StreamEnd("reset", True, False, 0.1))
        worker.call().ended(StreamEnd(EOF, True, True, 0.1))
        worker.call().ended(StreamEnd("reset", True, False, 0.1))
        assert worker.recognition.report()[0].healthy


async def test_a_call_that_heard_nothing_has_its_recogniser_probed() -> None:
    async with Worker(fallback=("rtzr",)) as worker:
        for ill in (False, True):
            worker.stts["local"].ill = ill
            worker.call().ended(StreamEnd("mute", True, False, 20.0))
            await asyncio.sleep(1.0)
            assert worker.call().current.name == ("rtzr" if ill else "local")


async def test_a_bug_in_one_recogniser_ends_neither_the_probes_nor_the_checks() -> None:
    async with Worker(fallback=("rtzr",)) as worker:
        worker.breaks("rtzr")
        worker.stts["rtzr"].broken = KeyError("a bug")
        worker.stts["rtzr"].checked = KeyError("a bug")
        await worker.recognition.check()
        await asyncio.sleep(30)
        assert not worker.running.done()
        assert not worker.recognition.report()[1].healthy


async def test_a_choice_that_cannot_be_adopted_is_not_tried_all_the_time(log_lines: list[Any]) -> None:
    choices = MemoryChoices()
    other = Worker(choices)
    other.unopenable.add("rtzr")
    async with Worker(choices) as one, other:
        await one.recognition.switch("rtzr")
        await asyncio.sleep(55)
        tries = [line for line in log_lines if line["event"] == "x chosen recogniser cannot be used here"]
        assert len(tries) == 1
        other.unopenable.clear()
        await asyncio.sleep(65)
        assert other.recognition.chosen == "rtzr"


async def test_a_store_that_is_down_stops_neither_following_nor_probing() -> None:
    async with Worker(fallback=("rtzr",)) as worker:
        worker.choices.down = True
        worker.breaks("local")
        worker.stts["local"].ill = False
        await asyncio.sleep(30)
        assert worker.call().current.name == "local"
        assert not worker.running.done()
