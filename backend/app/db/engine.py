"""The database: opened, migrated, checked and closed. SQLite in a file, or Postgres, with the same code.

Every wait has a bound: a statement on Postgres 2 s, another writer on SQLite 1 s, a free connection 2 s, the
whole migration 60 s.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Thread, current_thread
from typing import Any, Literal, cast
from weakref import WeakSet

from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.db.models import REVISION
from app.errors import ConfigError, ProviderError

MIGRATIONS = Path(__file__).resolve().parents[1] / "migrations"

COMMAND_S = 2.0
SQLITE_BUSY_S = 1.0
"""Below the bound of a caller's write: SQLite's wait for a lock cannot be cancelled, only outlasted."""
POOL_WAIT_S = 2.0
MIGRATE_S = 60.0
MIGRATION_LOCK = 0x4D616C67  # "Malg": any number will do that nobody else locks in this database

Dialect = Literal["sqlite", "postgresql"]


def open_database(url: str) -> "Database":
    """Prepare the database that DATABASE_URL names; connects to nothing yet. Raises ConfigError."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Without the cause, which may quote the value: what is no URL may still hold a password.
        raise ConfigError("DATABASE_URL: not a URL; see env.example") from None
    if parsed.drivername == "sqlite+aiosqlite":
        _prepare_file(parsed)
    elif parsed.drivername != "postgresql+asyncpg":
        raise ConfigError("DATABASE_URL: must begin with sqlite+aiosqlite:/// or postgresql+asyncpg://")
    return Database(parsed)


class Database:
    """Owned by whoever opened it: `aclose` gives the connections back."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._threads: WeakSet[Thread] = WeakSet()
        self.engine = self._new_engine()

    @property
    def dialect(self) -> Dialect:
        return cast(Dialect, self.engine.dialect.name)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Commits at the end, rolls back on an error or a cancellation. Raises ProviderError."""
        try:
            async with self.engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            raise _translated(error) from error

    async def check(self) -> None:
        """Raises ProviderError when nothing could be stored now."""
        async with self.transaction() as connection:
            await connection.execute(text("SELECT 1"))

    async def migrate(self) -> None:
        """Bring the schema up to date; costs one query where it is. Raises ConfigError."""
        try:
            async with asyncio.timeout(MIGRATE_S):
                if await self._revision() != REVISION:
                    await self.alter(_upgrade)
        except (SQLAlchemyError, OSError) as error:
            raise ConfigError(
                f"DATABASE_URL: the database cannot be opened ({_cause(error)}); is it there and running, "
                "and may this user write to it?"
            ) from error

    async def alter(self, change: Callable[[Connection], None]) -> None:
        """Run a change of the schema: one transaction, without the bounds of a call's writes, and alone, so
        that two servers that start at once do not both create the tables."""
        engine = self._new_engine(altering=True)
        try:
            async with engine.begin() as connection:
                if self.dialect == "postgresql":
                    await connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
                await connection.run_sync(change)
        finally:
            await engine.dispose()

    async def _revision(self) -> str | None:
        try:
            async with self.engine.begin() as connection:
                return cast(str, await connection.scalar(text("SELECT version_num FROM alembic_version")))
        except (OperationalError, ProgrammingError):
            return None  # an empty database; if it is worse than that, the migration itself will say so

    async def aclose(self) -> None:
        """Must be awaited after a failed `migrate` too: a thread of SQLite's that outlives the loop ends with a
        traceback on the terminal."""
        await self.engine.dispose()
        for thread in list(self._threads):
            await asyncio.to_thread(thread.join, SQLITE_BUSY_S)

    def _new_engine(self, altering: bool = False) -> AsyncEngine:
        if self._url.drivername == "postgresql+asyncpg":
            return _postgres_engine(self._url, altering)
        return _sqlite_engine(self._url, altering, self._threads)


# `hide_parameters`: the parameters are caller words, and the text of an exception ends in logs.


def _postgres_engine(url: URL, altering: bool) -> AsyncEngine:
    return create_async_engine(
        url,
        hide_parameters=True,
        pool_pre_ping=True,
        pool_size=1 if altering else 10,
        max_overflow=0,
        pool_timeout=POOL_WAIT_S,
        connect_args={"timeout": COMMAND_S, "command_timeout": None if altering else COMMAND_S},
    )


def _sqlite_engine(url: URL, altering: bool, threads: WeakSet[Thread]) -> AsyncEngine:
    engine = create_async_engine(
        url,
        hide_parameters=True,
        pool_size=1 if altering else 4,  # SQLite has one writer at a time; a connection is a thread
        max_overflow=0,
        pool_timeout=POOL_WAIT_S,
        connect_args={"factory": partial(_connect_sqlite, altering, threads), "check_same_thread": False},
    )
    # By itself Python's driver begins no transaction before a SELECT or a CREATE TABLE: a read could see two
    # states, and a failed migration would leave half a schema.
    begin = "BEGIN IMMEDIATE" if altering else "BEGIN"
    event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


class _SqliteConnection(sqlite3.Connection):
    def __del__(self) -> None:
        # Nobody else closes it where the wait for a new connection was cancelled.
        with suppress(sqlite3.ProgrammingError):  # it never opened
            self.close()


def _connect_sqlite(altering: bool, threads: WeakSet[Thread], *args: Any, **options: Any) -> sqlite3.Connection:
    """Set up in one go, in the connection's thread: a cancellation finds it either whole or absent."""
    threads.add(current_thread())
    connection = _SqliteConnection(*args, **options)
    busy_ms = round(1000 * (MIGRATE_S if altering else SQLITE_BUSY_S))
    connection.execute(f"PRAGMA busy_timeout = {busy_ms}")
    connection.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
    connection.execute("PRAGMA synchronous = NORMAL")  # safe with WAL; a commit need not wait for the disk
    # Off while altering: SQLite alters a table by dropping it, and the drop would cascade.
    connection.execute(f"PRAGMA foreign_keys = {'OFF' if altering else 'ON'}")
    return connection


def _upgrade(connection: Connection) -> None:
    from alembic import command  # most starts need no migration, and Alembic takes long to load
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config(MIGRATIONS / "alembic.ini", attributes={"connection": connection})
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ConfigError(
            "DATABASE_URL: the database has a schema that this version of Malgil does not know; start the "
            "newer version that made it, or name another database"
        ) from error


def _prepare_file(url: URL) -> None:
    """The folder and the file hold what callers said: for this user's eyes only."""
    name = url.database or ""
    if name in ("", ":memory:") or name.startswith("file:"):
        raise ConfigError("DATABASE_URL: SQLite needs a file: sqlite+aiosqlite:///./data/malgil.db")
    path = Path(name)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        raise ConfigError(
            f"DATABASE_URL: the SQLite file cannot be written ({type(error).__name__}); choose a folder "
            "where this user may write"
        ) from error


def _translated(error: SQLAlchemyError | OSError) -> ProviderError:
    """The name of the cause only: a database's message may quote what was said."""
    rejected = isinstance(error, IntegrityError | DataError | ProgrammingError) or (
        isinstance(error, StatementError) and not isinstance(error, DBAPIError)
    )
    kind = "rejected" if rejected else "unavailable"
    return ProviderError(
        f"the database: {kind} ({_cause(error)})", provider="database", kind=kind, retryable=not rejected
    )


def _cause(error: BaseException) -> str:
    """The driver's own name for it: InvalidPasswordError says more than OperationalError."""
    while isinstance(cause := error.__cause__, Exception):
        error = cause
    return type(error).__name__
