import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from app.audio.types import AudioFrame, Transcript
from app.errors import SttError
from app.services.ai_call.rtzr_stt_realtime import RtzrStream, RtzrStreamOptions, RtzrStt, UtteranceOrder
from app.services.ai_call.rtzr_stt_service import Result, RtzrOptions, RtzrSttService
from tests.emulators.rtzr import Fault, RtzrEmulator, demo_model
from tests.servers import until

RATE = 8000
FRAME_MS = 32
HURRY = RtzrStreamOptions(max_speed=40, hold_s=0.2, finish_s=0.4)
"""Faster than a call, so that a test waits for less."""


@pytest.fixture
async def emulator() -> AsyncIterator[RtzrEmulator]:
    async with RtzrEmulator(max_speed=45, delay_s=0.02) as emulator:
        yield emulator
    assert emulator.violations == []


@pytest.fixture
async def service(emulator: RtzrEmulator) -> AsyncIterator[RtzrSttService]:
    service = RtzrSttService(RtzrOptions(emulator.client_id, emulator.client_secret, emulator.url, connect_s=0.6))
    yield service
    await service.aclose()


@pytest.fixture
def stt(service: RtzrSttService) -> RtzrStt:
    return RtzrStt(service, HURRY)


def frames(*stretches_ms: int, at_ms: int = 0) -> list[AudioFrame]:
    """Silence and speech by turns, in the frames of our voice detector."""
    samples = []
    for number, length_ms in enumerate(stretches_ms):
        at = np.arange(RATE * length_ms // 1000) / RATE
        samples.append((number % 2) * 6000 * np.sin(2 * np.pi * 300 * at))
    pcm = np.concatenate(samples).astype("<i2").tobytes()
    size = 2 * RATE * FRAME_MS // 1000
    return [
        AudioFrame(pcm[start : start + size], RATE, at_ms + number * FRAME_MS)
        for number, start in enumerate(range(0, len(pcm), size))
    ]


def utterances(count: int) -> list[AudioFrame]:
    """0.8 s of speech each, at 400 ms, 1,900 ms and so on."""
    return frames(400, *[800, 700] * count)


async def heard(stream: RtzrStream, audio: Sequence[AudioFrame], finals: int) -> list[Transcript]:
    """What came until so many finals were there, or the stream ended."""
    told: list[Transcript] = []
    async with asyncio.timeout(8), asyncio.TaskGroup() as group:
        feeder = group.create_task(_feed(stream, audio))
        async with aclosing(stream.__aiter__()) as transcripts:  # type: ignore[type-var]
            async for transcript in transcripts:
                told.append(transcript)
                if sum(one.final for one in told) == finals:
                    break
        feeder.cancel()
    return told


async def _feed(stream: RtzrStream, audio: Sequence[AudioFrame]) -> None:
    for frame in audio:
        await stream.send(frame)
    after = audio[-1].at_ms + FRAME_MS
    while True:  # a line never stops
        await stream.send(AudioFrame(bytes(512), RATE, after))
        after += FRAME_MS
        await asyncio.sleep(FRAME_MS / 1000)


async def finals_of(stt: RtzrStt, audio: Sequence[AudioFrame], count: int) -> list[str]:
    async with stt.open(RATE, "ko") as stream:
        return [one.text for one in await heard(stream, audio, count) if one.final]


async def failure(stt: RtzrStt) -> tuple[list[str], SttError]:
    """The finals before it, and the error of the iteration."""
    told: list[Transcript] = []
    with pytest.raises(ExceptionGroup) as raised:
        await _listen(stt, told)
    (error,) = raised.value.exceptions
    assert isinstance(error, SttError)
    return [one.text for one in told if one.final], error


async def _listen(stt: RtzrStt, told: list[Transcript]) -> None:
    """As the Listener does."""
    async with asyncio.timeout(8), stt.open(RATE, "ko") as stream, asyncio.TaskGroup() as group:
        feeder = group.create_task(_feed(stream, utterances(3)))
        await _collect(stream, told)
        feeder.cancel()


async def _collect(stream: RtzrStream, told: list[Transcript]) -> None:
    async for transcript in stream:
        told.append(transcript)


# ---------------------------------------------------------------- hearing


async def test_many_utterances_on_one_socket(emulator: RtzrEmulator, stt: RtzrStt) -> None:
    texts = [f"{number}번째 문장입니다." for number in range(5)]
    emulator.texts = deque(texts)
    async with stt.open(RATE, "ko") as stream:
        told = [one for one in await heard(stream, utterances(5), 5) if one.final]
    assert [one.text for one in told] == texts
    assert [one.start_ms for one in told] == pytest.approx([400 + 1500 * n for n in range(5)], abs=20)
    assert [one.end_ms for one in told] == pytest.approx([1200 + 1500 * n for n in range(5)], abs=20)
    assert {one.confidence for one in told} == {0.95}
    await until(lambda: not emulator.live)
    (at_vendor,) = emulator.streams
    assert at_vendor.ended


async def test_partials_grow_and_are_told_at_once(emulator: RtzrEmulator, stt: RtzrStt, log_lines: list[Any]) -> None:
    emulator.texts = deque(["내일 오후 세 시에 예약해 주세요."])
    async with stt.open(RATE, "ko") as stream:
        told = await heard(stream, utterances(1), 1)
    text = "내일 오후 세 시에 예약해 주세요."
    assert (told[-1].text, told[-1].final) == (text, True)
    words = [one.text.split() for one in told[:-1]]
    assert words == [text.split()[:count] for count in range(1, len(told))]
    assert len(told) >= 3
    assert [one.confidence for one in told[:-1]] == [None] * (len(told) - 1)
    assert {line["log_level"] for line in log_lines if "내일" in str(line)} == {"debug"}


async def test_a_stream_in_the_middle_of_a_call_tells_the_calls_time(stt: RtzrStt) -> None:
    async with stt.open(RATE, "ko") as stream:
        (final,) = [one for one in await heard(stream, frames(400, 800, 700, at_ms=60_000), 1) if one.final]
    assert (final.start_ms, final.end_ms) == pytest.approx((60_400, 61_200), abs=20)


async def test_audio_arrives_whole_in_moderate_pieces(emulator: RtzrEmulator, service: RtzrSttService) -> None:
    """A replay of three seconds too: at eight times real time, and not at once."""
    emulator.max_speed = 8.5
    audio = frames(3008)
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with RtzrStt(service).open(RATE, "ko") as stream:
        for frame in audio:
            await stream.send(frame)
        took_s = loop.time() - began
    (at_vendor,) = emulator.streams
    assert bytes(at_vendor.audio) == b"".join(frame.pcm for frame in audio)
    assert at_vendor.chunks == [64.0] * 47
    assert took_s > 0.9 * 3.008 / 8


async def test_a_live_call_waits_for_nothing(service: RtzrSttService) -> None:
    loop = asyncio.get_running_loop()
    waits_s = []
    async with RtzrStt(service).open(RATE, "ko") as stream:
        for frame in frames(640):
            began = loop.time()
            await stream.send(frame)
            waits_s.append(loop.time() - began)
            await asyncio.sleep(FRAME_MS / 1000)
    assert sorted(waits_s)[len(waits_s) * 3 // 4] < 0.005


async def test_our_endpointer_says_nothing_to_the_vendor(emulator: RtzrEmulator, stt: RtzrStt) -> None:
    async with stt.open(RATE, "ko") as stream:
        await stream.pause(500)
        await stream.resume()
        await stream.flush(500)
        assert len(await heard(stream, utterances(1), 1)) > 1


async def test_the_demo_model_hears_through_it(emulator: RtzrEmulator, stt: RtzrStt) -> None:
    from tests.asr.sample_calls import spoken

    call = spoken("영업시간이 어떻게 되나요?")
    emulator.recognise = demo_model()
    emulator.interim_ms = 10_000
    pcm = bytes(6400) + call.pcm + bytes(16_000)
    audio = [AudioFrame(pcm[at : at + 512], RATE, at // 16) for at in range(0, len(pcm), 512)]
    assert await finals_of(stt, audio, 1) == [call.text]


# ---------------------------------------------------------------- the end


async def test_what_is_left_is_sent_before_the_end(emulator: RtzrEmulator, stt: RtzrStt) -> None:
    async with stt.open(RATE, "ko") as stream:
        await stream.send(AudioFrame(bytes(512), RATE, 0))
    assert emulator.streams[0].chunks == [32.0]
    assert emulator.streams[0].ended


async def test_words_that_were_not_over_are_told_after_the_end(emulator: RtzrEmulator, stt: RtzrStt) -> None:
    emulator.texts = deque(["끊기 전에 한 말"])
    told: list[Transcript] = []
    async with asyncio.TaskGroup() as group:
        async with stt.open(RATE, "ko") as stream:
            iteration = group.create_task(_collect(stream, told))
            for frame in frames(100, 500):
                await stream.send(frame)
        await iteration
    assert told[-1] == replace(told[-1], text="끊기 전에 한 말", final=True)


async def test_a_call_that_is_cancelled_says_goodbye(emulator: RtzrEmulator, stt: RtzrStt) -> None:
    async def call() -> None:
        async with stt.open(RATE, "ko") as stream:
            await heard(stream, utterances(1), 99)

    async with asyncio.TaskGroup() as group:
        running = group.create_task(call())
        await until(lambda: bool(emulator.streams) and len(emulator.streams[0].chunks) > 3)
        running.cancel()
    await until(lambda: not emulator.live)
    assert emulator.streams[0].ended


async def test_a_vendor_that_does_not_close_is_left(emulator: RtzrEmulator, stt: RtzrStt) -> None:
    emulator.fault = "never_closes"
    loop = asyncio.get_running_loop()
    async with stt.open(RATE, "ko"):
        began = loop.time()
    assert 0.3 < loop.time() - began < 1.5
    await until(lambda: not emulator.live)


async def test_the_vendor_may_close_after_each_utterance(emulator: RtzrEmulator, stt: RtzrStt) -> None:
    emulator.fault = "close_after_final"
    for number in range(4):
        emulator.texts = deque([f"{number}번"])
        assert await finals_of(stt, utterances(1), 99) == [f"{number}번"]
    assert len(emulator.streams) == 4
    assert emulator.authentications == 1


async def test_audio_after_the_end_goes_nowhere(emulator: RtzrEmulator, stt: RtzrStt) -> None:
    emulator.fault = "close_after_final"
    async with stt.open(RATE, "ko") as stream:
        await heard(stream, utterances(1), 99)
        heard_before = len(emulator.streams[0].audio)
        for frame in utterances(1):
            await stream.send(frame)
    assert len(emulator.streams[0].audio) == heard_before


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("fault", "kind", "before"),
    [
        ("reset", "reset", 0),
        ("close_at_once", "reset", 0),
        ("only_garbage", "format", 0),
        ("error", "unavailable", 0),
        ("error_typed", "unavailable", 0),
    ],
)
async def test_a_stream_that_breaks_says_why(
    emulator: RtzrEmulator, stt: RtzrStt, log_lines: list[Any], fault: Fault, kind: str, before: int
) -> None:
    emulator.fault = fault
    emulator.texts = deque(["비밀 이야기"] * 3)
    told, error = await failure(stt)
    assert (error.kind, error.retryable, error.provider) == (kind, True, "rtzr")
    assert len(told) == before
    assert "비밀" not in f"{error}{error.__cause__}"
    assert not [line for line in log_lines if line["log_level"] != "debug" and "비밀" in str(line)]


async def test_a_killed_vendor_is_noticed_at_once(emulator: RtzrEmulator, stt: RtzrStt) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        call = group.create_task(failure(stt))
        await until(lambda: bool(emulator.streams) and len(emulator.streams[0].chunks) > 3)
        await emulator.kill()
        killed = loop.time()
    assert call.result()[1].kind == "reset"
    assert loop.time() - killed < 0.5


async def test_a_vendor_that_went_silent_is_found_out(emulator: RtzrEmulator, service: RtzrSttService) -> None:
    service.options = replace(service.options, ping_s=0.2)
    emulator.fault = "deaf"
    loop = asyncio.get_running_loop()
    began = loop.time()
    _, error = await failure(RtzrStt(service, HURRY))
    assert error.kind == "timeout"
    assert loop.time() - began < 2


class _Full:
    """A connection whose buffer is full: the kernel's takes megabytes before a real one blocks."""

    async def send(self, message: bytes) -> None:
        await asyncio.Event().wait()


async def test_a_vendor_that_takes_nothing_is_a_stall() -> None:
    connection: Any = _Full()
    stream = RtzrStream(connection, RATE, 0.5, replace(HURRY, send_s=0.05))
    await stream.send(frames(32)[0])
    with pytest.raises(SttError, match="takes no more audio") as raised:
        await stream.send(frames(32)[0])
    assert raised.value.kind == "stall"
    await stream.finish()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("duplicate", ["하나", "둘", "셋", "넷"]),
        ("shuffle", ["하나", "둘", "셋", "넷"]),
        ("late_interim", ["하나", "둘", "셋", "넷"]),
        ("garbage", ["하나", "둘", "셋", "넷"]),
        ("huge", ["하나", "둘", "셋", "넷"]),
        ("empty", ["", "", "", ""]),
    ],
)
async def test_each_utterance_is_told_once_and_in_order(
    emulator: RtzrEmulator, stt: RtzrStt, fault: Fault, told: list[str]
) -> None:
    emulator.fault = fault
    emulator.texts = deque(["하나", "둘", "셋", "넷"])
    async with stt.open(RATE, "ko") as stream:
        transcripts = await heard(stream, utterances(4), 4)
    assert [one.text for one in transcripts if one.final] == told
    assert "뒤늦은" not in [one.text for one in transcripts]
    ends = [one.end_ms for one in transcripts if one.final]
    assert ends == pytest.approx([1200 + 1500 * n for n in range(4)], abs=20)


async def test_an_end_that_is_not_told_is_known_by_the_silence_after_it(emulator: RtzrEmulator, stt: RtzrStt) -> None:
    """Not well while a replay hurries on, but never before the words ended, which would double them."""
    emulator.fault = "no_times"
    async with stt.open(RATE, "ko") as stream:
        told = [one for one in await heard(stream, utterances(4), 4) if one.final]
    assert len(told) == 4
    assert all(one.end_ms >= 1180 + 1500 * number for number, one in enumerate(told))


async def test_a_swallowed_final_holds_the_next_one_for_a_moment_only(emulator: RtzrEmulator, stt: RtzrStt) -> None:
    emulator.texts = deque(["하나", "둘"])
    async with stt.open(RATE, "ko") as stream, asyncio.TaskGroup() as group:
        feeder = group.create_task(_feed(stream, utterances(2)))
        await until(lambda: bool(emulator.streams))
        emulator.streams[0].fault = "swallow"
        async for transcript in stream:
            if transcript.text == "둘":
                emulator.streams[0].fault = None
            if transcript.final:
                break
        feeder.cancel()
    assert transcript.text == "둘"


async def test_another_call_is_not_disturbed(emulator: RtzrEmulator, stt: RtzrStt) -> None:
    emulator.texts = deque(["네."] * 10)
    emulator.faults = deque([None, "reset"])
    async with asyncio.TaskGroup() as group:
        good = group.create_task(finals_of(stt, utterances(3), 3))
        await until(lambda: len(emulator.streams) == 1)
        bad = group.create_task(failure(stt))
    assert good.result() == ["네."] * 3
    assert bad.result()[1].kind == "reset"


# ---------------------------------------------------------------- the order of utterances, without a network


def final(seq: int, start_ms: int | None = None, text: str = "말") -> Result:
    return Result(seq, True, text, 1000 * seq if start_ms is None else start_ms, 500, 0.9)


def interim(seq: int, text: str = "말") -> Result:
    return Result(seq, False, text, 0, 0, None)


def test_a_final_waits_for_that_of_an_earlier_utterance() -> None:
    order = UtteranceOrder()
    order.take(interim(0))
    order.take(interim(1))
    assert order.take(final(1)) == []
    assert order.holds
    assert order.take(final(0)) == [final(0), final(1)]
    assert not order.holds


def test_a_number_that_was_never_seen_is_not_waited_for() -> None:
    order = UtteranceOrder()
    assert order.take(interim(2, text="")) == []
    assert order.take(final(4)) == [final(4)]


def test_what_comes_too_late_is_dropped() -> None:
    order = UtteranceOrder()
    order.take(interim(0))
    order.take(final(1))
    assert order.give_up() == [final(1)]
    assert order.take(final(0)) == order.take(final(1)) == order.take(interim(1)) == []


def test_a_final_is_told_once_while_it_waits() -> None:
    order = UtteranceOrder()
    order.take(interim(0))
    assert order.take(final(1)) == order.take(final(1)) == order.take(interim(1)) == []
    assert order.give_up() == [final(1)]


def test_new_audio_under_an_old_number_is_heard() -> None:
    order = UtteranceOrder()
    assert order.take(final(0, 0)) == [final(0, 0)]
    assert order.take(final(0, 900)) == [final(0, 900)]
    assert order.take(final(0, 900)) == []


# ---------------------------------------------------------------- the emulator is strict


@pytest.mark.parametrize(
    ("messages", "violation"),
    [
        ([bytes(320), "EOS"], None),
        ([bytes(320)], "the client left without EOS"),
        ([bytes(321), "EOS"], "a message of 321 bytes"),
        ([b"", "EOS"], "a message of 0 bytes"),
        (["audio", "EOS"], "text that is not EOS"),
        (["EOS", bytes(320)], "audio after EOS"),
        (["EOS", "EOS"], "EOS twice"),
        ([*[bytes(8000)] * 8, "EOS"], "audio far faster than real time"),
    ],
)
async def test_the_emulator_sees_wrong_messages(messages: list[str | bytes], violation: str | None) -> None:
    async with RtzrEmulator(max_speed=1) as emulator:
        service = RtzrSttService(RtzrOptions(emulator.client_id, emulator.client_secret, emulator.url))
        connection = await service.connect(RATE, "ko")
        emulator.streams[0].fault = "never_closes"
        for message in messages:
            await connection.send(message)
        await connection.close()
        await until(lambda: not emulator.live)
        await service.aclose()
    assert emulator.violations == ([] if violation is None else [violation])


async def test_the_emulator_sees_a_token_that_is_over() -> None:
    async with RtzrEmulator() as emulator:
        service = RtzrSttService(RtzrOptions(emulator.client_id, emulator.client_secret, emulator.url))
        await service.check()
        emulator.expire_tokens()
        async with RtzrStt(service, HURRY).open(RATE, "ko"):
            pass
        await service.aclose()
        assert emulator.authentications == 2
    assert emulator.violations == ["a token was used after its time"]
