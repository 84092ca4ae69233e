"""The legacy way: where utterances begin and end, and the stream over them. Everything on the virtual clock."""

import asyncio
import functools
import io
import wave
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audio import g711
from app.audio.endpoint import Endpointer, EndpointOptions
from app.audio.types import AudioFrame, Transcript
from app.audio.vad import EnergyDetector
from app.errors import SttError
from app.services.ai_call.audio_processor import AudioProcessor, LegacyOptions, LegacyStt, LegacySttStream, Utterance
from app.services.ai_call.listening import Listener
from app.services.ai_call.stt_service import STTService
from app.services.ai_call.succession import Candidate, Succession
from app.services.ai_call.types import Event, Heard
from tests.asr.sample_calls import SampleCall, nobody, sample_calls
from tests.conversation import VIRTUAL
from tests.emulators.elevenlabs import hum

pytestmark = VIRTUAL

RATE = 8000
BYTES_PER_MS = RATE * 2 // 1000
PREROLL_MS, SILENCE_MS = 300, 500


@functools.cache
def voice(ms: int) -> bytes:
    """Steps of 80 ms."""
    return g711.decode(hum("x" * (ms // 80)))


def silence(ms: int) -> bytes:
    return bytes(ms * BYTES_PER_MS)


def frames(pcm: bytes, size: int = 320, from_ms: int = 0) -> list[AudioFrame]:
    return [AudioFrame(pcm[at : at + size], RATE, from_ms + at // BYTES_PER_MS) for at in range(0, len(pcm), size)]


def found(*pieces: bytes) -> list[Utterance]:
    processor = AudioProcessor(RATE)
    return [utterance for frame in frames(b"".join(pieces)) for utterance in processor.push(frame)]


def samples_of(utterance: Utterance) -> bytes:
    with wave.open(io.BytesIO(utterance.wav)) as wav:
        assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (1, 2, RATE)
        return bytes(wav.readframes(wav.getnframes()))


# ---------------------------------------------------------------- utterances


@pytest.mark.parametrize("call", [call for call in sample_calls() if call.text], ids=lambda call: call.name)
def test_a_spoken_sentence_is_one_utterance(call: SampleCall) -> None:
    (utterance,) = found(call.pcm, silence(1000))
    assert samples_of(utterance) in call.pcm + silence(1000)


@pytest.mark.parametrize("call", nobody(), ids=lambda call: call.name)
def test_a_line_on_which_nobody_speaks_gives_none(call: SampleCall) -> None:
    assert found(call.pcm, silence(1000)) == []


@pytest.mark.parametrize("level", [30, 300, 3000])
def test_noise_gives_none(level: int) -> None:
    noise = np.random.default_rng(level).normal(0, level, 10 * RATE).astype("<i2").tobytes()
    assert found(noise) == []


def test_a_click_gives_none() -> None:
    click = voice(80)[: 40 * BYTES_PER_MS]
    assert found(silence(1000), click, silence(1000)) == []


@pytest.mark.parametrize(("pause_ms", "utterances"), [(300, 1), (400, 1), (600, 2), (2000, 2)])
def test_half_a_second_of_silence_ends_an_utterance(pause_ms: int, utterances: int) -> None:
    assert len(found(silence(500), voice(800), silence(pause_ms), voice(800), silence(1000))) == utterances


def test_ends_exactly_half_a_second_after_the_last_sound() -> None:
    processor = AudioProcessor(RATE)
    heard = frames(silence(500) + voice(800) + silence(1000), size=25 * BYTES_PER_MS)
    ends = [frame.at_ms + 25 for frame in heard if processor.push(frame)]
    assert ends == [500 + 800 + 25 + SILENCE_MS]  # the frame after the last sound still holds its echo


def test_holds_the_preroll_the_speech_and_the_silence() -> None:
    (utterance,) = found(silence(1000), voice(800), silence(1000))
    audio = silence(PREROLL_MS) + voice(800) + silence(25 + SILENCE_MS)
    assert samples_of(utterance) == audio
    assert (utterance.start_ms, utterance.end_ms) == (1000 - PREROLL_MS, 1800 + 25)


def test_an_utterance_never_holds_the_one_before() -> None:
    first, second = found(silence(500), voice(800), silence(560), voice(400), silence(1000))
    assert first.end_ms <= second.start_ms
    assert samples_of(second).count(voice(400)) == 1
    assert len(samples_of(second)) <= len(silence(PREROLL_MS) + voice(400) + silence(25 + SILENCE_MS))


def test_speech_without_an_end_is_cut_and_nothing_of_it_is_lost() -> None:
    speech = voice(72_000)
    utterances = found(silence(PREROLL_MS), speech, silence(1000))
    pieces = [samples_of(utterance) for utterance in utterances]
    assert len(pieces) == 3
    assert max(map(len, pieces)) <= 30_000 * BYTES_PER_MS
    assert b"".join(pieces).startswith(silence(PREROLL_MS) + speech)


def test_times_are_media_times() -> None:
    """The stream begins in the middle of a call, and a second of the line is left out."""
    processor = AudioProcessor(RATE)
    heard = frames(silence(400) + voice(800) + silence(600), from_ms=60_000)
    heard += frames(silence(400) + voice(800) + silence(600), from_ms=60_000 + 1800 + 1000)
    times = [(u.start_ms, u.end_ms) for frame in heard for u in processor.push(frame)]
    assert times == [(60_100, 61_225), (62_900, 64_025)]


def test_silence_is_not_kept() -> None:
    processor = AudioProcessor(RATE)
    for frame in frames(silence(60_000)):
        processor.push(frame)
        assert processor.held_ms <= 500


def test_a_rate_that_cannot_be_judged_is_refused() -> None:
    with pytest.raises(ValueError, match="8000"):
        AudioProcessor(16_000)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=60))
def test_how_the_audio_is_cut_makes_no_difference(sizes: list[int]) -> None:
    pcm = silence(400) + voice(480) + silence(700) + voice(640) + silence(300) + voice(80) + silence(800)
    processor = AudioProcessor(RATE)
    utterances, at = [], 0
    for size in [2 * samples for samples in sizes] + [len(pcm)]:
        frame = AudioFrame(pcm[at : at + size], RATE, round(at / BYTES_PER_MS))
        utterances += processor.push(frame)
        at += len(frame.pcm)
    assert utterances == found(pcm)
    assert len(utterances) == 2


@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(st.integers(20, 420), st.integers(600, 2000)), max_size=6))
def test_every_sound_is_in_exactly_one_utterance(pauses: list[int]) -> None:
    pcm = silence(400) + voice(480) + b"".join(silence(ms) + voice(480) for ms in pauses) + silence(800)
    utterances = found(pcm)
    assert len(utterances) == 1 + sum(ms >= 600 for ms in pauses)
    assert sum(samples_of(utterance).count(voice(480)) for utterance in utterances) == 1 + len(pauses)


# ---------------------------------------------------------------- the stream


class ScriptedBatch:
    """Hears how long the sound in an utterance is, in hundredths of a second. `errors`: of one request each."""

    name = "scripted"

    def __init__(self, delay_s: float = 0.0, errors: Sequence[SttError | None] = (), heard: str | None = None) -> None:
        self.delay_s = delay_s
        self.errors = list(errors)
        self.heard = heard
        self.asked: list[tuple[float, str]] = []
        """When, and the language."""
        self.at_once = 0
        self.cancelled = 0
        self.closed = False
        self._working = 0

    async def transcribe(self, wav: bytes, language: str) -> str:
        self.asked.append((asyncio.get_running_loop().time(), language))
        self._working += 1
        self.at_once = max(self.at_once, self._working)
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self._working -= 1
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        with wave.open(io.BytesIO(wav)) as file:
            sounding = np.count_nonzero(np.frombuffer(file.readframes(file.getnframes()), "<i2"))
        return str(round(sounding / (RATE * 0.08)) * 8) if self.heard is None else self.heard

    async def check(self) -> None:
        if self.errors and self.errors[0] is not None:
            raise self.errors[0]

    async def aclose(self) -> None:
        self.closed = True


def broken(*, retryable: bool) -> SttError:
    return SttError("down", provider="scripted", kind="unavailable", retryable=retryable)


CALL = frames(silence(400) + voice(480) + silence(700) + voice(640) + silence(700) + voice(800) + silence(600))
"""Three utterances."""


async def send(stream: LegacySttStream, heard: Sequence[AudioFrame]) -> None:
    for frame in heard:
        await stream.send(frame)


async def heard_from(stream: LegacySttStream, finals: int) -> list[Transcript]:
    heard: list[Transcript] = []
    async with aclosing(cast(AsyncGenerator[Transcript, None], aiter(stream))) as transcripts:
        async for transcript in transcripts:
            heard.append(transcript)
            if len(heard) == finals:
                break
    return heard


async def test_one_final_for_each_utterance_in_order() -> None:
    batch = ScriptedBatch(delay_s=1.5)
    async with LegacyStt(STTService(batch)).open(RATE, "ko") as stream:
        await send(stream, CALL)
        heard = await heard_from(stream, 3)
    assert [transcript.text for transcript in heard] == ["48", "64", "80"]
    assert all(transcript.final for transcript in heard)
    assert [t.start_ms for t in heard] == pytest.approx(
        [400 - PREROLL_MS, 1580 - PREROLL_MS, 2920 - PREROLL_MS], abs=25
    )
    assert [t.end_ms for t in heard] == pytest.approx([880, 2220, 3720], abs=25)
    assert batch.at_once == 1
    assert {language for _, language in batch.asked} == {"ko"}


async def test_what_the_endpointer_thinks_is_of_no_interest() -> None:
    batch = ScriptedBatch()
    async with LegacyStt(STTService(batch)).open(RATE, "ko") as stream:
        for frame in CALL[:40]:
            await stream.send(frame)
            await stream.pause(400)
            await stream.resume()
            await stream.flush(400)
        assert batch.asked == []
        await send(stream, CALL[40:])
        assert [transcript.text for transcript in await heard_from(stream, 3)] == ["48", "64", "80"]


async def test_the_words_come_half_a_second_and_one_request_after_the_speech() -> None:
    """The baseline's latency, and nothing saved of it."""
    loop = asyncio.get_running_loop()
    batch = ScriptedBatch(delay_s=1.5)
    came: list[float] = []

    async def listen(stream: LegacySttStream) -> None:
        await heard_from(stream, 1)
        came.append(loop.time())

    began = loop.time()
    async with LegacyStt(STTService(batch)).open(RATE, "ko") as stream, asyncio.TaskGroup() as group:
        group.create_task(listen(stream))
        for frame in frames(silence(400) + voice(800) + silence(1000)):
            await asyncio.sleep(0.02)
            await stream.send(frame)
    assert batch.asked[0][0] - began - 1.2 == pytest.approx(0.5, abs=0.05)
    assert came[0] - batch.asked[0][0] == pytest.approx(1.5, abs=0.01)


async def test_an_utterance_without_words_gives_an_empty_final() -> None:
    async with LegacyStt(STTService(ScriptedBatch(heard=""))).open(RATE, "en") as stream:
        await send(stream, CALL)
        heard = await heard_from(stream, 3)
    assert [(transcript.text, transcript.final) for transcript in heard] == [("", True)] * 3


async def test_a_hangup_in_the_middle_of_an_utterance_leaves_nothing() -> None:
    batch = ScriptedBatch()
    for until in range(0, 60, 7):
        async with LegacyStt(STTService(batch)).open(RATE, "ko") as stream:
            await send(stream, CALL[:until])
        assert await heard_from(stream, 1) == []
    assert batch.asked == []


async def test_a_hangup_ends_the_request_that_runs_and_drops_what_waits() -> None:
    batch = ScriptedBatch(delay_s=5)
    async with LegacyStt(STTService(batch)).open(RATE, "ko") as stream:
        await send(stream, CALL)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await heard_from(stream, 1)
    assert batch.cancelled == len(batch.asked) == 1
    assert await heard_from(stream, 1) == []


async def test_the_end_of_the_stream_ends_the_iteration_that_waits() -> None:
    async with asyncio.TaskGroup() as group, LegacyStt(STTService(ScriptedBatch())).open(RATE, "ko") as stream:
        listening = group.create_task(heard_from(stream, 1))
        await asyncio.sleep(1)
    assert listening.result() == []


async def test_no_more_than_a_few_utterances_wait() -> None:
    """A vendor that takes for ever: whoever sends waits, and nothing grows."""
    stt = LegacyStt(STTService(ScriptedBatch(delay_s=1e6)), LegacyOptions(max_waiting=2))
    async with stt.open(RATE, "ko") as stream:
        await send(stream, CALL[:150])  # two utterances
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send(stream, CALL[150:]), 1)


async def test_a_failure_that_may_pass_is_asked_once_more() -> None:
    batch = ScriptedBatch(errors=[None, broken(retryable=True)])
    async with LegacyStt(STTService(batch)).open(RATE, "ko") as stream:
        await send(stream, CALL)
        assert [transcript.text for transcript in await heard_from(stream, 3)] == ["48", "64", "80"]
    assert len(batch.asked) == 4


@pytest.mark.parametrize(("retryable", "asked"), [(True, 3), (False, 2)])
async def test_a_failure_ends_the_stream_and_the_next_one_hears_the_rest(retryable: bool, asked: int) -> None:
    """What the listener does: it sends everything again that no final has covered."""
    batch = ScriptedBatch(errors=[None, *[broken(retryable=retryable)] * (asked - 1)])
    stt = LegacyStt(STTService(batch))
    async with stt.open(RATE, "ko") as stream:
        await send(stream, CALL)
        heard = await heard_from(stream, 1)
        with pytest.raises(SttError, match="down"):
            await heard_from(stream, 1)
    assert len(batch.asked) == asked
    async with stt.open(RATE, "ko") as stream:
        await send(stream, [frame for frame in CALL if frame.at_ms >= heard[0].end_ms])
        heard += await heard_from(stream, 2)
    assert [transcript.text for transcript in heard] == ["48", "64", "80"]


async def test_a_caller_is_heard_although_the_request_failed() -> None:
    """Through the real ears: the stream ends with the failure, and the next one hears the same utterances once."""
    batch = ScriptedBatch(delay_s=0.5, errors=[None, broken(retryable=False)])
    posted: list[Event] = []
    loop = asyncio.get_running_loop()
    listener = Listener(
        Succession([Candidate("legacy", LegacyStt(STTService(batch)))], loop.time),
        EnergyDetector(),
        Endpointer(EndpointOptions()),
        posted.append,
        rate=RATE,
        language="ko",
    )
    running = loop.create_task(listener.run())
    for frame in [*CALL, *frames(silence(3000), from_ms=CALL[-1].at_ms + 20)]:
        await asyncio.sleep(0.02)
        listener.hear(frame)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [event.transcript.text for event in posted if isinstance(event, Heard)] == ["48", "64", "80"]
    assert len(batch.asked) == 4


async def test_is_as_well_as_its_service() -> None:
    batch = ScriptedBatch(errors=[broken(retryable=False)])
    stt = LegacyStt(STTService(batch))
    with pytest.raises(SttError, match="down"):
        await stt.check()
    await stt.aclose()
    assert batch.closed
