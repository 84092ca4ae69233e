"""A call held by hand: every message as the test wants it, and faster than a person can speak.

Marks are echoed as soon as they come, as if the audio before them had been played at once.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from app.audio import g711
from app.simulator.twiml import Stream, parse
from app.simulator.webhooks import Webhooks
from app.simulator.wire import Violation, Wire
from app.telephony.signature import sign
from tests.fakes import sound
from tests.servers import ACCOUNT, PARTIES, TOKEN

CHUNK = 800
"""Bytes in a media message: 100 ms. Bigger than Twilio's, so that the guard against floods is not met."""
WAIT_S = 5.0
QUESTION = (77, 0)
"""The name that the sound of a question carries for the scripted recogniser."""


def new_call_sid() -> str:
    return "CA" + secrets.token_hex(16)


async def ring(url: str, call_sid: str) -> Stream:
    """The voice webhook, as Twilio asks it; the stream that it answers with."""
    async with Webhooks(PARTIES, call_sid, url) as webhooks:
        document = await webhooks.fetch_twiml(f"{url}/twilio/voice", "ringing")
    violations: list[Violation] = []
    verbs = parse(document, url, violations)
    assert not violations
    assert isinstance(verbs[0], Stream), document
    return verbs[0]


def question(ms: int = 300) -> bytes:
    """Sound that the scripted recogniser hears words in, and enough silence behind it to be a turn."""
    silence = bytes([g711.SILENCE]) * 8 * 600
    return sound(*QUESTION) * (ms // 20) + silence


@dataclass
class Call:
    socket: ClientConnection
    wire: Wire
    call_sid: str
    received: list[dict[str, Any]] = field(default_factory=list)
    echoes: bool = True
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _sent_ms: int = 0

    async def send(self, message: str | bytes | Mapping[str, Any]) -> None:
        """Anything at all; a mapping goes as JSON."""
        await self.socket.send(json.dumps(message) if isinstance(message, Mapping) else message)

    async def begin(self) -> None:
        await self.send(self.wire.connected())
        await self.send(self.wire.start())

    async def say(self, mulaw: bytes) -> None:
        for at in range(0, len(mulaw), CHUNK):
            chunk = mulaw[at : at + CHUNK]
            await self.send(self.wire.media(chunk, self._sent_ms))
            self._sent_ms += len(chunk) // 8

    async def asks(self) -> None:
        """A question that the scripted recogniser understands, and its whole answer."""
        marks = self.count("mark")
        await self.say(question())
        await self.until(lambda: self.count("mark") >= marks + 2)
        await self.pong()

    async def stop(self) -> None:
        await self.send(self.wire.stop())

    async def pong(self) -> None:
        """Until the server's side of the socket has read what was sent so far."""
        async with asyncio.timeout(WAIT_S):
            await (await self.socket.ping())

    def abort(self) -> None:
        """The connection breaks with a reset."""
        self.socket.transport.abort()

    def count(self, event: str) -> int:
        return sum(message["event"] == event for message in self.received)

    async def until(self, condition: Callable[[], bool], within_s: float = WAIT_S) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def greeted(self) -> None:
        await self.until(lambda: self.count("mark") >= 2)
        await self.pong()

    async def closed(self, within_s: float = WAIT_S) -> int:
        """Until the server has closed the socket; the code."""
        async with asyncio.timeout(within_s):
            await self.socket.wait_closed()
        assert self.socket.close_code is not None
        return self.socket.close_code

    async def read(self) -> None:
        with suppress(ConnectionClosed):
            async for text in self.socket:
                assert isinstance(text, str)
                message = json.loads(text)
                self.wire.receive(text)
                if message["event"] == "mark" and self.echoes:
                    await self.send(self.wire.mark(message["mark"]["name"]))
                self.received.append(message)
                self._news.set()


@asynccontextmanager
async def dialled(
    stream: Stream,
    call_sid: str,
    *,
    headers: Mapping[str, str] | None = None,
    parameters: Mapping[str, str] | None = None,
) -> AsyncIterator[Call]:
    """The socket, open, and nothing sent yet. At the end everything that the server sent was as documented."""
    violations: list[Violation] = []
    wire = Wire(
        account_sid=ACCOUNT,
        call_sid=call_sid,
        stream_sid="MZ" + secrets.token_hex(16),
        parameters=stream.parameters if parameters is None else parameters,
        violations=violations,
    )
    signed = {"X-Twilio-Signature": sign(stream.url, (), TOKEN)}
    async with connect(
        stream.url,
        additional_headers=signed if headers is None else headers,
        compression=None,
        ping_interval=None,
        close_timeout=1.0,
        max_size=None,
        proxy=None,
    ) as socket:
        call = Call(socket, wire, call_sid)
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(call.read())
            try:
                yield call
            finally:
                reader.cancel()
    assert not violations


@asynccontextmanager
async def calling(url: str) -> AsyncIterator[Call]:
    """A call that has been greeted, as any other."""
    call_sid = new_call_sid()
    async with dialled(await ring(url, call_sid), call_sid) as call:
        await call.begin()
        await call.greeted()
        yield call


async def record(url: str, call_sid: str, exchanges: int = 0, within_s: float = WAIT_S) -> dict[str, Any]:
    """What GET /api/calls/{call_sid} says once the call has ended and so many exchanges are written."""
    async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(within_s):
        while True:
            answer = await http.get(f"{url}/api/calls/{call_sid}")
            call: dict[str, Any] = answer.json()
            if answer.status_code == 200 and call["ended_at"] and len(call["exchanges"]) >= exchanges:
                return call
            await asyncio.sleep(0.02)
