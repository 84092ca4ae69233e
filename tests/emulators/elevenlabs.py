"""A strict ElevenLabs on loopback: text to speech as an HTTP stream, and the voice's description.

Real HTTP/1.1 over a real socket. It answers as the vendor documents, counts what a client does wrong in
`violations`, and fails on request. By hand: `python -m tests.emulators.elevenlabs --port 8090`.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
from collections import deque
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

import h11
import numpy as np

from app.audio import g711
from app.services.ai_call.espeak_tts import EspeakTts
from app.services.ai_call.ports import TextToSpeech

RATE = 8000
MODELS = {
    "eleven_flash_v2_5": 40_000,
    "eleven_turbo_v2_5": 40_000,
    "eleven_multilingual_v2": 10_000,
    "eleven_v3": 5_000,
}
NO_LANGUAGE_CODE = ("eleven_multilingual_v2",)
BODY_FIELDS = {
    "text", "model_id", "language_code", "voice_settings", "pronunciation_dictionary_locators", "seed",
    "previous_text", "next_text", "previous_request_ids", "next_request_ids", "use_pvc_as_ivc",
    "apply_text_normalization", "apply_language_text_normalization", "audio_effects",
}  # fmt: skip
QUERY_FIELDS = {"output_format", "optimize_streaming_latency", "enable_logging"}
ODD_SIZES = (1, 333, 1024, 7, 4096, 160)
MP3_FRAME = b"\xff\xfb\x90\x64" + bytes(413)
"""128 kbit/s at 44.1 kHz: 417 bytes."""

Fault = Literal[
    "invalid_key",  # 401
    "missing_permissions",  # 401
    "quota",  # 401 quota_exceeded, as the vendor sends it
    "payment",  # 402
    "too_many_requests",  # 429 of the plan's limit
    "busy",  # 429 system_busy with Retry-After: 0
    "busy_long",  # 429 with Retry-After: 30
    "server_error",  # 500
    "bad_gateway",  # 502 with HTML
    "reset",  # the connection closes without an answer
    "hang",  # no byte ever
    "hang_after_headers",
    "stall",  # a second of audio, then nothing
    "cut",  # a second of audio, then the connection breaks
    "silent",  # 200 without a byte
    "mp3",
    "mp3_as_octets",
    "json",  # 200 with JSON
    "drip",  # one byte at a time, far slower than speech
]
STATUS_FAULTS: dict[str, tuple[int, str, dict[str, str]]] = {
    "invalid_key": (401, "invalid_api_key", {}),
    "missing_permissions": (401, "missing_permissions", {}),
    "quota": (401, "quota_exceeded", {}),
    "payment": (402, "payment_required", {}),
    "too_many_requests": (429, "too_many_concurrent_requests", {}),
    "busy": (429, "system_busy", {"retry-after": "0"}),
    "busy_long": (429, "system_busy", {"retry-after": "30"}),
    "server_error": (500, "internal_error", {}),
}


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass(slots=True)
class ElevenLabsEmulator:
    """`speed` paces the audio, in multiples of real time (0: at once). `faults` are used up one a request;
    `fault` holds for every request when they are. `voice` speaks; without one it hums for 80 ms a character."""

    api_key: str = "test-key"
    voice_id: str = "test-voice"
    first_byte_ms: float = 0
    speed: float = 0
    voice: TextToSpeech | None = None
    fault: Fault | None = None
    faults: deque[Fault] = field(default_factory=deque)
    requests: list[Request] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    finished: int = 0
    connections: int = 0
    asked: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """Released once for each request."""
    left: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """Released once for each stream that the client left before its end."""
    port: int = 0
    _server: asyncio.Server | None = None
    _open: dict[asyncio.StreamWriter, "asyncio.Task[None] | None"] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        tasks = [task for task in self._open.values() if task is not None]
        for writer in list(self._open):
            writer.close()
        await asyncio.gather(*tasks, return_exceptions=True)

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

    async def _respond(self, head: h11.Request, raw: bytes, answer: "_Answer") -> None:
        target = urlsplit(head.target.decode())
        headers = {name.decode().lower(): value.decode() for name, value in head.headers}
        query = {name: values[-1] for name, values in parse_qs(target.query, keep_blank_values=True).items()}
        body = self._json(raw)
        request = Request(head.method.decode(), target.path, query, headers, body)
        self.requests.append(request)
        self.asked.release()
        fault = self.faults.popleft() if self.faults else self.fault
        if headers.get("xi-api-key") != self.api_key:
            await answer.error(401, "invalid_api_key")
        elif fault in STATUS_FAULTS:
            status, name, extra = STATUS_FAULTS[fault]
            await answer.error(status, name, extra)
        elif request.path == f"/v1/voices/{self.voice_id}" and request.method == "GET":
            await answer.json(200, {"voice_id": self.voice_id, "name": "Test voice"})
        elif request.path == f"/v1/text-to-speech/{self.voice_id}/stream" and request.method == "POST":
            await self._speech(request, fault, answer)
        else:
            await answer.error(404, "voice_not_found")

    def _json(self, raw: bytes) -> dict[str, Any]:
        if not raw:
            return {}
        with contextlib.suppress(ValueError):
            body = json.loads(raw)
            if isinstance(body, dict):
                return body
        self.violations.append("the body is not a JSON object")
        return {}

    async def _speech(self, request: Request, fault: Fault | None, answer: "_Answer") -> None:
        wrong = _mistakes(request)
        self.violations += wrong
        if wrong:
            await answer.json(422, {"detail": [{"loc": ["body"], "msg": wrong[0], "type": "value_error"}]})
            return
        if fault == "bad_gateway":
            await answer.start(502, "text/html")
            await answer.send(b"<html>502 Bad Gateway</html>")
            await answer.end()
        elif fault == "reset":
            answer.abort()
        elif fault == "hang":
            await asyncio.Event().wait()
        else:
            await asyncio.sleep(self.first_byte_ms / 1000)
            await self._audio(request, fault, answer)

    async def _audio(self, request: Request, fault: Fault | None, answer: "_Answer") -> None:
        if fault == "json":
            await answer.json(200, {"detail": {"status": "odd", "message": "not audio at all"}})
            return
        if fault in ("mp3", "mp3_as_octets") or request.query.get("output_format") != "ulaw_8000":
            await answer.start(200, "application/octet-stream" if fault == "mp3_as_octets" else "audio/mpeg")
            await answer.send(MP3_FRAME * 40)
            await answer.end()
            return
        await answer.start(200, "audio/basic")
        if fault == "hang_after_headers":
            await asyncio.Event().wait()
        if fault != "silent":
            await self._stream(request.body["text"], fault, answer)
        await answer.end()
        self.finished += 1

    async def _stream(self, text: str, fault: Fault | None, answer: "_Answer") -> None:
        audio = hum(text) if self.voice is None else await _spoken(self.voice, text)
        if fault in ("cut", "stall"):
            await answer.send(audio[:RATE])
            if fault == "stall":
                await asyncio.Event().wait()
            answer.abort()
            return
        sizes = itertools.repeat(1) if fault == "drip" else itertools.cycle(ODD_SIZES)
        start = 0
        while start < len(audio):
            size = next(sizes)
            await answer.send(audio[start : start + size])
            start += size
            if fault == "drip":
                await asyncio.sleep(0.01)
            elif self.speed:
                await asyncio.sleep(size / RATE / self.speed)


class _Answer:
    """The server's half of one exchange."""

    def __init__(self, connection: h11.Connection, writer: asyncio.StreamWriter) -> None:
        self._connection = connection
        self._writer = writer

    async def start(self, status: int, content_type: str, extra: dict[str, str] | None = None) -> None:
        headers = {"content-type": content_type, "request-id": "emulated", **(extra or {})}
        await self._write(h11.Response(status_code=status, headers=list(headers.items())))

    async def send(self, data: bytes) -> None:
        await self._write(h11.Data(data=data))

    async def end(self) -> None:
        if not self._writer.is_closing():
            await self._write(h11.EndOfMessage())

    def abort(self) -> None:
        self._writer.close()

    async def error(self, status: int, name: str, extra: dict[str, str] | None = None) -> None:
        await self.json(status, {"detail": {"status": name, "message": "as the emulator was told"}}, extra)

    async def json(self, status: int, body: dict[str, Any], extra: dict[str, str] | None = None) -> None:
        await self.start(status, "application/json", extra)
        await self.send(json.dumps(body).encode())
        await self.end()

    async def _write(self, event: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        self._writer.write(self._connection.send(event) or b"")
        await self._writer.drain()


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
        elif isinstance(event, h11.EndOfMessage):
            return head, body
        else:
            return None, b""


def _mistakes(request: Request) -> list[str]:
    body = request.body
    model = body.get("model_id", "eleven_multilingual_v2")
    found = [f"unknown query field {name}" for name in sorted(request.query.keys() - QUERY_FIELDS)]
    found += [f"unknown body field {name}" for name in sorted(body.keys() - BODY_FIELDS)]
    if not isinstance(body.get("text"), str) or not body["text"].strip():
        return [*found, "text is missing or empty"]
    if model not in MODELS:
        return [*found, f"unknown model {model}"]
    if len(body["text"]) > MODELS[model]:
        found.append("text is longer than the model takes")
    if "language_code" in body and (model in NO_LANGUAGE_CODE or len(str(body["language_code"])) != 2):
        found.append(f"language_code {body['language_code']} with {model}")
    if not request.query.get("output_format", "mp3_44100_128").startswith(("mp3_", "ulaw_8000")):
        found.append(f"output_format {request.query['output_format']} is not emulated")
    return found


def hum(text: str) -> bytes:
    """Mu-law that a voice detector may take for speech: a voiced tone with four syllables a second."""
    at = np.arange(RATE * 80 * len(text) // 1000) / RATE
    tone = sum(np.sin(2 * np.pi * 140 * harmonic * at) / harmonic for harmonic in range(1, 12))
    return g711.encode((5000 * tone * np.abs(np.sin(np.pi * 4 * at))).astype("<i2").tobytes())


async def _spoken(voice: TextToSpeech, text: str) -> bytes:
    async with aclosing(voice.speak(text, RATE)) as frames:
        return g711.encode(b"".join([frame.pcm async for frame in frames]))


async def _serve(arguments: argparse.Namespace) -> None:
    voice = EspeakTts()
    emulator = ElevenLabsEmulator(
        api_key=arguments.api_key,
        voice_id=arguments.voice,
        first_byte_ms=arguments.first_byte_ms,
        speed=arguments.speed,
        voice=voice,
        port=arguments.port,
    )
    try:
        async with emulator:
            print(f"ELEVENLABS_BASE_URL={emulator.url}", flush=True)  # noqa: T201
            await asyncio.Event().wait()
    finally:
        await voice.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.emulators.elevenlabs", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--api-key", default="test-key")
    parser.add_argument("--voice", default="test-voice")
    parser.add_argument("--first-byte-ms", type=float, default=75)
    parser.add_argument("--speed", type=float, default=10, help="multiples of real time; 0 is at once")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
