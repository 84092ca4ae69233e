import asyncio
import sqlite3
import stat
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from app.db.engine import MIGRATIONS, Database, open_database
from app.db.models import REVISION, Base
from app.errors import ConfigError, ProviderError


def url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


async def migrated(path: Path) -> None:
    database = open_database(url(path))
    await database.migrate()
    await database.aclose()


async def test_migrate_makes_the_schema_of_the_models(tmp_path: Path) -> None:
    database = open_database(url(tmp_path / "new" / "folder" / "calls.db"))
    await database.migrate()

    def drift(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return list(compare_metadata(context, Base.metadata))

    async with database.engine.connect() as connection:
        assert await connection.run_sync(drift) == []
        tables = await connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
        created = {row.name: row.sql for row in tables}
    await database.aclose()
    assert created.keys() == {"alembic_version", "calls", "exchanges", "choices"}
    # compare_metadata looks neither at checks nor at what a deletion does.
    assert "CONSTRAINT ck_calls_ended_whole CHECK" in created["calls"]
    assert "ON DELETE CASCADE" in created["exchanges"]


def test_revision_is_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(Config(MIGRATIONS / "alembic.ini")).get_heads() == [REVISION]


async def test_second_start_does_not_load_alembic(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    await migrated(path)
    program = (
        "import asyncio, sys\n"
        "from app.db.engine import open_database\n"
        "async def start():\n"
        "    database = open_database(sys.argv[1])\n"
        "    await database.migrate()\n"
        "    await database.check()\n"
        "    await database.aclose()\n"
        "asyncio.run(start())\n"
        "sys.exit('alembic' in sys.modules)\n"
    )
    backend = Path(MIGRATIONS).parents[1]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, url(path), cwd=backend)
    assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_two_servers_that_start_at_once_share_one_schema(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(migrated(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(REVISION,)]


async def test_a_migration_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE exchanges (stranger)")  # the migration makes `calls` first, then this one
    database = open_database(url(path))
    with pytest.raises(ConfigError):
        await database.migrate()
    await database.aclose()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [("exchanges",)]


async def test_a_schema_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    await migrated(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    database = open_database(url(path))
    with pytest.raises(ConfigError, match=r"^DATABASE_URL: .*newer version"):
        await database.migrate()
    await database.aclose()


@pytest.mark.parametrize(
    "wrong",
    [
        "hunter2",
        "postgresql+asyncpg://u:hunter2@[::1/x",
        "postgresql+asyncpg://u:hunter2@h:notaport/x",
        "postgresql://u:hunter2@localhost/x",
        "mysql+aiomysql://u:hunter2@localhost/x",
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///:memory:",
        "sqlite+aiosqlite:///file:x?mode=memory&uri=true",
        "",
    ],
)
def test_a_url_that_cannot_serve_is_refused_without_its_value(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"^DATABASE_URL: ") as caught:
        open_database(wrong)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("no folder")
    with pytest.raises(ConfigError, match=r"^DATABASE_URL: .*folder"):
        open_database(url(tmp_path / "plain" / "calls.db"))


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    path.write_bytes(b"certainly not a database " * 100)
    database = open_database(url(path))
    with pytest.raises(ConfigError, match=r"^DATABASE_URL: .*cannot be opened \(DatabaseError\)"):
        await database.migrate()
    await database.aclose()


async def test_no_thread_is_left_when_it_is_closed(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.db", tmp_path / "bad.db"
    bad.write_bytes(b"certainly not a database " * 100)
    for _ in range(20):
        await migrated(good)
        database = open_database(url(bad))
        with pytest.raises(ConfigError):
            await database.migrate()
        await database.aclose()
        alive = [one for one in threading.enumerate() if "_connection_worker_thread" in one.name]
        assert alive == []


async def test_a_postgres_that_is_not_there_is_named_without_its_password(unused_tcp_port: int) -> None:
    database = open_database(f"postgresql+asyncpg://malgil:hunter2@127.0.0.1:{unused_tcp_port}/malgil")
    with pytest.raises(ConfigError, match=r"^DATABASE_URL: .*\(ConnectionRefusedError\)") as caught:
        await database.migrate()
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ProviderError) as failed:
        await database.check()
    assert (failed.value.kind, failed.value.retryable) == ("unavailable", True)
    await database.aclose()


async def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "data" / "calls.db"
    database = open_database(url(path))
    await database.migrate()
    async with database.transaction() as connection:
        await connection.execute(text("CREATE TABLE x (y)"))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    await database.aclose()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert modes == {"calls.db": 0o600, "calls.db-wal": 0o600, "calls.db-shm": 0o600}


async def test_sqlite_is_set_up_on_every_connection(tmp_path: Path) -> None:
    database = open_database(url(tmp_path / "calls.db"))
    for _ in range(2):
        async with database.engine.connect() as one, database.engine.connect() as two:
            for connection in (one, two):
                assert await connection.scalar(text("PRAGMA journal_mode")) == "wal"
                assert await connection.scalar(text("PRAGMA foreign_keys")) == 1
                assert await connection.scalar(text("PRAGMA busy_timeout")) == 1000
    await database.aclose()


async def test_check_tells_when_the_database_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    database: Database = open_database(url(path))
    await database.check()
    await database.aclose()
    path.unlink()
    path.mkdir()
    with pytest.raises(ProviderError) as caught:
        await database.check()
    assert (caught.value.provider, caught.value.kind, caught.value.retryable) == (
        "database",
        "unavailable",
        True,
    )
    await database.aclose()
