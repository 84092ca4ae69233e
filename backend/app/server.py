"""The server's process: a drain that a deploy can rely on.

Why not plain uvicorn: on SIGTERM it closes every live WebSocket within milliseconds, before any shutdown hook
runs. Here the first signal only stops new calls; the process leaves when the last call has ended, or when
DRAIN_S is over and the bot has said goodbye. A second signal does not wait.
"""

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import structlog
import uvicorn

from app.config import Settings
from app.main import create_app
from app.serving import listen, run, uvicorn_config
from app.wiring import Services, open_services

log = structlog.get_logger(__name__)

GOODBYE_S = 20
GRACE_S = 5
"""For requests that are half-way when the server leaves, a call's winding up among them."""


class Server(uvicorn.Server):
    """uvicorn, with a drain. `on_serving` is called once, when requests can be answered."""

    def __init__(self, services: Services, on_serving: Callable[[], None] = lambda: None) -> None:
        super().__init__(uvicorn_config(create_app(services), GRACE_S))
        self._switchboard = services.switchboard
        self._drain_s = services.settings.drain_s
        self._on_serving = on_serving
        self._drain_until: float | None = None
        self._said_goodbye = False
        self._forced = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_serving()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.started:
            super().handle_exit(sig, frame)
            return
        if self._drain_until is not None:
            self._forced = True
            return
        self._switchboard.draining = True
        self._drain_until = asyncio.get_running_loop().time() + self._drain_s
        log.info("- draining", live_calls=len(self._switchboard.live), at_most_s=self._drain_s)

    async def on_tick(self, counter: int) -> bool:
        if self._forced:
            self._leave_now()
        elif self._drain_until is not None:
            self._drain(asyncio.get_running_loop().time() - self._drain_until)
        return await super().on_tick(counter)

    def _drain(self, overdue_s: float) -> None:
        if not self._switchboard.live:
            self.should_exit = True
        elif overdue_s >= GOODBYE_S:
            self._leave_now()
        elif overdue_s >= 0 and not self._said_goodbye:
            self._said_goodbye = True
            self._switchboard.end_all("shutdown")

    def _leave_now(self) -> None:
        """Calls that are left are ended before their sockets are, so that their record says who ended them."""
        self._switchboard.end_all("shutdown")
        self._switchboard.end_all("shutdown")
        self.should_exit = True


def serve(settings: Settings, on_serving: Callable[[Services], None]) -> None:
    """Serve until told to stop. Raises ConfigError when the settings, the database or a model stand in the way."""

    async def process(listener: socket.socket) -> None:
        async with open_services(settings) as services:
            await Server(services, lambda: on_serving(services)).serve(sockets=[listener])

    with listen(settings.host, settings.port) as listener:
        run(process(listener))
