"""The real application under the real uvicorn on 127.0.0.1: in the test's own loop, or as a process of its own.

`serving` is used inside the test and not as a fixture: pytest-asyncio ends a fixture in another task than it began
it in, and a TaskGroup does not live through that.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import httpx
import uvicorn
from uvicorn._types import ASGI3Application

from app.audio.vad import SpeechDetector
from app.config import Settings
from app.providers import Providers
from app.server import Server
from app.serving import listen
from app.simulator.options import Parties, PhoneOptions
from app.wiring import Services, open_services

ROOT = Path(__file__).resolve().parents[1]
ACCOUNT = "AC" + "1" * 32
TOKEN = "0123456789abcdef0123456789abcdef"
ADMIN_KEY = "fedcba9876543210fedcba9876543210"
CALLER, CALLEE = "+15005550006", "+15005550001"
PARTIES = Parties(ACCOUNT, TOKEN, CALLER, CALLEE)
PRODUCTION = {
    "app_env": "production",
    "public_base_url": "https://bot.test",
    "twilio_account_sid": ACCOUNT,
    "twilio_auth_token": TOKEN,
    "media_token_secret": TOKEN,
    "admin_api_key": ADMIN_KEY,
    "tts_provider": "espeak",
}
START_S = 20.0
STOP_S = 10.0


def settings(folder: Path, **changes: Any) -> Settings:
    """Development with what every machine has; nothing of this machine's environment comes in."""
    defaults = {name: setting.default for name, setting in Settings.model_fields.items()}
    ours = {
        "app_env": "development",
        "database_url": f"sqlite+aiosqlite:///{folder}/malgil.db",
        "llm_provider": "scripted",
        "model_name": "demo",
    }
    return Settings(_env_file=None, **(defaults | ours | changes))  # type: ignore[call-arg]


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """For what has no event to wait for."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------- in the test's loop


@dataclass
class AsgiWatch:
    """Between uvicorn and the application: notes what is sent on a media stream that is over."""

    app: ASGI3Application
    violations: list[str] = field(default_factory=list)
    streams: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return
        self.streams += 1
        over = ""

        async def watched_receive() -> Any:
            nonlocal over
            message = await receive()
            if message["type"] == "websocket.disconnect":
                over = "disconnect"
            elif '"event":"stop"' in (message.get("text") or ""):
                over = over or "stop"
            return message

        async def watched_send(message: Any) -> None:
            nonlocal over
            if over and not (over == "stop" and message["type"] == "websocket.close"):
                self.violations.append(f"{message['type']} after {over}")
            if message["type"] == "websocket.close":
                over = "close"
            await send(message)

        await self.app(scope, watched_receive, watched_send)


class _Server(Server):
    def capture_signals(self) -> Any:
        return nullcontext()  # the signals of this process belong to pytest


@dataclass
class Running:
    services: Services
    server: uvicorn.Server
    watch: AsgiWatch
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def phone(self) -> PhoneOptions:
        return PhoneOptions(url=self.url, parties=PARTIES)

    def count(self, metric: str, **labels: str) -> float:
        """Of all samples that have these labels, and perhaps more."""
        samples = (sample for family in self.services.metrics.registry.collect() for sample in family.samples)
        return sum(
            sample.value
            for sample in samples
            if sample.name == f"malgil_{metric}" and labels.items() <= sample.labels.items()
        )

    async def settled(self) -> None:
        """Until no call is live."""
        await until(lambda: not self.services.switchboard.live, STOP_S)


@asynccontextmanager
async def serving(
    folder: Path,
    providers: Providers | None = None,
    *,
    detector: Callable[[], SpeechDetector] | None = None,
    **changes: Any,
) -> AsyncIterator[Running]:
    """Serves until the block is left, and then nothing may have been sent on a stream that was over."""
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listen("127.0.0.1", 0))
        port = listener.getsockname()[1]
        changes = {"port": port, "twilio_auth_token": TOKEN} | changes
        async with _opening.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            services = await stack.enter_async_context(open_services(settings(folder, **changes), providers))
        if detector:
            services = replace(services, new_detector=detector)
        ready = asyncio.Event()
        server = _Server(services, ready.set)
        watch = AsgiWatch(server.config.app)  # type: ignore[arg-type]
        server.config.app = watch
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(sockets=[listener]))
            try:
                async with asyncio.timeout(START_S):
                    await ready.wait()
                yield Running(services, server, watch, port)
            finally:
                server.should_exit = True
    assert not watch.violations, watch.violations


_opening: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
"""One server at a time: Alembic's context is the process's."""


# ---------------------------------------------------------------- a process of its own


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Process:
    """`python -m app …` with a clean environment, in an empty folder."""

    popen: subprocess.Popen[str]
    url: str
    output_file: Path

    @property
    def output(self) -> str:
        return self.output_file.read_text(encoding="utf-8")

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    async def exit_code(self, within_s: float = STOP_S) -> int:
        await until(lambda: self.popen.poll() is not None, within_s)
        code: int = self.popen.returncode
        return code

    async def serving(self) -> None:
        """Until it answers. An exit before that fails with what it said."""
        async with asyncio.timeout(START_S), httpx.AsyncClient(trust_env=False) as http:
            while True:
                assert self.popen.poll() is None, self.output
                try:
                    await http.get(f"{self.url}/live")
                    return
                except httpx.TransportError:
                    await asyncio.sleep(0.05)


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[Process]:
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "output").open("w", encoding="utf-8") as output:
        popen = subprocess.Popen(
            [sys.executable, "-m", "app", *arguments],
            cwd=folder,
            env=_environment(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield Process(popen, f"http://127.0.0.1:{environment.get('PORT', '8000')}", Path(output.name))
        finally:
            popen.kill()
            popen.wait()


def _environment(chosen: dict[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {
        name: value for name in ("PATH", "HOME", "LANG", "TMPDIR") if (value := os.environ.get(name))
    }
    return kept | {"PYTHONPATH": str(ROOT / "backend"), "PYTHONUTF8": "1"} | chosen


DEVELOPMENT = {"APP_ENV": "development", "MODEL_NAME": "demo", "LLM_PROVIDER": "scripted"}
PRODUCTION_ENV = {name.upper(): value for name, value in PRODUCTION.items()}
