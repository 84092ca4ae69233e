"""Small honest stand-ins for what a call needs: a voice, a model, a recogniser, a store, a socket.

Sound carries its own name: every 20 ms of it say which text it belongs to and where in it. So what the far side
heard, and what the recogniser was given, is read back from the audio itself; a lost or doubled piece shows.
"""

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from starlette.websockets import WebSocketDisconnect

from app.audio import g711
from app.audio.types import AudioFrame, Transcript
from app.errors import LlmError, ProviderError, SttError, TtsError
from app.services.ai_call.types import CallInfo, EndReason, Exchange, Message

BLOCK = 160
"""Bytes of mu-law in 20 ms."""
SILENT_BLOCK = bytes([g711.SILENCE]) * BLOCK

CALL = CallInfo(
    "CA" + "1" * 32, "AC" + "1" * 32, "+820200000001", "+820200000002", "ko", datetime(2025, 3, 1, tzinfo=UTC)
)

# ---------------------------------------------------------------- sound that says what it is

Name = tuple[int, int]
"""A text's number and the place in it, both under 4,096."""

_NAMED = re.compile(rb"([\x80-\xbf][\x00-\x3f]{3})\1*")


def sound(number: int, place: int) -> bytes:
    """20 ms of loud mu-law that carry a name: one positive sample, three negative ones, over and over."""
    name = bytes([0x80 | number >> 6, number & 63, place >> 6, place & 63])
    return name * (BLOCK // len(name))


@dataclass(frozen=True)
class Stretch:
    """Where in the audio a name stands, in bytes."""

    name: Name
    start: int
    end: int


def stretches(mulaw: bytes) -> list[Stretch]:
    """The named sounds in the audio, in order, however it was cut."""
    return [
        Stretch(((name[0] & 63) << 6 | name[1], name[2] << 6 | name[3]), found.start(), found.end())
        for found in _NAMED.finditer(mulaw)
        for name in [found[1]]
    ]


def names_in(mulaw: bytes) -> list[Name]:
    return [stretch.name for stretch in stretches(mulaw)]


class LoudnessDetector:
    """A SpeechDetector for which all sound is speech."""

    frame_ms = 20
    frame_bytes = 2 * BLOCK

    def probability(self, pcm: bytes) -> float:
        return 0.0 if pcm.count(0) == len(pcm) else 1.0

    def reset(self) -> None:
        pass


# ---------------------------------------------------------------- the model and the voice


def llm_error(kind: str = "down") -> LlmError:
    return LlmError(kind, provider="scripted", kind=kind, retryable=True)


def tts_error(kind: str = "down") -> TtsError:
    return TtsError(kind, provider="tone", kind=kind, retryable=True)


Step = str | float | LlmError
"""What a model does next: writes, waits so many seconds, or breaks."""


class ScriptedLlm:
    """One script for each question, in order; after the last one it says `네.`"""

    name = "scripted"

    def __init__(self, *scripts: str | Sequence[Step], first_s: float = 0.3, word_s: float = 0.02) -> None:
        self._scripts = list(scripts)
        self._first_s = first_s
        self._word_s = word_s
        self.asked: list[list[Message]] = []
        self.open = 0
        """Answers being written now."""

    @property
    def questions(self) -> list[str]:
        return [messages[-1].content for messages in self.asked]

    async def reply(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        self.asked.append(list(messages))
        script = self._scripts.pop(0) if self._scripts else "네."
        self.open += 1
        try:
            await asyncio.sleep(self._first_s)
            for step in [script] if isinstance(script, str) else script:
                match step:
                    case str():
                        for word in re.findall(r"\S+\s*", step):
                            yield word
                            await asyncio.sleep(self._word_s)
                    case LlmError():
                        raise step
                    case seconds:
                        await asyncio.sleep(seconds)
        finally:
            self.open -= 1


class ToneTts:
    """The length of the sound follows the text. `faults`: for each text in turn, the error it ends in, after
    `fault_after_ms` of sound."""

    name = "tone"

    def __init__(
        self,
        *,
        first_s: float = 0.1,
        ms_per_char: int = 100,
        piece_bytes: int = 998,
        faults: Sequence[TtsError | None] = (),
        fault_after_ms: int = 0,
        dead: bool = False,
    ) -> None:
        self._first_s = first_s
        self._ms_per_char = ms_per_char
        self._piece_bytes = piece_bytes
        self._faults = list(faults)
        self._fault_after_ms = fault_after_ms
        self.dead = dead
        self.texts: list[str] = []
        """What was asked for; a text's number is its place here."""
        self.open = 0

    def ms(self, text: str) -> int:
        return len(text) * self._ms_per_char

    def blocks(self, text: str) -> int:
        """How many frames of 20 ms the text needs."""
        return -(-self.ms(text) // 20)

    async def speak(self, text: str, rate: int) -> AsyncGenerator[AudioFrame, None]:
        fault = tts_error() if self.dead else None
        if self._faults:
            fault = self._faults.pop(0)
        number = len(self.texts)
        self.texts.append(text)
        mulaw = b"".join(sound(number, place) for place in range(self.blocks(text)))[: self.ms(text) * 8]
        pcm = g711.decode(mulaw[: self._fault_after_ms * 8] if fault else mulaw)
        self.open += 1
        try:
            await asyncio.sleep(self._first_s)
            for start in range(0, len(pcm), self._piece_bytes):
                yield AudioFrame(pcm[start : start + self._piece_bytes], rate)
            if fault:
                raise fault
        finally:
            self.open -= 1


# ---------------------------------------------------------------- the recogniser


def stt_error(kind: str) -> SttError:
    return SttError(kind, provider="scripted", kind=kind, retryable=True)


class ScriptedStt:
    """Hears the words whose names are in the audio it is given. A word that was cut away is not heard, and one
    that was given twice is heard twice."""

    name = "scripted"

    def __init__(
        self,
        *,
        hears: Literal["everything", "speech"] = "speech",
        decode_s: float = 0.1,
        partials: bool = False,
        ends_after_final: bool = False,
        deaf: bool = False,
        dead: bool = False,
    ) -> None:
        """`deaf`: no final ever comes. `dead`: a stream cannot even be opened."""
        self.hears = hears
        self.decode_s = decode_s
        self.partials = partials
        self.ends_after_final = ends_after_final
        self.deaf = deaf
        self.dead = dead
        self.words: dict[Name, str] = {}
        """What can be heard; a sound that is not here has no words."""
        self.opened = 0
        self.open_now = 0
        self._stream: _ScriptedStream | None = None

    @asynccontextmanager
    async def open(self, rate: int, language: str) -> AsyncIterator["_ScriptedStream"]:
        self.opened += 1
        if self.dead:
            raise stt_error("refused")
        self._stream = _ScriptedStream(self)
        self.open_now += 1
        try:
            yield self._stream
        finally:
            self.open_now -= 1

    def breaks(self, error: Exception | None = None) -> None:
        """The connection is reset now; what was being heard is lost. Another error stands for a bug of ours."""
        assert self._stream is not None
        self._stream.results.put_nowait(error or stt_error("reset"))

    def ends(self) -> None:
        """The vendor closes the stream in good order."""
        assert self._stream is not None
        self._stream.results.put_nowait(None)


class _ScriptedStream:
    VENDOR_SILENCE_MS = 500

    def __init__(self, stt: ScriptedStt) -> None:
        self._stt = stt
        self._heard: list[Name] = []
        self._decoding: deque[Transcript] = deque()
        self._start_ms = self._end_ms = self._silent_ms = 0.0
        self.results: asyncio.Queue[Transcript | Exception | None] = asyncio.Queue()

    async def send(self, frame: AudioFrame) -> None:
        names = names_in(g711.encode(frame.pcm))
        if names and not self._heard:
            self._start_ms = frame.at_ms
        self._end_ms = frame.at_ms + frame.duration_ms
        new = [name for name in names if name != (self._heard[-1] if self._heard else None)]
        self._heard += new
        if self._stt.partials and any(name in self._stt.words for name in new):
            self.results.put_nowait(self._transcript(final=False))
        self._silent_ms = 0.0 if names else self._silent_ms + frame.duration_ms
        if self._stt.hears == "everything" and self._heard and self._silent_ms >= self.VENDOR_SILENCE_MS:
            self._decode()

    async def pause(self, speech_ms: int) -> None:
        pass

    async def resume(self) -> None:
        pass

    async def flush(self, speech_ms: int) -> None:
        if self._stt.hears == "speech":
            self._decode()

    def _decode(self) -> None:
        if not self._stt.deaf:
            loop = asyncio.get_running_loop()
            self._decoding.append(self._transcript(final=True))
            loop.call_later(self._stt.decode_s, lambda: self.results.put_nowait(self._decoding.popleft()))
        self._heard.clear()

    def _transcript(self, *, final: bool) -> Transcript:
        text = " ".join(self._stt.words[name] for name in self._heard if name in self._stt.words)
        return Transcript(text, final, round(self._start_ms), round(self._end_ms))

    async def __aiter__(self) -> AsyncIterator[Transcript]:
        while (result := await self.results.get()) is not None:
            if isinstance(result, Exception):
                raise result
            yield result
            if result.final and self._stt.ends_after_final:
                return


class Parrot:
    """Says what it is told to: after two seconds of sound if it hears everything, else at once."""

    name = "parrot"

    def __init__(self, *says: str | Exception | None, hears: Literal["everything", "speech"] = "everything") -> None:
        self.hears = hears
        self._says = says
        self.open_now = 0
        self._heard_ms = 0.0
        self._enough = asyncio.Event()

    @asynccontextmanager
    async def open(self, rate: int, language: str) -> AsyncIterator["Parrot"]:
        self.open_now += 1
        try:
            yield self
        finally:
            self.open_now -= 1

    async def send(self, frame: AudioFrame) -> None:
        self._heard_ms += frame.duration_ms
        if self.hears == "speech" or self._heard_ms >= 2_000:
            self._enough.set()

    async def pause(self, speech_ms: int) -> None:
        pass

    async def flush(self, speech_ms: int) -> None:
        pass

    async def resume(self) -> None:
        raise AssertionError("a clear sentence has no second half")

    async def __aiter__(self) -> AsyncIterator[Transcript]:
        for says in self._says:
            await self._enough.wait()
            if isinstance(says, Exception):
                raise says
            if says is None:
                await asyncio.Event().wait()
            yield Transcript(str(says), True)


# ---------------------------------------------------------------- the store


@dataclass
class MemoryStore:
    """A CallStore. Broken: `fails` refuses every write, `hangs` never answers one."""

    fails: bool = False
    hangs: bool = False
    calls: list[CallInfo] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    ends: list[EndReason] = field(default_factory=list)

    async def open_call(self, call: CallInfo) -> None:
        await self._write()
        self.calls.append(call)

    async def add_exchange(self, call_sid: str, exchange: Exchange) -> None:
        await self._write()
        self.exchanges.append(exchange)

    async def close_call(self, call_sid: str, reason: EndReason, at: datetime) -> None:
        await self._write()
        self.ends.append(reason)

    async def _write(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails:
            raise ProviderError("disk full", provider="memory", kind="full", retryable=True)


# ---------------------------------------------------------------- the socket

SendFault = Literal["hangs", "runtime_error", "disconnect", "os_error"]


class MemorySocket:
    """The server's end of a WebSocket, with Starlette's manners; `put` and `deliver` are the far side's end.

    `misuse` lists what a real ASGI server would have complained about in its log.
    """

    def __init__(self, deliver: Callable[[str], None], on_last: Callable[[], None] = lambda: None) -> None:
        """`on_last` is called when the server has read the message that ends the stream."""
        self._deliver = deliver
        self._on_last = on_last
        self._inbox: asyncio.Queue[str | int | bytes] = asyncio.Queue()
        self._gone = False
        self.send_fault: SendFault | None = None
        self.close_hangs = False
        self.closed_with: int | None = None
        self.misuse: list[str] = []

    def put(self, message: str | bytes) -> None:
        self._inbox.put_nowait(message)

    def leave(self, code: int = 1000) -> None:
        """The far side has closed the socket."""
        self._inbox.put_nowait(code)

    async def receive(self) -> dict[str, Any]:
        if self._gone:
            self._complain('Cannot call "receive" once a disconnect message has been received.')
        message = await self._inbox.get()
        if isinstance(message, int):
            self._gone = True
            self._on_last()
            return {"type": "websocket.disconnect", "code": message}
        if isinstance(message, bytes):
            return {"type": "websocket.receive", "bytes": message}
        if message.startswith('{"event":"stop"'):
            self._on_last()
        return {"type": "websocket.receive", "text": message}

    async def send_text(self, data: str) -> None:
        if self.closed_with is not None:
            self._complain('Cannot call "send" once a close message has been sent.')
        match self.send_fault:
            case "hangs":
                await asyncio.Event().wait()
            case "runtime_error":
                raise RuntimeError("Unexpected ASGI message 'websocket.send'")
            case "disconnect":
                raise WebSocketDisconnect(1006)
            case "os_error":
                raise ConnectionResetError("reset by peer")
        self._deliver(data)

    async def close(self, code: int = 1000) -> None:
        if self.closed_with is not None:
            self._complain('Cannot call "send" once a close message has been sent.')
        self.closed_with = code
        if self.close_hangs:
            await asyncio.Event().wait()
        if self.send_fault == "disconnect":
            raise WebSocketDisconnect(1006)

    def _complain(self, what: str) -> None:
        self.misuse.append(what)
        raise RuntimeError(what)
