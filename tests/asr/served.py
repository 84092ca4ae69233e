"""The recogniser's service, or any application, under the real uvicorn on 127.0.0.1, in the test's own loop."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import aiohttp
from fastapi import FastAPI

from app.asr.models import ModelOptions, ModelShelf
from app.asr.server import AsrOptions, create_app
from app.asr_service import AsrServer
from app.audio.vad import load_silero
from app.serving import listen

START_S = 10.0


class _Server(AsrServer):
    def capture_signals(self) -> Any:
        return nullcontext()  # the signals of this process belong to pytest


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """Its URL."""
    ready = asyncio.Event()
    server = _Server(app, 2, ready.set)
    with listen("127.0.0.1", 0) as listener:
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(sockets=[listener]))
            try:
                async with asyncio.timeout(START_S):
                    await ready.wait()
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True


@asynccontextmanager
async def recogniser(folder: Path, options: AsrOptions | None = None) -> AsyncIterator[tuple[str, ModelShelf]]:
    """The service with the demo model: its URL and its shelf."""
    models = ModelOptions(name="demo", device="cpu", data=folder / "data", cache=folder / "cache")
    async with AsyncExitStack() as stack:
        shelf = await stack.enter_async_context(ModelShelf(models, clock=lambda: 0.0))
        url = await stack.enter_async_context(served(create_app(shelf, load_silero().detector, options)))
        yield url, shelf


class Speaker:
    """A body that is sent as the test goes on."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()

    def say(self, audio: bytes, piece: int = 1600) -> None:
        for at in range(0, len(audio), piece):
            self._pieces.put_nowait(audio[at : at + piece])

    def end(self) -> None:
        self._pieces.put_nowait(b"")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._pieces.get():
            yield piece


async def next_line(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    """Empty at the end."""
    async with asyncio.timeout(10):
        line = await answer.content.readline()
    return json.loads(line) if line else {}


async def lines(answer: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    found = []
    while line := await next_line(answer):
        found.append(line)
    return found


async def error_of(answer: aiohttp.ClientResponse) -> tuple[int, str]:
    """Its status and code; every refusal says something to a person, too."""
    error = (await answer.json())["error"]
    assert set(error) == {"code", "message"}
    assert error["message"]
    return answer.status, error["code"]
