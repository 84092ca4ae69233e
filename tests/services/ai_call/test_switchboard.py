"""The calls of a process: each is found while it lives, ended in order, and never in another's way."""

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from app.metrics import Metrics
from app.services.ai_call import switchboard as module
from app.services.ai_call.session import CallSession
from app.services.ai_call.switchboard import Switchboard
from app.services.ai_call.types import CallInfo, EndReason
from tests.conversation import VIRTUAL
from tests.fakes import CALL

pytestmark = VIRTUAL


class Session:
    """Of a CallSession what the switchboard needs: the first request ends it after a goodbye, the second at once."""

    def __init__(self, sid: str, goodbye_s: float = 1.0) -> None:
        self.call: CallInfo = replace(CALL, call_sid=sid)
        self._goodbye_s = goodbye_s
        self._ending = asyncio.Event()
        self._now = asyncio.Event()
        self._reason: EndReason = "bot"
        self.ended_because: EndReason | None = None

    async def run(self) -> EndReason:
        await self._ending.wait()
        try:
            async with asyncio.timeout(self._goodbye_s):
                await self._now.wait()
        except TimeoutError:
            pass
        return self._reason

    def hang_up(self, reason: EndReason) -> None:
        (self._now if self._ending.is_set() else self._ending).set()
        self._reason = reason


class Stubborn(Session):
    """Takes its time, whoever asks."""

    def hang_up(self, reason: EndReason) -> None:
        pass


def serve(board: Switchboard, session: Session, group: asyncio.TaskGroup) -> "asyncio.Task[EndReason]":
    return group.create_task(board.serve(cast(CallSession, session)))


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


async def test_a_call_is_found_while_it_lives_and_remembered_when_it_ended() -> None:
    metrics = Metrics()
    async with Switchboard(2, metrics) as board, asyncio.TaskGroup() as group:
        session = Session("CA1")
        task = serve(board, session, group)
        await asyncio.sleep(0.1)
        assert board.find("CA1") is cast(Any, session)
        assert len(board.live) == 1
        assert board.ended("CA1") is None
        assert value(metrics, "malgil_live_calls") == 1
        session.hang_up("admin")
        assert await task == "admin"
        assert (board.find("CA1"), board.live, board.ended("CA1")) == (None, [], "admin")
        assert value(metrics, "malgil_live_calls") == 0
        assert value(metrics, "malgil_calls_ended_total", reason="admin") == 1
        assert (board.find("CA2"), board.ended("CA2")) == (None, None), "never heard of"


async def test_why_a_call_ends_is_known_while_it_winds_up() -> None:
    """What comes after the stream is asked for while the record is still being written."""
    async with Switchboard(2, Metrics()) as board, asyncio.TaskGroup() as group:
        session = Session("CA1")
        serve(board, session, group)
        await asyncio.sleep(0.1)
        session.ended_because = "media_stall"
        assert board.ended("CA1") == "media_stall"
        session.hang_up("media_stall")


async def test_it_is_full_at_its_limit_and_again_free() -> None:
    async with Switchboard(2, Metrics()) as board, asyncio.TaskGroup() as group:
        sessions = [Session("CA1"), Session("CA2")]
        for session in sessions:
            assert not board.full
            serve(board, session, group)
            await asyncio.sleep(0.1)
        assert board.full
        sessions[0].hang_up("admin")
        await asyncio.sleep(2.0)
        assert not board.full
        sessions[1].hang_up("admin")


async def test_ended_calls_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENDED_KEPT", 3)
    async with Switchboard(9, Metrics()) as board, asyncio.TaskGroup() as group:
        for number in range(5):
            session = Session(f"CA{number}", goodbye_s=0.0)
            session.hang_up("bot")
            await serve(board, session, group)
        assert [board.ended(f"CA{number}") for number in range(5)] == [None, None, "bot", "bot", "bot"]


async def test_a_waiter_that_is_cancelled_ends_its_call_in_order() -> None:
    """The socket's handler may be cancelled at any moment; the call still gets its goodbye to the store."""
    async with Switchboard(2, Metrics()) as board, asyncio.TaskGroup() as group:
        task = serve(board, Session("CA1", goodbye_s=100.0), group)
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.sleep(0.1)
        assert task.cancelled()
        assert board.ended("CA1") == "shutdown"


async def test_end_all_is_polite_and_leaving_is_not() -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        async with Switchboard(5, Metrics()) as board:
            tasks = [serve(board, Session(f"CA{number}", goodbye_s=2.0), group) for number in range(3)]
            await asyncio.sleep(0.1)
            began = loop.time()
            board.end_all("admin")
            assert [await task for task in tasks] == ["admin"] * 3
            assert loop.time() - began == pytest.approx(2.0)
            serve(board, Session("CA9", goodbye_s=60.0), group)
            await asyncio.sleep(0.1)
            began = loop.time()
        assert loop.time() - began < 0.1
        assert (board.draining, board.ended("CA9")) == (True, "shutdown")


async def test_a_call_that_comes_while_the_switchboard_is_being_left_does_not_hold_it_up() -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        slow = Stubborn("CA1")
        late = Session("CA2", goodbye_s=600.0)
        async with Switchboard(5, Metrics()) as board:
            serve(board, slow, group)
            await asyncio.sleep(0.1)
            loop.call_later(0.5, lambda: serve(board, late, group))
            loop.call_later(1.0, slow._ending.set)
            began = loop.time()
        assert loop.time() - began == pytest.approx(2.0), "as long as the slow one took"
        assert board.ended("CA2") == "shutdown"
