"""The stream over the engine: the real recogniser and the demo model, or a scripted one where moments matter."""

import asyncio
import struct
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Sequence
from contextlib import aclosing, asynccontextmanager

import pytest

from app.asr.engine import DecodeEngine, EngineOptions, Kind
from app.asr.models import DEMO_FOLDER
from app.asr.recogniser import Decoded, Recogniser, Request
from app.asr.stream import RecogniserStream, StreamOptions
from app.audio.types import AudioFrame, Transcript
from app.errors import SttError
from tests.asr.sample_calls import RATE, SampleCall, nobody, sample_calls, spoken

FRAME_MS = 32
FRAME_BYTES = 2 * RATE * FRAME_MS // 1000
QUIET = bytes(FRAME_BYTES)
NEVER = StreamOptions(partial_ms=60_000, retry_s=0.0)
EAGER = StreamOptions(partial_ms=250, retry_s=0.0)


class Ears:
    """The real recogniser, or a scripted one that says how many bytes it heard, with a log of each decode.

    The scripted one waits for `gate` in each decode.
    """

    workers = 1
    max_batch = 1

    def __init__(self, recogniser: Recogniser | None) -> None:
        self.log: list[tuple[Request, int]] = []
        self.failures = 0
        self.gate = threading.Semaphore(0) if recogniser is None else None
        self.entered = threading.Semaphore(0)
        self._recogniser = recogniser

    def batch_key(self, request: Request) -> Hashable:
        return request.rate

    def decode(self, requests: Sequence[Request], *, beam: int) -> list[Decoded]:
        self.log += [(request, beam) for request in requests]
        self.entered.release()
        if self.gate is not None:
            assert self.gate.acquire(timeout=20)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("CUDA failed")
        if self._recogniser is None:
            return [Decoded(self.hear(request.pcm), request.language) for request in requests]
        return self._recogniser.decode(requests, beam=beam)

    def hear(self, pcm: bytes) -> str:
        return f"{len(pcm)}"

    @property
    def lengths_ms(self) -> list[int]:
        return [len(request.pcm) * 500 // request.rate for request, _ in self.log]

    @property
    def beams(self) -> list[int]:
        return [beam for _, beam in self.log]


class NumberEars(Ears):
    """Hears the sounds of `numbers`: each is a word, when at least 80 ms of it are there."""

    def hear(self, pcm: bytes) -> str:
        heard: dict[int, int] = {}
        for (sample,) in struct.iter_unpack("<h", pcm):
            heard[abs(sample) - LEVEL] = heard.get(abs(sample) - LEVEL, 0) + 1
        return " ".join(f"w{number}" for number, count in heard.items() if count >= 80 * RATE // 1000)


LEVEL = 2000


def numbers(count: int) -> bytes:
    """Half a second each, as loud as one another: there is no pause."""
    return b"".join(struct.pack("<hh", LEVEL + number, -LEVEL - number) * (RATE // 4) for number in range(count))


@pytest.fixture(scope="module")
def demo() -> Recogniser:
    return Recogniser.load(DEMO_FOLDER, "demo")


class Call:
    """One stream, spoken into at the pace of the test."""

    def __init__(self, stream: RecogniserStream, ears: Ears, engine: DecodeEngine) -> None:
        words = aiter(stream)
        assert isinstance(words, AsyncGenerator)
        self.stream, self.ears, self.engine = stream, ears, engine
        self.words: AsyncGenerator[Transcript, None] = words
        self.at_ms = 0
        self.speech_ms = 0

    async def says(self, pcm: bytes, *, pauses: bool = True, silence_ms: int = 352) -> None:
        for at in range(0, len(pcm), FRAME_BYTES):
            await self.send(pcm[at : at + FRAME_BYTES].ljust(FRAME_BYTES, b"\0"))
            self.speech_ms += FRAME_MS
        if pauses:
            await self.stream.pause(self.speech_ms)
        for _ in range(silence_ms // FRAME_MS):
            await self.send(QUIET)

    async def send(self, pcm: bytes) -> None:
        await self.stream.send(AudioFrame(pcm, RATE, self.at_ms))
        self.at_ms += FRAME_MS

    async def flush(self) -> None:
        await self.stream.flush(self.speech_ms)
        self.speech_ms = 0

    def let(self, decodes: int) -> None:
        assert self.ears.gate is not None
        self.ears.gate.release(decodes)

    async def entered(self) -> None:
        """Until the worker is inside a decode."""
        assert await asyncio.to_thread(self.ears.entered.acquire, timeout=20)

    async def keeps_busy(self) -> asyncio.Future[Decoded]:
        """Until the worker is inside somebody else's decode."""
        future = self.engine.submit(Request(b"", RATE, "ko"), Kind.FINAL).future
        await self.entered()
        return future

    async def all_decoded(self) -> None:
        await self.engine.decode(Request(b"", RATE, "ko"), Kind.PARTIAL)  # nothing is behind it in the queue

    async def hears_while_saying(self, pcm: bytes) -> list[Transcript]:
        """What is told meanwhile; nothing is said while something is being decoded."""
        told: list[Transcript] = []

        async def listen() -> None:
            async for transcript in self.words:
                told.append(transcript)

        async with asyncio.TaskGroup() as group:
            listener = group.create_task(listen())
            for at in range(0, len(pcm), 4 * FRAME_BYTES):
                await self.says(pcm[at : at + 4 * FRAME_BYTES], pauses=False, silence_ms=0)
                await self.all_decoded()
            listener.cancel()
        words = aiter(self.stream)
        assert isinstance(words, AsyncGenerator)
        self.words = words
        return told

    async def next(self) -> Transcript:
        async with asyncio.timeout(20):
            return await anext(self.words)

    async def final(self) -> Transcript:
        while not (transcript := await self.next()).final:
            pass
        return transcript


@asynccontextmanager
async def calling(
    ears: Recogniser | Ears | None, options: StreamOptions = NEVER, engine_options: EngineOptions | None = None
) -> AsyncIterator[Call]:
    heard = ears if isinstance(ears, Ears) else Ears(ears)
    engine = DecodeEngine(heard, engine_options)
    engine.start()
    stream = RecogniserStream(engine, RATE, "ko", options)
    call = Call(stream, heard, engine)
    try:
        async with aclosing(call.words):
            yield call
    finally:
        stream.close()
        if heard.gate is not None:
            heard.gate.release(1000)
        await engine.aclose()


# ---------------------------------------------------------------- the guess and the final


async def test_the_guess_at_the_pause_is_the_final(demo: Recogniser) -> None:
    call_audio = spoken("영업시간이 어떻게 되나요?").pcm
    async with calling(demo) as call:
        await call.says(call_audio)
        paused_ms = call.at_ms - 352
        guess = await call.next()
        assert (guess.text, guess.final) == ("영업시간이 어떻게 되나요?", False)
        assert (guess.start_ms, guess.end_ms) == (0, paused_ms)
        await call.flush()
        final = await call.next()
        assert (final.text, final.final) == (guess.text, True)
        assert (final.start_ms, final.end_ms) == (0, call.at_ms)
        assert final.confidence is not None
        assert (call.ears.lengths_ms, call.ears.beams) == ([paused_ms], [2])


async def test_the_final_is_there_at_the_endpoint() -> None:
    async with calling(None, EAGER) as call:
        call.let(1)
        await call.says(QUIET * 10, silence_ms=0)
        await call.next()
        await call.says(QUIET * 38, pauses=False, silence_ms=0)  # the longest wait there is, and time for partials
        assert call.engine.idle
        await call.flush()
        async with asyncio.timeout(0):  # expires at the first wait for anything
            final = await anext(call.words)
        assert int(final.text) == 10 * FRAME_BYTES
        assert len(call.ears.log) == 1


async def test_flush_does_not_wait_for_the_guess_to_be_ready(demo: Recogniser) -> None:
    async with calling(demo) as call:
        await call.says(spoken("네, 맞아요.").pcm)
        await call.flush()
        assert (await call.final()).text == "네, 맞아요."
        assert call.ears.beams == [2]


async def test_a_guess_is_told_though_its_words_are_known_or_none(demo: Recogniser) -> None:
    async with calling(demo) as call:
        await call.says(spoken("네, 맞아요.").pcm, silence_ms=96)
        first = await call.next()
        await call.stream.resume()
        await call.says(QUIET * 2, silence_ms=0)
        second = await call.next()
        assert first.text == second.text == "네, 맞아요."
        assert second.end_ms == call.at_ms > first.end_ms
        await call.flush()
        assert (await call.final()).text == "네, 맞아요."
        await call.says(nobody()[0].pcm)
        nothing = await call.next()
        assert (nothing.text, nothing.final, nothing.end_ms) == ("", False, call.at_ms - 352)


async def test_a_caller_who_goes_on_makes_the_guess_worthless(demo: Recogniser) -> None:
    whole = spoken("내일 오후 세 시에 예약해 주세요.").pcm
    half = len(whole) // FRAME_BYTES // 2 * FRAME_BYTES
    async with calling(demo) as call:
        await call.says(whole[:half], silence_ms=0)
        await call.next()
        await call.stream.resume()
        await call.says(whole[half:])
        await call.flush()
        assert (await call.final()).text == "내일 오후 세 시에 예약해 주세요."
        assert len(call.ears.log) == 2


async def test_a_guess_that_waits_is_dropped_when_the_caller_goes_on() -> None:
    async with calling(None) as call:
        await call.keeps_busy()
        await call.says(QUIET * 10, silence_ms=96)
        assert call.engine.queue_depth == 1
        await call.stream.resume()
        await asyncio.sleep(0)
        assert call.engine.queue_depth == 0
        await call.says(QUIET * 10, pauses=False, silence_ms=0)
        await call.flush()
        call.let(2)
        assert int((await call.next()).text) == 23 * FRAME_BYTES  # nothing of the guess was told
        assert len(call.ears.log) == 2


async def test_an_utterance_cut_long_after_a_pause_is_decoded_whole(demo: Recogniser) -> None:
    """B17: speech without an end, with one short pause in it; the guess at that pause is not the final."""
    whole = spoken("내일 오후 세 시에 예약해 주세요.").pcm
    half = len(whole) // FRAME_BYTES // 2 * FRAME_BYTES
    async with calling(demo) as call:
        await call.says(whole[:half], silence_ms=0)
        await call.stream.resume()
        await call.says(whole[half:], pauses=False, silence_ms=0)
        await call.flush()
        assert (await call.final()).text == "내일 오후 세 시에 예약해 주세요."


async def test_an_utterance_cut_without_a_pause_is_decoded_then(demo: Recogniser) -> None:
    async with calling(demo) as call:
        await call.says(spoken("감사합니다.").pcm, pauses=False, silence_ms=0)
        await call.flush()
        assert (await call.final()).text == "감사합니다."


async def test_no_audio_and_no_words_still_make_a_final(demo: Recogniser) -> None:
    async with calling(demo) as call:
        await call.flush()
        assert await call.final() == Transcript("", True)
        assert call.ears.log == []
        await call.says(nobody()[0].pcm)
        await call.flush()
        assert (await call.final()).text == ""


async def test_twenty_utterances_in_one_call(demo: Recogniser) -> None:
    calls = [one for one in sample_calls() if one.text and one.language == "ko"][:20]
    async with calling(demo) as call:
        for one in calls:
            began = call.at_ms
            await call.says(one.pcm)
            await call.flush()
            final = await call.final()
            assert (final.text, final.start_ms, final.end_ms) == (one.text, began, call.at_ms)
        assert len(call.ears.log) == 20


async def test_utterances_that_overtake_their_finals_keep_their_order(demo: Recogniser) -> None:
    texts = ["안녕하세요.", "네.", "감사합니다."]
    async with calling(demo) as call:
        for text in texts:
            await call.says(spoken(text).pcm)
            await call.flush()
        await call.says(spoken("아니요.").pcm, silence_ms=0)
        assert [(await call.final()).text for _ in texts] == texts
        await call.flush()
        assert (await call.final()).text == "아니요."


async def test_the_recogniser_is_told_how_much_of_it_is_speech() -> None:
    async with calling(None, EAGER) as call:
        call.let(9)
        await call.says(QUIET * 20, pauses=False, silence_ms=0)
        await call.next()
        await call.stream.pause(400)
        await call.next()
        await call.stream.resume()
        await call.stream.flush(480)
        await call.final()
        assert [request.speech_ms for request, _ in call.ears.log] == [None, 400, 480]
        assert {(request.rate, request.language, request.previous) for request, _ in call.ears.log} == {
            (RATE, "ko", "")
        }


async def test_the_last_piece_has_no_more_speech_than_audio() -> None:
    async with calling(NumberEars(None), StreamOptions(partial_ms=60_000, window_s=2.0)) as call:
        call.let(9)
        await call.says(numbers(5), silence_ms=0)
        await call.next()
        piece, last = (request for request, _ in call.ears.log)
        assert (piece.speech_ms, last.speech_ms) == (None, call.ears.lengths_ms[1])
        assert call.ears.lengths_ms[1] < call.speech_ms


async def test_the_guess_whose_wait_ends_first_is_decoded_first() -> None:
    async with calling(None, StreamOptions(wait_ms=900)) as call:
        other = RecogniserStream(call.engine, RATE, "en", StreamOptions(wait_ms=200))
        await call.keeps_busy()
        await call.says(QUIET * 10, silence_ms=0)
        await other.send(AudioFrame(QUIET, RATE))
        await other.pause(32)
        call.let(3)
        await call.next()
        assert [request.language for request, _ in call.ears.log] == ["ko", "en", "ko"]
        other.close()


# ---------------------------------------------------------------- partials


async def test_a_partial_has_words_of_an_unfinished_sentence(demo: Recogniser) -> None:
    sentence = spoken("영업시간이 어떻게 되나요?").pcm
    async with calling(demo, EAGER) as call:
        await call.says(sentence[: 2 * RATE * 3 // 2], pauses=False, silence_ms=0)
        assert (await call.next()).text
        await call.says(sentence[2 * RATE * 3 // 2 :])
        await call.flush()
        assert (await call.final()).text == "영업시간이 어떻게 되나요?"


async def test_each_partial_covers_all_so_far_and_replaces_the_one_before() -> None:
    async with calling(None, EAGER) as call:
        call.let(20)
        sizes = []
        for _ in range(8):
            await call.says(QUIET * 8, pauses=False, silence_ms=0)  # 256 ms
            if call.at_ms >= 2 * EAGER.partial_ms:
                partial = await call.next()
                assert not partial.final
                assert (partial.start_ms, partial.end_ms) == (0, call.at_ms)
                sizes.append(int(partial.text))
        assert sizes == [n * 8 * FRAME_BYTES for n in range(2, 9)]
        assert set(call.ears.beams) == {1}


async def test_a_partial_without_news_is_not_told() -> None:
    class Same(Ears):
        def hear(self, pcm: bytes) -> str:
            return "네" if len(pcm) < 40 * FRAME_BYTES else "네 맞아요"

    async with calling(Same(None), EAGER) as call:
        call.let(1000)
        told = await call.hears_while_saying(QUIET * 64)
        assert [transcript.text for transcript in told] == ["네", "네 맞아요"]
        assert call.ears.beams.count(1) > 10


async def test_one_partial_at_a_time_and_none_once_a_final_is_under_way() -> None:
    async with calling(None, EAGER) as call:
        await call.says(QUIET * 60, pauses=False, silence_ms=0)
        await call.entered()
        assert (call.engine.queue_depth, len(call.ears.log)) == (0, 1)
        await call.says(b"", silence_ms=0)
        await call.says(QUIET * 60, pauses=False, silence_ms=0)
        call.let(3)
        guess = await call.next()  # what the partial found meanwhile is not told any more
        assert int(guess.text) == 60 * FRAME_BYTES
        await call.flush()
        assert int((await call.final()).text) == 60 * FRAME_BYTES
        assert len(call.ears.log) == 2


async def test_a_partial_that_nobody_took_yet_is_followed_by_none() -> None:
    async with calling(None, EAGER) as call:
        call.let(2)
        await call.says(QUIET * 20, pauses=False, silence_ms=0)
        await call.all_decoded()
        await call.says(QUIET * 20, pauses=False, silence_ms=0)
        assert call.engine.idle
        assert int((await call.next()).text) == 16 * FRAME_BYTES


async def test_partials_go_on_when_the_caller_goes_on() -> None:
    async with calling(None, EAGER) as call:
        call.let(20)
        await call.says(QUIET * 10, silence_ms=64)
        sizes = [int((await call.next()).text)]
        await call.stream.resume()
        for _ in range(2):
            await call.says(QUIET * 20, pauses=False, silence_ms=0)
            sizes.append(int((await call.next()).text))
        assert sizes[0] == 10 * FRAME_BYTES < sizes[1] < sizes[2]
        assert call.ears.beams == [2, 1, 1]


async def test_no_partials_on_a_machine_that_is_busy_or_slow() -> None:
    async with calling(None, EAGER) as call:
        other = await call.keeps_busy()
        waiting = call.engine.submit(Request(b"", RATE, "ko"), Kind.FINAL).future
        await call.says(QUIET * 60, pauses=False, silence_ms=0)
        assert call.engine.queue_depth == 1
        call.let(2)
        await asyncio.gather(other, waiting)
        call.engine.decode_ms = 2 * EAGER.partial_ms + 1.0
        await call.says(QUIET * 60, pauses=False, silence_ms=0)
        assert call.ears.lengths_ms == [0, 0]
        call.let(1)
        await call.flush()
        assert int((await call.next()).text) == 120 * FRAME_BYTES


async def test_all_who_speak_at_once_have_partials() -> None:
    """While one decode of partials runs they wait together for the next."""
    ears = Ears(None)
    ears.workers, ears.max_batch = 2, 16
    async with calling(ears, EAGER) as call:
        others = [RecogniserStream(call.engine, RATE, "ko", EAGER) for _ in range(9)]
        streams = [call.stream, *others]
        words = [call.words, *map(aiter, others)]
        for _ in range(3):
            running = call.engine.submit(Request(b"", RATE, "ko"), Kind.PARTIAL)
            await call.entered()
            for _ in range(16):
                for stream in streams:
                    await stream.send(AudioFrame(QUIET, RATE, call.at_ms))
                call.at_ms += FRAME_MS
            assert call.engine.queue_depth == 10
            call.let(2)
            await running.future
            await call.entered()
            told = [await anext(one) for one in words]
            assert len({one.text for one in told}) == 1
        for stream in others:
            stream.close()


# ---------------------------------------------------------------- long speech


def phrases(count: int) -> list[SampleCall]:
    return [one for one in sample_calls() if one.text and one.language == "ko"][:count]


@pytest.mark.parametrize("first", [0, 5, 10, 15, 20, 25])
async def test_long_speech_is_decoded_in_pieces_at_its_pauses(demo: Recogniser, first: int) -> None:
    """Five sentences in one breath, 10 to 14 s, and a window of 5 s: the words of all, none lost and none twice."""
    said = phrases(30)[first : first + 5]
    options = StreamOptions(partial_ms=250, window_s=5.0, retry_s=0.0)
    async with calling(demo, options) as call:
        await call.says(b"".join(one.pcm for one in said))
        await call.flush()
        final = await call.final()
        assert final.text == " ".join(one.text for one in said)
        assert (final.start_ms, final.end_ms) == (0, call.at_ms)
        assert max(call.ears.lengths_ms) <= 5000 + FRAME_MS
        assert final.confidence is not None


async def test_the_guess_in_long_speech_has_the_words_of_all_pieces(demo: Recogniser) -> None:
    said = phrases(10)[5:]
    async with calling(demo, StreamOptions(partial_ms=60_000, window_s=5.0)) as call:
        await call.says(b"".join(one.pcm for one in said))
        guess = await call.next()
        assert (guess.text, guess.final) == (" ".join(one.text for one in said), False)
        assert guess.end_ms == call.at_ms - 352
        decodes = len(call.ears.log)
        await call.flush()
        assert (await call.next()).text == guess.text
        assert len(call.ears.log) == decodes
        assert set(call.ears.beams) == {2}


@pytest.mark.parametrize("window_s", [1.0, 5.0, 15.0, 30.0])
async def test_a_minute_without_a_pause_keeps_everything_in_order(window_s: float) -> None:
    async with calling(NumberEars(None), StreamOptions(partial_ms=60_000, window_s=window_s)) as call:
        call.let(1000)
        await call.says(numbers(120), silence_ms=0)
        await call.flush()
        final = await call.final()
        assert final.text.split() == [f"w{number}" for number in range(120)]
        assert max(call.ears.lengths_ms) <= window_s * 1000
        assert len(call.ears.log) <= 60 / (window_s / 2 - 0.12)


async def test_partials_of_long_speech_have_all_its_words_and_cost_a_window() -> None:
    async with calling(NumberEars(None), StreamOptions(partial_ms=500, window_s=2.0)) as call:
        call.let(1000)
        told = [transcript.text.split() for transcript in await call.hears_while_saying(numbers(20))]
        assert len(told) >= 15
        for words in told:
            assert words == [f"w{number}" for number in range(len(words))]
        assert len(told[-1]) >= 19
        assert max(call.ears.lengths_ms) <= 2000


async def test_a_window_of_one_second_works_if_badly(demo: Recogniser) -> None:
    async with calling(demo, StreamOptions(partial_ms=250, window_s=1.0)) as call:
        for text in ("영업시간이 어떻게 되나요?", "네."):
            await call.says(spoken(text).pcm)
            await call.flush()
            assert (await call.final()).text
        assert max(call.ears.lengths_ms) <= 1000


async def test_a_window_that_ends_in_a_pause_costs_no_guess() -> None:
    async with calling(None, StreamOptions(partial_ms=60_000, window_s=2.0)) as call:
        call.let(1000)
        await call.says(QUIET * 60, silence_ms=608)  # 1.9 s, and 2.5 s with the pause
        assert int((await call.next()).text) == 60 * FRAME_BYTES
        await call.flush()
        assert int((await call.next()).text) == 60 * FRAME_BYTES
        assert len(call.ears.log) == 1


async def test_what_lasts_longer_than_the_model_hears_is_cut_even_in_a_pause() -> None:
    async with calling(None, StreamOptions(partial_ms=60_000, window_s=30.0)) as call:
        call.let(9)
        await call.says(QUIET * 900, silence_ms=0)  # 28.8 s
        assert int((await call.next()).text) == 900 * FRAME_BYTES
        await call.says(QUIET * 100, pauses=False, silence_ms=0)
        await call.flush()
        assert len((await call.next()).text.split()) == 2
        assert [length <= 30_000 for length in call.ears.lengths_ms] == [True, True, True]


async def test_a_piece_is_as_urgent_as_its_final() -> None:
    async with calling(NumberEars(None), StreamOptions(partial_ms=60_000, window_s=2.0)) as call:
        other = RecogniserStream(call.engine, RATE, "en", StreamOptions(wait_ms=1))
        await call.keeps_busy()
        await call.says(numbers(5), pauses=False, silence_ms=0)
        await other.send(AudioFrame(QUIET, RATE))
        await other.pause(32)
        await call.flush()
        call.let(4)
        assert (await call.final()).text == "w0 w1 w2 w3 w4"
        assert [request.language for request, _ in call.ears.log[:3]] == ["ko", "ko", "ko"]
        other.close()


async def test_a_piece_that_was_refused_is_decoded_later() -> None:
    options = StreamOptions(partial_ms=60_000, window_s=2.0, retry_s=0.0)
    async with calling(NumberEars(None), options, EngineOptions(max_queued=2)) as call:
        other = await call.keeps_busy()
        waiting = [call.engine.submit(Request(b"", RATE, "ko"), Kind.FINAL).future for _ in range(2)]
        await call.says(numbers(5), pauses=False, silence_ms=0)
        call.let(1000)
        await asyncio.gather(other, *waiting)
        await call.stream.pause(2500)
        guess = await call.next()
        assert (guess.text, guess.final) == ("w0 w1 w2 w3 w4", False)
        await call.flush()
        assert (await call.next()).text == guess.text
        assert len(call.ears.log) == 5


async def test_a_guess_is_told_when_its_last_piece_is_there() -> None:
    class SlowAtFirst(NumberEars):
        workers = 2
        head = threading.Event()

        def decode(self, requests: Sequence[Request], *, beam: int) -> list[Decoded]:
            if not self.log:
                self.log += [(request, beam) for request in requests]
                self.entered.release()
                assert self.head.wait(20)
                return [Decoded(self.hear(request.pcm), "ko") for request in requests]
            return super().decode(requests, beam=beam)

    ears = SlowAtFirst(None)
    async with calling(ears, StreamOptions(partial_ms=60_000, window_s=2.0)) as call:
        call.let(1000)
        await call.says(numbers(4) + QUIET, pauses=False, silence_ms=0)
        await call.entered()
        await call.says(numbers(6)[-FRAME_BYTES * 31 :], silence_ms=0)
        assert await call.hears_while_saying(QUIET * 4) == []  # the guess is decoded, its first piece is not
        ears.head.set()
        assert (await call.next()).text == "w0 w1 w2 w3 w4 w5"


async def test_a_guess_without_all_its_pieces_tells_that_it_cannot_tell() -> None:
    """Half of a sentence misleads."""
    async with calling(NumberEars(None), StreamOptions(partial_ms=60_000, window_s=2.0)) as call:
        call.ears.failures = 1
        call.let(1000)
        await call.says(numbers(5), silence_ms=0)
        (unsure,) = await call.hears_while_saying(QUIET * 8)
        assert (unsure.text, unsure.final) == ("", False)
        await call.flush()
        final = await call.next()
        assert (final.text, final.final) == ("w0 w1 w2 w3 w4", True)


# ---------------------------------------------------------------- the text before


async def test_the_text_before_is_given_only_when_asked_for(demo: Recogniser) -> None:
    said = phrases(10)[5:8]
    for on in (False, True):
        async with calling(demo, StreamOptions(partial_ms=60_000, window_s=5.0, condition_on_prev=on)) as call:
            for one in said:
                await call.says(one.pcm)
                await call.flush()
                await call.final()
            before = " ".join(one.text for one in said)
            previous = [request.previous for request, _ in call.ears.log]
            assert previous == (["", said[0].text, before[: before.rindex(said[2].text) - 1]] if on else [""] * 3)


async def test_the_text_before_includes_the_pieces_and_stays_short() -> None:
    options = StreamOptions(partial_ms=60_000, window_s=2.0, condition_on_prev=True)
    async with calling(NumberEars(None), options) as call:
        call.let(1000)
        sound = numbers(120)
        for at in range(0, len(sound), FRAME_BYTES * 8):
            await call.says(sound[at : at + FRAME_BYTES * 8], pauses=False, silence_ms=0)
            await call.all_decoded()
        await call.flush()
        await call.final()
        last = call.ears.log[-1][0].previous.split()
        assert len(call.ears.log[-1][0].previous) == 200
        assert last[1:] == [f"w{int(last[1][1:]) + number}" for number in range(len(last) - 1)]


# ---------------------------------------------------------------- failures and overload


async def test_a_failed_guess_is_decoded_afresh() -> None:
    async with calling(None) as call:
        call.ears.failures = 1
        call.let(2)
        await call.says(QUIET * 10)
        await call.flush()
        assert int((await call.final()).text) == 21 * FRAME_BYTES


async def test_a_guess_that_failed_before_the_end_costs_the_final_none_of_its_tries() -> None:
    async with calling(None) as call:
        call.ears.failures = 2
        call.let(4)
        await call.says(QUIET * 10)
        with pytest.raises(SttError):  # behind the guess in the queue, so the guess has failed as well
            await call.engine.decode(Request(b"", RATE, "ko"), Kind.PARTIAL)
        call.ears.failures = 1
        await call.flush()
        assert int((await call.final()).text) == 21 * FRAME_BYTES
        assert len(call.ears.log) == 4


async def test_a_final_that_fails_twice_is_an_error() -> None:
    async with calling(None) as call:
        call.ears.failures = 2
        call.let(2)
        await call.says(QUIET * 10, pauses=False)
        await call.flush()
        with pytest.raises(SttError):
            await call.final()


async def test_a_guess_that_was_refused_leaves_the_final_to_be_decoded() -> None:
    async with calling(None, EAGER, EngineOptions(max_queued=1)) as call:
        other = await call.keeps_busy()
        waiting = call.engine.submit(Request(b"", RATE, "ko"), Kind.FINAL).future
        await call.says(QUIET * 40)
        await call.flush()
        call.let(3)
        await asyncio.gather(other, waiting)
        final = await call.next()
        assert (int(final.text), final.final) == (51 * FRAME_BYTES, True)
        assert len(call.ears.log) == 3


async def test_a_guess_that_was_refused_tells_at_once_that_it_cannot_tell() -> None:
    async with calling(None, EAGER, EngineOptions(max_queued=1)) as call:
        await call.keeps_busy()
        call.engine.submit(Request(b"", RATE, "ko"), Kind.FINAL)
        await call.says(QUIET * 10, silence_ms=0)
        unsure = await call.next()
        assert (unsure.text, unsure.final, unsure.end_ms) == ("", False, 10 * FRAME_MS)
        call.let(10)


async def test_a_queue_that_stays_full_is_an_error_in_the_end() -> None:
    options = StreamOptions(partial_ms=60_000, retry_s=0.01, busy_s=0.05)
    async with calling(None, options, EngineOptions(max_queued=1)) as call:
        await call.keeps_busy()
        call.engine.submit(Request(b"", RATE, "ko"), Kind.FINAL)
        await call.says(QUIET * 10)
        await call.flush()
        with pytest.raises(SttError) as caught:
            await call.final()
        assert caught.value.kind == "busy"


async def test_hanging_up_drops_what_is_queued() -> None:
    async with calling(NumberEars(None), StreamOptions(partial_ms=60_000, window_s=2.0)) as call:
        running = await call.keeps_busy()
        await call.says(QUIET * 10)
        await call.flush()
        await call.says(numbers(5))
        assert call.engine.queue_depth == 3  # the first utterance, a piece of the second, its guess
        call.stream.close()
        await asyncio.sleep(0)
        assert call.engine.queue_depth == 0
        assert [transcript async for transcript in call.words] == []
        call.let(1)
        await running
        assert len(call.ears.log) == 1


@pytest.mark.parametrize("engine_options", [EngineOptions(), EngineOptions(max_queued=1)])
async def test_closing_ends_the_iteration_and_cancels_nobody(engine_options: EngineOptions) -> None:
    """Whether the final waits for its decode or for room in the queue."""
    options = StreamOptions(partial_ms=60_000, retry_s=0.0, busy_s=0.05)
    async with calling(None, options, engine_options) as call:
        await call.keeps_busy()
        if engine_options.max_queued == 1:
            call.engine.submit(Request(b"", RATE, "ko"), Kind.FINAL)
        await call.says(QUIET * 10, pauses=False)
        await call.flush()
        asyncio.get_running_loop().call_soon(call.stream.close)
        async with asyncio.timeout(20):
            assert [transcript async for transcript in call.words] == []
        assert call.engine.queue_depth == engine_options.max_queued % 64
