"""HTTP to our recogniser's service: requests whose answers begin while their bodies are still being spoken.

On the socket itself, with h11. httpx sends the whole body before it reads of the answer, and aiohttp gives nothing
before the answer's head, which a proxy may hold back until the end: then a pause could be told of only by a task of
its own. Here writing and reading are two calls, and whoever makes them waits.
"""

import asyncio
import ssl
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard
from urllib.parse import urlsplit

import h11
import orjson
import structlog

from app.errors import SttError

log = structlog.get_logger(__name__)

NAME = "remote"
READ_BYTES = 65_536
LONGEST_BODY = 65_536

Fault = Literal[
    "connect",  # nobody answers at the address
    "timeout",  # no answer in time
    "stall",  # takes no more audio, or the answer does not end
    "reset",  # the connection broke before the answer
    "cut",  # in the midst of it
    "auth",
    "busy",
    "not_loaded",
    "stuck",
    "unavailable",
    "rejected",
    "format",  # what comes is no answer of ours
]


class Exchange:
    """One request and its answer, over a connection of its own. One task may write while another reads."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)
        self._gone = False
        self._answered = False

    async def write(self, event: h11.Event, within_s: float) -> None:
        """Nothing, where the connection is gone: reading says how that came. Raises SttError if no more is taken."""
        if self._gone or self._writer.is_closing():
            return
        data = self._http.send(event)
        assert data is not None
        try:
            async with asyncio.timeout(within_s):
                try:
                    self._writer.write(data)
                    await self._writer.drain()
                except OSError:
                    self._gone = True
        except TimeoutError as error:
            raise stt_error("stall", "the recogniser takes no more audio") from error

    async def read(self) -> h11.Event:
        """What comes next of the answer: Response, Data, EndOfMessage. Nothing is lost when it is cancelled."""
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(READ_BYTES))
        except (OSError, h11.RemoteProtocolError) as error:
            self._gone = True
            if self._answered:
                raise stt_error("cut", "the recogniser's answer broke off") from error
            raise stt_error("reset", "the recogniser broke the connection") from error
        assert isinstance(event, h11.Event)
        self._answered |= isinstance(event, h11.Response)
        return event

    def close(self) -> None:
        self._writer.transport.abort()


class RemoteClient:
    """Where the service is and how it is asked."""

    def __init__(self, url: str, api_key: str) -> None:
        parts = urlsplit(url.rstrip("/"))
        self.address = parts.netloc.rpartition("@")[2]
        """Without the password a URL may hold."""
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._path = parts.path
        self._authorization = [("Authorization", f"Bearer {api_key}")] if api_key else []

    async def connect(self, within_s: float) -> Exchange:
        try:
            async with asyncio.timeout(within_s):
                try:
                    reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
                except (OSError, ValueError) as error:  # a host that is no name is a UnicodeError
                    message = f"no recogniser at {self.address}: start it (malgil asr) or set ASR_URL"
                    raise stt_error("connect", f"{message} ({type(error).__name__})") from error
        except TimeoutError as error:
            raise stt_error("timeout", f"no way to the recogniser at {self.address}: see ASR_URL") from error
        return Exchange(reader, writer)

    def request(self, method: str, target: str, headers: list[tuple[str, str]]) -> h11.Request:
        fixed = [("Host", self.address), ("Connection", "close"), *self._authorization]
        return h11.Request(method=method, target=self._path + target, headers=fixed + headers)

    async def get(self, target: str, within_s: float, *, also: int = 200) -> tuple[int, bytes]:
        """Status and body. `also`: a status that is no failure either. Raises SttError."""
        try:
            async with asyncio.timeout(within_s):
                exchange = await self.connect(within_s)
                try:
                    await exchange.write(self.request("GET", target, []), within_s)
                    await exchange.write(h11.EndOfMessage(), within_s)
                    return await self._answer(exchange, also)
                finally:
                    exchange.close()
        except TimeoutError as error:
            raise stt_error("timeout", f"the recogniser at {self.address} does not answer: see ASR_URL") from error

    async def _answer(self, exchange: Exchange, also: int) -> tuple[int, bytes]:
        status, body = 0, b""
        while not isinstance(event := await exchange.read(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
                if status != also:
                    self.accept(event)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > LONGEST_BODY:
                    raise stt_error("format", f"at {self.address} is no recogniser of ours: see ASR_URL")
        return status, body

    def accept(self, response: h11.Response) -> None:
        """Raises SttError for a refusal."""
        match response.status_code:
            case 200:
                return
            case 401 | 403:
                message = f"the recogniser at {self.address} does not take our ASR_API_KEY: both need the same one"
                raise stt_error("auth", message, retryable=False)
            case 429 | 503:
                raise stt_error("busy", f"the recogniser at {self.address} has too much to do")
            case status if status >= 500:
                raise stt_error("unavailable", f"the recogniser at {self.address} failed with {status}")
            case status:
                message = f"{self.address} refused the request with {status}: see ASR_URL"
                raise stt_error("rejected", message, retryable=status == 408)


@dataclass(frozen=True, slots=True)
class Line:
    """One of an answer. `end_ms` counts from the beginning of the request's body."""

    text: str
    final: bool
    end_ms: float
    confidence: float | None

    @classmethod
    def read(cls, data: bytes) -> "Line":
        """Raises SttError for a line that reports a failure, and for one that says nothing."""
        body = json_object(data)
        if "error" in body:
            raise _reported(body["error"])
        text, final, end_ms, confidence = (body.get(name) for name in ("text", "final", "end_ms", "confidence"))
        if not isinstance(text, str) or not isinstance(final, bool) or not _is_number(end_ms):
            raise nonsense("a line that is no transcript")
        return cls(text.strip(), final, end_ms, confidence if _is_number(confidence) else None)


def _reported(error: Any) -> SttError:
    log.debug("< remote error", error=error)
    code = error.get("code") if isinstance(error, dict) else None
    kind: Fault = "stuck" if code == "stuck" else "busy" if code == "busy" else "unavailable"
    return stt_error(kind, "the recogniser broke off its answer with an error: its own log says more")


def json_object(data: bytes) -> dict[str, Any]:
    """Empty for what is no JSON object."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and 0 <= value < 1e10


def nonsense(what: str) -> SttError:
    return stt_error("format", f"the recogniser sent {what}: see ASR_URL, and whether both are of one version")


def stt_error(kind: Fault, message: str, *, retryable: bool = True) -> SttError:
    return SttError(message, provider=NAME, kind=kind, retryable=retryable)
