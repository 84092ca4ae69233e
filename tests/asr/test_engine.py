"""The queue, its threads and its refusals; decodes are scripted where their moment matters, real where they do not."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.asr.engine import DecodeEngine, EngineOptions, Kind
from app.asr.models import DEMO_FOLDER
from app.asr.recogniser import Decoded, Recogniser
from app.errors import SttError
from tests.asr.sample_calls import RATE, sample_calls


class Scripted:
    """Answers with the audio's own bytes as text, when it is let; `!` fails."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.gate = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.decoded: list[tuple[str, int]] = []
        self.threads: set[str] = set()

    def decode(self, pcm: bytes, rate: int, language: str, *, beam: int) -> Decoded:
        self.threads.add(threading.current_thread().name)
        self.entered.release()
        assert self.gate.acquire(timeout=20)
        self.decoded.append((pcm.decode(), beam))
        if pcm == b"!":
            raise ValueError("no")
        return Decoded(pcm.decode(), language, decode_ms=100.0)

    def let(self, count: int) -> None:
        self.gate.release(count)

    async def busy(self) -> None:
        """Until a worker is inside a decode."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=20)


def decode_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode-")]


@asynccontextmanager
async def serving(decoder: Scripted, **options: float) -> AsyncIterator[DecodeEngine]:
    engine = DecodeEngine(decoder, EngineOptions(**options))  # type: ignore[arg-type]
    engine.start()
    try:
        yield engine
    finally:
        decoder.let(100)
        await engine.aclose()


async def test_decodes_real_speech_beside_the_event_loop() -> None:
    engine = DecodeEngine(Recogniser.load(DEMO_FOLDER, "demo", workers=2))
    engine.start()
    calls = sample_calls()[:6]
    decoded = await asyncio.gather(*(engine.decode(call.pcm, RATE, call.language) for call in calls))
    await engine.aclose()
    assert [one.text for one in decoded] == [call.text for call in calls]
    assert engine.decode_ms > 0


async def test_finals_before_guesses_before_partials_then_the_earliest() -> None:
    decoder = Scripted()
    async with serving(decoder) as engine:
        first = engine.submit(b"first", RATE, "ko", Kind.PARTIAL)
        await decoder.busy()
        kinds = [Kind.PARTIAL, Kind.GUESS, Kind.FINAL, Kind.GUESS, Kind.FINAL]
        jobs = [engine.submit(f"{kind.name}{n}".encode(), RATE, "ko", kind) for n, kind in enumerate(kinds)]
        assert engine.queue_depth == 5
        decoder.let(6)
        await asyncio.gather(first.future, *(job.future for job in jobs))
    assert [text for text, _ in decoder.decoded] == ["first", "FINAL2", "FINAL4", "GUESS1", "GUESS3", "PARTIAL0"]
    assert decoder.threads == {"decode-0"}


async def test_partials_are_greedy_and_the_rest_is_not() -> None:
    decoder = Scripted()
    decoder.let(3)
    async with serving(decoder, beam=4) as engine:
        for kind in Kind:
            await engine.decode(kind.name.encode(), RATE, "ko", kind)
    assert decoder.decoded == [("FINAL", 4), ("GUESS", 4), ("PARTIAL", 1)]


async def test_a_guess_that_was_right_becomes_as_urgent_as_a_final() -> None:
    decoder = Scripted()
    async with serving(decoder) as engine:
        jobs = [engine.submit(text, RATE, "ko", Kind.GUESS) for text in (b"running", b"a", b"b")]
        await decoder.busy()
        engine.promote(jobs[2])
        decoder.let(3)
        await asyncio.gather(*(job.future for job in jobs))
    assert [text for text, _ in decoder.decoded] == ["running", "b", "a"]


async def test_refuses_when_full() -> None:
    decoder = Scripted()
    async with serving(decoder, max_queued=2) as engine:
        running = engine.submit(b"running", RATE, "ko", Kind.FINAL)
        await decoder.busy()
        waiting = [engine.submit(b"waiting", RATE, "ko", Kind.FINAL) for _ in range(2)]
        with pytest.raises(SttError, match="too many utterances") as refused:
            engine.submit(b"refused", RATE, "ko", Kind.FINAL)
        assert (refused.value.kind, refused.value.retryable) == ("busy", True)
        decoder.let(3)
        await asyncio.gather(running.future, *(job.future for job in waiting))
    assert len(decoder.decoded) == 3


async def test_cancelling_a_waiting_caller_drops_its_job() -> None:
    decoder = Scripted()
    async with serving(decoder) as engine:
        running = engine.submit(b"running", RATE, "ko", Kind.FINAL)
        await decoder.busy()
        async with asyncio.TaskGroup() as group:
            caller = group.create_task(engine.decode(b"dropped", RATE, "ko"))
            await asyncio.sleep(0)
            assert engine.queue_depth == 1
            caller.cancel()
        await asyncio.sleep(0)
        assert engine.queue_depth == 0
        decoder.let(2)
        await running.future
        await engine.decode(b"next", RATE, "ko")
    assert [text for text, _ in decoder.decoded] == ["running", "next"]


async def test_a_failing_decode_fails_alone() -> None:
    decoder = Scripted()
    decoder.let(2)
    async with serving(decoder) as engine:
        with pytest.raises(SttError, match="ValueError") as failed:
            await engine.decode(b"!", RATE, "ko")
        assert failed.value.kind == "decode"
        assert isinstance(failed.value.__cause__, ValueError)
        assert (await engine.decode(b"well", RATE, "ko")).text == "well"


async def test_a_job_has_a_bound() -> None:
    decoder = Scripted()
    async with serving(decoder, timeout_s=0.05) as engine:
        jobs = [engine.submit(b"slow", RATE, "ko", Kind.FINAL) for _ in range(2)]
        for job in jobs:
            with pytest.raises(SttError, match=r"within 0\.05 s") as late:
                await job.future
            assert late.value.kind == "timeout"
        await asyncio.sleep(0)
        assert engine.queue_depth == 0
        decoder.let(2)
        assert (await engine.decode(b"later", RATE, "ko")).text == "later"
    assert [text for text, _ in decoder.decoded] == ["slow", "later"]


async def test_is_idle_while_a_partial_would_keep_nobody_waiting() -> None:
    for workers, left_idle in ((1, False), (2, False), (3, True)):
        decoder = Scripted(workers)
        async with serving(decoder) as engine:
            assert engine.idle
            job = engine.submit(b"running", RATE, "ko", Kind.FINAL)
            await decoder.busy()
            assert engine.idle is left_idle
            decoder.let(1)
            await job.future
            assert engine.idle


async def test_knows_what_a_decode_takes() -> None:
    decoder = Scripted()
    decoder.let(1)
    engine = DecodeEngine(decoder, expected_ms=900.0)
    assert engine.decode_ms == 900.0
    engine.start()
    await engine.decode(b"quick", RATE, "ko")
    assert engine.decode_ms == 100.0
    await engine.aclose()


async def test_the_end_leaves_no_thread_and_nobody_waiting() -> None:
    decoder = Scripted(workers=2)
    engine = DecodeEngine(decoder)
    engine.start()
    assert len(decode_threads()) == 2
    jobs = [engine.submit(b"left", RATE, "ko", Kind.FINAL) for _ in range(5)]
    await decoder.busy()
    await decoder.busy()
    decoder.let(2)
    await engine.aclose()
    assert not decode_threads()
    for job in jobs:
        error = job.future.exception()
        assert isinstance(error, SttError)
        assert error.kind == "closed"
    with pytest.raises(SttError, match="being closed"):
        engine.submit(b"late", RATE, "ko", Kind.FINAL)
    assert not engine.idle


async def test_a_decode_that_hangs_does_not_hold_the_end() -> None:
    decoder = Scripted()
    engine = DecodeEngine(decoder, EngineOptions(timeout_s=0.05))
    engine.start()
    job = engine.submit(b"hangs", RATE, "ko", Kind.FINAL)
    await decoder.busy()
    await engine.aclose()
    assert job.future.done()
    decoder.let(1)


def test_a_decode_that_outlives_its_loop_ends_its_thread_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    crashes: list[object] = []
    monkeypatch.setattr(threading, "excepthook", crashes.append)
    decoder = Scripted()

    async def forgets_to_close() -> None:
        engine = DecodeEngine(decoder)
        engine.start()
        engine.submit(b"orphan", RATE, "ko", Kind.FINAL)
        await decoder.busy()

    asyncio.run(forgets_to_close())
    threads = decode_threads()
    decoder.let(1)
    for thread in threads:
        thread.join(timeout=5)
    assert threads
    assert not decode_threads()
    assert not crashes
