"""Outside services that take no time, so that what is measured is ours: a recogniser that has the words the moment
it is asked, a model that writes three sentences at once, a voice that gives a second and a half of sound for each."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Literal

from app.audio import g711
from app.audio.types import AudioFrame, Transcript
from app.providers import Providers
from app.services.ai_call.types import Message
from bench.task import SENTENCE_MULAW, SENTENCES


class InstantStt:
    name = "instant"
    hears: Literal["everything", "speech"] = "speech"

    @asynccontextmanager
    async def open(self, rate: int, language: str) -> AsyncIterator["_InstantStream"]:
        yield _InstantStream()


class _InstantStream:
    def __init__(self) -> None:
        self._start_ms = self._end_ms = 0
        self._finals: asyncio.Queue[Transcript] = asyncio.Queue()

    async def send(self, frame: AudioFrame) -> None:
        self._end_ms = frame.at_ms + round(frame.duration_ms)

    async def pause(self, speech_ms: int) -> None:
        pass

    async def resume(self) -> None:
        pass

    async def flush(self, speech_ms: int) -> None:
        self._finals.put_nowait(Transcript("영업시간이 어떻게 되나요?", True, self._start_ms, self._end_ms))
        self._start_ms = self._end_ms

    async def __aiter__(self) -> AsyncIterator[Transcript]:
        while True:
            yield await self._finals.get()


class InstantLlm:
    name = "instant"

    async def reply(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        for sentence in SENTENCES:
            yield sentence


class InstantTts:
    name = "instant"

    def __init__(self) -> None:
        self._pcm = g711.decode(SENTENCE_MULAW)

    async def speak(self, text: str, rate: int) -> AsyncGenerator[AudioFrame, None]:
        yield AudioFrame(self._pcm, rate)


def instant_providers() -> Providers:
    return Providers.of(InstantStt(), InstantLlm(), InstantTts())
