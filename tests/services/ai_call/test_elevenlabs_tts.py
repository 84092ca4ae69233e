import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import httpx
import pytest

from app.audio import g711
from app.audio.types import AudioFrame
from app.errors import TtsError
from app.services.ai_call.elevenlabs_tts import ElevenLabsOptions, ElevenLabsTts
from tests.emulators.elevenlabs import MP3_FRAME, ElevenLabsEmulator, Fault, hum

TEXT = "안녕하세요. 말길입니다."


@pytest.fixture
async def emulator() -> AsyncIterator[ElevenLabsEmulator]:
    async with ElevenLabsEmulator() as emulator:
        yield emulator
    assert emulator.violations == []


@pytest.fixture
async def tts(emulator: ElevenLabsEmulator) -> AsyncIterator[ElevenLabsTts]:
    tts = ElevenLabsTts(options(emulator))
    yield tts
    await tts.aclose()


def options(emulator: ElevenLabsEmulator) -> ElevenLabsOptions:
    return ElevenLabsOptions(
        api_key=emulator.api_key,
        voice_id=emulator.voice_id,
        base_url=emulator.url,
        first_byte_s=0.3,
        idle_s=0.3,
        retry_after_s=0.01,
    )


async def spoken(tts: ElevenLabsTts, text: str = TEXT) -> bytes:
    async with aclosing(tts.speak(text, 8000)) as frames:
        return b"".join([frame.pcm async for frame in frames])


async def failure(tts: ElevenLabsTts) -> TtsError:
    with pytest.raises(TtsError) as raised:
        await spoken(tts)
    return raised.value


async def test_speaks_every_sample_of_oddly_chunked_audio(emulator: ElevenLabsEmulator, tts: ElevenLabsTts) -> None:
    assert await spoken(tts) == g711.decode(hum(TEXT))
    (request,) = emulator.requests
    assert request.query == {"output_format": "ulaw_8000"}
    assert request.body == {"text": TEXT, "model_id": "eleven_flash_v2_5", "language_code": "ko"}
    assert request.headers["xi-api-key"] == emulator.api_key


async def test_one_connection_serves_many_sentences(emulator: ElevenLabsEmulator, tts: ElevenLabsTts) -> None:
    for _ in range(3):
        await spoken(tts)
    assert (emulator.connections, emulator.finished) == (1, 3)


async def test_language_is_that_of_the_text_and_only_where_the_model_takes_it(emulator: ElevenLabsEmulator) -> None:
    flash = ElevenLabsTts(options(emulator))
    multilingual = ElevenLabsTts(replace(options(emulator), model="eleven_multilingual_v2"))
    await spoken(flash, "How can I help you?")
    await spoken(multilingual, "How can I help you?")
    assert [request.body.get("language_code") for request in emulator.requests] == ["en", None]
    await flash.aclose()
    await multilingual.aclose()


async def test_nothing_to_say_asks_for_nothing(emulator: ElevenLabsEmulator, tts: ElevenLabsTts) -> None:
    assert await spoken(tts, " \n") == b""
    assert emulator.requests == []


async def test_only_eight_kilohertz(tts: ElevenLabsTts) -> None:
    with pytest.raises(ValueError, match="16000"):
        await anext(tts.speak(TEXT, 16000))


async def test_closing_early_closes_the_stream_at_once(emulator: ElevenLabsEmulator, tts: ElevenLabsTts) -> None:
    emulator.faults.append("stall")
    frames = tts.speak(TEXT * 5, 8000)
    await anext(frames)
    await frames.aclose()
    async with asyncio.timeout(1):
        await emulator.left.acquire()
    assert emulator.finished == 0


async def test_cancelling_while_it_waits_closes_the_stream(emulator: ElevenLabsEmulator) -> None:
    emulator.faults.append("hang")
    tts = ElevenLabsTts(replace(options(emulator), first_byte_s=5))
    async with asyncio.TaskGroup() as group:
        speaking = group.create_task(spoken(tts))
        await emulator.asked.acquire()
        speaking.cancel()
    async with asyncio.timeout(1):
        await emulator.left.acquire()
    await tts.aclose()


@pytest.mark.parametrize(
    ("fault", "kind", "retryable", "attempts"),
    [
        ("invalid_key", "auth", False, 1),
        ("missing_permissions", "auth", False, 1),
        ("quota", "quota", False, 1),
        ("payment", "quota", False, 1),
        ("too_many_requests", "throttled", True, 2),
        ("busy", "throttled", True, 2),
        ("busy_long", "throttled", True, 1),
        ("server_error", "unavailable", True, 1),
        ("bad_gateway", "unavailable", True, 1),
        ("reset", "unavailable", True, 2),
        ("hang", "timeout", True, 2),
        ("hang_after_headers", "timeout", True, 2),
        ("silent", "silent", True, 1),
        ("mp3", "format", False, 1),
        ("mp3_as_octets", "format", False, 1),
        ("json", "format", False, 1),
        ("drip", "timeout", True, 2),
    ],
)
async def test_faults_have_a_name(
    emulator: ElevenLabsEmulator, tts: ElevenLabsTts, fault: Fault, kind: str, retryable: bool, attempts: int
) -> None:
    emulator.fault = fault
    error = await failure(tts)
    assert (error.kind, error.retryable, error.provider) == (kind, retryable, "elevenlabs")
    assert len(emulator.requests) == attempts
    assert TEXT not in str(error)
    assert emulator.api_key not in str(error)
    emulator.fault = None
    assert await spoken(tts)


@pytest.mark.parametrize("fault", ["busy", "too_many_requests", "hang", "reset"])
async def test_a_passing_fault_is_not_heard(emulator: ElevenLabsEmulator, tts: ElevenLabsTts, fault: Fault) -> None:
    emulator.faults.append(fault)
    assert await spoken(tts) == g711.decode(hum(TEXT))


@pytest.mark.parametrize("fault", ["cut", "stall"])
async def test_what_was_heard_is_not_asked_for_again(
    emulator: ElevenLabsEmulator, tts: ElevenLabsTts, fault: Fault
) -> None:
    emulator.fault = fault
    heard = bytearray()

    async def listen() -> None:
        async with aclosing(tts.speak(TEXT, 8000)) as frames:
            async for frame in frames:
                heard.extend(frame.pcm)

    with pytest.raises(TtsError) as raised:
        await listen()
    assert (raised.value.kind, raised.value.retryable) == ("cut", False)
    assert g711.decode(hum(TEXT)).startswith(bytes(heard))
    assert len(heard) > 8000
    assert len(emulator.requests) == 1


async def test_the_emulator_sends_mp3_where_no_format_is_asked_for(emulator: ElevenLabsEmulator) -> None:
    url = f"{emulator.url}/v1/text-to-speech/{emulator.voice_id}/stream"
    async with httpx.AsyncClient() as client:
        answer = await client.post(url, json={"text": TEXT}, headers={"xi-api-key": emulator.api_key})
    assert answer.headers["content-type"] == "audio/mpeg"
    assert answer.content.startswith(MP3_FRAME)


async def test_quiet_speech_is_not_taken_for_mp3(emulator: ElevenLabsEmulator, tts: ElevenLabsTts) -> None:
    quiet = g711.decode(MP3_FRAME[:3] + b"\xff" * 4000)

    class Quiet:
        name = "quiet"

        async def speak(self, text: str, rate: int) -> AsyncGenerator[AudioFrame, None]:
            yield AudioFrame(quiet, rate)

    emulator.voice = Quiet()
    assert await spoken(tts) == quiet


async def test_nobody_listens(emulator: ElevenLabsEmulator) -> None:
    async with ElevenLabsEmulator() as gone:
        url = gone.url
    tts = ElevenLabsTts(replace(options(emulator), base_url=url))
    error = await failure(tts)
    assert (error.kind, error.retryable) == ("unavailable", True)
    assert "ELEVENLABS_BASE_URL" in str(error)
    await tts.aclose()


async def test_check_reads_the_voice(emulator: ElevenLabsEmulator, tts: ElevenLabsTts) -> None:
    await tts.check()
    assert [(request.method, request.path) for request in emulator.requests] == [("GET", "/v1/voices/test-voice")]
    # A key that may speak and not read voices is well.
    emulator.faults.append("missing_permissions")
    await tts.check()


@pytest.mark.parametrize(
    ("fault", "kind"), [("invalid_key", "auth"), ("server_error", "unavailable"), ("busy", "throttled")]
)
async def test_check_fails(emulator: ElevenLabsEmulator, tts: ElevenLabsTts, fault: Fault, kind: str) -> None:
    emulator.faults.append(fault)
    with pytest.raises(TtsError) as raised:
        await tts.check()
    assert raised.value.kind == kind
    assert len(emulator.requests) == 1


async def test_check_names_an_unknown_voice(emulator: ElevenLabsEmulator) -> None:
    tts = ElevenLabsTts(replace(options(emulator), voice_id="../no/such"))
    with pytest.raises(TtsError, match="ELEVENLABS_VOICE_ID") as raised:
        await tts.check()
    assert raised.value.kind == "rejected"
    await tts.aclose()


def test_the_key_is_not_shown() -> None:
    assert "hush" not in repr(ElevenLabsOptions(api_key="hush", voice_id="v"))
