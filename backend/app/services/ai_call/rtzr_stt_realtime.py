"""STT_PROVIDER=rtzr: one WebSocket for a whole call, with as many utterances as the caller makes.

The vendor hears everything and ends an utterance by the silence in the audio itself, so silence must keep flowing.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import structlog
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK
from websockets.frames import CloseCode

from app.audio.timeline import Timeline
from app.audio.types import SAMPLE_BYTES, AudioFrame, Transcript
from app.errors import SttError
from app.services.ai_call.rtzr_stt_service import NAME, Result, RtzrSttService, read_message, stt_error

log = structlog.get_logger(__name__)

END_OF_STREAM = "EOS"


@dataclass(frozen=True, slots=True)
class RtzrStreamOptions:
    """`chunk_ms` is sent at once: as little as the vendor's samples send, for an utterance's end waits for it.
    `max_speed` in multiples of real time: those samples keep to real time, and a replay should not look like abuse.
    `hold_s`: how long a final waits for that of an earlier utterance, `finish_s` how long the end of the stream for
    the vendor's."""

    chunk_ms: int = 64
    max_speed: float = 8.0
    send_s: float = 2.0
    hold_s: float = 0.3
    finish_s: float = 1.5
    max_nonsense: int = 5  # messages in a row that mean nothing


class RtzrStt:
    name = NAME
    hears: Literal["everything", "speech"] = "everything"

    def __init__(self, service: RtzrSttService, options: RtzrStreamOptions | None = None) -> None:
        self._service = service
        self._options = options or RtzrStreamOptions()

    @asynccontextmanager
    async def open(self, rate: int, language: str) -> AsyncIterator["RtzrStream"]:
        connection = await self._service.connect(rate, language)
        stream = RtzrStream(connection, rate, self._service.options.epd_s, self._options)
        try:
            yield stream
        finally:
            try:
                await stream.finish()
            finally:
                connection.transport.abort()  # nothing, where the connection is over

    async def check(self) -> None:
        await self._service.check()


class RtzrStream:
    def __init__(self, connection: ClientConnection, rate: int, epd_s: float, options: RtzrStreamOptions) -> None:
        self._connection = connection
        self._rate = rate
        self._epd_ms = 1000 * epd_s
        self._options = options
        self._timeline = Timeline()
        self._chunk = bytearray()
        self._next_chunk_at = 0.0
        self._order = UtteranceOrder()
        self._hold_until: float | None = None
        self._nonsense = 0
        self._reading = False
        self._useless = False  # not worth a farewell

    # ------------------------------------------------------------ audio in

    async def send(self, frame: AudioFrame) -> None:
        """Once the vendor has closed, nothing: the iteration says how it ended. Raises SttError if the vendor takes
        no more."""
        self._timeline.sent(frame)
        self._chunk += frame.pcm
        if self._ms(len(self._chunk)) >= self._options.chunk_ms:
            await self._send_chunk()

    async def _send_chunk(self) -> None:
        loop = asyncio.get_running_loop()
        if (early_s := self._next_chunk_at - loop.time()) > 0:
            await asyncio.sleep(early_s)
        chunk, self._chunk = bytes(self._chunk), bytearray()
        self._next_chunk_at = loop.time() + self._ms(len(chunk)) / 1000 / self._options.max_speed
        try:
            async with asyncio.timeout(self._options.send_s):
                await self._connection.send(chunk)
        except ConnectionClosed:
            return
        except TimeoutError as error:
            self._useless = True
            raise stt_error("stall", "RTZR takes no more audio", retryable=True) from error

    async def pause(self, speech_ms: int) -> None:
        pass

    async def resume(self) -> None:
        pass

    async def flush(self, speech_ms: int) -> None:
        pass

    async def finish(self) -> None:
        """Say goodbye and close. What the vendor still has to say is for whoever is iterating, else for nobody."""
        if self._useless:
            return
        try:
            async with asyncio.timeout(self._options.finish_s):
                if self._chunk:
                    await self._send_chunk()
                await self._connection.send(END_OF_STREAM)
                while not self._reading:
                    await self._connection.recv()
                await self._connection.wait_closed()
        except ConnectionClosed:
            pass
        except (TimeoutError, SttError):
            await self._connection.close()

    # ------------------------------------------------------------ words out

    async def __aiter__(self) -> AsyncIterator[Transcript]:
        """Ends when the vendor closes in order. Raises SttError for everything else. One iteration at a time."""
        failure = None
        while True:
            try:
                results = await self._next()
            except SttError as error:
                failure = error
                break
            if results is None:
                break
            for result in results:
                yield self._transcript(result)
        for result in self._order.give_up():
            yield self._transcript(result)
        if failure is not None:
            raise failure

    async def _next(self) -> list[Result] | None:
        """What may be told now; None at the end."""
        self._reading = True
        try:
            async with asyncio.timeout_at(self._hold_until):
                message = await self._connection.recv()
            results = self._understood(message)
        except TimeoutError:
            log.info("x rtzr owes a final, going on without it")
            results = self._order.give_up()
        except ConnectionClosedOK:
            return None
        except ConnectionClosed as error:
            if error.rcvd is None and error.sent is not None and error.sent.code == CloseCode.INTERNAL_ERROR:
                raise stt_error("timeout", "RTZR answers no ping any more", retryable=True) from error
            code = error.rcvd.code if error.rcvd else "none"
            raise stt_error("reset", f"RTZR broke the stream off (close code {code})", retryable=True) from error
        finally:
            self._reading = False
        if not self._order.holds:
            self._hold_until = None
        elif self._hold_until is None:
            self._hold_until = asyncio.get_running_loop().time() + self._options.hold_s
        return results

    def _understood(self, message: str | bytes) -> list[Result]:
        try:
            result = read_message(message)
        except SttError:
            self._useless = True
            raise
        if result is not None:
            self._nonsense = 0
            return self._order.take(result)
        self._nonsense += 1
        log.warning("x rtzr message not understood", in_a_row=self._nonsense, length=len(message))
        if self._nonsense > self._options.max_nonsense:
            self._useless = True
            raise stt_error("format", "RTZR sends what is no transcript: see RTZR_API_BASE", retryable=True)
        return []

    def _transcript(self, result: Result) -> Transcript:
        """A partial has no end yet: it is told as its start."""
        log.debug("< rtzr final" if result.final else "< rtzr partial", seq=result.seq, text=result.text)
        start_ms = self._timeline.media_ms(result.start_ms)
        if not result.final:
            return Transcript(result.text, False, start_ms, start_ms)
        end_ms = result.start_ms + result.duration_ms
        if not result.duration_ms:  # not told: it was found by the silence that came after it
            end_ms = max(end_ms, self._timeline.sent_ms - self._epd_ms)
        return Transcript(result.text, True, start_ms, self._timeline.media_ms(end_ms), result.confidence)

    def _ms(self, size: int) -> float:
        return size * 1000 / (SAMPLE_BYTES * self._rate)


class UtteranceOrder:
    """The utterances of one stream in the order in which they were spoken, each final once.

    A final waits where words of an earlier utterance were seen whose own final has not come.
    """

    def __init__(self) -> None:
        self._told = -1
        self._told_from_ms = 0.0
        self._told_until_ms = 0.0
        self._open: set[int] = set()  # words were seen, the final was not
        self._held: dict[int, Result] = {}

    @property
    def holds(self) -> bool:
        return bool(self._held)

    def take(self, result: Result) -> list[Result]:
        """What may be told now: nothing for what was told before, came too late, or has no words yet."""
        if self._is_stale(result):
            if result.final:
                log.info("x rtzr final dropped, it was told or came too late", seq=result.seq)
            return []
        if not result.final:
            if not result.text:
                return []
            self._open.add(result.seq)
            return [result]
        self._open.discard(result.seq)
        self._held[result.seq] = result
        return self._tell(before=min(self._open, default=None))

    def give_up(self) -> list[Result]:
        """Everything held, for what it waited for will not come."""
        return self._tell(before=None)

    def _is_stale(self, result: Result) -> bool:
        if result.seq in self._held:
            return True
        if result.seq > self._told:
            return False
        # Later audio under an old number would be a change of the vendor's numbering: words, not a repetition.
        return not result.final or result.start_ms <= self._told_from_ms or result.start_ms < self._told_until_ms

    def _tell(self, before: int | None) -> list[Result]:
        ready = [seq for seq in sorted(self._held) if before is None or seq < before]
        results = [self._held.pop(seq) for seq in ready]
        for result in results:
            self._told = max(self._told, result.seq)
            self._told_from_ms = max(self._told_from_ms, result.start_ms)
            self._told_until_ms = max(self._told_until_ms, result.start_ms + result.duration_ms)
        self._open = {seq for seq in self._open if seq > self._told}
        return results
