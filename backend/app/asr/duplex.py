"""An answer that begins while the request's body still arrives.

Starlette's StreamingResponse cannot be used for that: while it sends it listens for the disconnect, and what it
receives until then, the body, it throws away. So here one object reads, another sends, and nobody else does either.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from app.asr.schemas import ErrorBody, Line, Refused, Transcription, error_body, to_json
from app.errors import SttError

log = structlog.get_logger(__name__)

SEND_S = 10.0
"""A client that takes not even a line in so long is not there any more."""
LINGER_S = 2.0
"""How long what a refused client still sends is taken and dropped: closing in its face would reset the connection,
and the refusal would be lost with it."""


class ClientLeft(Exception):
    """The connection is gone. Nothing can be answered."""


class Body:
    """The request's body. One reader."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._over = False

    async def read(self) -> bytes | None:
        """The next bytes, perhaps none; None at the end. Raises ClientLeft."""
        if self._over:
            return None
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientLeft
        self._over = not message.get("more_body", False)
        data: bytes = message.get("body", b"")
        return data

    async def left(self) -> None:
        """Waits until the client has left, after the end of the body; raises ClientLeft."""
        while True:
            if (await self._receive())["type"] != "http.request":
                raise ClientLeft

    async def drain(self) -> None:
        """Drop what is left, for a moment."""
        try:
            async with asyncio.timeout(LINGER_S):
                while await self.read() is not None:
                    pass
        except (TimeoutError, ClientLeft):
            return


class Answer:
    """The answer: lines one after the other, or one object. One writer."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.ended = False

    async def start(self) -> None:
        await self._begin(
            (b"content-type", b"application/x-ndjson"),
            (b"x-accel-buffering", b"no"),  # nginx would hold the lines back
        )
        await self._put(b"", True)  # or the head may wait for the first line

    async def line(self, value: Line | ErrorBody) -> None:
        await self._put(to_json(value) + b"\n", True)

    async def whole(self, value: Transcription) -> None:
        data = to_json(value)
        await self._begin((b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()))
        await self._put(data, False)

    async def end(self) -> None:
        await self._put(b"", False)

    async def _begin(self, *headers: tuple[bytes, bytes]) -> None:
        self.started = True
        headers = (*headers, (b"cache-control", b"no-store"))
        await self._send({"type": "http.response.start", "status": 200, "headers": [*headers]})

    async def _put(self, data: bytes, more: bool) -> None:
        self.ended = not more
        try:
            async with asyncio.timeout(SEND_S):
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError as error:
            raise ClientLeft from error


Talk = Callable[[Body, Answer], Awaitable[None]]


class DuplexResponse(Response):
    """Hands the connection to `talk`, which reads the body and answers at once. Refused and SttError become a status
    where nothing was sent yet, and else the last line; when the client leaves, nothing does."""

    def __init__(self, talk: Talk) -> None:
        super().__init__()
        self._talk = talk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, answer = Body(receive), Answer(send)
        errors: list[Exception] = []
        try:
            await self._talk(body, answer)
        except* (ClientLeft, Refused, SttError) as failed:
            errors += _leaves(failed)
        try:
            if any(isinstance(error, ClientLeft) for error in errors):
                log.debug("- client left")
            elif errors and not answer.started:
                await RefusedResponse(as_refused(errors[0]), body)(scope, receive, send)
            elif not answer.ended:
                if errors:
                    error = as_refused(errors[0])
                    await answer.line(error_body(error.kind, str(error)))
                await answer.end()
        except ClientLeft:
            log.debug("- client takes no answer")


class RefusedResponse(JSONResponse):
    """A refusal, told before the body has arrived: the connection is closed after it, but not in the client's face.
    `body`: where somebody has read of it already."""

    def __init__(self, refused: Refused, body: Body | None = None) -> None:
        headers = refused.headers | {"Connection": "close"}
        super().__init__(error_body(refused.kind, str(refused)), refused.status, headers)
        self._rest = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await (self._rest or Body(receive)).drain()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def as_refused(error: Exception) -> Refused:
    """What a client is told of a failure."""
    if isinstance(error, Refused):
        return error
    assert isinstance(error, SttError)
    return Refused(503, error.kind, str(error), headers={"Retry-After": "2"} if error.retryable else None)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[Exception]:
    found: list[Exception] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found += _leaves(error)
        elif isinstance(error, Exception):
            found.append(error)
    return found
