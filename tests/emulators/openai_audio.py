"""A strict OpenAI on loopback: POST /v1/audio/transcriptions, one utterance a request, and GET /v1/models/{id}.

Real HTTP/1.1 over a real socket. It looks into the file as the vendor does, counts what a client does wrong in
`violations`, and fails on request. By hand: `python -m tests.emulators.openai_audio --port 8092`.
"""

import argparse
import asyncio
import contextlib
import io
import json
import re
import wave
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

import h11
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

MODELS = ("gpt-transcribe", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "whisper-1")
ONLY_JSON = ("gpt-transcribe", "gpt-4o-transcribe", "gpt-4o-mini-transcribe")
FIELDS = {
    "file", "model", "language", "prompt", "response_format", "temperature", "chunking_strategy", "stream",
    "timestamp_granularities[]", "include[]", "languages[]", "keywords[]",
}  # fmt: skip
EXTENSIONS = {"flac", "mp3", "mp4", "mpeg", "mpga", "m4a", "ogg", "wav", "webm"}
MAX_BYTES = 25 * 1024 * 1024
SHORTEST_S = 0.1

Fault = Literal[
    "invalid_key",  # 401
    "restricted",  # 401 of a key that may transcribe and not read models
    "throttled",  # 429 with Retry-After: 0
    "throttled_long",  # 429 with Retry-After: 30
    "quota",  # 429 insufficient_quota
    "server_error",  # 500
    "bad_gateway",  # 502 with HTML
    "redirect",  # 307 to another host
    "html",  # 200 with HTML
    "malformed",  # 200 with half of the JSON
    "array",  # 200 with JSON that is no object
    "no_text",  # 200 without a transcript
    "empty",  # 200 with an empty transcript
    "hang",  # no byte ever
    "reset",  # the connection closes without an answer
    "cut",  # the connection closes in the middle of the answer
]
REFUSALS: dict[str, tuple[int, str, str, dict[str, str]]] = {
    "invalid_key": (401, "invalid_api_key", "Incorrect API key provided: test***.", {}),
    "restricted": (
        401,
        "missing_scope",
        "You have insufficient permissions for this operation. Missing scopes: api.model.read.",
        {},
    ),
    "throttled": (429, "rate_limit_exceeded", "Rate limit reached.", {"retry-after": "0"}),
    "throttled_long": (429, "rate_limit_exceeded", "Rate limit reached.", {"retry-after": "30"}),
    "quota": (429, "insufficient_quota", "You exceeded your current quota.", {}),
    "server_error": (500, "server_error", "The server had an error.", {}),
}

Recognise = Callable[[bytes, int], str]
"""16-bit PCM and its rate to words; called in a thread."""


@dataclass(frozen=True, slots=True)
class Request:
    """A transcription that was asked for. `fields` without the file, whose content are `pcm` and `rate`."""

    file_name: str
    fields: dict[str, str]
    pcm: bytes
    rate: int


@dataclass(slots=True)
class OpenAiAudioEmulator:
    """An answer comes `delay_s` after its request had arrived, recognition included; with `speech_ended_at`, so long
    after the speech in the request's audio had ended (a moment of the loop's clock), or at once where that has passed.
    Without `recognise` the next of `texts` is heard, the last one again and again. `faults` are used up one a request;
    `fault` holds for every request when they are."""

    api_key: str = "test-key"
    rate: int = 8000
    models: tuple[str, ...] = MODELS
    delay_s: float = 0.0
    speech_ended_at: Callable[[bytes], float] | None = None
    recognise: Recognise | None = None
    texts: deque[str] = field(default_factory=lambda: deque(["안녕하세요."]))
    fault: Fault | None = None
    faults: deque[Fault] = field(default_factory=deque)
    requests: list[Request] = field(default_factory=list)
    models_read: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    connections: int = 0
    at_once: int = 0
    """The most requests that were worked on at the same time."""
    asked: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """Released once for each request that has arrived."""
    left: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """Released once for each request whose client left before the answer."""
    port: int = 0
    _working: int = 0
    _server: asyncio.Server | None = None
    _open: dict[asyncio.StreamWriter, "asyncio.Task[None] | None"] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Also again after `kill`, on the same port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """All connections break, and nobody listens on the port."""
        if self._server is not None:
            self._server.close()
            self._server = None
            tasks = [task for task in self._open.values() if task is not None]
            for writer in list(self._open):
                writer.transport.abort()
            await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------ HTTP

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open[writer] = asyncio.current_task()
        connection = h11.Connection(h11.SERVER)
        try:
            while await self._one_exchange(connection, reader, writer):
                connection.start_next_cycle()
        except h11.RemoteProtocolError as error:
            self.violations.append(f"HTTP: {error}")
        except ConnectionError:
            pass
        finally:
            del self._open[writer]
            writer.close()

    async def _one_exchange(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """False when the connection is over."""
        head, body = await _read_request(connection, reader)
        if head is None:
            return False
        answer = _Answer(connection, writer)
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self._respond(head, body, answer))
            watch = group.create_task(self._watch(reader, work))
            with contextlib.suppress(asyncio.CancelledError):
                await work
            watch.cancel()
        return connection.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}

    async def _watch(self, reader: asyncio.StreamReader, work: "asyncio.Task[None]") -> None:
        """The client is silent while it waits for an answer; the end of its side means that it left."""
        with contextlib.suppress(ConnectionError):
            if await reader.read(1):
                self.violations.append("a byte was sent before the answer had ended")
        self.left.release()
        work.cancel()

    async def _respond(self, head: h11.Request, body: bytes, answer: "_Answer") -> None:
        arrived_at = asyncio.get_running_loop().time()
        self.asked.release()
        headers = {name.decode().lower(): value.decode() for name, value in head.headers}
        method, path = head.method.decode(), urlsplit(head.target.decode()).path
        fault = self.faults.popleft() if self.faults else self.fault
        if headers.get("authorization") != f"Bearer {self.api_key}":
            await answer.refuse("invalid_key")
        elif fault in REFUSALS:
            await answer.refuse(fault)
        elif fault == "hang":
            await asyncio.Event().wait()
        elif fault == "reset":
            answer.abort()
        elif fault in ("bad_gateway", "html"):
            await answer.html(502 if fault == "bad_gateway" else 200)
        elif fault == "redirect":
            await answer.start(307, "text/plain", {"location": "http://127.0.0.1:9/elsewhere"})
            await answer.end()
        elif method == "GET" and path.startswith("/v1/models/"):
            await self._model(unquote(path.removeprefix("/v1/models/")), answer)
        elif method == "POST" and path == "/v1/audio/transcriptions":
            self._working += 1
            self.at_once = max(self.at_once, self._working)
            try:
                await self._transcription(headers, body, arrived_at, fault, answer)
            finally:
                self._working -= 1
        else:
            self.violations.append(f"{method} {path}: no such endpoint")
            await answer.error(404, "unknown_url", f"Invalid URL ({method} {path})")

    async def _model(self, model: str, answer: "_Answer") -> None:
        self.models_read.append(model)
        if model in self.models:
            await answer.json({"id": model, "object": "model", "created": 1, "owned_by": "system"})
        else:
            await answer.error(404, "model_not_found", f"The model '{model}' does not exist")

    # ------------------------------------------------------------ transcription

    async def _transcription(
        self, headers: dict[str, str], body: bytes, arrived_at: float, fault: Fault | None, answer: "_Answer"
    ) -> None:
        try:
            request = self._read(headers, body)
        except _BadRequest as error:
            self.violations.append(str(error))
            await answer.error(400, "invalid_value", str(error))
            return
        model = request.fields["model"]
        if model not in self.models:
            await answer.error(404, "model_not_found", f"The model '{model}' does not exist")
            return
        self.requests.append(request)
        text = "" if fault == "empty" else await self._recognised(request)
        since = self.speech_ended_at(request.pcm) if self.speech_ended_at else arrived_at
        await asyncio.sleep(since + self.delay_s - asyncio.get_running_loop().time())
        seconds = len(request.pcm) / (2 * request.rate)
        told: dict[str, Any] = {"text": text, "usage": {"type": "duration", "seconds": seconds}}
        match fault:
            case "malformed":
                await answer.raw(json.dumps(told).encode()[:-7])
            case "array":
                await answer.raw(b"[1, 2]")
            case "no_text":
                await answer.raw(b'{"words": []}')
            case "cut":
                await answer.start(200, "application/json", {"content-length": "100"})
                await answer.send(b'{"text": "')
                answer.abort()
            case _:
                await answer.json(told)

    async def _recognised(self, request: Request) -> str:
        if self.recognise is not None:
            return await asyncio.to_thread(self.recognise, request.pcm, request.rate)
        return self.texts.popleft() if len(self.texts) > 1 else self.texts[0]

    def _read(self, headers: dict[str, str], body: bytes) -> Request:
        if len(body) > MAX_BYTES:
            raise _BadRequest("the body is larger than 25 MB")
        fields: dict[str, str] = {}
        file_name, content = "", b""
        for part in _parts(headers.get("content-type", ""), body):
            if part.name not in FIELDS:
                raise _BadRequest(f"unknown field {part.name}")
            if part.name in fields or (part.name == "file" and content):
                raise _BadRequest(f"{part.name} was sent twice")
            if part.name == "file":
                file_name, content = part.file_name, part.content
            else:
                fields[part.name] = part.content.decode()
        _check_fields(fields)
        if file_name.rpartition(".")[2].lower() not in EXTENSIONS:
            raise _BadRequest(f"the file's name {file_name!r} does not tell its format")
        if not file_name.lower().endswith(".wav"):
            raise _BadRequest(f"only WAV is emulated, not {file_name!r}")
        return Request(file_name, fields, _wav_pcm(content, self.rate), self.rate)


class _BadRequest(Exception):
    pass


def _check_fields(fields: dict[str, str]) -> None:
    if "model" not in fields:
        raise _BadRequest("you must provide a model parameter")
    if not re.fullmatch(r"[a-z]{2}", fields.get("language", "en")):
        raise _BadRequest(f"language {fields['language']!r} is not ISO-639-1")
    if not 0 <= float(fields.get("temperature", "0")) <= 1:
        raise _BadRequest("temperature lies between 0 and 1")
    response_format = fields.get("response_format", "json")
    if response_format != "json":
        only = fields["model"] in ONLY_JSON
        raise _BadRequest(f"response_format {response_format} is not {'supported' if only else 'emulated'}")
    if fields.get("stream", "false") != "false":
        raise _BadRequest("stream is not emulated")


def _wav_pcm(content: bytes, rate: int) -> bytes:
    try:
        with wave.open(io.BytesIO(content)) as wav:
            pcm = bytes(wav.readframes(wav.getnframes()))
            promised = wav.getnframes() * wav.getnchannels() * wav.getsampwidth()
            shape = wav.getnchannels(), wav.getsampwidth(), wav.getframerate()
    except (wave.Error, EOFError) as error:
        raise _BadRequest(f"the file is no WAV: {error}") from error
    if shape != (1, 2, rate):
        raise _BadRequest(f"channels, bytes a sample and rate are {shape}, not {(1, 2, rate)}")
    if len(pcm) != promised or len(content) != len(pcm) + 44:
        raise _BadRequest("the WAV is not as long as its header says")
    if len(pcm) < SHORTEST_S * rate * 2:
        raise _BadRequest("Audio file is too short. Minimum audio length is 0.1 seconds.")
    return pcm


# ---------------------------------------------------------------- multipart


@dataclass(slots=True)
class _Part:
    name: str = ""
    file_name: str = ""
    content: bytes = b""


def _parts(content_type: str, body: bytes) -> list[_Part]:
    """Of multipart/form-data, whole. Raises _BadRequest."""
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_boundary()
    if message.get_content_type() != "multipart/form-data" or not boundary:
        raise _BadRequest(f"the content type is {content_type!r}")
    parts: list[_Part] = []
    header = [b"", b""]
    ended: list[bool] = []

    def begin() -> None:
        parts.append(_Part())

    def header_piece(which: int) -> Callable[[bytes, int, int], None]:
        def take(data: bytes, start: int, end: int) -> None:
            header[which] += data[start:end]

        return take

    def header_end() -> None:
        if header[0].lower() == b"content-disposition":
            disposition = Message()
            disposition["content-disposition"] = header[1].decode()
            parts[-1].name = str(disposition.get_param("name", "", "content-disposition"))
            parts[-1].file_name = disposition.get_filename() or ""
        header[:] = [b"", b""]

    def data_piece(data: bytes, start: int, end: int) -> None:
        parts[-1].content += data[start:end]

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin,
            "on_header_field": header_piece(0),
            "on_header_value": header_piece(1),
            "on_header_end": header_end,
            "on_part_data": data_piece,
            "on_end": lambda: ended.append(True),
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise _BadRequest(f"multipart: {error}") from error
    if not ended:
        raise _BadRequest("multipart: the closing boundary is missing")
    return parts


class _Answer:
    """The server's half of one exchange."""

    def __init__(self, connection: h11.Connection, writer: asyncio.StreamWriter) -> None:
        self._connection = connection
        self._writer = writer

    async def start(self, status: int, content_type: str, extra: dict[str, str] | None = None) -> None:
        headers = {"content-type": content_type, "x-request-id": "emulated", **(extra or {})}
        await self._write(h11.Response(status_code=status, headers=list(headers.items())))

    async def send(self, data: bytes) -> None:
        await self._write(h11.Data(data=data))

    async def end(self) -> None:
        await self._write(h11.EndOfMessage())

    def abort(self) -> None:
        self._connection.send_failed()
        self._writer.close()

    async def refuse(self, fault: str) -> None:
        status, code, message, extra = REFUSALS[fault]
        await self.error(status, code, message, extra)

    async def error(self, status: int, code: str, message: str, extra: dict[str, str] | None = None) -> None:
        kind = "insufficient_quota" if code == "insufficient_quota" else "invalid_request_error"
        error = {"message": message, "type": kind, "param": None, "code": code}
        await self.raw(json.dumps({"error": error}).encode(), status=status, extra=extra)

    async def json(self, body: dict[str, Any]) -> None:
        await self.raw(json.dumps(body).encode())

    async def html(self, status: int) -> None:
        await self.raw(b"<html>as the emulator was told</html>", "text/html", status)

    async def raw(
        self,
        data: bytes,
        content_type: str = "application/json",
        status: int = 200,
        extra: dict[str, str] | None = None,
    ) -> None:
        await self.start(status, content_type, {"content-length": str(len(data)), **(extra or {})})
        await self.send(data)
        await self.end()

    async def _write(self, event: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        self._writer.write(self._connection.send(event) or b"")
        await self._writer.drain()


async def _read_request(connection: h11.Connection, reader: asyncio.StreamReader) -> tuple[h11.Request | None, bytes]:
    head, body = None, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return head, bytes(body)
        else:
            return None, b""


async def _serve(arguments: argparse.Namespace) -> None:
    from tests.emulators.rtzr import demo_model

    emulator = OpenAiAudioEmulator(
        api_key=arguments.api_key,
        delay_s=arguments.delay_s,
        recognise=demo_model() if arguments.demo_model else None,
        port=arguments.port,
    )
    async with emulator:
        print(f"OPENAI_BASE_URL={emulator.url}", flush=True)  # noqa: T201
        told = 0
        while True:
            await asyncio.sleep(1)
            for violation in emulator.violations[told:]:
                print(f"violation: {violation}", flush=True)  # noqa: T201
            told = len(emulator.violations)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.emulators.openai_audio", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--api-key", default="test-key")
    parser.add_argument("--delay-s", type=float, default=1.5, help="from a request's arrival to its answer")
    parser.add_argument("--demo-model", action="store_true", help="recognise with the demo model")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
