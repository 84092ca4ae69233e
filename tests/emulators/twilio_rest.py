"""Twilio's REST API on loopback, as far as Malgil uses it: updating a call.

Strict: what Twilio would refuse is refused with its error body, and what Malgil must never send is also listed in
`violations`. `faults` are served first, one a request.
"""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl

MAX_BODY = 64 * 1024
CALL_PATH = re.compile(r"/2010-04-01/Accounts/(AC[0-9a-f]{32})/Calls/(CA[0-9a-f]{32})\.json")
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}

Fault = int | Literal["hang", "reset", "not_json", "not_found_page"]
"""A status answers with Twilio's error body; `hang` never answers; `reset` closes without an answer; the last two are
what a proxy or a wrong base URL gives."""


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    form: tuple[tuple[str, str], ...]


@dataclass
class TwilioRestEmulator:
    """`calls`: CallSid to status. `on_completed` is told of each call that a request ended."""

    account_sid: str
    auth_token: str
    calls: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    on_completed: Callable[[str], None] = lambda call_sid: None
    url: str = ""

    @asynccontextmanager
    async def serving(self) -> "AsyncIterator[TwilioRestEmulator]":
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        tasks = self._tasks = set[asyncio.Task[None]]()
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await _read_request(reader)
        self.requests.append(request)
        fault = self.faults.pop(0) if self.faults else None
        if fault == "hang":
            await asyncio.Event().wait()
        if fault == "reset":
            return False
        if fault == "not_json":
            status, body = 502, "<html>bad gateway</html>"
        elif fault == "not_found_page":
            status, body = 404, "<html>no such page</html>"
        elif isinstance(fault, int):
            status, body = _error(fault, {401: 20003, 429: 20429}.get(fault, 20500))
        else:
            status, body = self._answer(request)
        payload = body.encode()
        writer.write(
            f"HTTP/1.1 {status} {REASONS.get(status, 'Error')}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n".encode()
            + payload
        )
        await writer.drain()
        return True

    def _answer(self, request: Request) -> tuple[int, str]:
        path = CALL_PATH.fullmatch(request.path)
        if path is None or request.method != "POST":
            return self._refused(404, 20404, f"no such resource: {request.method} {request.path}")
        login = base64.b64encode(f"{self.account_sid}:{self.auth_token}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {login}":
            return self._refused(401, 20003, "basic authentication is missing or wrong")
        if path[1] != self.account_sid:
            return self._refused(404, 20404, "another account's call")
        if request.headers.get("content-type") != "application/x-www-form-urlencoded":
            return self._refused(400, 20001, "the body is not a form")
        if request.form != (("Status", "completed"),):
            return self._refused(400, 20001, f"not the one documented field: {request.form}")
        status = self.calls.get(path[2])
        if status is None:
            return _error(404, 20404)
        if status not in ("ringing", "in-progress"):
            return _error(400, 21220)
        self.calls[path[2]] = "completed"
        self.on_completed(path[2])
        return 200, json.dumps({"sid": path[2], "account_sid": path[1], "status": "completed"})

    def _refused(self, status: int, code: int, violation: str) -> tuple[int, str]:
        self.violations.append(violation)
        return _error(status, code)


def _error(status: int, code: int) -> tuple[int, str]:
    more = f"https://www.twilio.com/docs/errors/{code}"
    return status, json.dumps({"code": code, "message": "refused", "more_info": more, "status": status})


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    assert length <= MAX_BODY
    body = await reader.readexactly(length)
    return Request(method, path, headers, tuple(parse_qsl(body.decode(), keep_blank_values=True)))
