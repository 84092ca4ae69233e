"""The recorder over the real store on a real SQLite file, and over that store made slow, lame or poisoned."""

import asyncio
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
import structlog
from sqlalchemy import AsyncAdaptedQueuePool

from app.db.call_store import CallRecord, SqlCallStore
from app.db.engine import Database, open_database
from app.errors import ProviderError
from app.services.ai_call.recorder import MAX_PENDING, Recorder, RecorderTiming
from app.services.ai_call.types import CallInfo, EndReason, Exchange

START = datetime(2025, 3, 1, 12, tzinfo=UTC)
END = START + timedelta(seconds=30)
CALL = CallInfo("CA1", "AC1", "+820000000001", "+820000000002", "ko", START)
FAST = RecorderTiming(write=0.5, pause=0.01, longest_pause=0.05, close=3.0)


class FaultyStore:
    """A real store behind switches. `writes` lists every attempt, `stored` the turns that succeeded."""

    def __init__(self, store: SqlCallStore) -> None:
        self._store = store
        self.writes: list[str] = []
        self.stored: list[int] = []
        self.down = False
        self.delay_s = 0.0
        self.poison: set[int] = set()

    async def open_call(self, call: CallInfo) -> None:
        await self._suffer("open")
        await self._store.open_call(call)

    async def add_exchange(self, call_sid: str, exchange: Exchange) -> None:
        await self._suffer(f"exchange {exchange.turn}")
        if exchange.turn in self.poison:
            raise ProviderError(f"row: {exchange.user}", provider="database", kind="rejected", retryable=False)
        await self._store.add_exchange(call_sid, exchange)
        self.stored.append(exchange.turn)

    async def close_call(self, call_sid: str, reason: EndReason, at: datetime) -> None:
        await self._suffer("close")
        await self._store.close_call(call_sid, reason, at)

    async def _suffer(self, write: str) -> None:
        self.writes.append(write)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.down:
            raise ProviderError("gone", provider="database", kind="unavailable", retryable=True)


class Faults:
    count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = open_database(f"sqlite+aiosqlite:///{tmp_path}/calls.db")
    await database.migrate()
    yield database
    await database.aclose()


@pytest.fixture
def sql(database: Database) -> SqlCallStore:
    return SqlCallStore(database)


@pytest.fixture
def store(sql: SqlCallStore) -> FaultyStore:
    return FaultyStore(sql)


@pytest.fixture
def faults() -> Faults:
    return Faults()


def exchange(turn: int) -> Exchange:
    return Exchange(turn, f"비밀 {turn}", f"secret {turn}", interrupted=False)


async def stored(sql: SqlCallStore) -> CallRecord:
    record = await sql.get(CALL.call_sid)
    assert record is not None
    return record


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - what is waited for is no event of ours
            await asyncio.sleep(0.002)


async def test_the_opening_comes_first_and_exchanges_are_written_during_the_call(
    sql: SqlCallStore, store: FaultyStore, faults: Faults
) -> None:
    recorder = Recorder(store, CALL, faults, FAST)
    async with asyncio.TaskGroup() as group:
        writer = group.create_task(recorder.run())
        recorder.remember(exchange(2))
        await until(lambda: store.stored == [2])
        recorder.remember(exchange(4))
        recorder.remember(exchange(6))
        await until(lambda: store.stored == [2, 4, 6])
        writer.cancel()
    await recorder.close("caller", END)
    assert store.writes == ["open", "exchange 2", "exchange 4", "exchange 6", "close"]
    record = await stored(sql)
    assert (record.call, record.ended_at, record.end_reason) == (CALL, END, "caller")
    assert faults.count == 0


async def test_a_call_that_never_ran_is_recorded_too(sql: SqlCallStore, store: FaultyStore, faults: Faults) -> None:
    recorder = Recorder(store, CALL, faults, FAST)
    recorder.remember(exchange(2))
    await recorder.close("error", END)
    await recorder.close("caller", END + timedelta(seconds=1))
    record = await stored(sql)
    assert (record.ended_at, record.end_reason, record.exchanges) == (END, "error", (exchange(2),))


async def test_a_store_that_hangs_costs_a_bounded_wait(sql: SqlCallStore, store: FaultyStore, faults: Faults) -> None:
    store.delay_s = 3600
    recorder = Recorder(store, CALL, faults, RecorderTiming(close=0.5))
    recorder.remember(exchange(2))
    began = time.perf_counter()
    await recorder.close("caller", END)
    assert time.perf_counter() - began < 2
    assert faults.count == 1
    assert await sql.get("CA1") is None
    store.delay_s = 0
    await recorder.close("caller", END)  # the store is back: a repeat writes what is left
    assert (await stored(sql)).exchanges == (exchange(2),)


async def test_too_many_exchanges_are_given_up_not_waited_for(
    sql: SqlCallStore, store: FaultyStore, faults: Faults
) -> None:
    recorder = Recorder(store, CALL, faults, RecorderTiming(write=20, close=20))
    for turn in range(MAX_PENDING + 3):
        recorder.remember(exchange(turn))
    assert faults.count == 3
    await recorder.close("caller", END)
    assert [one.turn for one in (await stored(sql)).exchanges] == list(range(MAX_PENDING))


async def test_the_call_goes_on_while_the_store_is_away_and_nothing_is_lost(
    sql: SqlCallStore, store: FaultyStore, faults: Faults
) -> None:
    store.down = True
    recorder = Recorder(store, CALL, faults, FAST)
    async with asyncio.TaskGroup() as group:
        writer = group.create_task(recorder.run())
        recorder.remember(exchange(2))
        recorder.remember(exchange(4))
        await until(lambda: faults.count >= 3)
        assert store.writes == ["open"] * faults.count
        store.down = False
        await until(lambda: store.stored == [2, 4])
        store.down = True
        recorder.remember(exchange(6))
        await until(lambda: store.writes[-1] == "exchange 6")
        writer.cancel()
    store.down = False
    await recorder.close("caller", END)
    record = await stored(sql)
    assert [one.turn for one in record.exchanges] == [2, 4, 6]
    assert record.end_reason == "caller"


async def test_a_slow_store_gets_everything_within_the_bound(
    sql: SqlCallStore, store: FaultyStore, faults: Faults
) -> None:
    store.delay_s = 0.3
    recorder = Recorder(store, CALL, faults, FAST)
    for turn in range(30):  # one after the other they would take 9 s
        recorder.remember(exchange(turn))
    began = time.perf_counter()
    await recorder.close("caller", END)
    assert time.perf_counter() - began < FAST.close
    record = await stored(sql)
    assert [one.turn for one in record.exchanges] == list(range(30))
    assert record.end_reason == "caller"
    assert faults.count == 0


async def test_a_row_that_is_never_taken_is_set_aside_without_its_words(
    sql: SqlCallStore, store: FaultyStore, faults: Faults
) -> None:
    store.poison = {4}
    recorder = Recorder(store, CALL, faults, FAST)
    with structlog.testing.capture_logs() as lines:
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(recorder.run())
            for turn in (2, 4, 6):
                recorder.remember(exchange(turn))
            await until(lambda: store.stored == [2, 6])
            writer.cancel()
        await recorder.close("caller", END)
    assert store.writes.count("exchange 4") == 1
    assert faults.count == 1
    assert [line["event"] for line in lines] == ["x record not written"]
    assert "비밀" not in repr(lines)
    assert "secret" not in repr(lines)


async def test_the_end_is_bounded_when_another_process_holds_the_file(
    sql: SqlCallStore, faults: Faults, tmp_path: Path
) -> None:
    locker = sqlite3.connect(tmp_path / "calls.db", isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    recorder = Recorder(sql, CALL, faults, RecorderTiming(close=1.5))
    recorder.remember(exchange(2))
    began = time.perf_counter()
    await recorder.close("caller", END)
    took = time.perf_counter() - began
    locker.execute("ROLLBACK")
    locker.close()
    assert took < 1.5 + 1.2  # a wait for SQLite's lock cannot be cancelled; it lasts 1 s at most
    assert faults.count >= 1
    assert await sql.get("CA1") is None


async def test_two_hundred_calls_cut_off_during_writes_are_each_recorded_once(
    sql: SqlCallStore, database: Database, faults: Faults
) -> None:
    seeded = random.Random(3)

    async def one(number: int, moment: random.Random) -> None:
        sid = f"CA{number}"
        recorder = Recorder(sql, CallInfo(sid, "AC1", "", "", "ko", START), faults, FAST)
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(recorder.run())
            for turn in range(3):
                recorder.remember(exchange(turn))
                for _ in range(moment.randrange(12)):
                    await asyncio.sleep(0)
            await asyncio.sleep(moment.random() / 50)
            writer.cancel()
        await recorder.close("caller", END)

    async with asyncio.timeout(40):
        for first in range(0, 200, 10):
            async with asyncio.TaskGroup() as group:
                for number in range(first, first + 10):
                    group.create_task(one(number, random.Random(seeded.random())))
    lines = await sql.recent(300)
    assert len(lines) == 200
    assert all((line.exchange_count, line.end_reason, line.ended_at) == (3, "caller", END) for line in lines)
    assert faults.count == 0
    assert len(asyncio.all_tasks()) == 1
    assert cast(AsyncAdaptedQueuePool, database.engine.pool).checkedout() == 0
