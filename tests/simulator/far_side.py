"""A media-stream server of a test's own: whatever the test says on the socket, and TwiML with checked signatures."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import parse_qsl

import h11
import numpy as np
from twilio.request_validator import RequestValidator
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from app.audio import g711
from app.simulator.clip import RATE, Clip

HANG_UP = "<Response><Hangup/></Response>"


def tone(ms: int) -> bytes:
    """Mu-law that is loud from its first to its last millisecond."""
    wave = 8000 * np.sin(2 * np.pi * 400 * np.arange(ms * RATE // 1000) / RATE + 1)
    return g711.encode(wave.astype("<i2").tobytes())


def silence(ms: int) -> bytes:
    return b"\xff" * (ms * RATE // 1000)


def utterance(ms: int = 100, text: str = "tone") -> Clip:
    return Clip.of(tone(ms), text)


class FarLine:
    """The server's end of a stream. `messages` are all that came, each with its time."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self.messages: list[tuple[float, dict[str, Any]]] = []
        self.stream_sid = ""
        self.started = asyncio.Event()
        self.closed = asyncio.Event()

    async def begin(self) -> dict[str, Any]:
        """The body of `start`, which must come second."""
        await self.read(1)
        await self.read(1)
        start: dict[str, Any] = self.messages[1][1]["start"]
        self.stream_sid = start["streamSid"]
        self.started.set()
        return start

    async def read(self, count: int) -> None:
        for _ in range(count):
            await self._read()

    async def until(self, event: str) -> dict[str, Any]:
        """The next message of this kind."""
        while True:
            message = await self._read()
            if message["event"] == event:
                return message

    async def to_the_end(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                await self._read()

    async def _read(self) -> dict[str, Any]:
        try:
            text = await self.socket.recv()
        except ConnectionClosed:
            self.closed.set()
            raise
        assert isinstance(text, str)
        message: dict[str, Any] = json.loads(text)
        self.messages.append((asyncio.get_running_loop().time(), message))
        return message

    async def media(self, audio: bytes) -> None:
        await self.send({"event": "media", "media": {"payload": base64.b64encode(audio).decode()}})

    async def mark(self, name: str) -> None:
        await self.send({"event": "mark", "mark": {"name": name}})

    async def clear(self) -> None:
        await self.send({"event": "clear"})

    async def send(self, message: dict[str, Any]) -> None:
        await self.socket.send(json.dumps({"streamSid": self.stream_sid} | message))

    def events(self) -> list[str]:
        return [message["event"] for _, message in self.messages]


@dataclass(frozen=True)
class Post:
    path: str
    fields: dict[str, str]


@dataclass
class FarSide:
    """`documents` are the TwiML by path; `{stream}` in them is the socket's URL. A `token` makes it check signatures,
    and answer 403."""

    talk: Callable[[FarLine], Awaitable[None]]
    documents: dict[str, str] = field(default_factory=dict)
    token: str = ""
    record: Callable[[str], dict[str, Any]] | None = None
    """What `/api/calls/{call_sid}` answers, to whom has the `admin_key`."""
    admin_key: str = ""
    lines: list[FarLine] = field(default_factory=list)
    posts: list[Post] = field(default_factory=list)
    handshakes: list[Request] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    _answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        self._streams: Server = await serve(
            self._stream, "127.0.0.1", 0, process_request=self._handshake, compression=None, ping_interval=None
        )
        self._http = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.stream_url = f"ws://127.0.0.1:{self._streams.sockets[0].getsockname()[1]}/stream"
        self.url = f"http://127.0.0.1:{self._http.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._http.close()
        self._streams.close()
        await self._streams.wait_closed()
        assert self.failures == []

    async def answered(self) -> FarLine:
        """The first stream."""
        await self._answered.wait()
        return self.lines[0]

    def _handshake(self, _socket: ServerConnection, request: Request) -> Response | None:
        self.handshakes.append(request)
        url = self.stream_url.removesuffix("/stream") + request.path
        if self._signed(url, {}, request.headers.get("X-Twilio-Signature", "")):
            return None
        return _socket.respond(HTTPStatus.FORBIDDEN, "")

    async def _stream(self, socket: ServerConnection) -> None:
        line = FarLine(socket)
        self.lines.append(line)
        self._answered.set()
        try:
            await self.talk(line)
        except ConnectionClosed:
            line.closed.set()
        except Exception as error:
            self.failures.append(error)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        with suppress(ConnectionError):
            while True:
                head, body = await _read_request(connection, reader)
                if head is None:
                    break
                status, answer = self._answer(head, body)
                headers = [("content-type", "text/xml"), ("content-length", str(len(answer)))]
                for event in (
                    h11.Response(status_code=status, headers=headers),
                    h11.Data(data=answer),
                    h11.EndOfMessage(),
                ):
                    writer.write(connection.send(event) or b"")
                connection.start_next_cycle()
        writer.close()

    def _answer(self, head: h11.Request, body: bytes) -> tuple[int, bytes]:
        path = head.target.decode()
        if head.method == b"GET":
            return self._recorded(path, head)
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=True))
        signature = dict(head.headers).get(b"x-twilio-signature", b"").decode()
        if not self._signed(self.url + path, fields, signature):
            return 403, b""
        self.posts.append(Post(path, fields))
        if path == "/twilio/status":
            return 204, b""
        document = self.documents.get(path)
        return (404, b"") if document is None else (200, document.replace("{stream}", self.stream_url).encode())

    def _recorded(self, path: str, head: h11.Request) -> tuple[int, bytes]:
        shown = dict(head.headers).get(b"authorization", b"").decode()
        if self.record is None:
            return 404, b""
        if self.admin_key and shown != f"Bearer {self.admin_key}":
            return 401, b""
        return 200, json.dumps(self.record(path.rsplit("/", 1)[1])).encode()

    def _signed(self, url: str, fields: dict[str, str], signature: str) -> bool:
        return not self.token or RequestValidator(self.token).validate(url, fields, signature)


async def _read_request(connection: h11.Connection, reader: asyncio.StreamReader) -> tuple[h11.Request | None, bytes]:
    head, body = None, b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        else:
            return (head, body) if isinstance(event, h11.EndOfMessage) else (None, b"")
