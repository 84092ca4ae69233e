"""The calls in the database: written during a call, read by the API. Every write may be repeated."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Executable, func, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Row

from app.db.engine import Database
from app.db.models import Base, Call, CallExchange
from app.services.ai_call.types import CallInfo, EndReason, Exchange, TurnLatency

SERVER_LOST: Literal["server_lost"] = "server_lost"
"""The end of a call whose server died: nobody was left to say why."""

Cursor = tuple[datetime, str]
"""Where a page of `recent` ended: the started_at and call_sid of its last call."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # Postgres takes no NUL; a lone surrogate has no UTF-8


@dataclass(frozen=True, slots=True)
class CallSummary:
    """One line of the list. `end_reason` is an EndReason or SERVER_LOST; None while the call is live."""

    call: CallInfo
    ended_at: datetime | None
    end_reason: str | None
    exchange_count: int


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call with all that was said, in the order of its turns."""

    call: CallInfo
    ended_at: datetime | None
    end_reason: str | None
    exchanges: tuple[Exchange, ...]


class SqlCallStore:
    """A CallStore. Every method raises ProviderError; `retryable` False: this row will never be taken."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ------------------------------------------------------------ written during a call

    async def open_call(self, call: CallInfo) -> None:
        await self._insert_once(
            Call,
            {
                "call_sid": _clean(call.call_sid),
                "account_sid": _clean(call.account_sid),
                "caller": _clean(call.caller),
                "callee": _clean(call.callee),
                "language": _clean(call.language),
                "started_at": call.started_at,
            },
        )

    async def add_exchange(self, call_sid: str, exchange: Exchange) -> None:
        latency = exchange.latency
        await self._insert_once(
            CallExchange,
            {
                "call_sid": _clean(call_sid),
                "turn": exchange.turn,
                "user": _clean(exchange.user),
                "bot": _clean(exchange.bot),
                "interrupted": exchange.interrupted,
                "speech_end_ms": latency.speech_end,
                "final_ms": latency.final,
                "first_token_ms": latency.first_token,
                "first_audio_ms": latency.first_audio,
            },
        )

    async def close_call(self, call_sid: str, reason: EndReason, at: datetime) -> None:
        await self._write(
            update(Call)
            .where(Call.call_sid == _clean(call_sid), Call.ended_at.is_(None))
            .values(ended_at=at, end_reason=reason)
        )

    async def close_orphans(self, at: datetime) -> int:
        """End every open call: at the start of the only server, those that a crash left. Returns how many."""
        return await self._write(
            update(Call).where(Call.ended_at.is_(None)).values(ended_at=at, end_reason=SERVER_LOST)
        )

    # ------------------------------------------------------------ read by the API

    async def get(self, call_sid: str) -> CallRecord | None:
        sid = _clean(call_sid)
        calls = select(Call).where(Call.call_sid == sid)
        exchanges = select(CallExchange).where(CallExchange.call_sid == sid).order_by(CallExchange.turn)
        async with self._database.transaction() as connection:
            row = (await connection.execute(calls)).one_or_none()
            if row is None:
                return None
            said = (await connection.execute(exchanges)).all()
        return CallRecord(_call(row), row.ended_at, row.end_reason, tuple(map(_exchange, said)))

    async def recent(self, limit: int, before: Cursor | None = None) -> list[CallSummary]:
        """The newest calls, or those before a cursor: the newest first, `limit` at most."""
        count = (
            select(func.count())
            .where(CallExchange.call_sid == Call.call_sid)
            .correlate(Call)
            .scalar_subquery()
            .label("exchange_count")
        )
        query = select(Call, count).order_by(Call.started_at.desc(), Call.call_sid.desc()).limit(limit)
        if before is not None:
            started_at, call_sid = before
            query = query.where(tuple_(Call.started_at, Call.call_sid) < (started_at, _clean(call_sid)))
        async with self._database.transaction() as connection:
            rows = (await connection.execute(query)).all()
        return [CallSummary(_call(row), row.ended_at, row.end_reason, row.exchange_count) for row in rows]

    # ------------------------------------------------------------ helpers

    async def _insert_once(self, table: type[Base], values: Mapping[str, Any]) -> None:
        """The first of two rows with the same key counts."""
        if self._database.dialect == "postgresql":
            await self._write(postgresql.insert(table).values(**values).on_conflict_do_nothing())
        else:
            await self._write(sqlite.insert(table).values(**values).on_conflict_do_nothing())

    async def _write(self, statement: Executable) -> int:
        async with self._database.transaction() as connection:
            return (await connection.execute(statement)).rowcount


def _call(row: Row[Any]) -> CallInfo:
    return CallInfo(row.call_sid, row.account_sid, row.caller, row.callee, row.language, row.started_at)


def _exchange(row: Row[Any]) -> Exchange:
    latency = TurnLatency(row.speech_end_ms, row.final_ms, row.first_token_ms, row.first_audio_ms)
    return Exchange(row.turn, row.user, row.bot, row.interrupted, latency)


def _clean(text: str) -> str:
    return _UNSTORABLE.sub("\ufffd", text)
