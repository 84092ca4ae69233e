from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.errors import ProviderError
from app.telephony.twilio_rest import RestOptions, TwilioRest
from tests.emulators.twilio_rest import Fault, TwilioRestEmulator

ACCOUNT = "AC" + "0" * 32
TOKEN = "a test's auth token"
LIVE = "CA" + "1" * 32
AT_ONCE = RestOptions(try_s=0.05, total_s=2.0, pauses_s=(0, 0))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's proxy, where there is one, is not for loopback."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
async def twilio() -> AsyncIterator[TwilioRestEmulator]:
    async with TwilioRestEmulator(ACCOUNT, TOKEN, calls={LIVE: "in-progress"}).serving() as emulator:
        yield emulator


@asynccontextmanager
async def client(
    twilio: TwilioRestEmulator, options: RestOptions = AT_ONCE, token: str = TOKEN
) -> AsyncIterator[TwilioRest]:
    rest = TwilioRest(ACCOUNT, token, f"{twilio.url}/", options)
    try:
        yield rest
    finally:
        await rest.aclose()


async def test_a_live_call_is_ended_once(twilio: TwilioRestEmulator) -> None:
    ended: list[str] = []
    twilio.on_completed = ended.append
    async with client(twilio) as rest:
        await rest.complete(LIVE)
    assert ended == [LIVE]
    assert twilio.calls == {LIVE: "completed"}
    assert len(twilio.requests) == 1
    assert twilio.violations == []


@pytest.mark.parametrize("status", ["completed", "busy", "failed", "no-answer", "canceled"])
async def test_a_call_that_is_over_is_a_success(twilio: TwilioRestEmulator, status: str) -> None:
    twilio.calls[LIVE] = status
    async with client(twilio) as rest:
        await rest.complete(LIVE)
    assert twilio.calls == {LIVE: status}
    assert len(twilio.requests) == 1


async def test_a_call_that_twilio_has_forgotten_is_a_success(twilio: TwilioRestEmulator) -> None:
    async with client(twilio) as rest:
        await rest.complete("CA" + "f" * 32)
    assert len(twilio.requests) == 1
    assert twilio.violations == []


@pytest.mark.parametrize("fault", ["hang", "reset", "not_json", 500, 503, 429])
async def test_two_failures_are_tried_again(twilio: TwilioRestEmulator, fault: Fault) -> None:
    twilio.faults = [fault, fault]
    async with client(twilio) as rest:
        await rest.complete(LIVE)
    assert twilio.calls == {LIVE: "completed"}
    assert len(twilio.requests) == 3


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("hang", "unreachable"), ("reset", "unreachable"), ("not_json", "server"), (500, "server"), (429, "rate_limit")],
)
async def test_the_third_failure_is_the_last(twilio: TwilioRestEmulator, fault: Fault, kind: str) -> None:
    twilio.faults = [fault] * 3
    async with client(twilio) as rest:
        with pytest.raises(ProviderError) as failed:
            await rest.complete(LIVE)
    assert (failed.value.provider, failed.value.kind, failed.value.retryable) == ("twilio", kind, True)
    assert len(twilio.requests) == 3
    assert twilio.calls == {LIVE: "in-progress"}


async def test_a_wrong_login_is_not_tried_again_and_names_the_settings(twilio: TwilioRestEmulator) -> None:
    async with client(twilio, token="wrong") as rest:
        with pytest.raises(ProviderError, match="TWILIO_AUTH_TOKEN") as failed:
            await rest.complete(LIVE)
    assert (failed.value.kind, failed.value.retryable) == ("auth", False)
    assert "wrong" not in str(failed.value)
    assert len(twilio.requests) == 1


@pytest.mark.parametrize("fault", ["not_found_page", 400, 302])
async def test_an_answer_that_twilio_would_not_give_is_no_success(twilio: TwilioRestEmulator, fault: Fault) -> None:
    twilio.faults = [fault]
    async with client(twilio) as rest:
        with pytest.raises(ProviderError, match="TWILIO_API_BASE") as failed:
            await rest.complete(LIVE)
    assert (failed.value.kind, failed.value.retryable) == ("rejected", False)
    assert len(twilio.requests) == 1


async def test_all_tries_together_are_bounded(twilio: TwilioRestEmulator) -> None:
    twilio.faults = ["hang"] * 3
    async with client(twilio, RestOptions(try_s=5.0, total_s=0.05)) as rest:
        with pytest.raises(ProviderError) as failed:
            await rest.complete(LIVE)
    assert failed.value.kind == "unreachable"
    assert len(twilio.requests) == 1


async def test_nobody_listens() -> None:
    async with TwilioRestEmulator(ACCOUNT, TOKEN).serving() as gone:
        pass
    async with client(gone) as rest:
        with pytest.raises(ProviderError) as failed:
            await rest.complete(LIVE)
    assert failed.value.kind == "unreachable"


async def test_an_id_cannot_leave_its_place_in_the_path(twilio: TwilioRestEmulator) -> None:
    async with client(twilio) as rest:
        await rest.complete("../../x?y#z")
    assert twilio.requests[0].path == f"/2010-04-01/Accounts/{ACCOUNT}/Calls/..%2F..%2Fx%3Fy%23z.json"
