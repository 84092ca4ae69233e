"""One call's record: written to the store while the call goes on, and finished after it.

The audio path only ever appends to a dict. An exchange leaves it when the store has it, so a write that was
cancelled half-way is simply made again by `close`: writes are idempotent, and a repeat does no harm.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import structlog

from app.errors import ProviderError
from app.services.ai_call.ports import CallStore
from app.services.ai_call.types import CallInfo, EndReason, Exchange

log = structlog.get_logger(__name__)

MAX_PENDING = 256
"""Exchanges that wait for the store: more turns than half an hour holds."""


@dataclass(frozen=True, slots=True)
class RecorderTiming:
    """In seconds. A failed write is made again after a pause that doubles.

    `close` leaves a second of the 5 s that the end of a call may take: a write that waits for SQLite's lock
    can be cancelled only once that wait is over.
    """

    write: float = 2.0
    pause: float = 0.25
    longest_pause: float = 2.0
    close: float = 4.0


TIMING = RecorderTiming()


class Recorder:
    """`run` is a task of the call's group; `close` is awaited once that group has ended.

    `on_fault` is told of every write that failed and every record given up. The call never hears of either.
    """

    def __init__(
        self, store: CallStore, call: CallInfo, on_fault: Callable[[], None], timing: RecorderTiming = TIMING
    ) -> None:
        self._store = store
        self._call = call
        self._on_fault = on_fault
        self._timing = timing
        self._opened = False
        self._pending: dict[int, Exchange] = {}  # by turn, in order; not yet in the store
        self._more = asyncio.Event()

    def remember(self, exchange: Exchange) -> None:
        """Never waits. Beyond MAX_PENDING the exchange is given up and counted."""
        if len(self._pending) >= MAX_PENDING:
            self._on_fault()
            log.error("x exchange given up", turn=exchange.turn, waiting=len(self._pending))
            return
        self._pending[exchange.turn] = exchange
        self._more.set()

    async def run(self) -> None:
        """Write what comes, in order, until cancelled."""
        await self._open()
        while True:
            self._more.clear()
            while self._pending:
                await self._add(next(iter(self._pending.values())))
            await self._more.wait()

    async def close(self, reason: EndReason, at: datetime) -> None:
        """Write what is left and the end of the call, within 5 s; may be repeated. A record that stays open
        is ended by the store's owner at its next start."""
        try:
            async with asyncio.timeout(self._timing.close):
                await self._open()
                await self._add_all()  # before the end: an ended call is a whole one
                await self._write("end", partial(self._store.close_call, self._call.call_sid, reason, at))
        except TimeoutError:
            self._on_fault()
            log.error("x call record left incomplete", opened=self._opened, exchanges_missing=len(self._pending))

    async def _open(self) -> None:
        if not self._opened:
            await self._write("call", partial(self._store.open_call, self._call))
            self._opened = True

    async def _add_all(self) -> None:
        """Side by side, for a slow store must not add up; and in half of the time, for the end must be written."""
        try:
            async with asyncio.timeout(self._timing.close / 2), asyncio.TaskGroup() as group:
                for exchange in self._pending.values():
                    group.create_task(self._add(exchange))
        except TimeoutError:
            self._on_fault()
            log.error("x exchanges left out of the record", missing=len(self._pending))

    async def _add(self, exchange: Exchange) -> None:
        await self._write("exchange", partial(self._store.add_exchange, self._call.call_sid, exchange))
        self._pending.pop(exchange.turn, None)

    async def _write(self, what: str, write: Callable[[], Awaitable[None]]) -> None:
        """Until the store has it, or says that it never will."""
        pause = self._timing.pause
        while True:
            try:
                async with asyncio.timeout(self._timing.write):
                    await write()
                return
            except (ProviderError, TimeoutError) as error:
                # The kind alone: a database's message, and its traceback, may quote the caller.
                kind = error.kind if isinstance(error, ProviderError) else "timeout"
                retry = not isinstance(error, ProviderError) or error.retryable
            self._on_fault()
            log.warning("x record not written", what=what, kind=kind, retry=retry)
            if not retry:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._timing.longest_pause)
