"""Readiness: whether a call could be served now, asked of each component every so often, never by a request."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from app.errors import MalgilError

log = structlog.get_logger(__name__)

CHECK_S = 5.0
WELL_S = 30.0
ILL_S = 2.0


@dataclass(frozen=True, slots=True)
class Health:
    ok: bool
    note: str = ""


UNASKED = Health(False, "not checked yet")


class Readiness:
    """`checks` raise MalgilError with what to do when the component is ill. A component not asked yet is ill."""

    def __init__(self, checks: Mapping[str, Callable[[], Awaitable[None]]], needed: frozenset[str]) -> None:
        self._checks = checks
        self._needed = needed
        self._health = dict.fromkeys(checks, UNASKED)

    @property
    def components(self) -> Mapping[str, Health]:
        return self._health

    @property
    def ready(self) -> bool:
        return all(health.ok for health in self._health.values())

    @property
    def can_talk(self) -> bool:
        """The components without which a conversation is not possible are well."""
        return all(health.ok for name, health in self._health.items() if name in self._needed)

    async def check(self) -> None:
        """Ask every component once, side by side."""
        async with asyncio.TaskGroup() as group:
            for name in self._checks:
                group.create_task(self._check(name))

    async def run(self) -> None:
        """Ask on, each component at its own pace: an ill one soon, a well one seldom, for asking may cost money."""
        async with asyncio.TaskGroup() as group:
            for name in self._checks:
                group.create_task(self._keep_asking(name))

    async def _keep_asking(self, name: str) -> None:
        while True:
            await asyncio.sleep(WELL_S if self._health[name].ok else ILL_S)
            await self._check(name)

    async def _check(self, name: str) -> None:
        try:
            async with asyncio.timeout(CHECK_S):
                await self._checks[name]()
            health = Health(True)
        except MalgilError as error:
            health = Health(False, str(error))
        except TimeoutError:
            health = Health(False, f"no answer within {CHECK_S:g} s")
        except Exception as error:  # the edge of a check: a bug in one ends neither the others nor the process
            log.error("x check broke", component=name, exc_info=error)
            health = Health(False, f"its check broke ({type(error).__name__}); the log has the stack")
        before = self._health[name]
        news = not health.ok if before is UNASKED else health.ok != before.ok  # well from the start is no news
        if news:
            (log.info if health.ok else log.warning)(
                "- component changed", component=name, ok=health.ok, note=health.note
            )
        self._health[name] = health
