"""A strict Google Speech-to-Text v1 on loopback: StreamingRecognize and Recognize, with Google's own messages.

A real gRPC server. It endpoints by the energy in the audio it is sent, counts what a client does wrong in
`violations`, and fails on request. By hand: `python -m tests.emulators.google_speech --port 8091`.
"""

import argparse
import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, Self

import grpc.aio
import numpy as np
from google.cloud.speech_v1 import (
    RecognitionConfig,
    RecognizeRequest,
    RecognizeResponse,
    SpeechRecognitionAlternative,
    SpeechRecognitionResult,
    StreamingRecognitionConfig,
    StreamingRecognitionResult,
    StreamingRecognizeRequest,
    StreamingRecognizeResponse,
)

from app.audio import g711

SERVICE = "google.cloud.speech.v1.Speech"
LANGUAGES = ("ko-KR", "en-US")
MODELS = ("", "default", "latest_long", "latest_short", "telephony", "telephony_short", "command_and_search")
MESSAGE_BYTES = 15 * 1024
SYNC_S = 60
FRAME_MS = 20
LOUD = 300
"""Of 32,768; root mean square of a frame."""
ENCODINGS = {RecognitionConfig.AudioEncoding.LINEAR16: 2, RecognitionConfig.AudioEncoding.MULAW: 1}
"""Bytes of a sample."""

EXPIRED = "Exceeded maximum allowed stream duration of 305 seconds."
TOO_FAST = "Audio Timeout Error: Audio should be sent close to real time."
GAP = "Stream timed out after receiving no more client requests."

Fault = Literal[
    "unavailable",
    "unauthenticated",
    "permission_denied",
    "resource_exhausted",
    "invalid_argument",
    "cut",  # UNAVAILABLE after the first words of an utterance
    "silent",  # takes the audio and never answers
    "deaf",  # takes no audio
    "end",  # a clean end after the first final
    "duplicate",  # each final twice, and words that belong before it after it
    "empty",  # the first final has no text
    "status",  # the error comes inside a response
]
STATUS_FAULTS: dict[str, grpc.StatusCode] = {
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "permission_denied": grpc.StatusCode.PERMISSION_DENIED,
    "resource_exhausted": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "invalid_argument": grpc.StatusCode.INVALID_ARGUMENT,
}

Recognise = Callable[[bytes, int], str]
"""16-bit PCM and its rate to words; called with all that an utterance has so far."""


def count_aloud(pcm: bytes, rate: int) -> str:
    """A Korean digit for each quarter of a second of sound: more sound, more words."""
    loud = sum(_loud_frames(pcm, rate))
    return " ".join("일이삼사오육칠팔구영"[place % 10] for place in range(loud * FRAME_MS // 250))


@dataclass(slots=True)
class Stream:
    """What one StreamingRecognize was. `ended`: OK, CANCELLED by the client, or ABORTED by us; empty before."""

    config: StreamingRecognitionConfig
    audio_ms: float = 0.0
    ended: str = ""


@dataclass(slots=True)
class GoogleSpeechEmulator:
    """Milliseconds count audio, seconds the clock. `faults` are used up one a stream or request; `fault` holds for all
    when they are. `delay_s`: how long Recognize takes, from its receipt; with `speech_ended_at`, from the end of the
    speech in its audio (a moment of the loop's clock), and no time where that has passed. `rough_ms`: how much too
    early a final says that it ends."""

    recognise: Recognise = count_aloud
    end_ms: int = 600
    interim_ms: int = 200
    max_utterance_ms: int = 60_000
    rough_ms: int = 0
    final_delay_s: float = 0.0
    delay_s: float = 0.4
    speech_ended_at: Callable[[bytes], float] | None = None
    life_s: float = 305.0
    gap_s: float = 10.0
    pace: float = 5.0
    fault: Fault | None = None
    faults: deque[Fault] = field(default_factory=deque)
    streams: list[Stream] = field(default_factory=list)
    requests: list[RecognizeRequest] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    expired: int = 0
    opened: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """Released once for each stream whose configuration came."""
    left: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """Released once for each of them that ended."""
    port: int = 0
    _server: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Also again after `kill`, on the same port."""
        self._server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.http2.min_ping_interval_without_data_ms", 10_000)]
        )
        handlers = {
            "StreamingRecognize": grpc.stream_stream_rpc_method_handler(
                self._streaming_recognize,
                request_deserializer=StreamingRecognizeRequest.deserialize,
                response_serializer=StreamingRecognizeResponse.serialize,
            ),
            "Recognize": grpc.unary_unary_rpc_method_handler(
                self._recognize,
                request_deserializer=RecognizeRequest.deserialize,
                response_serializer=RecognizeResponse.serialize,
            ),
        }
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def kill(self) -> None:
        """All streams break, and nobody listens on the port."""
        await self._server.stop(None)

    def _next_fault(self) -> Fault | None:
        return self.faults.popleft() if self.faults else self.fault

    async def _refuse(self, context: Any, violation: str) -> None:
        self.violations.append(violation)
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, violation)

    # ------------------------------------------------------------ one utterance in one request

    async def _recognize(self, request: RecognizeRequest, context: Any) -> RecognizeResponse:
        arrived_at = asyncio.get_running_loop().time()
        self.requests.append(request)
        fault = self._next_fault()
        if fault in STATUS_FAULTS:
            await context.abort(STATUS_FAULTS[fault], "as the emulator was told")
        if fault in ("silent", "deaf"):
            await asyncio.Event().wait()
        audio, config = request.audio.content, request.config
        found = _mistakes(config)
        if not found and len(audio) > ENCODINGS[config.encoding] * config.sample_rate_hertz * SYNC_S:
            found = ["Sync input too long."]
        if found:
            await self._refuse(context, found[0])
        pcm = _pcm(audio, config)
        text = await asyncio.to_thread(self.recognise, pcm, config.sample_rate_hertz)
        since = self.speech_ended_at(pcm) if self.speech_ended_at else arrived_at
        await asyncio.sleep(since + self.delay_s - asyncio.get_running_loop().time())
        if not text or fault == "empty":
            return RecognizeResponse()
        return RecognizeResponse(results=[SpeechRecognitionResult(alternatives=_alternatives(text, 0.9))])

    # ------------------------------------------------------------ a stream

    async def _streaming_recognize(self, _: object, context: Any) -> None:
        fault = self._next_fault()
        if fault in STATUS_FAULTS:
            await context.abort(STATUS_FAULTS[fault], "as the emulator was told")
        first = await self._read(context)
        if first is None:
            return
        config = first.streaming_config
        found = _mistakes(config.config)
        if "audio_content" in first or "streaming_config" not in first:
            found = ["Malformed request: the first message must hold a streaming_config and no audio."]
        if config.single_utterance:
            found.append("single_utterance is not emulated")
        if found:
            await self._refuse(context, found[0])
        stream = Stream(config)
        self.streams.append(stream)
        self.opened.release()
        try:
            if fault == "deaf":
                await asyncio.Event().wait()
            await self._serve(stream, fault, context)
            stream.ended = "OK"
        except asyncio.CancelledError:
            stream.ended = "CANCELLED"
            raise
        finally:
            stream.ended = stream.ended or "ABORTED"
            self.left.release()

    async def _read(self, context: Any) -> StreamingRecognizeRequest | None:
        """None at the client's end of the stream."""
        try:
            async with asyncio.timeout(self.gap_s):
                request = await context.read()
        except TimeoutError:
            await context.abort(grpc.StatusCode.ABORTED, GAP)
        return request if isinstance(request, StreamingRecognizeRequest) else None

    async def _serve(self, stream: Stream, fault: Fault | None, context: Any) -> None:
        config = stream.config.config
        ears = _Ears(self, config.sample_rate_hertz)
        began_at = asyncio.get_running_loop().time()
        while (request := await self._read(context)) is not None:
            audio = request.audio_content
            if wrong := _wrong_audio(request, config):
                await self._refuse(context, wrong)
            stream.audio_ms += len(audio) * 1000 / (ENCODINGS[config.encoding] * config.sample_rate_hertz)
            if stream.audio_ms / 1000 > self.life_s:
                self.expired += 1
                await context.abort(grpc.StatusCode.OUT_OF_RANGE, EXPIRED)
            if stream.audio_ms / 1000 > 2 + self.pace * (asyncio.get_running_loop().time() - began_at):
                self.violations.append("the audio comes far faster than real time")
                await context.abort(grpc.StatusCode.OUT_OF_RANGE, TOO_FAST)
            for heard in ears.hear(_pcm(audio, config)):
                if await self._tell(heard, stream, fault, context):
                    return
        for heard in ears.finish():
            await self._tell(heard, stream, fault, context)

    async def _tell(self, heard: "_Heard", stream: Stream, fault: Fault | None, context: Any) -> bool:
        """Whether the stream ends with it."""
        if fault == "silent":
            return False
        text = await asyncio.to_thread(self.recognise, heard.pcm, stream.config.config.sample_rate_hertz)
        if not text:
            return False
        if not heard.final:
            if stream.config.interim_results:
                await context.write(_interim(text, heard.end_ms))
            if fault == "cut":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            return False
        if fault == "status":
            await context.write(StreamingRecognizeResponse(error={"code": 13, "message": "as the emulator was told"}))
            return True
        await asyncio.sleep(self.final_delay_s)
        await context.write(_final("" if fault == "empty" else text, heard.end_ms - self.rough_ms))
        if fault == "duplicate":
            await context.write(_interim(text, heard.end_ms - self.end_ms))
            await context.write(_final(text, heard.end_ms - self.rough_ms))
        return fault == "end"


@dataclass(slots=True)
class _Heard:
    pcm: bytes
    end_ms: int
    final: bool


class _Ears:
    """Finds utterances by loudness, in the time of the audio."""

    PREROLL_MS = 200

    def __init__(self, emulator: GoogleSpeechEmulator, rate: int) -> None:
        self._emulator = emulator
        self._rate = rate
        self._frame_bytes = rate * FRAME_MS // 1000 * 2
        self._rest = b""
        self._now_ms = 0
        self._utterance = bytearray()
        self._speaking = False
        self._silence_ms = 0
        self._told_ms = 0

    def hear(self, pcm: bytes) -> Iterator[_Heard]:
        self._rest += pcm
        while len(self._rest) >= self._frame_bytes:
            frame, self._rest = self._rest[: self._frame_bytes], self._rest[self._frame_bytes :]
            self._now_ms += FRAME_MS
            self._utterance += frame
            if next(_loud_frames(frame, self._rate)):
                self._speaking, self._silence_ms = True, 0
            else:
                self._silence_ms += FRAME_MS
            yield from self._judge()

    def _judge(self) -> Iterator[_Heard]:
        if not self._speaking:
            preroll = self.PREROLL_MS // FRAME_MS * self._frame_bytes
            del self._utterance[:-preroll]
            self._told_ms = self._now_ms
            return
        lasts_ms = len(self._utterance) // self._frame_bytes * FRAME_MS
        if self._silence_ms >= self._emulator.end_ms or lasts_ms >= self._emulator.max_utterance_ms:
            yield from self.finish()
        elif not self._silence_ms and self._now_ms - self._told_ms >= self._emulator.interim_ms:
            self._told_ms = self._now_ms
            yield _Heard(bytes(self._utterance), self._now_ms, False)

    def finish(self) -> Iterator[_Heard]:
        """What is said so far is all there is."""
        if self._speaking:
            yield _Heard(bytes(self._utterance), self._now_ms, True)
        self._speaking = False
        self._utterance.clear()


def _loud_frames(pcm: bytes, rate: int) -> Iterator[bool]:
    size = rate * FRAME_MS // 1000
    samples = np.frombuffer(pcm, "<i2").astype(np.float64)
    for start in range(0, len(samples) - size + 1, size):
        yield bool(np.sqrt(np.mean(samples[start : start + size] ** 2)) > LOUD)


def _pcm(audio: bytes, config: RecognitionConfig) -> bytes:
    return g711.decode(audio) if config.encoding == RecognitionConfig.AudioEncoding.MULAW else audio


def _mistakes(config: RecognitionConfig) -> list[str]:
    languages = [config.language_code, *config.alternative_language_codes]
    found = [f"Invalid recognition 'config': bad language code {code}." for code in languages if code not in LANGUAGES]
    if len(languages) > 4 or len(set(languages)) < len(languages):
        found.append("Invalid recognition 'config': bad alternative languages.")
    if config.encoding not in ENCODINGS:
        found.append("Invalid recognition 'config': bad encoding.")
    if not 8000 <= config.sample_rate_hertz <= 48000:
        found.append("Invalid recognition 'config': bad sample rate hertz.")
    if config.model not in MODELS:
        found.append(f"Invalid recognition 'config': Incorrect model specified: {config.model}.")
    return found


def _wrong_audio(request: StreamingRecognizeRequest, config: RecognitionConfig) -> str:
    audio = request.audio_content
    if "streaming_config" in request:
        return "Malformed request: a streaming_config after the first message."
    if not audio:
        return "Malformed request: no audio."
    if len(audio) > MESSAGE_BYTES:
        return f"Request audio of {len(audio)} bytes exceeds {MESSAGE_BYTES}."
    if len(audio) % ENCODINGS[config.encoding]:
        return "half a sample was sent"
    return ""


def _alternatives(text: str, confidence: float = 0.0) -> list[SpeechRecognitionAlternative]:
    return [SpeechRecognitionAlternative(transcript=text, confidence=confidence)]


def _interim(text: str, end_ms: int) -> StreamingRecognizeResponse:
    """What is not likely to change, and the last word with a space in front."""
    sure, _, unsure = text.rpartition(" ")
    parts = [(sure, 0.9), (f" {unsure}", 0.01)] if sure else [(unsure, 0.01)]
    return StreamingRecognizeResponse(
        results=[
            StreamingRecognitionResult(
                alternatives=_alternatives(part),
                stability=stability,
                result_end_time=timedelta(milliseconds=end_ms),
                language_code="ko-kr",
            )
            for part, stability in parts
        ]
    )


def _final(text: str, end_ms: int) -> StreamingRecognizeResponse:
    result = StreamingRecognitionResult(
        alternatives=_alternatives(text, 0.9 if text else 0.0),
        is_final=True,
        result_end_time=timedelta(milliseconds=end_ms),
        language_code="ko-kr",
    )
    return StreamingRecognizeResponse(results=[result])


async def _serve(arguments: argparse.Namespace) -> None:
    from tests.emulators.rtzr import demo_model

    emulator = GoogleSpeechEmulator(
        recognise=demo_model() if arguments.demo_model else count_aloud,
        delay_s=arguments.delay_s,
        port=arguments.port,
    )
    async with emulator:
        print(f"GOOGLE_SPEECH_ENDPOINT={emulator.url}", flush=True)  # noqa: T201
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.emulators.google_speech", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-s", type=float, default=0.4, help="how long Recognize takes")
    parser.add_argument("--demo-model", action="store_true", help="recognise with the demo model")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
