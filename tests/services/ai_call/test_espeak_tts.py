import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing

import numpy as np
import numpy.typing as npt
import pytest

from app.audio.types import AudioFrame
from app.errors import InvalidState, TtsError
from app.services.ai_call.espeak_tts import BOT_VOICES, FRAME_MS, EspeakTts, EspeakVoice

KOREAN = "안녕하세요. 영업시간은 오전 아홉 시부터 오후 여섯 시까지입니다."
ENGLISH = "Hello, thank you for calling. How can I help you?"
LONG = "이것은 아주 긴 이야기입니다. " * 200


@pytest.fixture
async def tts() -> AsyncIterator[EspeakTts]:
    tts = EspeakTts()
    await tts.open()
    yield tts
    await tts.aclose()


async def frames_of(tts: EspeakTts, text: str, rate: int = 8000) -> list[AudioFrame]:
    async with aclosing(tts.speak(text, rate)) as frames:
        return [frame async for frame in frames]


async def spoken(tts: EspeakTts, text: str, rate: int = 8000) -> npt.NDArray[np.int16]:
    return np.frombuffer(b"".join(frame.pcm for frame in await frames_of(tts, text, rate)), np.int16)


def alike(one: npt.NDArray[np.int16], other: npt.NDArray[np.int16]) -> bool:
    """espeak-ng's pitch flutters on from one utterance to the next, so that no two are the same to the sample."""
    return abs(len(one) - len(other)) < 0.01 * len(one) and abs(rms(one) - rms(other)) < 0.05 * rms(one)


def rms(samples: npt.NDArray[np.int16]) -> float:
    return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))


@pytest.mark.parametrize(("text", "shortest_s", "longest_s"), [(KOREAN, 3.5, 7), (ENGLISH, 2, 4.5)])
async def test_speech_is_as_long_and_as_loud_as_speech(
    tts: EspeakTts, text: str, shortest_s: float, longest_s: float
) -> None:
    samples = await spoken(tts, text)
    assert shortest_s < len(samples) / 8000 < longest_s
    assert 1000 < rms(samples) < 8000
    assert int(np.abs(samples.astype(np.int32)).max()) < 32000
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    at = np.fft.rfftfreq(len(samples), 1 / 8000)
    assert spectrum[(at > 80) & (at < 3400)].sum() > 0.9 * spectrum.sum()


async def test_the_same_text_sounds_the_same_at_any_rate(tts: EspeakTts) -> None:
    narrow, wide = await spoken(tts, KOREAN), await spoken(tts, KOREAN, 16000)
    assert alike(narrow, await spoken(tts, KOREAN))
    assert len(wide) == pytest.approx(2 * len(narrow), rel=0.01)
    assert rms(wide) == pytest.approx(rms(narrow), rel=0.1)


async def test_frames_are_short_and_a_pause_ends_each_clause(tts: EspeakTts) -> None:
    frames = await frames_of(tts, "네. 네.")
    assert max(frame.duration_ms for frame in frames) == FRAME_MS
    samples = np.frombuffer(b"".join(frame.pcm for frame in frames), np.int16)
    assert not samples[-8 * BOT_VOICES["ko"].pause_ms :].any()
    assert len(samples) == pytest.approx(2 * len(await spoken(tts, "네.")), rel=0.01)


async def test_each_text_is_spoken_in_its_language(tts: EspeakTts) -> None:
    english = EspeakTts("en")
    assert alike(await spoken(tts, ENGLISH), await spoken(english, ENGLISH))
    # Digits have no language of their own.
    assert not alike(await spoken(tts, "365"), await spoken(english, "365"))
    await english.aclose()


async def test_a_voice_can_be_chosen() -> None:
    low = EspeakTts(voices={"ko": EspeakVoice("ko+m3", speed=120, pitch=10, pause_ms=0)})
    high = EspeakTts(voices={"ko": EspeakVoice("ko+f3", speed=240, pitch=90, pause_ms=0)})
    assert len(await spoken(low, KOREAN)) > 1.4 * len(await spoken(high, KOREAN))
    await low.aclose()
    await high.aclose()


async def test_an_unknown_voice_is_refused() -> None:
    tts = EspeakTts(voices={"ko": EspeakVoice("klingon-ish")})
    with pytest.raises(TtsError, match="klingon-ish") as raised:
        await spoken(tts, "네")
    assert (raised.value.kind, raised.value.retryable) == ("rejected", False)
    await tts.aclose()


@pytest.mark.parametrize("text", ["", "   ", "...", "\n\n", "?!"])
async def test_nothing_to_say_is_no_audio(tts: EspeakTts, text: str) -> None:
    assert await frames_of(tts, text) == []


@pytest.mark.parametrize("text", ["a\0b", "\ud800 네", "[[h@'loU]] <speak/>", "예약 confirmed, 3시 30분", "日本語"])
async def test_odd_text_is_spoken(tts: EspeakTts, text: str) -> None:
    assert await frames_of(tts, text)


async def test_only_rates_that_carry_speech(tts: EspeakTts) -> None:
    with pytest.raises(ValueError, match="4000"):
        await anext(tts.speak("네", 4000))


async def test_a_slow_listener_does_not_hold_the_worker(tts: EspeakTts) -> None:
    async with aclosing(tts.speak(LONG, 8000)) as slow:
        await anext(slow)
        async with asyncio.timeout(2):
            assert await frames_of(tts, KOREAN)


async def test_many_calls_speak_at_once(tts: EspeakTts) -> None:
    texts = [f"{number}번 손님, {KOREAN}" for number in range(20)]
    together = await asyncio.gather(*(spoken(tts, text) for text in texts))
    for text, samples in zip(texts, together, strict=True):
        assert alike(samples, await spoken(tts, text))


async def test_a_cancelled_speaker_leaves_nothing_to_the_next(tts: EspeakTts) -> None:
    # Without punctuation or spaces: clauses as long as they come, and cancelled at every stage of one.
    expected = await spoken(tts, KOREAN)
    for waits in range(0, 600, 40):
        async with asyncio.TaskGroup() as group:
            speaking = group.create_task(spoken(tts, "가나다라" * 300))
            for _ in range(waits):
                await asyncio.sleep(0)
            speaking.cancel()
        assert alike(await spoken(tts, KOREAN), expected)


async def test_a_worker_that_died_is_replaced(tts: EspeakTts) -> None:
    expected = await spoken(tts, KOREAN)
    for _ in range(2):
        os.kill(pid_of(tts), signal.SIGKILL)
        assert alike(await spoken(tts, KOREAN), expected)


async def test_a_worker_that_hangs_is_replaced() -> None:
    tts = EspeakTts(first_audio_s=1.0)
    await tts.open()
    hung = pid_of(tts)
    os.kill(hung, signal.SIGSTOP)
    with pytest.raises(TtsError) as raised:
        await spoken(tts, KOREAN)
    assert (raised.value.kind, raised.value.retryable) == ("timeout", True)
    assert not alive(hung)
    await tts.open()
    assert len(await spoken(tts, KOREAN))
    await tts.aclose()


async def test_one_text_is_waiting_for_the_worker_no_longer_than_the_bound() -> None:
    tts = EspeakTts(first_audio_s=0.5)
    await tts.open()
    os.kill(pid_of(tts), signal.SIGSTOP)
    outcomes = await asyncio.gather(*(spoken(tts, KOREAN) for _ in range(3)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {TtsError}
    await tts.aclose()


async def test_check_speaks_a_word(tts: EspeakTts) -> None:
    await tts.check()
    os.kill(pid_of(tts), signal.SIGKILL)
    await tts.check()


async def test_the_worker_ends_with_its_owner() -> None:
    tts = EspeakTts()
    await tts.open()
    pid = pid_of(tts)
    await tts.aclose()
    assert not alive(pid)
    with pytest.raises(InvalidState):
        await spoken(tts, KOREAN)
    await tts.aclose()


async def test_the_server_itself_never_loads_the_library(tts: EspeakTts) -> None:
    await spoken(tts, KOREAN)
    with open("/proc/self/maps") as maps:  # noqa: ASYNC230
        assert "espeak" not in maps.read()


def pid_of(tts: EspeakTts) -> int:
    pid = tts.worker_pid
    assert pid is not None
    return pid


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
