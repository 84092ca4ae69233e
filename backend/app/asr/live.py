"""One request of /transcribe: audio comes in as it is spoken, its words go out."""

import asyncio
from dataclasses import dataclass

import structlog

from app.asr.duplex import Answer, Body
from app.asr.formats import AudioFormat, ToPcm, WavHeader
from app.asr.schemas import Line, Refused
from app.asr.speech import Heard, SpeechFinder
from app.asr.stream import RecogniserStream
from app.audio.endpoint import SpeechPaused, SpeechResumed, SpeechStopped
from app.audio.types import SAMPLE_BYTES, AudioFrame

log = structlog.get_logger(__name__)

SLICE_MS = 250
"""So much audio is judged in one go. Who sends a file at once must not hold up those who speak."""
MAX_OWED = 4
"""Utterances that may await their final; until one comes, no more audio is taken."""


@dataclass(frozen=True, slots=True)
class LiveLimits:
    """`idle_s`: without a byte. `stream_s`: the whole request, and the audio in it."""

    streams: int = 100
    idle_s: float = 30.0
    stream_s: float = 7200.0


class PcmBody:
    """A body of one format, read as PCM. Raises Refused (408) where nothing comes, and where it goes on for too
    long (413)."""

    def __init__(self, body: Body, form: AudioFormat | None, limits: LiveLimits) -> None:
        self._body = body
        self._form = form
        self._limits = limits
        self._over_at = asyncio.get_running_loop().time() + limits.stream_s
        self._converter = ToPcm(form) if form else None
        self._early = b""

    async def open(self) -> int:
        """The rate, in samples a second; reads the header of a WAV file, and of the others nothing."""
        if self._form is not None:
            return self._form.rate
        header = WavHeader()
        while (data := await self._bytes()) is not None:
            if (found := header.push(data)) is not None:
                self._form, size, self._early = found
                self._converter = ToPcm(self._form, size)
                return self._form.rate
        header.end()
        self._converter = ToPcm(AudioFormat("little", 8000))  # an empty body: a recording of nothing
        return 8000

    async def read(self) -> bytes | None:
        """The next PCM, perhaps none; None at the end."""
        assert self._converter is not None, "open() comes first"
        if self._early:
            data: bytes | None = self._early
            self._early = b""
        else:
            data = await self._bytes()
        return None if data is None else self._converter.push(data)

    async def _bytes(self) -> bytes | None:
        loop = asyncio.get_running_loop()
        until = min(loop.time() + self._limits.idle_s, self._over_at)
        try:
            async with asyncio.timeout_at(until):
                return await self._body.read()
        except TimeoutError as error:
            if loop.time() >= self._over_at:
                raise too_long(self._limits) from error
            raise Refused(408, "idle", f"no audio came for {self._limits.idle_s:g} s") from error

    async def left(self) -> None:
        await self._body.left()


class LiveStream:
    """Listens and tells at once, until the body is over and each of its utterances has its final."""

    def __init__(
        self, body: PcmBody, answer: Answer, finder: SpeechFinder, stream: RecogniserStream, rate: int
    ) -> None:
        self._body = body
        self._answer = answer
        self._finder = finder
        self._stream = stream
        self._rate = rate
        self._heard_bytes = 0
        self._owed = 0  # finals
        self._room = asyncio.Event()
        self._over = False
        self._ended_by: Refused | None = None
        self._hearing: asyncio.Timeout | None = None

    async def run(self, limits: LiveLimits) -> None:
        """Raises what ended it, perhaps within an exception group: ClientLeft, SttError, and Refused where it was we
        who would hear no more; what was heard is told before that."""
        async with asyncio.TaskGroup() as group:
            hearing = group.create_task(self._hear(limits))
            # Let it begin to read: that is what makes uvicorn tell a client that waits for it to go on (100).
            await asyncio.sleep(0)
            await self._answer.start()
            await self._tell()
            hearing.cancel()
        if self._ended_by is not None:
            raise self._ended_by

    def end(self, refused: Refused) -> None:
        """Hear no more; what was heard is told, and then why."""
        self._ended_by = refused
        hearing, self._hearing = self._hearing, None  # told once: one that is about to end cannot be told again
        if hearing is not None:
            hearing.reschedule(asyncio.get_running_loop().time())

    async def _hear(self, limits: LiveLimits) -> None:
        try:
            async with asyncio.timeout(0 if self._ended_by else None) as self._hearing:
                await self._listen(limits)
        except TimeoutError:
            pass  # `end` was called
        except Refused as refused:
            self._ended_by = refused
        self._hearing = None
        for heard in self._finder.finish():
            await self._pass_on(heard)
        self._over = True
        if not self._owed:
            self._stream.close()
        await self._body.left()

    async def _listen(self, limits: LiveLimits) -> None:
        size = self._rate * SLICE_MS // 1000 * SAMPLE_BYTES
        while (pcm := await self._body.read()) is not None:
            for at in range(0, len(pcm), size):
                await self._has_room()
                piece = pcm[at : at + size]
                self._heard_bytes += len(piece)
                for heard in self._finder.push(piece):
                    await self._pass_on(heard)
                await asyncio.sleep(0)
            if self._heard_ms > limits.stream_s * 1000:
                raise too_long(limits)

    async def _pass_on(self, heard: Heard) -> None:
        match heard:
            case AudioFrame():
                await self._stream.send(heard)
            case SpeechPaused(_, speech_ms):
                await self._stream.pause(speech_ms)
            case SpeechResumed():
                await self._stream.resume()
            case SpeechStopped(_, speech_ms):
                self._owed += 1
                await self._stream.flush(speech_ms)

    async def _has_room(self) -> None:
        while self._owed >= MAX_OWED:
            self._room.clear()
            await self._room.wait()

    async def _tell(self) -> None:
        async for heard in self._stream:
            end_ms = min(heard.end_ms, self._heard_ms)  # silence was put behind the end
            await self._answer.line(Line(heard.text, heard.final, heard.start_ms, end_ms, heard.confidence))
            if heard.final:
                self._owed -= 1
                self._room.set()
            if self._over and not self._owed:
                self._stream.close()

    @property
    def _heard_ms(self) -> int:
        return self._heard_bytes * 1000 // (SAMPLE_BYTES * self._rate)


def too_long(limits: LiveLimits) -> Refused:
    return Refused(413, "too_long", f"a stream lasts {limits.stream_s:g} s at most; begin another one")
