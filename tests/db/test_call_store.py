import asyncio
import random
import sqlite3
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import AsyncAdaptedQueuePool

from app.db.call_store import SERVER_LOST, SqlCallStore
from app.db.engine import Database, open_database
from app.errors import ProviderError
from app.services.ai_call.types import CallInfo, Exchange, TurnLatency

START = datetime(2025, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def call(sid: str = "CA1", at: datetime = START) -> CallInfo:
    return CallInfo(sid, "AC1", "+820000000001", "+820000000002", "ko", at)


def exchange(turn: int, user: str = "안녕하세요.", bot: str = "네, 안녕하세요.") -> Exchange:
    return Exchange(turn, user, bot, interrupted=False, latency=TurnLatency(900, 1200, None, 1500))


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = open_database(f"sqlite+aiosqlite:///{tmp_path}/calls.db")
    await database.migrate()
    yield database
    await database.aclose()


@pytest.fixture
def store(database: Database) -> SqlCallStore:
    return SqlCallStore(database)


def connections_out(database: Database) -> int:
    return cast(AsyncAdaptedQueuePool, database.engine.pool).checkedout()


async def test_a_call_is_read_back_as_it_was_written(store: SqlCallStore) -> None:
    await store.open_call(call())
    said = [
        exchange(2),
        Exchange(4, "", "", True, TurnLatency()),
        Exchange(7, "고마워요", "별말씀을요 👍", False),
    ]
    for one in reversed(said):
        await store.add_exchange("CA1", one)
    live = await store.get("CA1")
    assert live is not None
    assert (live.call, live.ended_at, live.end_reason) == (call(), None, None)
    assert live.exchanges == tuple(said)
    assert live.call.started_at.tzinfo is UTC

    await store.close_call("CA1", "caller", START + timedelta(seconds=40))
    ended = await store.get("CA1")
    assert ended is not None
    assert (ended.ended_at, ended.end_reason) == (START + timedelta(seconds=40), "caller")
    assert await store.get("CA2") is None


async def test_every_write_may_be_repeated_and_the_first_counts(store: SqlCallStore) -> None:
    for _ in range(2):
        await store.open_call(call())
        await store.add_exchange("CA1", exchange(2))
        await store.close_call("CA1", "caller", START + timedelta(seconds=1))
    await store.open_call(call(at=START + timedelta(days=1)))
    await store.add_exchange("CA1", exchange(2, user="something else"))
    await store.close_call("CA1", "error", START + timedelta(seconds=2))
    await store.close_call("CA-unknown", "error", START)

    record = await store.get("CA1")
    assert record is not None
    assert record.call.started_at == START
    assert record.exchanges == (exchange(2),)
    assert (record.ended_at, record.end_reason) == (START + timedelta(seconds=1), "caller")


async def test_moments_of_any_zone_come_back_in_utc_and_naive_ones_are_refused(store: SqlCallStore) -> None:
    seoul = datetime(2025, 3, 1, 21, 0, tzinfo=timezone(timedelta(hours=9)))
    await store.open_call(call(at=seoul))
    record = await store.get("CA1")
    assert record is not None
    assert record.call.started_at.isoformat() == "2025-03-01T12:00:00+00:00"
    with pytest.raises(ProviderError) as caught:
        await store.open_call(call("CA2", at=datetime(2025, 3, 1)))
    assert (caught.value.kind, caught.value.retryable) == ("rejected", False)


@pytest.mark.parametrize(
    ("said", "kept"),
    [("a\x00b", "a\ufffdb"), ("a\ud800", "a\ufffd"), ("\udfff\ud83d 네", "\ufffd\ufffd 네"), ("👍", "👍")],
)
async def test_text_that_no_database_takes_is_cleaned(store: SqlCallStore, said: str, kept: str) -> None:
    strange = CallInfo(said, said, said, said, said, START)
    await store.open_call(strange)
    await store.add_exchange(said, exchange(1, user=said, bot=said))
    await store.close_call(said, "caller", START)
    record = await store.get(said)
    assert record is not None
    assert record.call == CallInfo(kept, kept, kept, kept, kept, START)
    assert record.exchanges == (exchange(1, user=kept, bot=kept),)
    assert record.end_reason == "caller"
    assert await store.recent(5, before=(START, said)) == []


async def test_recent_pages_through_every_call_once_newest_first(store: SqlCallStore) -> None:
    # Many calls of one moment: a cursor of the time alone would lose or repeat some of them.
    moments = [START + timedelta(microseconds=step // 4) for step in range(23)]
    sids = [f"CA{step:02}" for step in range(23)]
    for sid, at in random.Random(2).sample(list(zip(sids, moments, strict=True)), 23):
        await store.open_call(call(sid, at))
    await store.add_exchange("CA22", exchange(1))
    await store.add_exchange("CA22", exchange(3))
    await store.close_call("CA22", "bot", START + timedelta(seconds=1))

    seen: list[str] = []
    page = await store.recent(5)
    assert [(line.exchange_count, line.end_reason) for line in page[:2]] == [(2, "bot"), (0, None)]
    while page:
        assert len(page) <= 5
        seen += [line.call.call_sid for line in page]
        page = await store.recent(5, before=(page[-1].call.started_at, page[-1].call.call_sid))
    assert seen == sids[::-1]


async def test_orphans_are_ended_once_and_ended_calls_are_left_alone(store: SqlCallStore) -> None:
    await store.open_call(call("CA1"))
    await store.open_call(call("CA2"))
    await store.open_call(call("CA3"))
    await store.close_call("CA2", "caller", START)
    later = START + timedelta(hours=1)
    assert await store.close_orphans(later) == 2
    assert await store.close_orphans(later + timedelta(hours=1)) == 0
    ends = {line.call.call_sid: (line.ended_at, line.end_reason) for line in await store.recent(9)}
    assert ends == {"CA1": (later, SERVER_LOST), "CA2": (START, "caller"), "CA3": (later, SERVER_LOST)}


async def test_an_exchange_of_an_unknown_call_is_rejected_for_good(store: SqlCallStore) -> None:
    with pytest.raises(ProviderError) as caught:
        await store.add_exchange("CA-unknown", exchange(1, user="비밀번호는 1234"))
    assert (caught.value.kind, caught.value.retryable) == ("rejected", False)
    assert "1234" not in str(caught.value)
    assert "1234" not in str(caught.value.__cause__)


async def test_a_locked_file_is_retryable_and_gives_its_connection_back(
    store: SqlCallStore, database: Database, tmp_path: Path
) -> None:
    locker = sqlite3.connect(tmp_path / "calls.db", isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    with pytest.raises(ProviderError) as caught:
        await store.open_call(call())
    assert (caught.value.kind, caught.value.retryable) == ("unavailable", True)
    assert await store.recent(1) == []  # reading waits for no writer
    locker.execute("ROLLBACK")
    locker.close()
    await store.open_call(call())
    assert connections_out(database) == 0


async def test_fifty_calls_write_at_once(store: SqlCallStore, database: Database) -> None:
    async def one(number: int) -> None:
        sid = f"CA{number}"
        await store.open_call(call(sid))
        for turn in range(1, 6):
            await store.add_exchange(sid, exchange(turn))
        await store.close_call(sid, "caller", START)

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(one(number))
    lines = await store.recent(100)
    assert len(lines) == 50
    assert all((line.exchange_count, line.end_reason) == (5, "caller") for line in lines)
    assert connections_out(database) == 0


async def test_cancelled_writes_leak_nothing_and_may_be_repeated(store: SqlCallStore, database: Database) -> None:
    await store.open_call(call())
    await asyncio.gather(*(store.recent(1) for _ in range(8)))  # the pool at its full size
    threads = threading.active_count()
    seeded = random.Random(7)
    cancelled = 0
    for turn in range(200):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(store.add_exchange("CA1", exchange(turn)))
            for _ in range(seeded.randrange(8)):
                await asyncio.sleep(0)
            if seeded.random() < 0.5:
                await asyncio.sleep(seeded.random() / 500)
            task.cancel()
        cancelled += task.cancelled()
        await store.add_exchange("CA1", exchange(turn))
    record = await store.get("CA1")
    assert record is not None
    assert [one.turn for one in record.exchanges] == list(range(200))
    assert cancelled > 50  # else the moments miss the writes and the test shows nothing
    assert connections_out(database) == 0
    assert len(asyncio.all_tasks()) == 1
    assert threading.active_count() <= threads
