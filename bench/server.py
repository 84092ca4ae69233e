"""The real server with instant providers, as a process that the bench starts: `python -m bench.server CORE FOLDER`.

Real are: uvicorn and its loop, the application, the codec, pacing, Silero, endpointing, turns, the store (SQLite in
FOLDER), logging in production's format. Prints its address as one line of JSON; serves until SIGTERM.
"""

import asyncio
import json
import os
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as app.cli does, before numpy is imported

import uvloop

from app.config import load_settings
from app.log import configure_logging
from app.server import Server
from app.serving import listen
from app.wiring import open_services
from bench import machine
from bench.stubs import instant_providers
from bench.task import END_SILENCE_MS

MAX_CALLS = 1_000


def main() -> None:
    core, folder = sys.argv[1:]
    machine.pin(int(core))
    configure_logging("INFO", console=False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(folder))


async def _serve(folder: str) -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        settings = load_settings(
            env_file=None,
            app_env="development",  # no signatures, which are of the handshake only
            port=port,
            database_url=f"sqlite+aiosqlite:///{folder}/bench.db",
            max_calls=MAX_CALLS,
            final_flush_silence_ms=END_SILENCE_MS,
        )

        def say_where() -> None:
            print(json.dumps({"url": f"http://127.0.0.1:{port}", "stream_url": ""}), flush=True)

        async with open_services(settings, instant_providers()) as services:
            await Server(services, say_where).serve(sockets=[listener])


if __name__ == "__main__":
    main()
