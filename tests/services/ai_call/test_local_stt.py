"""A call's ears on the real recogniser and the demo model; the audio comes in frames, as from a line."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from app.asr.engine import DecodeEngine, EngineOptions, Kind
from app.asr.models import DEMO_FOLDER
from app.asr.recogniser import Decoded, Recogniser
from app.audio.types import AudioFrame, Transcript
from app.errors import SttError
from app.services.ai_call.local_stt import LocalStt, LocalSttOptions, LocalSttStream
from tests.asr.sample_calls import RATE, nobody, sample_calls, spoken

FRAME_MS = 32
FRAME_BYTES = 2 * RATE * FRAME_MS // 1000
QUIET = bytes(FRAME_BYTES)
NEVER = LocalSttOptions(partial_ms=60_000, retry_s=0.0)
EAGER = LocalSttOptions(partial_ms=250, retry_s=0.0)


class Ears:
    """The real recogniser, or a scripted one, with a log: (audio milliseconds, beam) of each decode."""

    def __init__(self, recogniser: Recogniser | None) -> None:
        self.workers = 1
        self.log: list[tuple[int, int]] = []
        self.failures = 0
        self.gate = threading.Semaphore(0) if recogniser is None else None
        self.entered = threading.Semaphore(0)
        self._recogniser = recogniser

    def decode(self, pcm: bytes, rate: int, language: str, *, beam: int) -> Decoded:
        self.log.append((len(pcm) * 500 // rate, beam))
        self.entered.release()
        if self.gate is not None:
            assert self.gate.acquire(timeout=20)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("CUDA failed")
        if self._recogniser is None:
            return Decoded(f"{len(pcm)}", language)
        return self._recogniser.decode(pcm, rate, language, beam=beam)


class Source:
    def __init__(self, engine: DecodeEngine | None) -> None:
        self._engine = engine
        self.borrowers = 0

    @property
    def loaded(self) -> bool:
        return self._engine is not None

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[DecodeEngine]:
        assert self._engine is not None
        self.borrowers += 1
        yield self._engine
        self.borrowers -= 1


@pytest.fixture(scope="module")
def demo() -> Recogniser:
    return Recogniser.load(DEMO_FOLDER, "demo")


class Call:
    """One opened stream, spoken into at the pace of the test."""

    def __init__(self, stream: LocalSttStream, ears: Ears, engine: DecodeEngine) -> None:
        words = aiter(stream)
        assert isinstance(words, AsyncGenerator)
        self.stream, self.ears, self.engine = stream, ears, engine
        self.words: AsyncGenerator[Transcript, None] = words
        self.at_ms = 0

    async def says(self, pcm: bytes, *, pauses: bool = True, silence_ms: int = 352) -> None:
        for at in range(0, len(pcm), FRAME_BYTES):
            await self._send(pcm[at : at + FRAME_BYTES])
        if pauses:
            await self.stream.pause()
        for _ in range(silence_ms // FRAME_MS):
            await self._send(QUIET)

    async def _send(self, pcm: bytes) -> None:
        await self.stream.send(AudioFrame(pcm, RATE, self.at_ms))
        self.at_ms += FRAME_MS

    def let(self, decodes: int) -> None:
        assert self.ears.gate is not None
        self.ears.gate.release(decodes)

    async def entered(self) -> None:
        """Until the worker is inside a decode."""
        assert await asyncio.to_thread(self.ears.entered.acquire, timeout=20)

    async def final(self) -> Transcript:
        async for transcript in self.words:
            if transcript.final:
                return transcript
        raise AssertionError("the stream ended")


@asynccontextmanager
async def calling(
    recogniser: Recogniser | None, options: LocalSttOptions = NEVER, engine_options: EngineOptions | None = None
) -> AsyncIterator[Call]:
    ears = Ears(recogniser)
    engine = DecodeEngine(ears, engine_options)
    engine.start()
    source = Source(engine)
    try:
        async with LocalStt(source, options).open(RATE, "ko") as stream:
            call = Call(stream, ears, engine)
            async with aclosing(call.words):
                yield call
        assert source.borrowers == 0
    finally:
        if ears.gate is not None:
            ears.gate.release(100)
        await engine.aclose()


# ---------------------------------------------------------------- finals


async def test_the_guess_at_the_pause_is_the_final(demo: Recogniser) -> None:
    call_audio = spoken("영업시간이 어떻게 되나요?").pcm
    async with calling(demo) as call:
        await call.says(call_audio)
        guess = await anext(call.words)
        await call.stream.flush()
        final = await call.final()
        assert (guess.text, guess.final) == (final.text, False)
        assert final.text == "영업시간이 어떻게 되나요?"
        assert (final.start_ms, final.end_ms) == (0, call.at_ms)
        assert final.confidence is not None
        assert len(call.ears.log) == 1
        assert call.ears.log[0][0] <= call.at_ms - 352  # decoded at the pause, not at the flush


async def test_flush_does_not_wait_for_the_guess_to_be_ready(demo: Recogniser) -> None:
    async with calling(demo) as call:
        await call.says(spoken("네, 맞아요.").pcm)
        await call.stream.flush()
        assert (await call.final()).text == "네, 맞아요."
        assert [beam for _, beam in call.ears.log] == [2]


async def test_a_caller_who_goes_on_makes_the_guess_worthless(demo: Recogniser) -> None:
    whole = spoken("내일 오후 세 시에 예약해 주세요.").pcm
    half = len(whole) // FRAME_BYTES // 2 * FRAME_BYTES
    async with calling(demo) as call:
        await call.says(whole[:half], silence_ms=0)
        await anext(call.words)
        await call.says(whole[half:])
        await call.stream.flush()
        assert (await call.final()).text == "내일 오후 세 시에 예약해 주세요."
        assert len(call.ears.log) == 2


async def test_an_utterance_cut_long_after_a_pause_is_decoded_whole(demo: Recogniser) -> None:
    """B17: speech without an end, with one short pause in it; the guess at that pause is not the final."""
    whole = spoken("내일 오후 세 시에 예약해 주세요.").pcm
    half = len(whole) // FRAME_BYTES // 2 * FRAME_BYTES
    async with calling(demo) as call:
        await call.says(whole[:half], silence_ms=0)
        await call.stream.resume()
        await call.says(whole[half:], pauses=False, silence_ms=0)
        await call.stream.flush()
        assert (await call.final()).text == "내일 오후 세 시에 예약해 주세요."


async def test_an_utterance_cut_without_a_pause_is_decoded_then(demo: Recogniser) -> None:
    async with calling(demo) as call:
        await call.says(spoken("감사합니다.").pcm, pauses=False, silence_ms=0)
        await call.stream.flush()
        assert (await call.final()).text == "감사합니다."


async def test_no_audio_and_no_words_still_make_a_final(demo: Recogniser) -> None:
    async with calling(demo) as call:
        await call.stream.flush()
        assert await call.final() == Transcript("", True)
        await call.says(nobody()[0].pcm)
        await call.stream.flush()
        assert (await call.final()).text == ""


async def test_twenty_utterances_in_one_call(demo: Recogniser) -> None:
    calls = [one for one in sample_calls() if one.text and one.language == "ko"][:20]
    async with calling(demo) as call:
        for one in calls:
            began = call.at_ms
            await call.says(one.pcm)
            await call.stream.flush()
            final = await call.final()
            assert (final.text, final.start_ms, final.end_ms) == (one.text, began, call.at_ms)
        assert len(call.ears.log) == 20


async def test_utterances_that_overtake_their_finals_keep_their_order(demo: Recogniser) -> None:
    texts = ["안녕하세요.", "네.", "감사합니다."]
    async with calling(demo) as call:
        for text in texts:
            await call.says(spoken(text).pcm)
            await call.stream.flush()
        await call.says(spoken("아니요.").pcm, silence_ms=0)
        assert [(await call.final()).text for _ in texts] == texts
        await call.stream.flush()
        assert (await call.final()).text == "아니요."


async def test_thirty_seconds_are_the_most_that_is_decoded() -> None:
    async with calling(None) as call:
        call.let(1)
        await call.says(QUIET * 1250, pauses=False, silence_ms=0)
        await call.stream.flush()
        final = await call.final()
        assert call.ears.log == [(29_984, 2)]
        assert (final.start_ms, final.end_ms) == (40_000 - 29_984, 40_000)


# ---------------------------------------------------------------- partials


async def test_a_partial_has_words_of_an_unfinished_sentence(demo: Recogniser) -> None:
    sentence = spoken("영업시간이 어떻게 되나요?").pcm
    async with calling(demo, EAGER) as call:
        await call.says(sentence[: 2 * RATE * 3 // 2], pauses=False, silence_ms=0)
        assert (await anext(call.words)).text
        await call.says(sentence[2 * RATE * 3 // 2 :])
        await call.stream.flush()
        assert (await call.final()).text == "영업시간이 어떻게 되나요?"


async def test_each_partial_covers_all_so_far_and_replaces_the_one_before() -> None:
    async with calling(None, EAGER) as call:
        call.let(20)
        sizes = []
        for _ in range(8):
            await call.says(QUIET * 8, pauses=False, silence_ms=0)  # 256 ms
            if call.at_ms >= 2 * EAGER.partial_ms:
                partial = await anext(call.words)
                assert not partial.final
                assert (partial.start_ms, partial.end_ms) == (0, call.at_ms)
                sizes.append(int(partial.text))
        assert sizes == [n * 8 * FRAME_BYTES for n in range(2, 9)]
        assert {beam for _, beam in call.ears.log} == {1}


async def test_one_partial_at_a_time_and_none_once_a_final_is_under_way() -> None:
    async with calling(None, EAGER) as call:
        await call.says(QUIET * 60, pauses=False, silence_ms=0)
        await call.entered()
        assert (call.engine.queue_depth, len(call.ears.log)) == (0, 1)
        await call.says(b"")
        await call.says(QUIET * 60, pauses=False, silence_ms=0)
        call.let(3)
        guess = await anext(call.words)  # what the partial found meanwhile is not told any more
        assert int(guess.text) == 60 * FRAME_BYTES
        await call.stream.flush()
        assert int((await call.final()).text) == 60 * FRAME_BYTES
        assert len(call.ears.log) == 2


async def test_partials_go_on_when_the_caller_goes_on_and_the_old_guess_is_not_told_again() -> None:
    async with calling(None, EAGER) as call:
        call.let(20)
        await call.says(QUIET * 10, silence_ms=0)
        texts = [(await anext(call.words)).text]
        await call.says(QUIET * 15, pauses=False, silence_ms=0)  # 480 ms: it may still be the end
        assert len(call.ears.log) == 1
        await call.says(QUIET * 5, pauses=False, silence_ms=0)
        texts.append((await anext(call.words)).text)
        await call.says(QUIET * 10, pauses=False, silence_ms=0)
        texts.append((await anext(call.words)).text)
        assert sorted(set(texts), key=int) == texts


async def test_no_partials_on_a_machine_that_is_busy_or_slow() -> None:
    async with calling(None, EAGER) as call:
        other = call.engine.submit(b"", RATE, "ko", Kind.FINAL)
        await call.entered()
        await call.says(QUIET * 60, pauses=False, silence_ms=0)
        assert call.engine.queue_depth == 0
        call.let(1)
        await other.future
        call.engine.decode_ms = 2 * EAGER.partial_ms + 1.0
        await call.says(QUIET * 60, pauses=False, silence_ms=0)
        assert [size for size, _ in call.ears.log] == [0]


# ---------------------------------------------------------------- failures


async def test_a_failed_guess_is_decoded_afresh() -> None:
    async with calling(None) as call:
        call.ears.failures = 1
        call.let(2)
        await call.says(QUIET * 10)
        await call.stream.flush()
        assert int((await call.final()).text) == 21 * FRAME_BYTES


async def test_a_guess_that_failed_before_the_end_costs_the_final_none_of_its_tries() -> None:
    async with calling(None) as call:
        call.ears.failures = 2
        call.let(4)
        await call.says(QUIET * 10)
        with pytest.raises(SttError):  # behind the guess in the queue, so the guess has failed as well
            await call.engine.decode(b"", RATE, "ko", Kind.PARTIAL)
        call.ears.failures = 1
        await call.stream.flush()
        assert int((await call.final()).text) == 21 * FRAME_BYTES
        assert len(call.ears.log) == 4


async def test_a_final_that_fails_twice_is_an_error() -> None:
    async with calling(None) as call:
        call.ears.failures = 2
        call.let(2)
        await call.says(QUIET * 10, pauses=False)
        await call.stream.flush()
        with pytest.raises(SttError, match="the recogniser failed"):
            await call.final()


async def test_a_final_that_was_refused_is_tried_again() -> None:
    async with calling(None, engine_options=EngineOptions(max_queued=1)) as call:
        running = call.engine.submit(b"", RATE, "ko", Kind.FINAL)
        await call.entered()
        waiting = call.engine.submit(b"", RATE, "ko", Kind.FINAL)
        await call.says(QUIET * 10)
        await call.stream.flush()
        call.let(3)
        await asyncio.gather(running.future, waiting.future)
        assert int((await call.final()).text) == 21 * FRAME_BYTES


async def test_hanging_up_drops_what_is_queued() -> None:
    async with calling(None) as call:
        running = call.engine.submit(b"", RATE, "ko", Kind.FINAL)
        await call.entered()
        await call.says(QUIET * 10)
        await call.stream.flush()
        await call.says(QUIET * 10)
        assert call.engine.queue_depth == 2
        call.stream.close()
        await asyncio.sleep(0)
        assert call.engine.queue_depth == 0
        assert [transcript async for transcript in call.words] == []
        call.let(1)
        await running.future
        assert len(call.ears.log) == 1


async def test_is_not_well_without_a_model(demo: Recogniser) -> None:
    assert (LocalStt.name, LocalStt.hears) == ("local", "speech")
    await LocalStt(Source(DecodeEngine(demo))).check()
    with pytest.raises(SttError, match="no model is loaded"):
        await LocalStt(Source(None)).check()
