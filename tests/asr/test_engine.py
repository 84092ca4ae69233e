"""The queue, its threads and its refusals; decodes are scripted where their moment matters, real where they do not."""

import asyncio
import threading
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from app.asr.engine import DecodeEngine, EngineOptions, Kind
from app.asr.models import DEMO_FOLDER
from app.asr.recogniser import Decoded, Recogniser, Request
from app.errors import SttError
from tests.asr.sample_calls import RATE, sample_calls


class Scripted:
    """Answers with the audio's own bytes as text, when it is let; `!` fails, and the batch that it is in, `?` is lost
    without a word, `odd` looks wrong at the first look. What has equal rates may share a batch, second looks none."""

    def __init__(self, workers: int = 1, max_batch: int = 1) -> None:
        self.workers = workers
        self.max_batch = max_batch
        self.gate = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.batches: list[tuple[list[str], int]] = []
        self.looks: list[str] = []
        self.threads: set[str] = set()

    @property
    def decoded(self) -> list[str]:
        return [text for texts, _ in self.batches for text in texts]

    def batch_key(self, request: Request) -> Hashable:
        return object() if request.look == "second" else request.rate

    def decode(self, requests: Sequence[Request], *, beam: int) -> list[Decoded]:
        self.threads.add(threading.current_thread().name)
        self.entered.release()
        assert self.gate.acquire(timeout=20)
        texts = [request.pcm.decode() for request in requests]
        self.batches.append((texts, beam))
        self.looks += [request.look for request in requests]
        if "!" in texts:
            raise ValueError("no")
        if "worker" in texts:
            raise SttError("its process died", provider="local", kind="worker", retryable=True)
        return [
            Decoded(
                one.pcm.decode(),
                "ko",
                decode_ms=100.0 if one.look == "first" else 900.0,
                redecoded=one.look == "second",
                suspect=one.look == "first" and one.pcm.startswith(b"odd"),
            )
            for one in requests
            if one.pcm != b"?"
        ]

    def let(self, count: int) -> None:
        self.gate.release(count)

    async def busy(self) -> None:
        """Until a worker is inside a decode."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=20)


def request(text: str, rate: int = RATE) -> Request:
    return Request(text.encode(), rate, "ko")


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
    decoded = await asyncio.gather(*(engine.decode(Request(call.pcm, RATE, call.language)) for call in calls))
    await engine.aclose()
    assert [one.text for one in decoded] == [call.text for call in calls]
    assert engine.decode_ms > 0


async def run_in_order(decoder: Scripted, jobs: list[tuple[str, Kind, float]]) -> list[str]:
    """What is decoded, one by one, of what waits while the only worker is busy."""
    async with serving(decoder) as engine:
        first = engine.submit(request("first"), Kind.PARTIAL)
        await decoder.busy()
        waiting = [engine.submit(request(text), kind, due_s=due_s) for text, kind, due_s in jobs]
        assert engine.queue_depth == len(jobs)
        decoder.let(1 + len(jobs))
        await asyncio.gather(first.future, *(job.future for job in waiting))
    return decoder.decoded[1:]


async def test_the_earliest_due_moment_first_and_partials_last() -> None:
    decoder = Scripted()
    order = await run_in_order(
        decoder,
        [
            ("partial", Kind.PARTIAL, 0.0),
            ("guess, later", Kind.GUESS, 3.5),
            ("guess, soon", Kind.GUESS, 1.5),
            ("a recording", Kind.FINAL, 2.5),
            ("final", Kind.FINAL, 0.0),
        ],
    )
    assert order == ["final", "guess, soon", "a recording", "guess, later", "partial"]
    assert decoder.threads == {"decode-0"}


async def test_of_equals_the_first_comes_first() -> None:
    jobs = [(str(number), Kind.PARTIAL, 0.0) for number in range(5)]
    assert await run_in_order(Scripted(), jobs) == ["0", "1", "2", "3", "4"]


async def test_partials_are_greedy_and_the_rest_is_not() -> None:
    decoder = Scripted()
    decoder.let(3)
    async with serving(decoder, beam=4) as engine:
        for kind in Kind:
            await engine.decode(request(kind.name), kind)
    assert decoder.batches == [(["FINAL"], 4), (["GUESS"], 4), (["PARTIAL"], 1)]


async def test_a_guess_that_was_right_becomes_as_urgent_as_a_final() -> None:
    decoder = Scripted()
    async with serving(decoder) as engine:
        jobs = [engine.submit(request(text), Kind.GUESS, due_s=0.35) for text in ("running", "a", "b")]
        await decoder.busy()
        engine.promote(jobs[2])
        decoder.let(3)
        await asyncio.gather(*(job.future for job in jobs))
    assert decoder.decoded == ["running", "b", "a"]


async def test_refuses_when_full() -> None:
    decoder = Scripted()
    async with serving(decoder, max_queued=2) as engine:
        running = engine.submit(request("running"), Kind.FINAL)
        await decoder.busy()
        waiting = [engine.submit(request("waiting"), Kind.FINAL) for _ in range(2)]
        with pytest.raises(SttError, match="too many utterances") as refused:
            engine.submit(request("refused"), Kind.FINAL)
        assert (refused.value.kind, refused.value.retryable) == ("busy", True)
        decoder.let(3)
        await asyncio.gather(running.future, *(job.future for job in waiting))
    assert len(decoder.decoded) == 3


async def test_when_full_a_partial_makes_room_for_what_is_more() -> None:
    decoder = Scripted()
    async with serving(decoder, max_queued=2) as engine:
        running = engine.submit(request("running"), Kind.FINAL)
        await decoder.busy()
        partials = [engine.submit(request(text), Kind.PARTIAL) for text in ("one", "two")]
        with pytest.raises(SttError, match="too many utterances"):
            engine.submit(request("three"), Kind.PARTIAL)
        final = engine.submit(request("final"), Kind.FINAL)
        with pytest.raises(SttError, match="too many utterances"):
            await partials[1].future
        assert engine.queue_depth == 2
        decoder.let(3)
        await asyncio.gather(running.future, partials[0].future, final.future)
    assert decoder.decoded == ["running", "final", "one"]
    assert engine.refused == 2


async def test_says_when_one_more_call_would_be_too_many() -> None:
    decoder = Scripted()
    async with serving(decoder, max_queued=4, late_s=60.0) as engine:
        assert not engine.full
        jobs = [engine.submit(request("running"), Kind.FINAL)]
        await decoder.busy()
        for full_after in (False, False, True, True):
            jobs.append(engine.submit(request("waits"), Kind.FINAL))
            assert engine.full is full_after
        decoder.let(5)
        await asyncio.gather(*(job.future for job in jobs))
        assert not engine.full


async def test_partials_keep_no_call_out() -> None:
    decoder = Scripted()
    async with behind(decoder, max_queued=4, late_s=60.0) as engine:
        for _ in range(4):
            engine.submit(request("partial"), Kind.PARTIAL)
        assert not engine.full
        for _ in range(3):
            assert not engine.full
            engine.submit(request("final"), Kind.FINAL)
        assert engine.full


async def test_is_full_when_finals_come_late_but_not_for_partials_or_guesses() -> None:
    decoder = Scripted()
    async with serving(decoder, late_s=0.0) as engine:
        jobs = [engine.submit(request("running"), Kind.FINAL)]
        await decoder.busy()
        jobs.append(engine.submit(request("partial"), Kind.PARTIAL, due_s=-1.0))
        jobs.append(engine.submit(request("guess"), Kind.GUESS, due_s=5.0))
        assert not engine.full
        jobs.append(engine.submit(request("final"), Kind.FINAL, due_s=-0.1))
        assert engine.full
        decoder.let(4)
        await asyncio.gather(*(job.future for job in jobs))


async def test_cancelling_a_waiting_caller_drops_its_job() -> None:
    decoder = Scripted()
    async with serving(decoder) as engine:
        running = engine.submit(request("running"), Kind.FINAL)
        await decoder.busy()
        async with asyncio.TaskGroup() as group:
            caller = group.create_task(engine.decode(request("dropped")))
            await asyncio.sleep(0)
            assert engine.queue_depth == 1
            caller.cancel()
        await asyncio.sleep(0)
        assert engine.queue_depth == 0
        decoder.let(2)
        await running.future
        await engine.decode(request("next"))
    assert decoder.decoded == ["running", "next"]


# ---------------------------------------------------------------- batches


@asynccontextmanager
async def behind(decoder: Scripted, **options: float) -> AsyncIterator[DecodeEngine]:
    """With every worker busy; what is submitted meanwhile is decoded when the block ends."""
    async with serving(decoder, **options) as engine:
        for worker in range(decoder.workers):
            engine.submit(request("running", -1 - worker), Kind.FINAL)
            await decoder.busy()
        yield engine
        decoder.let(100)
        while engine.queue_depth:  # noqa: ASYNC110 - threads decide
            await asyncio.sleep(0.001)


async def test_what_waits_is_decoded_together() -> None:
    decoder = Scripted(max_batch=3)
    async with behind(decoder) as engine:
        for number in range(5):
            engine.submit(request(str(number)), Kind.FINAL)
    assert decoder.batches[1:] == [(["0", "1", "2"], 2), (["3", "4"], 2)]
    assert (engine.decodes, engine.batches, engine.redecodes, engine.refused) == (6, 3, 0, 0)


async def test_a_batch_has_one_key_and_begins_with_the_most_urgent() -> None:
    decoder = Scripted(max_batch=8)
    async with behind(decoder) as engine:
        for text, rate, due_s in [("a", 1, 3), ("b", 2, 1), ("c", 1, 2), ("d", 2, 4)]:
            engine.submit(request(text, rate), Kind.GUESS, due_s=due_s)
    assert [texts for texts, _ in decoder.batches[1:]] == [["b", "d"], ["c", "a"]]


@pytest.mark.parametrize(("workers", "partials"), [(1, [(["p"], 1), (["q"], 1)]), (2, [(["p", "q"], 1)])])
async def test_partials_share_with_partials_only(workers: int, partials: list[tuple[list[str], int]]) -> None:
    """And with none where a final would wait for them all."""
    decoder = Scripted(workers, max_batch=8)
    async with behind(decoder, beam=1) as engine:
        for text, kind in [("p", Kind.PARTIAL), ("f", Kind.FINAL), ("q", Kind.PARTIAL), ("g", Kind.GUESS)]:
            engine.submit(request(text), kind)
    decoded = [(texts, beam) for texts, beam in decoder.batches if texts != ["running"]]
    assert sorted(decoded) == [(["f", "g"], 1), *partials]


async def test_partials_leave_a_thread_free_for_a_final() -> None:
    decoder = Scripted(workers=2)
    async with serving(decoder) as engine:
        jobs = [engine.submit(request("partial"), Kind.PARTIAL)]
        await decoder.busy()
        jobs.append(engine.submit(request("partial"), Kind.PARTIAL))
        assert not await asyncio.to_thread(decoder.entered.acquire, timeout=0.1)  # nothing tells of what never begins
        jobs.append(engine.submit(request("final"), Kind.FINAL))
        await decoder.busy()
        assert engine.queue_depth == 1
        decoder.let(3)
        await asyncio.gather(*(job.future for job in jobs))


async def test_partials_that_wait_share_the_next_decode() -> None:
    decoder = Scripted(workers=2, max_batch=8)
    async with serving(decoder) as engine:
        jobs = [engine.submit(request("0"), Kind.PARTIAL)]
        await decoder.busy()
        for number in range(1, 6):
            assert engine.idle
            jobs.append(engine.submit(request(str(number)), Kind.PARTIAL))
        final = engine.submit(request("final"), Kind.FINAL)
        await decoder.busy()
        assert engine.queue_depth == 5
        decoder.let(3)
        await asyncio.gather(final.future, *(job.future for job in jobs))
    assert sorted(texts for texts, _ in decoder.batches) == [["0"], ["1", "2", "3", "4", "5"], ["final"]]


async def test_a_decode_begins_at_once_and_waits_for_no_others() -> None:
    decoder = Scripted(max_batch=8)
    decoder.let(3)
    async with serving(decoder) as engine:
        for text in ("a", "b", "c"):
            await engine.decode(request(text))
    assert [texts for texts, _ in decoder.batches] == [["a"], ["b"], ["c"]]


async def test_one_that_fails_costs_its_batch_no_words() -> None:
    decoder = Scripted(max_batch=8)
    async with behind(decoder) as engine:
        jobs = [engine.submit(request(text), Kind.FINAL) for text in ("a", "!", "b", "worker")]
        decoder.let(100)
        await asyncio.wait([job.future for job in jobs])
    assert [jobs[0].future.result().text, jobs[2].future.result().text] == ["a", "b"]
    errors = [jobs[1].future.exception(), jobs[3].future.exception()]
    assert [error.kind for error in errors if isinstance(error, SttError)] == ["decode", "worker"]
    assert (engine.decodes, engine.batches) == (3, 2)


async def test_a_decoder_that_loses_an_answer_gives_nobody_anothers_words() -> None:
    decoder = Scripted(max_batch=8)
    async with behind(decoder) as engine:
        jobs = [engine.submit(request(text), Kind.FINAL) for text in ("?", "a")]
        decoder.let(100)
        await asyncio.wait([job.future for job in jobs])
    assert isinstance(jobs[0].future.exception(), SttError)
    assert jobs[1].future.result().text == "a"


async def test_what_is_cancelled_is_not_decoded_though_the_loop_has_not_come_round_to_it() -> None:
    decoder = Scripted()
    async with behind(decoder) as engine:
        cancelled = engine.submit(request("cancelled"), Kind.FINAL)
        engine.submit(request("next"), Kind.FINAL)
        cancelled.future.cancel()
        decoder.let(1)
        assert decoder.entered.acquire(timeout=20)  # the loop stands still until the thread has the next one
    assert decoder.decoded == ["running", "next"]


# ---------------------------------------------------------------- second looks


async def test_one_that_looks_wrong_keeps_its_batch_waiting_for_nothing() -> None:
    decoder = Scripted(max_batch=8)
    async with behind(decoder) as engine:
        jobs = [engine.submit(request(text), Kind.FINAL) for text in ("a", "odd", "b", "odd too")]
        decoder.let(2)
        assert [(await jobs[at].future).text for at in (0, 2)] == ["a", "b"]
        assert not jobs[1].future.done()
        decoder.let(2)
        again = [await jobs[at].future for at in (1, 3)]
        assert [(one.text, one.redecoded) for one in again] == [("odd", True), ("odd too", True)]
        assert (engine.decodes, engine.batches, engine.redecodes) == (5, 2, 2)
        assert engine.decode_ms < 100.0  # of first looks
    assert decoder.batches[1:] == [(["a", "odd", "b", "odd too"], 2), (["odd"], 2), (["odd too"], 2)]
    assert decoder.looks == ["first"] * 5 + ["second"] * 2


async def test_a_second_look_goes_behind_those_who_had_none() -> None:
    decoder = Scripted()
    async with behind(decoder) as engine:
        odd = engine.submit(request("odd"), Kind.GUESS)
        decoder.let(1)
        await decoder.busy()
        engine.submit(request("final"), Kind.FINAL)
        engine.submit(request("partial"), Kind.PARTIAL)
        decoder.let(100)
        assert (await odd.future).redecoded
    assert decoder.decoded[1:4] == ["odd", "final", "odd"]


async def test_a_partial_has_one_look() -> None:
    decoder = Scripted()
    async with behind(decoder) as engine:
        job = engine.submit(request("odd"), Kind.PARTIAL)
        decoder.let(2)
        assert not (await job.future).redecoded
    assert decoder.looks == ["first", "first"]


async def test_without_room_for_a_second_look_the_first_one_stands() -> None:
    decoder = Scripted()
    async with behind(decoder, max_queued=1) as engine:
        odd = engine.submit(request("odd"), Kind.FINAL)
        decoder.let(1)
        await decoder.busy()
        engine.submit(request("waits"), Kind.FINAL)
        decoder.let(1)
        assert not (await odd.future).redecoded
    assert decoder.looks == ["first"] * 3


async def test_what_nobody_waits_for_has_no_second_look() -> None:
    decoder = Scripted()
    async with behind(decoder) as engine:
        odd = engine.submit(request("odd"), Kind.GUESS)
        decoder.let(1)
        await decoder.busy()
        odd.future.cancel()
    assert decoder.looks == ["first"] * 2


# ---------------------------------------------------------------- failures


async def test_a_failing_decode_fails_alone() -> None:
    decoder = Scripted()
    decoder.let(2)
    async with serving(decoder) as engine:
        with pytest.raises(SttError, match="ValueError") as failed:
            await engine.decode(request("!"))
        assert failed.value.kind == "decode"
        assert isinstance(failed.value.__cause__, ValueError)
        assert (await engine.decode(request("well"))).text == "well"


async def test_an_error_that_says_what_is_wrong_is_told_without_a_stack() -> None:
    decoder = Scripted()
    decoder.let(2)
    async with serving(decoder) as engine:
        with capture_logs() as logs:
            for text in ("worker", "!"):
                with pytest.raises(SttError):
                    await engine.decode(request(text))
    told = [(log["log_level"], log.get("kind"), log.get("exc_info", False)) for log in logs]
    assert told == [("warning", "worker", False), ("error", None, True)]


async def test_a_job_has_a_bound() -> None:
    decoder = Scripted()
    async with serving(decoder, timeout_s=0.05) as engine:
        jobs = [engine.submit(request("slow"), Kind.FINAL) for _ in range(2)]
        for job in jobs:
            with pytest.raises(SttError, match=r"within 0\.05 s") as late:
                await job.future
            assert late.value.kind == "timeout"
        await asyncio.sleep(0)
        assert engine.queue_depth == 0
        decoder.let(2)
        assert (await engine.decode(request("later"))).text == "later"
    assert decoder.decoded == ["slow", "later"]


async def test_is_stuck_while_a_decode_outlasts_its_bound() -> None:
    decoder = Scripted()
    async with serving(decoder, timeout_s=0.05) as engine:
        assert not engine.stuck
        job = engine.submit(request("hangs"), Kind.FINAL)
        await decoder.busy()
        assert not engine.stuck
        with pytest.raises(SttError):
            await job.future
        await asyncio.sleep(0.05)
        assert engine.stuck
        decoder.let(2)
        assert (await engine.decode(request("well"))).text == "well"
        assert not engine.stuck


async def test_is_idle_while_nothing_more_urgent_than_a_partial_waits() -> None:
    decoder = Scripted()
    async with serving(decoder) as engine:
        assert engine.idle
        jobs = [engine.submit(request("running"), Kind.FINAL)]
        await decoder.busy()
        assert engine.idle
        jobs.append(engine.submit(request("partial"), Kind.PARTIAL))
        assert engine.idle
        jobs.append(engine.submit(request("guess"), Kind.GUESS, due_s=1.0))
        assert not engine.idle
        decoder.let(3)
        await asyncio.gather(*(job.future for job in jobs))
        assert engine.idle


async def test_knows_what_a_decode_takes() -> None:
    decoder = Scripted()
    decoder.let(1)
    engine = DecodeEngine(decoder, expected_ms=900.0)
    assert engine.decode_ms == 900.0
    engine.start()
    await engine.decode(request("quick"))
    assert engine.decode_ms == 100.0
    await engine.aclose()


async def test_the_end_leaves_no_thread_and_nobody_waiting() -> None:
    decoder = Scripted(workers=2)
    engine = DecodeEngine(decoder)
    engine.start()
    assert len(decode_threads()) == 2
    jobs = [engine.submit(request("left"), Kind.FINAL) for _ in range(5)]
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
        engine.submit(request("late"), Kind.FINAL)
    assert not engine.idle


async def test_a_decode_that_hangs_does_not_hold_the_end() -> None:
    decoder = Scripted()
    engine = DecodeEngine(decoder, EngineOptions(timeout_s=0.05))
    engine.start()
    job = engine.submit(request("hangs"), Kind.FINAL)
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
        engine.submit(request("orphan"), Kind.FINAL)
        await decoder.busy()

    asyncio.run(forgets_to_close())
    threads = decode_threads()
    decoder.let(1)
    for thread in threads:
        thread.join(timeout=5)
    assert threads
    assert not decode_threads()
    assert not crashes
