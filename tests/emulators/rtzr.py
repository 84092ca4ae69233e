"""RTZR on loopback: the authentication and the streaming WebSocket, strict, with the vendor's endpointing and faults.

    async with RtzrEmulator(texts=["안녕하세요."]) as rtzr:
        ...                     # rtzr.url is RTZR_API_BASE
    assert rtzr.violations == []

An utterance is ended by `epd_time` of silence in the audio, counted in the audio, never by the wall clock; its final
comes `delay_s` after the end of that silence. By hand: `python -m tests.emulators.rtzr --port 8091 --demo-model`.
"""

import argparse
import asyncio
import contextlib
import json
import re
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Any, Literal, Self
from urllib.parse import parse_qs, parse_qsl, urlsplit

import h11
import numpy as np
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from app.clock import utc_now

Recognise = Callable[[bytes, int], str]
"""16-bit mono PCM and its rate in, the words out. Runs in a thread."""

PATH = "/v1/transcribe:streaming"
MODELS = {"sommers_ko", "sommers_ja", "whisper"}
LANGUAGES = {"ko", "ja", "en"}
BOOLEANS = {"use_itn", "use_disfluency_filter", "use_profanity_filter", "use_punctuation"}
QUERY_FIELDS = BOOLEANS | {
    "sample_rate", "encoding", "model_name", "domain", "keywords", "language", "epd_time", "max_utter_duration",
    "noise_threshold", "active_threshold",
}  # fmt: skip
BLOCK_MS = 20
LOUD = 300
"""Root mean square of a block above which it is speech."""
LEAD_MS = 200
"""Heard with an utterance: what comes before its first loud block."""
MAX_UTTERANCE_MS = 12_000
BURST_MS = 1_500

AuthFault = Literal[
    "bad_credentials",  # 401 H0002
    "bad_request",  # 400 H0001
    "server_error",  # 500 E500
    "throttled",  # 429 A0001
    "html",  # 200 with a page
    "no_token",  # 200 with an empty object
    "hang",
    "drop",  # the connection is closed without an answer
]
Fault = Literal[
    # in the handshake
    "drop",
    "hang",
    "revoked",  # 401 although the token has not expired
    "throttled",  # 429 A0001
    "bad_request",  # 400 H0001
    "server_error",  # 500 E500
    "not_http",
    # in the stream
    "close_after_final",  # 1000 after each final
    "close_at_once",  # 1008 after the handshake
    "reset",  # a TCP reset after the second interim
    "swallow",  # interims, but no final
    "duplicate",  # each final twice
    "shuffle",  # of two finals the second comes first
    "late_interim",  # an interim after its final
    "empty",  # finals without alternatives
    "no_times",  # finals without `duration`
    "garbage",  # five messages that mean nothing before each result
    "only_garbage",
    "huge",  # 1 MiB of JSON before each final
    "error",  # {"error"} instead of a final
    "error_typed",  # {"type": "error"} instead of a final
    "deaf",  # takes no byte after the handshake, and answers no ping
    "never_closes",  # ignores EOS
]
GARBAGE = ("", "{", "[1, 2]", '{"type": "metadata"}', '{"seq": "0", "final": 1}', "[" * 60_000)
STATUS_FAULTS = {
    "throttled": (429, "A0001", "usage limit exceeded"),
    "bad_request": (400, "H0001", "invalid parameter"),
    "bad_credentials": (401, "H0002", "invalid credential"),
    "revoked": (401, "H0002", "invalid token"),
    "server_error": (500, "E500", "internal error"),
}
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests", 500: "Oops"}


@dataclass(slots=True)
class RtzrEmulator:
    """`faults` are used up, one a stream that is asked for; `fault` holds when they are. `texts` are what is heard,
    one an utterance over all streams, unless `recognise` is given. `max_speed`: in multiples of real time."""

    client_id: str = "test-id"
    client_secret: str = "test-secret"
    token_life_s: float = 6 * 3600
    ahead_s: float = 0.0  # of the right time is the vendor's clock
    authenticate_s: float = 0.0
    delay_s: float = 0.05
    interim_ms: int = 300
    max_streams: int = 5
    max_speed: float = 10.0
    texts: deque[str] = field(default_factory=deque)
    recognise: Recognise | None = None
    auth_fault: AuthFault | None = None
    auth_faults: deque[AuthFault | None] = field(default_factory=deque)
    fault: Fault | None = None
    faults: deque[Fault | None] = field(default_factory=deque)
    violations: list[str] = field(default_factory=list)
    authentications: int = 0
    streams: list["_Stream"] = field(default_factory=list)
    port: int = 0
    _server: asyncio.Server | None = None
    _tokens: dict[str, float] = field(default_factory=dict)
    _authenticating: int = 0
    _writers: dict[asyncio.StreamWriter, "asyncio.Task[None] | None"] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def live(self) -> int:
        """Streams that are open now."""
        return sum(stream.open for stream in self.streams)

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def listen(self) -> None:
        """Again on the same port after `kill`."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """As if the machine had died: nobody listens, and each connection is reset."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = [task for task in self._writers.values() if task is not None]
        for stream in self.streams:
            stream.excused = True
        for writer in list(self._writers):
            reset(writer)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def expire_tokens(self) -> None:
        """As if their time were over."""
        self._tokens = dict.fromkeys(self._tokens, 0.0)

    # ------------------------------------------------------------ connections

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers[writer] = asyncio.current_task()
        try:
            while await self._one_request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            pass  # killed: asyncio's own callback stumbles over a task that ends so
        except h11.RemoteProtocolError as error:
            self.violations.append(f"HTTP: {error}")
        finally:
            del self._writers[writer]
            writer.close()

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """False when the connection is over."""
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET "):
            await self._stream(head, reader, writer)
            return False
        return await self._authenticate(head, reader, writer)

    # ------------------------------------------------------------ authentication

    async def _authenticate(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(head)
        request = connection.next_event()
        assert isinstance(request, h11.Request)
        body = b""
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Data):
                body += event.data
        self.authentications += 1
        if self._authenticating:
            await asyncio.sleep(0.01)  # the client may have given that one up this very moment
        if self._authenticating:
            self.violations.append("two authentications at once")
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self._work(request, body, writer))
            watch = group.create_task(self._watch(reader, work))
            await asyncio.wait([work])
            watch.cancel()
        return not work.cancelled() and work.result()

    async def _work(self, request: h11.Request, body: bytes, writer: asyncio.StreamWriter) -> bool:
        self._authenticating += 1
        try:
            await asyncio.sleep(self.authenticate_s)
            return await self._answer(request, body, writer)
        finally:
            self._authenticating -= 1

    async def _watch(self, reader: asyncio.StreamReader, work: "asyncio.Task[bool]") -> None:
        """The client is silent while it waits for its token; the end of its side means that it left."""
        with contextlib.suppress(ConnectionError):
            if await reader.read(1):
                self.violations.append("a byte was sent before the answer had ended")
        work.cancel()

    async def _answer(self, request: h11.Request, body: bytes, writer: asyncio.StreamWriter) -> bool:
        fault = self.auth_faults.popleft() if self.auth_faults else self.auth_fault
        headers = {name.decode().lower(): value.decode() for name, value in request.headers}
        fields = parse_qs(body.decode(), keep_blank_values=True)
        if (request.method, request.target) != (b"POST", b"/v1/authenticate"):
            self.violations.append(f"{request.method.decode()} {request.target.decode()}")
            return await self._json(writer, 404, {"code": "H0004", "msg": "not found"})
        if headers.get("content-type") != "application/x-www-form-urlencoded":
            self.violations.append("the credentials are not a form")
        if fields.keys() != {"client_id", "client_secret"}:
            self.violations.append(f"authenticated with the fields {sorted(fields)}")
            return await self._json(writer, 400, {"code": "H0001", "msg": "invalid parameter"})
        if fault == "hang":
            await asyncio.Event().wait()
        if fault == "drop":
            return False
        if fault in STATUS_FAULTS:
            status, code, message = STATUS_FAULTS[fault]
            return await self._json(writer, status, {"code": code, "msg": message})
        if fault == "html":
            return await self._send(writer, 200, "text/html", b"<html>a gateway</html>")
        if fault == "no_token":
            return await self._json(writer, 200, {})
        if fields != {"client_id": [self.client_id], "client_secret": [self.client_secret]}:
            return await self._json(writer, 401, {"code": "H0002", "msg": "invalid credential"})
        return await self._json(writer, 200, self._new_token())

    def _new_token(self) -> dict[str, Any]:
        token = f"token-{self.authentications}.{'x' * 40}"
        self._tokens[token] = asyncio.get_running_loop().time() + self.token_life_s
        return {"access_token": token, "expire_at": int(self._now().timestamp() + self.token_life_s)}

    def _now(self) -> datetime:
        return utc_now() + timedelta(seconds=self.ahead_s)

    async def _json(self, writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> bool:
        return await self._send(writer, status, "application/json", json.dumps(body).encode())

    async def _send(self, writer: asyncio.StreamWriter, status: int, kind: str, body: bytes) -> bool:
        date = format_datetime(self._now(), usegmt=True)
        lines = [f"HTTP/1.1 {status} {REASONS[status]}", f"date: {date}", f"content-type: {kind}"]
        head = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""])
        writer.write(head.encode() + body)
        await writer.drain()
        return True

    # ------------------------------------------------------------ the stream's handshake

    async def _stream(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = ServerProtocol(max_size=2**20)
        protocol.receive_data(head)
        events = protocol.events_received()
        if not events:  # it has refused what it was sent
            flush(protocol, writer)
            await writer.drain()
            return
        request = events[0]
        assert isinstance(request, Request)
        fault = self.faults.popleft() if self.faults else self.fault
        if fault == "drop":
            return
        if fault == "hang":
            await reader.read()  # until the client gives up
            return
        if fault == "not_http":
            writer.write(b"SSH-2.0-emulated\r\n")
            return
        refused = self._refusal(request, fault)
        response = protocol.accept(request)
        if refused is not None:
            status, code, message = refused
            text = json.dumps({"code": code, "msg": message})
            headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(text))})
            response = Response(status, REASONS[status], headers, text.encode())
        protocol.send_response(response)
        if refused is not None:
            flush(protocol, writer)
            await writer.drain()
            return
        stream = _Stream(self, dict(parse_qsl(urlsplit(request.path).query)), fault, protocol, writer)
        self.streams.append(stream)
        flush(protocol, writer)
        await stream.serve(reader)

    def _refusal(self, request: Request, fault: Fault | None) -> tuple[int, str, str] | None:
        target = urlsplit(request.path)
        if target.path != PATH:
            self.violations.append(f"a stream at {target.path}")
            return 404, "H0004", "not found"
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        expires_at = self._tokens.get(token)
        if scheme.lower() != "bearer" or expires_at is None:
            self.violations.append("a stream with a token that was never given out")
            return STATUS_FAULTS["revoked"]
        if asyncio.get_running_loop().time() > expires_at:
            self.violations.append("a token was used after its time")
            return STATUS_FAULTS["revoked"]
        if fault in STATUS_FAULTS:
            return STATUS_FAULTS[fault]
        mistakes = list(query_mistakes(target.query))
        self.violations += mistakes
        if mistakes:
            return 400, "H0001", mistakes[0]
        if self.live >= self.max_streams:
            return STATUS_FAULTS["throttled"]
        return None


def query_mistakes(query: str) -> Iterator[str]:
    """What the vendor would refuse, or take for its default, as text."""
    pairs = parse_qsl(query, keep_blank_values=True)
    settings = dict(pairs)
    if len(pairs) != len(settings):
        yield "a query field twice"
    yield from (f"unknown query field {name}" for name in sorted(settings.keys() - QUERY_FIELDS))
    missing = {"sample_rate", "encoding", "epd_time", "language"} - settings.keys()
    yield from (f"query field {name} is missing" for name in sorted(missing))
    yield from (f"{name} is not a boolean" for name in BOOLEANS & settings.keys() if settings[name] not in BOOLEAN)
    rate = settings.get("sample_rate", "8000")
    if not rate.isascii() or not rate.isdigit() or not 8000 <= int(rate) <= 48000:
        yield "sample_rate is not from 8000 to 48000"
    if settings.get("encoding", "LINEAR16") != "LINEAR16":
        yield "an encoding that is not emulated"
    model, language = settings.get("model_name", "sommers_ko"), settings.get("language", "ko")
    if model not in MODELS:
        yield "an unknown model_name"
    if language not in LANGUAGES or (model == "sommers_ko" and language != "ko"):
        yield f"the language {language} with {model}"
    if settings.get("domain", "CALL") not in ("CALL", "MEETING"):
        yield "an unknown domain"
    if not _number(settings.get("epd_time", "0.5"), 0.1, 5):
        yield "epd_time is not a number of seconds"
    if "keywords" in settings:
        if language != "ko" or model not in ("sommers_ko", "whisper"):
            yield f"keywords with {model} in {language}"
        words = settings["keywords"].split(",")
        if len(words) > 100:
            yield "more than 100 keywords"
        yield from ("a keyword that is not Hangul, or too long, or its score" for word in words if not _keyword(word))


BOOLEAN = ("true", "false")


def _number(text: str, low: float, high: float) -> bool:
    return bool(re.fullmatch(r"-?\d+(\.\d+)?", text)) and low <= float(text) <= high


def _keyword(entry: str) -> bool:
    word, colon, score = entry.partition(":")
    return bool(re.fullmatch(r"[가-힣 ]{1,20}", word)) and (not colon or _number(score, -5, 5))


# ---------------------------------------------------------------- one stream


@dataclass(slots=True)
class _Utterance:
    """Milliseconds of the stream. `text` where it is scripted."""

    seq: int
    start_ms: int
    pcm: bytearray
    text: str | None
    interims: int = 0


@dataclass(slots=True, eq=False)
class _Stream:
    """`audio` is all that was heard; `chunks` the milliseconds of each message of it."""

    emulator: RtzrEmulator
    query: dict[str, str]
    fault: Fault | None
    protocol: ServerProtocol
    writer: asyncio.StreamWriter
    audio: bytearray = field(default_factory=bytearray)
    chunks: list[float] = field(default_factory=list)
    ended: bool = False  # by EOS
    open: bool = True
    excused: bool = False
    """Broken by the emulator: the client need not say EOS."""
    _taken: int = 0  # bytes that were endpointed
    _silence_ms: int = 0
    _seq: int = 0
    _now: _Utterance | None = None
    _waiting: list[str] = field(default_factory=list)  # for the final that is to overtake it
    _first_at: float | None = None
    _hurried: bool = False
    _in_turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def rate(self) -> int:
        return int(self.query["sample_rate"])

    @property
    def hearing(self) -> bool:
        """In the midst of an utterance."""
        return self._now is not None

    async def serve(self, reader: asyncio.StreamReader) -> None:
        if self.fault == "deaf":
            self.excused = True
            await asyncio.Event().wait()
        if self.fault == "close_at_once":
            self._close(1008)
        try:
            async with asyncio.TaskGroup() as group:
                while data := await reader.read(65536):
                    self.protocol.receive_data(data)
                    for event in self.protocol.events_received():
                        assert isinstance(event, Frame)
                        self._frame(event, group)
                    self._flush()
                self.protocol.receive_eof()
        except* ConnectionError:
            pass
        finally:
            self.open = False
            if not (self.ended or self.excused):
                self.emulator.violations.append("the client left without EOS")

    def _frame(self, frame: Frame, group: asyncio.TaskGroup) -> None:
        violations = self.emulator.violations
        if frame.opcode is Opcode.TEXT and frame.data == b"EOS":
            if self.ended:
                violations.append("EOS twice")
            self.ended = True
            if self._now is not None:
                self._end_utterance(group)
            if self.fault != "never_closes":
                group.create_task(self._close_in_turn())
        elif frame.opcode is Opcode.TEXT:
            violations.append("text that is not EOS")
        elif frame.opcode is Opcode.BINARY:
            if self.ended:
                violations.append("audio after EOS")
            elif not frame.data or len(frame.data) % 2:
                violations.append(f"a message of {len(frame.data)} bytes")
            else:
                self._hear(bytes(frame.data), group)
        elif frame.opcode is Opcode.CONT:
            violations.append("a fragmented message")

    # ------------------------------------------------------------ hearing

    def _hear(self, pcm: bytes, group: asyncio.TaskGroup) -> None:
        now = asyncio.get_running_loop().time()
        self._first_at = now if self._first_at is None else self._first_at
        self.chunks.append(self._ms(len(pcm)))
        self.audio += pcm
        allowed_ms = BURST_MS + self.emulator.max_speed * 1000 * (now - self._first_at)
        if self._ms(len(self.audio)) > allowed_ms and not self._hurried:
            self._hurried = True
            self.emulator.violations.append("audio far faster than real time")
        size = 2 * self.rate * BLOCK_MS // 1000
        while len(self.audio) - self._taken >= size:
            block = bytes(self.audio[self._taken : self._taken + size])
            self._taken += size
            self._block(block, group)

    def _block(self, block: bytes, group: asyncio.TaskGroup) -> None:
        loud = float(np.sqrt(np.mean(np.square(np.frombuffer(block, "<i2").astype(np.float64))))) > LOUD
        self._silence_ms = 0 if loud else self._silence_ms + BLOCK_MS
        if self._now is None:
            if loud:
                self._begin_utterance(block)
            return
        utterance = self._now
        utterance.pcm += block
        length_ms = round(self._ms(self._taken)) - utterance.start_ms
        if self._silence_ms >= 1000 * float(self.query["epd_time"]) or length_ms >= MAX_UTTERANCE_MS:
            self._end_utterance(group)
        elif length_ms // self.emulator.interim_ms > utterance.interims:
            utterance.interims += 1
            if self.fault == "reset" and utterance.interims == 2:
                self.excused = True
                reset(self.writer)
                return
            group.create_task(self._interim(utterance, bytes(utterance.pcm)))

    def _begin_utterance(self, block: bytes) -> None:
        emulator = self.emulator
        text = None if emulator.recognise else (emulator.texts.popleft() if emulator.texts else "네.")
        start = self._taken - len(block)
        lead = bytes(self.audio[max(0, start - 2 * self.rate * LEAD_MS // 1000) : start])
        self._now = _Utterance(self._seq, round(self._ms(start)), bytearray(lead + block), text)
        self._seq += 1

    def _end_utterance(self, group: asyncio.TaskGroup) -> None:
        utterance, self._now = self._now, None
        assert utterance is not None
        end_ms = round(self._ms(self._taken)) - self._silence_ms
        due = asyncio.get_running_loop().time() + self.emulator.delay_s
        group.create_task(self._final(utterance, end_ms, due))

    def _ms(self, size: int) -> float:
        return size * 1000 / (2 * self.rate)

    # ------------------------------------------------------------ telling

    async def _words(self, utterance: _Utterance, pcm: bytes) -> str:
        if utterance.text is not None:
            return utterance.text
        assert self.emulator.recognise is not None
        return await asyncio.to_thread(self.emulator.recognise, pcm, self.rate)

    async def _interim(self, utterance: _Utterance, pcm: bytes) -> None:
        async with self._in_turn:
            text = await self._words(utterance, pcm)
            if utterance.text is not None:
                text = " ".join(text.split()[: utterance.interims])
            await self._result(_body(utterance.seq, utterance.start_ms, text))

    async def _final(self, utterance: _Utterance, end_ms: int, due: float) -> None:
        async with self._in_turn:
            text = await self._words(utterance, bytes(utterance.pcm))
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            body = _body(utterance.seq, utterance.start_ms, text, end_ms - utterance.start_ms)
            await self._faulty_final(body, utterance)

    async def _faulty_final(self, body: dict[str, Any], utterance: _Utterance) -> None:
        match self.fault:
            case "swallow":
                return
            case "empty":
                body["alternatives"] = []
            case "no_times":
                del body["duration"]
            case "huge":
                self._text(json.dumps({"type": "debug", "data": "x" * 2**20}))
            case "error" | "error_typed":
                said = f"A0009 something about {body['alternatives'][0]['text']}"
                self._text(json.dumps({"error": said} if self.fault == "error" else {"type": "error", "message": said}))
                self.excused = True
                return
            case "shuffle" if not self._waiting:
                self._waiting = [json.dumps(body)]
                return
        await self._result(body)
        if self.fault == "duplicate":
            await self._result(body)
        elif self.fault == "late_interim":
            await self._result(_body(utterance.seq, utterance.start_ms, "뒤늦은"))
        elif self.fault == "shuffle":
            self._text(self._waiting.pop())
        elif self.fault == "close_after_final":
            self._close(1000)

    async def _result(self, body: dict[str, Any]) -> None:
        if self.fault in ("garbage", "only_garbage"):
            for text in GARBAGE[:5]:
                self._text(text)
        if self.fault == "only_garbage":
            self.excused = True
            self._text(GARBAGE[5])
        else:
            self._text(json.dumps(body, ensure_ascii=False))
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    def _text(self, text: str) -> None:
        if self.open and self.protocol.state.name == "OPEN":
            self.protocol.send_text(text.encode())
            self._flush()

    async def _close_in_turn(self) -> None:
        async with self._in_turn:
            for text in self._waiting:
                self._text(text)
            self._close(1000)

    def _close(self, code: int) -> None:
        self.excused = True
        if self.protocol.state.name == "OPEN":
            self.protocol.send_close(code)
            self._flush()

    def _flush(self) -> None:
        flush(self.protocol, self.writer)


def _body(seq: int, start_ms: int, text: str, duration_ms: int | None = None) -> dict[str, Any]:
    """An interim, or a final where a duration is given."""
    best: dict[str, Any] = {"text": text, "confidence": 0.0}
    if duration_ms is not None:
        best["confidence"] = 0.95
        each_ms = duration_ms // max(1, len(text.split()))
        best["words"] = [
            {"text": f"{word}|", "start_at": place * each_ms, "duration": each_ms, "confidence": 0.9}
            for place, word in enumerate(text.split())
        ]
    final = duration_ms is not None
    return {"seq": seq, "start_at": start_ms, "duration": duration_ms or 0, "final": final, "alternatives": [best]}


def flush(protocol: ServerProtocol, writer: asyncio.StreamWriter) -> None:
    for data in protocol.data_to_send():
        if data:
            writer.write(data)
        elif writer.can_write_eof() and not writer.is_closing():
            writer.write_eof()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset, as a machine does that knows nothing of the connection."""
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def demo_model() -> Recognise:
    """The model that comes with Malgil."""
    from app.asr.models import DEMO_FOLDER
    from app.asr.recogniser import Recogniser
    from app.asr.recogniser import Request as Utterance

    recogniser = Recogniser.load(DEMO_FOLDER, "demo")

    def recognise(pcm: bytes, rate: int) -> str:
        return recogniser.decode([Utterance(pcm, rate, "auto")], beam=1)[0].text

    return recognise


async def _serve(arguments: argparse.Namespace) -> None:
    emulator = RtzrEmulator(
        client_id=arguments.client_id,
        client_secret=arguments.client_secret,
        delay_s=arguments.delay_ms / 1000,
        token_life_s=arguments.token_life_s,
        max_streams=arguments.max_streams,
        recognise=demo_model() if arguments.demo_model else None,
        fault=arguments.fault,
        port=arguments.port,
    )
    async with emulator:
        print(f"RTZR_API_BASE={emulator.url}", flush=True)  # noqa: T201
        told = 0
        while True:
            await asyncio.sleep(1)
            for violation in emulator.violations[told:]:
                print(f"violation: {violation}", flush=True)  # noqa: T201
            told = len(emulator.violations)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.emulators.rtzr", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--client-id", default="test-id")
    parser.add_argument("--client-secret", default="test-secret")
    parser.add_argument("--delay-ms", type=float, default=50, help="from the end of the silence to the final")
    parser.add_argument("--token-life-s", type=float, default=6 * 3600)
    parser.add_argument("--max-streams", type=int, default=5)
    parser.add_argument("--demo-model", action="store_true", help="hear with Malgil's demo model, not a script")
    parser.add_argument("--fault", default=None, help="see Fault in this file")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
