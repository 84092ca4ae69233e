"""One media stream of a call: the socket, the frames that leave on time, the marks that come back.

Frames of 20 ms leave at `began + n * 20 ms` of the loop's clock, whatever happened to the one before. One task sends,
one receives; the sender also wakes when a mark is due.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from app.audio.g711 import SILENCE
from app.simulator.options import PhoneOptions
from app.simulator.playout import BYTES_PER_S, Playout
from app.simulator.report import CallReport
from app.simulator.script import Caller, HangUp
from app.simulator.wire import FRAME_BYTES, FRAME_MS, Audio, Clear, Mark, Violation, Wire

FRAME_S = FRAME_MS / 1000
STOP_SEEN_S = 2.0
IN_FLIGHT_S = 0.1
"""What was sent before the server had read our `stop` may still come so long after its protocol layer had."""
CONGESTED_S = 1.0
STUCK_S = 10.0


@dataclass(slots=True)
class Track:
    """What the caller's side sent since its first stream began; a second stream is put where it belongs in time."""

    began: float | None = None
    audio: bytearray = field(default_factory=bytearray)

    def begin(self, now: float) -> None:
        if self.began is None:
            self.began = now
        gap = round((now - self.began) * BYTES_PER_S) - len(self.audio)
        self.audio += bytes([SILENCE]) * gap


class Line:
    """One media stream."""

    def __init__(
        self,
        socket: ClientConnection,
        wire: Wire,
        playout: Playout,
        caller: Caller,
        track: Track,
        options: PhoneOptions,
        report: CallReport,
    ) -> None:
        self._socket = socket
        self._wire = wire
        self._playout = playout
        self._caller = caller
        self._track = track
        self._options = options
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._alarm = _Alarm(self._loop)
        self._began = 0.0
        self._hung_up = False

    async def run(self) -> bool:
        """Until either side ends the stream; whether it was the caller."""
        try:
            async with asyncio.timeout(self._options.max_s + STUCK_S), asyncio.TaskGroup() as group:
                sender = group.create_task(self._send())
                await self._receive()
                sender.cancel()
        except TimeoutError:
            self._report.violations.append(Violation(31930, "congested", "the server read nothing to the end"))
        self._playout.stop(self._loop.time())
        return self._hung_up

    async def _receive(self) -> None:
        """Until the socket is closed. The caller hears nothing that comes after hanging up."""
        playout = self._playout
        with suppress(ConnectionClosed):
            while True:
                message = await self._socket.recv()
                now = self._loop.time()
                received = self._wire.receive(message)
                if self._hung_up:
                    continue
                match received:
                    case Audio(mulaw):
                        playout.play(mulaw, now)
                    case Mark(name):
                        playout.mark(name, now)
                        self._alarm.sooner(playout.next_echo_at)
                    case Clear():
                        playout.clear(now)
                        self._alarm.sooner(playout.next_echo_at)

    async def _send(self) -> None:
        with suppress(ConnectionClosed):
            await self._socket.send(self._wire.connected())
            if self._options.leave_before == "start":
                await self._leave(HangUp(self._options.abrupt))
                return
            self._began = self._loop.time()
            self._track.begin(self._began)
            await self._socket.send(self._wire.start())
            await self._leave(await self._talk())

    async def _talk(self) -> HangUp:
        """Frames, marks and keys, until the caller leaves."""
        caller, playout, track = self._caller, self._playout, self._track
        options = self._options
        leave_at = self._began + (options.max_s if options.hang_up_at_s is None else options.hang_up_at_s)
        frames = 0
        while True:
            due = self._began + (frames + 1) * FRAME_S
            echo_at = playout.next_echo_at
            await self._alarm.wait_until(min(due, leave_at, due if echo_at is None else echo_at))
            now = self._loop.time()
            for name in playout.take_echoes(now):
                await self._socket.send(self._wire.mark(name))
            if now >= leave_at:
                return HangUp(options.abrupt)
            if now < due:
                continue
            self._report.late_ms = max(self._report.late_ms, (now - due) * 1000)
            frame = caller.frame(due)
            while caller.keys:
                await self._socket.send(self._wire.dtmf(caller.keys.pop(0)))
            if caller.leaving:
                return caller.leaving
            track.audio += frame
            await self._socket.send(self._wire.media(frame, frames * FRAME_MS))
            frames += 1
            if self._loop.time() - now > CONGESTED_S:
                frames += self._discard(frames)

    def _discard(self, frames: int) -> int:
        """The server does not read: what should have been sent meanwhile is lost, as with Twilio."""
        lost = int((self._loop.time() - self._began) / FRAME_S) - frames
        self._report.violations.append(
            Violation(31930, "congested", f"the server read nothing for {lost * FRAME_MS} ms")
        )
        self._track.audio += bytes([SILENCE]) * lost * FRAME_BYTES
        return lost

    async def _leave(self, how: HangUp) -> None:
        self._hung_up = True
        self._playout.stop(self._loop.time())
        if how.abrupt:
            self._socket.transport.abort()
            return
        await self._socket.send(self._wire.stop())
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SEEN_S):
                await (await self._socket.ping())  # its answer comes behind all that was sent before the stop was read
        await asyncio.sleep(IN_FLIGHT_S)
        self._wire.over()
        await asyncio.sleep(self._options.listen_on_s)
        await self._socket.close()


class _Alarm:
    """Waits for a time of the loop's clock, which may be brought forward meanwhile. For one waiter."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ringing: asyncio.Future[None] | None = None

    async def wait_until(self, at: float) -> None:
        self._at = at
        self._ringing = self._loop.create_future()
        self._timer = self._loop.call_at(at, self._ring)
        try:
            await self._ringing
        finally:
            self._timer.cancel()
            self._timer = None

    def sooner(self, at: float | None) -> None:
        if self._timer is None or at is None or at >= self._at:
            return
        self._timer.cancel()
        self._at = at
        self._timer = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        if self._ringing is not None and not self._ringing.done():
            self._ringing.set_result(None)
