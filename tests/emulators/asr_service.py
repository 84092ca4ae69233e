"""Our recogniser's service on loopback as it never is by itself: one that hangs, breaks off, talks nonsense, or stands
behind a proxy. Real HTTP/1.1 over a real socket; what a client does wrong is in `violations`. Everything that the real
service can be made to show is tested with the real one.

By hand: `python -m tests.emulators.asr_service --port 5005 --fault stall`.
"""

import argparse
import asyncio
import contextlib
import json
import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

import h11

Fault = Literal[
    "unauthorised",  # 401
    "forbidden",  # 403
    "not_found",  # 404
    "unsupported",  # 415
    "undecodable",  # 422
    "busy",  # 503
    "bad_gateway",  # 502 with HTML
    "html",  # 200 with HTML
    "hang",  # no byte ever
    "reset",  # the connection breaks before the answer
    "stall",  # after the first line, nothing
    "cut",  # after the first line the connection breaks
    "early",  # the answer ends in order, before the request
    "no_final",  # the answer ends in order, after a partial
    "half_line",  # the answer ends in order, in the midst of a line
    "garbage",  # a line that is no JSON
    "array",  # a line that is no object
    "no_text",  # a line without what counts
    "long_line",  # a line without an end
    "error",  # a failure, as the last line
    "endless",  # one partial after the other, also after the end of the request
    "buffered",  # a proxy: nothing of the answer before the end of the request
    "deaf",  # nothing of the request is read
]
REFUSALS = {
    "unauthorised": 401,
    "forbidden": 403,
    "not_found": 404,
    "unsupported": 415,
    "undecodable": 422,
    "busy": 503,
    "bad_gateway": 502,
}
BAD_LINES = {
    "garbage": b"<b>no\n",
    "array": b"[1, 2]\n",
    "no_text": b'{"final": true}\n',
    "long_line": b'{"text": "' + b"a" * 100_000,
    "error": b'{"error": {"code": "decode", "message": "no"}}\n',
}
CONTENT_TYPES = r"audio/x-mulaw;rate=8000|audio/L16;rate=\d+;endianness=little-endian"
MULAW_BYTES_MS = 8


@dataclass(slots=True)
class AsrServiceEmulator:
    """Each request is answered with a partial after `partial_ms` of audio and with one of `texts` at its end. `faults`
    are used up one a request; `fault` holds for every request when they are."""

    texts: deque[str] = field(default_factory=lambda: deque(["안녕하세요."]))
    api_key: str = ""
    health: tuple[int, Any] = (200, {"status": "ok", "loaded": True})  # a body that is no dictionary is sent as it is
    health_hangs: bool = False
    models_status: int = 200
    partial_ms: int = 100
    fault: Fault | None = None
    faults: deque[Fault] = field(default_factory=deque)
    bodies: list[bytes] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    """Method and target of each."""
    violations: list[str] = field(default_factory=list)
    open_now: int = 0
    """Connections."""
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set["asyncio.Task[None] | None"] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*filter(None, self._tasks), return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        self.open_now += 1
        try:
            await self._answer(_Exchange(reader, writer))
        except h11.RemoteProtocolError as error:
            if "peer closed" not in str(error):  # leaving in the midst of a request is allowed
                self.violations.append(f"HTTP: {error}")
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open_now -= 1
            self._tasks.discard(task)
            writer.transport.abort() if writer.is_closing() else writer.close()

    async def _answer(self, exchange: "_Exchange") -> None:
        head = await exchange.receive()
        if not isinstance(head, h11.Request):
            return
        headers = {name.decode(): value.decode() for name, value in head.headers}
        method, target = head.method.decode(), head.target.decode()
        self.requests.append(f"{method} {target}")
        if headers.get("host") != f"127.0.0.1:{self.port}":
            self.violations.append(f"host: {headers.get('host')}")
        if headers.get("authorization") != (f"Bearer {self.api_key}" if self.api_key else None):
            self.violations.append("the key")
        match method, target.partition("?")[0]:
            case "GET", "/health":
                if self.health_hangs:
                    await asyncio.Event().wait()
                await exchange.whole(*self.health)
            case "GET", "/models":
                await exchange.whole(self.models_status, {"available": ["demo"], "current": "demo"})
            case "POST", "/transcribe":
                self._judge(target, headers)
                await self._transcribe(exchange, self.faults.popleft() if self.faults else self.fault)
            case _:
                self.violations.append(f"{method} {target}: no such thing")

    def _judge(self, target: str, headers: dict[str, str]) -> None:
        if not re.fullmatch(r"/transcribe\?language=(ko|en|auto)", target):
            self.violations.append(f"target: {target}")
        if not re.fullmatch(CONTENT_TYPES, headers.get("content-type", "")):
            self.violations.append(f"content type: {headers.get('content-type')}")
        if headers.get("transfer-encoding") != "chunked":
            self.violations.append("the length of speech is not known before")

    async def _transcribe(self, exchange: "_Exchange", fault: Fault | None) -> None:
        if fault in REFUSALS:
            await exchange.whole(REFUSALS[fault], {"error": {"code": fault, "message": "no"}})
        elif fault == "html":
            await exchange.whole(200, b"<html>Welcome</html>")
        elif fault == "reset":
            exchange.abort()
        elif fault == "deaf":
            exchange.stop_reading()
            await asyncio.Event().wait()
        elif fault == "hang":
            await exchange.left()
        elif fault == "early":
            await exchange.start()
            await exchange.end()
            await exchange.body(self.bodies)
        else:
            await self._lines(exchange, fault)

    async def _lines(self, exchange: "_Exchange", fault: Fault | None) -> None:
        text = self.texts.popleft() if len(self.texts) > 1 else self.texts[0]
        if fault == "buffered":
            await exchange.body(self.bodies)
        await exchange.start()
        if fault != "buffered":
            await exchange.body(self.bodies, up_to=self.partial_ms * MULAW_BYTES_MS)
        await exchange.line(text[: len(text) // 2], False, self.partial_ms)
        if fault == "stall":
            await exchange.left()
        elif fault == "cut":
            exchange.abort()
        elif fault in BAD_LINES:
            await exchange.send(BAD_LINES[fault])
        while fault == "endless":
            await exchange.line(text, False, self.partial_ms)
            await asyncio.sleep(0.01)
        await exchange.body(self.bodies)
        if fault == "half_line":
            await exchange.send(b'{"text": "')
        elif fault != "no_final":
            await exchange.line(text, True, len(self.bodies[-1]) // MULAW_BYTES_MS)
        await exchange.end()


class _Exchange:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._http = h11.Connection(h11.SERVER)
        self._body = b""
        self._over = False

    async def receive(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(4096))
        return event

    async def body(self, bodies: list[bytes], up_to: int | None = None) -> None:
        """Reads on, to its end or until it is so long; the whole is appended to `bodies`."""
        while not self._over and (up_to is None or len(self._body) < up_to):
            event = await self.receive()
            if isinstance(event, h11.Data):
                self._body += event.data
            else:
                self._over = True
                bodies.append(self._body)

    async def left(self) -> None:
        """Waits until the client is gone."""
        while await self._reader.read(4096):
            pass

    def stop_reading(self) -> None:
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def whole(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        kind = "application/json" if isinstance(body, dict) else "text/html"
        await self._send(h11.Response(status_code=status, headers=_headers(kind, str(len(data)))))
        await self._send(h11.Data(data))
        await self._send(h11.EndOfMessage())
        while not isinstance(await self.receive(), h11.EndOfMessage | h11.ConnectionClosed | type(h11.PAUSED)):
            pass

    async def start(self) -> None:
        await self._send(h11.Response(status_code=200, headers=_headers("application/x-ndjson")))

    async def line(self, text: str, final: bool, end_ms: int) -> None:
        line = {"text": text, "final": final, "start_ms": 0, "end_ms": end_ms, "confidence": 0.5 if final else None}
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        for at in range(0, len(data), 7):  # in odd sizes
            await self.send(data[at : at + 7])

    async def send(self, data: bytes) -> None:
        await self._send(h11.Data(data))

    async def end(self) -> None:
        await self._send(h11.EndOfMessage())

    def abort(self) -> None:
        self._writer.transport.abort()
        raise ConnectionAbortedError

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        assert data is not None
        self._writer.write(data)
        await self._writer.drain()


def _headers(kind: str, length: str = "") -> list[tuple[str, str]]:
    size = [("Content-Length", length)] if length else [("Transfer-Encoding", "chunked")]
    return [("Content-Type", kind), *size]


async def _serve(arguments: argparse.Namespace) -> None:
    async with AsrServiceEmulator(port=arguments.port, fault=arguments.fault) as emulator:
        print(f"ASR_URL={emulator.url}", flush=True)  # noqa: T201
        told = 0
        while True:
            await asyncio.sleep(1)
            for violation in emulator.violations[told:]:
                print(f"violation: {violation}", flush=True)  # noqa: T201
            told = len(emulator.violations)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.emulators.asr_service", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fault", choices=get_args(Fault))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
