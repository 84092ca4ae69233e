"""Our own recogniser as a provider: the shelf and the demo model behind it. How it hears is in asr/test_stream.py."""

import asyncio
import threading
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.asr.engine import DecodeEngine, EngineOptions, Kind
from app.asr.models import ModelOptions, ModelShelf
from app.asr.recogniser import Decoded, Request
from app.audio.types import AudioFrame
from app.errors import SttError
from app.services.ai_call.local_stt import LocalStt
from app.services.ai_call.ports import Checkable, SpeechToText
from tests.asr.sample_calls import RATE, spoken

NOTHING = Request(b"", RATE, "ko")


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[ModelShelf]:
    async with ModelShelf(ModelOptions(name="demo", device="cpu", data=tmp_path), lambda: 0.0) as opened:
        yield opened


class Hung:
    """A decoder that does not come back until it is let."""

    workers = 1
    max_batch = 1

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.let = threading.Event()

    def batch_key(self, request: Request) -> Hashable:
        return request.rate

    def decode(self, requests: Sequence[Request], *, beam: int) -> list[Decoded]:
        self.entered.set()
        assert self.let.wait(20)
        return [Decoded("", request.language) for request in requests]


class Source:
    loaded = True

    def __init__(self, engine: DecodeEngine) -> None:
        self.engine = engine

    @property
    def trouble(self) -> str:
        return "stuck in a decode" if self.engine.stuck else ""

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[DecodeEngine]:
        yield self.engine


@asynccontextmanager
async def hung(options: EngineOptions) -> AsyncIterator[tuple[LocalStt, DecodeEngine, Hung]]:
    decoder = Hung()
    engine = DecodeEngine(decoder, options)
    engine.start()
    try:
        yield LocalStt(Source(engine)), engine, decoder
    finally:
        decoder.let.set()
        await engine.aclose()


async def test_a_call_is_heard(shelf: ModelShelf) -> None:
    stt: SpeechToText = LocalStt(shelf)
    assert (stt.name, stt.hears) == ("local", "speech")
    async with stt.open(RATE, "ko") as stream:
        await stream.send(AudioFrame(spoken("영업시간이 어떻게 되나요?").pcm, RATE, at_ms=4000))
        await stream.pause(1800)
        await stream.flush(1800)
        async for transcript in stream:
            if transcript.final:
                break
        assert (transcript.text, transcript.start_ms) == ("영업시간이 어떻게 되나요?", 4000)


async def test_two_calls_share_the_engine_and_each_hears_its_own(shelf: ModelShelf) -> None:
    stt = LocalStt(shelf)
    async with stt.open(RATE, "ko") as one, stt.open(RATE, "en") as other:
        await one.send(AudioFrame(spoken("감사합니다.").pcm, RATE))
        await other.send(AudioFrame(spoken("Hello.").pcm, RATE))
        await one.flush(1200)
        await other.flush(400)
        assert [(await anext(aiter(stream))).text for stream in (one, other)] == ["감사합니다.", "Hello."]


async def test_a_call_that_is_over_leaves_nothing_in_the_queue() -> None:
    async with hung(EngineOptions()) as (stt, engine, decoder):
        engine.submit(NOTHING, Kind.FINAL)
        assert await asyncio.to_thread(decoder.entered.wait, 20)
        async with stt.open(RATE, "ko") as stream:
            await stream.send(AudioFrame(bytes(3200), RATE))
            await stream.flush(200)
            assert engine.queue_depth == 1
        await asyncio.sleep(0)
        assert engine.queue_depth == 0


async def test_without_a_model_it_is_not_well_and_opens_nothing(shelf: ModelShelf, tmp_path: Path) -> None:
    well = LocalStt(shelf)
    assert isinstance(well, Checkable)
    await well.check()
    ill = LocalStt(ModelShelf(ModelOptions(name="demo", data=tmp_path), lambda: 0.0))
    assert not ill.full
    with pytest.raises(SttError, match="no model is loaded") as caught:
        await ill.check()
    assert (caught.value.kind, caught.value.retryable) == ("unavailable", True)
    with pytest.raises(SttError, match="no model is loaded"):
        async with ill.open(RATE, "ko"):
            pass


async def test_a_decode_that_hangs_is_no_good_health() -> None:
    async with hung(EngineOptions(timeout_s=0.05)) as (stt, engine, _):
        await stt.check()
        for _ in range(2):  # the second is given up when the first one's decode has hung for longer than that
            with pytest.raises(SttError):
                await engine.decode(NOTHING)
        with pytest.raises(SttError, match="stuck in a decode"):
            await stt.check()


async def test_a_full_engine_is_a_full_recogniser() -> None:
    async with hung(EngineOptions(max_queued=4)) as (stt, engine, decoder):
        assert not stt.full
        jobs = [engine.submit(NOTHING, Kind.FINAL)]
        assert await asyncio.to_thread(decoder.entered.wait, 20)
        jobs += [engine.submit(NOTHING, Kind.FINAL) for _ in range(4)]
        assert stt.full
        decoder.let.set()
        await asyncio.gather(*(job.future for job in jobs))
        assert not stt.full
