"""STT_PROVIDER=local: our own recogniser, in this process, as the ears of a call."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal, Protocol

from app.asr.engine import DecodeEngine
from app.asr.stream import RecogniserStream, StreamOptions
from app.errors import SttError


class EngineSource(Protocol):
    """Where the engine comes from: a ModelShelf."""

    @property
    def loaded(self) -> bool: ...

    @property
    def trouble(self) -> str:
        """Why nobody would be heard now, in words; empty if one would."""

    @property
    def engine(self) -> DecodeEngine:
        """The engine of now, to look at, once there is one."""

    def borrow(self) -> AbstractAsyncContextManager[DecodeEngine]:
        """The engine that is current now, kept alive until it is given back."""


class LocalStt:
    name = "local"
    hears: Literal["everything", "speech"] = "speech"
    guesses: Literal[True] = True

    def __init__(self, source: EngineSource, options: StreamOptions | None = None) -> None:
        self._source = source
        self._options = options or StreamOptions()

    @property
    def full(self) -> bool:
        """Whether so much waits for the recogniser that no further call should be admitted."""
        return self._source.loaded and self._source.engine.full

    @asynccontextmanager
    async def open(self, rate: int, language: str) -> AsyncIterator[RecogniserStream]:
        if not self._source.loaded:
            raise self._unavailable()
        async with self._source.borrow() as engine:
            stream = RecogniserStream(engine, rate, language, self._options)
            try:
                yield stream
            finally:
                stream.close()

    async def check(self) -> None:
        if self._source.trouble:
            raise self._unavailable()

    def _unavailable(self) -> SttError:
        return SttError(
            f"{self._source.trouble}; the log says more", provider=self.name, kind="unavailable", retryable=True
        )
