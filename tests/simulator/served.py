"""A FarSide in a thread of its own, for commands that run an event loop themselves."""

import asyncio
import base64
import threading
from typing import Any, Self

from tests.simulator.far_side import HANG_UP, FarLine, FarSide, silence, tone

CONNECT = '<Response><Connect><Stream url="{stream}"/></Connect><Redirect>/twilio/after-stream</Redirect></Response>'


class Served:
    """A bot that greets with 100 ms of tone and answers each utterance, 100 ms after its end, with as much. It breaks
    the protocol, or closes at once, where a test wants that."""

    def __init__(self, *, token: str = "", admin_key: str = "", breach: bool = False, close_code: int = 0) -> None:
        self._breach = breach
        self._close_code = close_code
        documents = {"/twilio/voice": CONNECT, "/twilio/after-stream": HANG_UP}
        self._far = FarSide(self._talk, documents, token, record=_record, admin_key=admin_key)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        self.url, self.stream_url = self._far.url, self._far.stream_url
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with self._far:
            self._ready.set()
            await self._over.wait()

    async def _talk(self, line: FarLine) -> None:
        await line.begin()
        if self._breach:
            await line.socket.send(b"\x00")
        await line.media(tone(100))
        if self._close_code:
            await line.socket.close(self._close_code)
        silent = None
        while True:
            body = (await line.until("media"))["media"]
            if base64.b64decode(body["payload"]) != silence(20):
                silent = 0
            elif silent is not None:
                silent += 1
            if silent == 5:
                await line.media(tone(100))
                silent = None


def _record(call_sid: str) -> dict[str, Any]:
    no_times: dict[str, int | None] = {"speech_end_ms": None}
    return {
        "call_sid": call_sid,
        "ended_at": "2026-01-01T00:00:00Z",
        "exchanges": [
            {"turn": 1, "user": "", "bot": "hello", "interrupted": False, "latency": no_times},
            {
                "turn": 2,
                "user": "words that were recognised",
                "bot": "words that were answered",
                "interrupted": False,
                "latency": no_times,
            },
        ],
    }
