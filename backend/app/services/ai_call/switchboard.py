"""Switchboard: the calls of this process. It admits, counts, finds and ends them, and is the parent of their tasks.

Asking for a call that has just ended is normal and gives None.
"""

import asyncio
from collections import OrderedDict
from types import TracebackType
from typing import Self

import structlog

from app.metrics import Metrics
from app.services.ai_call.session import CallSession
from app.services.ai_call.types import EndReason

log = structlog.get_logger(__name__)

ENDED_KEPT = 10_000
"""Ended calls whose numbers are kept, so that a webhook repeated late opens nothing."""


class Switchboard:
    """An async context manager: leaving it ends every call that is left and waits for all of them."""

    def __init__(self, max_calls: int, metrics: Metrics) -> None:
        self.draining = False
        """No new calls are taken; those that live go on."""
        self._max_calls = max_calls
        self._metrics = metrics
        self._live: dict[str, CallSession] = {}
        self._ended: OrderedDict[str, EndReason] = OrderedDict()
        self._calls = asyncio.TaskGroup()
        self._leaving = False

    async def __aenter__(self) -> Self:
        await self._calls.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.draining = self._leaving = True
        self.end_all("shutdown")
        self.end_all("shutdown")
        await self._calls.__aexit__(kind, error, trace)

    @property
    def live(self) -> list[CallSession]:
        return list(self._live.values())

    @property
    def full(self) -> bool:
        return len(self._live) >= self._max_calls

    def find(self, call_sid: str) -> CallSession | None:
        return self._live.get(call_sid)

    def ended(self, call_sid: str) -> EndReason | None:
        """Why the call ended, if it was served here; None while it goes on."""
        session = self._live.get(call_sid)
        return session.ended_because if session is not None else self._ended.get(call_sid)

    async def serve(self, session: CallSession) -> EndReason:
        """Run the call to its end. Should the waiter be cancelled, the call is ended in order all the same."""
        call_sid = session.call.call_sid
        task = self._calls.create_task(self._serve(session))
        self._live[call_sid] = session  # before anything else can ask for it
        task.add_done_callback(lambda _: self._live.pop(call_sid, None))  # also if it never began
        if self._leaving:  # it came too late to be ended with the others
            self._end_now(session)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._end_now(session)
            raise

    def end_all(self, reason: EndReason) -> None:
        for session in self.live:
            session.hang_up(reason)

    def _end_now(self, session: CallSession) -> None:
        """A second request does not wait for the goodbye."""
        session.hang_up("shutdown")
        session.hang_up("shutdown")

    async def _serve(self, session: CallSession) -> EndReason:
        call_sid = session.call.call_sid
        self._metrics.live_calls.inc()
        log.info("- call answered")
        reason: EndReason = "error"
        try:
            reason = await session.run()
        finally:
            self._live.pop(call_sid, None)
            self._ended[call_sid] = reason
            if len(self._ended) > ENDED_KEPT:
                self._ended.popitem(last=False)
            self._metrics.live_calls.dec()
            self._metrics.calls_ended.labels(reason).inc()
            log.info("- call ended", reason=reason)
        return reason
