"""TwilioLine: a Line over a media-stream WebSocket, and the only owner of that socket.

What we send is paced: at most `lead_ms` and a frame is ahead of what the far side has played, so an interruption
finds little to clear. Sent audio stays in `_flight` until its time to be heard is over; so a pause knows what was
not heard and can play it again. Times are the loop's, in seconds: the way to the far side is equally long for audio
and for `clear`, so it cancels out.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from starlette.websockets import WebSocketDisconnect

from app.audio import g711
from app.audio.chunker import Chunker
from app.audio.types import AudioFrame
from app.errors import ProtocolViolation
from app.services.ai_call.types import (
    EndReason,
    KeyPressed,
    LineEvent,
    ReplyDone,
    ReplySpoken,
    ReplyStarted,
)
from app.telephony.media_stream import Marked, Media, MediaStream, Started, Stopped

log = structlog.get_logger(__name__)

RATE = 8_000
FRAME_BYTES = 160
FRAME_S = FRAME_BYTES / RATE
SILENCE = bytes([g711.SILENCE])
CLOSE_CODES: Mapping[EndReason, int] = {"error": 1011, "shutdown": 1012}
"""The others are 1000, or what the broken protocol asks for."""
CUT_OFF: tuple[EndReason, ...] = ("error", "media_stall", "protocol")
"""The stream broke and the call did not: the caller is told so by what comes after the stream."""
PEER_LEFT = 1001
"""In the place of a close code: there is nobody to close anything for."""


class Socket(Protocol):
    """The part of an ASGI WebSocket that a line uses."""

    async def receive(self) -> Any: ...
    async def send_text(self, data: str) -> None: ...
    async def close(self, code: int = 1000) -> None: ...


@dataclass(frozen=True, slots=True)
class LineOptions:
    """`burst_ms`: how far the lead may fall before the next burst; fewer wake-ups for a little more lead.
    `queue_ms`: audio that may wait here before `play` waits. `mark_grace_s`: an echo later than this after its
    audio was due is taken as come."""

    lead_ms: int = 600
    burst_ms: int = 100
    queue_ms: int = 5_000
    mark_grace_s: float = 2.0
    send_s: float = 2.0
    close_s: float = 0.5
    stall_s: float = 10.0


@dataclass(frozen=True, slots=True)
class _Audio:
    turn: int
    mulaw: bytes


@dataclass(frozen=True, slots=True)
class _Mark:
    turn: int
    text: str | None


@dataclass(slots=True)
class _Sent:
    """Something on its way to be heard; `due` is when the far side will have played it."""

    item: _Audio | _Mark
    due: float
    name: str = ""


async def _nothing() -> None:
    """The call ends with its socket: there is nobody to tell."""


class TwilioLine:
    rate = RATE

    def __init__(
        self,
        socket: Socket,
        stream: MediaStream,
        options: LineOptions,
        *,
        end_call: Callable[[], Awaitable[None]] = _nothing,
        on_drop: Callable[[float], None] = lambda ms: None,
    ) -> None:
        self._socket = socket
        self._stream = stream
        self._options = options
        self._end_call = end_call
        self._on_drop = on_drop
        self._queue: deque[_Audio | _Mark] = deque()
        self._queued = 0  # audio items in the queue
        self._flight: deque[_Sent] = deque()
        self._marks: dict[str, _Sent] = {}
        self._marks_made = 0
        self._chunker = Chunker(FRAME_BYTES)
        self._played_at = 0.0  # when all that was sent will have been heard
        self._far_holds = False  # something was sent since the last clear
        self._clear_due = False
        self._held = False
        self._silenced = -1  # turns up to here are stale
        self._started = -1  # the newest turn of which audio went out
        self._close_code = 1000
        self._closed = False  # nothing may be sent any more
        self._gone = False  # the caller has left: there is no call to end
        self._disconnected = False  # there is no socket to close
        self._received_at = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._report: Callable[[LineEvent], None] = lambda event: None

    # ------------------------------------------------------------ what the conversation asks for

    async def play(self, turn: int, frame: AudioFrame) -> None:
        if self._stale(turn):
            self._on_drop(frame.duration_ms)
            return
        for chunk in self._chunker.push(g711.encode(frame.pcm)):
            self._put_audio(turn, chunk)
        while self._queued * FRAME_S * 1000 > self._options.queue_ms and not self._stale(turn):
            self._room.clear()
            await self._room.wait()

    async def mark(self, turn: int, text: str | None) -> None:
        if self._stale(turn):
            return
        rest = self._chunker.flush(SILENCE)
        if rest is not None:
            self._put_audio(turn, rest)
        self._queue.append(_Mark(turn, text))
        self._wake.set()

    def clear(self, turn: int) -> None:
        self._silenced = max(self._silenced, turn)
        self._chunker.flush(SILENCE)
        self._queue.clear()
        self._queued = 0
        self._flight.clear()
        self._marks.clear()
        self._held = False
        self._silence_far_side()
        self._room.set()

    def pause(self) -> None:
        now = asyncio.get_running_loop().time()
        self._held = True
        self._forget_heard(now)
        for sent in reversed(self._flight):
            self._marks.pop(sent.name, None)  # its echo, when cleared, will prove nothing
            self._queue.appendleft(sent.item)
            self._queued += isinstance(sent.item, _Audio)
        self._flight.clear()
        self._silence_far_side()

    def resume(self) -> None:
        self._held = False
        self._wake.set()

    async def hang_up(self, reason: EndReason) -> None:
        self._give_up()
        self._close_code = CLOSE_CODES.get(reason, self._close_code)
        try:
            if not self._gone and reason not in (*CUT_OFF, "caller"):
                self._gone = True
                await self._end_call()
        finally:  # a carrier that cannot be told goes on with the verb behind our stream, once the socket is closed
            await self._close_socket()

    async def _close_socket(self) -> None:
        if self._disconnected:
            return
        self._disconnected = True
        try:
            async with asyncio.timeout(self._options.close_s):
                await self._socket.close(self._close_code)
        except (TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
            pass  # already closed, or a peer that does not answer: the kernel frees it

    # ------------------------------------------------------------ serving the socket

    async def run(self, report: Callable[[LineEvent], None]) -> EndReason:
        self._report = report
        try:
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(self._read())
                writer = group.create_task(self._write(reader))
                reader.add_done_callback(lambda _: writer.cancel())
                self._received_at = asyncio.get_running_loop().time()
                self._watch(reader)
            return "media_stall" if reader.cancelled() else reader.result()
        finally:
            if self._watchdog is not None:
                self._watchdog.cancel()
            self._give_up()

    def _watch(self, reader: "asyncio.Task[EndReason]") -> None:
        """End the reader when nothing has come for `stall_s`. A timer that looks back: to set one anew for every
        message costs more than to decode it."""
        loop = asyncio.get_running_loop()
        stalled_at = self._received_at + self._options.stall_s
        if loop.time() >= stalled_at:
            reader.cancel()
        else:
            self._watchdog = loop.call_at(stalled_at, self._watch, reader)

    async def _read(self) -> EndReason:
        loop = asyncio.get_running_loop()
        try:
            while True:
                message = await self._socket.receive()
                self._received_at = loop.time()
                if message["type"] == "websocket.disconnect":
                    self._closed = self._gone = self._disconnected = True
                    return "caller"
                text = message.get("text")
                if text is None:
                    self._stream.binary()
                elif self._received(text, self._received_at):
                    self._closed = self._gone = True
                    return "caller"
        except ProtocolViolation as violation:
            log.warning("x media stream broken off", kind=violation.kind, code=violation.close_code)
            self._close_code = violation.close_code
            return "protocol"

    def _received(self, text: str, now: float) -> bool:
        """One message in; whether it was the last."""
        match self._stream.receive(text, now):
            case Media(mulaw, at_ms):
                self._report(AudioFrame(g711.decode(mulaw), RATE, at_ms))
            case Marked(name):
                self._mark_heard(name)
            case KeyPressed() as key:
                self._report(key)
            case Stopped():
                return True
        return False

    async def _write(self, reader: "asyncio.Task[EndReason]") -> None:
        """Send what is due until the socket refuses. That the call is over is for the reader alone to judge, except
        when the peer is stuck: then the reader would wait for ever."""
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            try:
                async with asyncio.timeout(self._options.send_s):
                    await self._send_due(loop.time())
            except TimeoutError:
                log.warning("x the peer takes no audio")
                reader.cancel()
                return
            except (WebSocketDisconnect, RuntimeError, OSError) as error:
                log.debug("x socket refused a send", error=type(error).__name__)
                self._closed = self._disconnected = True
                self._room.set()
                return
            pause = self._next_wake(loop.time())
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                self._overdue_marks(loop.time())

    async def _send_due(self, now: float) -> None:
        lead_s = self._options.lead_ms / 1000
        while not self._closed:
            if self._clear_due:  # maybe since the last send began: what comes next must stand behind it
                self._clear_due = False
                await self._socket.send_text(self._stream.clear())
            elif self._queue and not self._held and self._played_at - now < lead_s:
                item = self._queue.popleft()
                if isinstance(item, _Audio):
                    await self._send_audio(item, now)
                else:
                    await self._send_mark(item, now)
            else:
                break
        self._forget_heard(now)
        self._room.set()

    async def _send_audio(self, item: _Audio, now: float) -> None:
        self._queued -= 1
        self._played_at = max(self._played_at, now) + FRAME_S
        self._flight.append(_Sent(item, self._played_at))
        self._far_holds = True
        if item.turn > self._started:
            self._started = item.turn
            self._report(ReplyStarted(item.turn))
        await self._socket.send_text(self._stream.media(item.mulaw))

    async def _send_mark(self, item: _Mark, now: float) -> None:
        self._marks_made += 1
        sent = _Sent(item, max(self._played_at, now), str(self._marks_made))
        self._flight.append(sent)
        self._marks[sent.name] = sent
        await self._socket.send_text(self._stream.mark(sent.name))

    def _next_wake(self, now: float) -> float | None:
        """Seconds until there is something to do by itself: a burst, or a mark that is overdue."""
        waits = []
        if self._queue and not self._held:
            lead_s = (self._options.lead_ms - self._options.burst_ms) / 1000
            waits.append(self._played_at - now - lead_s)
        if self._marks:
            waits.append(next(iter(self._marks.values())).due + self._options.mark_grace_s - now)
        return max(0.0, min(waits)) if waits else None

    # ------------------------------------------------------------ what was heard

    def _mark_heard(self, name: str) -> None:
        """An echo proves that all before it was played, unless we cleared since: then the name is forgotten."""
        sent = self._marks.pop(name, None)
        if sent is None or not isinstance(sent.item, _Mark):
            return
        while self._flight and self._flight[0].due <= sent.due:
            self._flight.popleft()
        mark = sent.item
        self._report(ReplyDone(mark.turn) if mark.text is None else ReplySpoken(mark.turn, mark.text))

    def _overdue_marks(self, now: float) -> None:
        while self._marks:
            name, sent = next(iter(self._marks.items()))
            if sent.due + self._options.mark_grace_s > now:
                return
            log.info("x mark not echoed in time")
            self._mark_heard(name)

    def _forget_heard(self, now: float) -> None:
        while self._flight and self._flight[0].due <= now:
            self._flight.popleft()

    # ------------------------------------------------------------ small helpers

    def _put_audio(self, turn: int, mulaw: bytes) -> None:
        self._queue.append(_Audio(turn, mulaw))
        self._queued += 1
        self._wake.set()

    def _stale(self, turn: int) -> bool:
        return self._closed or turn <= self._silenced

    def _silence_far_side(self) -> None:
        """`clear` once for what was sent since the last one; the far side then has nothing left to play."""
        self._clear_due = self._clear_due or self._far_holds
        self._far_holds = False
        self._played_at = 0.0
        self._wake.set()

    def _give_up(self) -> None:
        """Nothing can be sent any more; whoever waits for room is let go."""
        self._closed = True
        self._stream.close()
        self._queue.clear()
        self._queued = 0
        self._room.set()


async def await_start(socket: Socket, stream: MediaStream, timeout_s: float) -> Started:
    """The media stream's handshake: messages until `start`.

    Raises ProtocolViolation: 4408 when it does not come in time, 4400 when something else does, PEER_LEFT when the
    peer leaves.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    raise ProtocolViolation("the peer left before start", close_code=PEER_LEFT, kind="no_start")
                text = message.get("text")
                if text is None:
                    stream.binary()
                    continue
                event = stream.receive(text, loop.time())
                if isinstance(event, Started):
                    return event
                if isinstance(event, Stopped):
                    raise ProtocolViolation("stop before start", close_code=1000, kind="no_start")
    except TimeoutError as error:
        raise ProtocolViolation("no start in time", close_code=4408, kind="no_start") from error
