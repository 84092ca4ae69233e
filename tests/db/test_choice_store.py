"""Choices made while running: the last one counts, and of two at once one wins."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.db.choice_store import SqlChoiceStore
from app.db.engine import Database, open_database
from app.errors import ProviderError
from app.services.ai_call.ports import Choice

AT = datetime(2025, 3, 1, 12, tzinfo=UTC)
RTZR = Choice("rtzr", "local", "local", "by an admin", AT)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = open_database(f"sqlite+aiosqlite:///{tmp_path}/malgil.db")
    await database.migrate()
    yield database
    await database.aclose()


async def test_what_was_put_is_got_with_its_version(database: Database) -> None:
    store = SqlChoiceStore(database)
    assert await store.get("stt") is None
    first = await store.put("stt", RTZR)
    assert first is not None
    assert (first.version, first.value, first.changed_at) == (1, "rtzr", AT)
    assert await store.get("stt") == first
    assert await store.get("tts") is None


async def test_a_change_takes_the_place_of_the_version_it_knew(database: Database) -> None:
    store = SqlChoiceStore(database)
    await store.put("stt", RTZR)
    second = await store.put("stt", Choice("local", "rtzr", "local", "back", AT, version=1))
    assert second is not None
    assert second.version == 2
    assert await store.put("stt", Choice("google", "rtzr", "local", "too late", AT, version=1)) is None
    assert await store.get("stt") == second


async def test_of_two_workers_that_choose_at_once_one_wins(database: Database, tmp_path: Path) -> None:
    other = open_database(f"sqlite+aiosqlite:///{tmp_path}/malgil.db")
    try:
        puts = [SqlChoiceStore(one).put("stt", RTZR) for one in (database, other) for _ in range(3)]
        results = await asyncio.gather(*puts)
    finally:
        await other.aclose()
    assert [result for result in results if result is not None] == [await SqlChoiceStore(database).get("stt")]


async def test_a_database_that_cannot_be_read_is_a_provider_error(tmp_path: Path) -> None:
    empty = open_database(f"sqlite+aiosqlite:///{tmp_path}/empty.db")
    try:
        with pytest.raises(ProviderError):
            await SqlChoiceStore(empty).get("stt")
    finally:
        await empty.aclose()
