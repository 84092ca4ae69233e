"""Batch transcription: the vendors' own clients against strict servers on loopback."""

import asyncio
import io
import logging
import os
import subprocess
import sys
import wave
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from google.cloud.speech_v1 import RecognitionConfig

from app.audio import g711
from app.audio.types import AudioFrame
from app.errors import ConfigError, SttError
from app.services.ai_call.audio_processor import LegacyStt
from app.services.ai_call.google_client import GoogleOptions
from app.services.ai_call.stt_service import GoogleBatch, OpenAiBatch, OpenAiOptions, STTService, SttServiceOptions
from tests.emulators.elevenlabs import hum
from tests.emulators.google_speech import Fault as GoogleFault
from tests.emulators.google_speech import GoogleSpeechEmulator, count_aloud
from tests.emulators.openai_audio import Fault, OpenAiAudioEmulator

PCM = bytes(4800) + g711.decode(hum("안녕하세요. 말길입니다.")) + bytes(8000)
QUICK = SttServiceOptions(request_s=2.0, check_s=2.0, retry_after_s=0.01)
HASTY = SttServiceOptions(request_s=0.3, check_s=0.3)


def wav(pcm: bytes = PCM, rate: int = 8000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(channels)
        written.setsampwidth(2)
        written.setframerate(rate)
        written.writeframes(pcm)
    return file.getvalue()


async def refused(service: STTService) -> SttError:
    with pytest.raises(SttError) as raised:
        await service.transcribe_audio_chunk(wav(), "ko")
    return raised.value


async def ill(service: STTService) -> SttError:
    with pytest.raises(SttError) as raised:
        await service.check()
    return raised.value


# ---------------------------------------------------------------- OpenAI


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """The client's import takes a second, which no test's bound should hold."""
    import openai.resources.audio
    import openai.resources.models  # noqa: F401


@pytest.fixture
async def emulator() -> AsyncIterator[OpenAiAudioEmulator]:
    async with OpenAiAudioEmulator() as emulator:
        yield emulator
    assert emulator.violations == []


def options(emulator: OpenAiAudioEmulator) -> OpenAiOptions:
    return OpenAiOptions(api_key=emulator.api_key, base_url=emulator.url)


@pytest.fixture
async def service(emulator: OpenAiAudioEmulator) -> AsyncIterator[STTService]:
    service = STTService(OpenAiBatch(options(emulator)), QUICK)
    yield service
    await service.aclose()


async def test_openai_is_sent_a_wav_and_answers_its_words(emulator: OpenAiAudioEmulator, service: STTService) -> None:
    emulator.texts.append(" 네, 말길입니다.\n")
    assert await service.transcribe_audio_chunk(wav(), "ko") == "안녕하세요."
    assert await service.transcribe_audio_chunk(wav(), "en") == "네, 말길입니다."
    first, second = emulator.requests
    assert first.fields == {"model": "gpt-transcribe", "language": "ko", "response_format": "json"}
    assert second.fields["language"] == "en"
    assert (first.file_name, first.pcm, first.rate) == ("speech.wav", PCM, 8000)
    assert emulator.connections == 1


async def test_openai_finds_out_the_language_where_it_is_not_told(
    emulator: OpenAiAudioEmulator, service: STTService
) -> None:
    await service.transcribe_audio_chunk(wav(), "auto")
    assert emulator.requests[0].fields == {"model": "gpt-transcribe", "response_format": "json"}


async def test_openai_may_hear_no_words(emulator: OpenAiAudioEmulator, service: STTService) -> None:
    emulator.fault = "empty"
    assert await service.transcribe_audio_chunk(wav(), "ko") == ""


async def test_several_calls_are_served_at_once(emulator: OpenAiAudioEmulator, service: STTService) -> None:
    emulator.delay_s = 0.1
    heard = await asyncio.gather(*(service.transcribe_audio_chunk(wav(), "ko") for _ in range(5)))
    assert heard == ["안녕하세요."] * 5
    assert emulator.at_once == 5


FAILURES: list[tuple[Fault, str, bool, int, str]] = [
    ("invalid_key", "auth", False, 1, "OPENAI_API_KEY"),
    ("quota", "quota", False, 1, "no credit"),
    ("throttled", "throttled", True, 2, "429"),
    ("throttled_long", "throttled", True, 1, "429"),
    ("server_error", "unavailable", True, 2, "500"),
    ("bad_gateway", "unavailable", True, 2, "502"),
    ("redirect", "rejected", False, 1, "OPENAI_BASE_URL"),
    ("html", "format", True, 2, "OPENAI_BASE_URL"),
    ("malformed", "format", True, 2, "nonsense"),
    ("array", "format", True, 2, "OPENAI_BASE_URL"),
    ("no_text", "format", True, 2, "OPENAI_BASE_URL"),
    ("reset", "reset", True, 2, "broke"),
    ("cut", "reset", True, 2, "broke"),
]


@pytest.mark.parametrize(("fault", "kind", "retryable", "asked", "says"), FAILURES)
async def test_a_failure_of_openai(
    emulator: OpenAiAudioEmulator, service: STTService, fault: Fault, kind: str, retryable: bool, asked: int, says: str
) -> None:
    emulator.fault = fault
    error = await refused(service)
    assert (error.provider, error.kind, error.retryable) == ("openai", kind, retryable)
    assert says in str(error)
    assert error.__cause__ is not None or kind == "format"
    assert emulator.asked._value == asked


@pytest.mark.parametrize("fault", [fault for fault, _, _, asked, _ in FAILURES if asked == 2])
async def test_one_failure_that_passes_is_not_noticed(
    emulator: OpenAiAudioEmulator, service: STTService, fault: Fault
) -> None:
    emulator.faults.append(fault)
    assert await service.transcribe_audio_chunk(wav(), "ko") == "안녕하세요."


async def test_openai_never_answers(emulator: OpenAiAudioEmulator) -> None:
    """One bound for both tries, and the request ends with it."""
    service = STTService(OpenAiBatch(options(emulator)), HASTY)
    emulator.fault = "hang"
    error = await refused(service)
    assert (error.kind, error.retryable) == ("timeout", True)
    assert (await ill(service)).kind == "timeout"
    await service.aclose()
    for _ in range(2):
        await emulator.left.acquire()


async def test_openai_is_restarted(emulator: OpenAiAudioEmulator, service: STTService) -> None:
    await service.transcribe_audio_chunk(wav(), "ko")
    await emulator.kill()
    error = await refused(service)
    assert (error.kind, error.retryable) == ("connect", True)
    assert "OPENAI_BASE_URL" in str(error)
    await emulator.start()
    assert await service.transcribe_audio_chunk(wav(), "ko") == "안녕하세요."


async def test_a_connection_that_was_dropped_meanwhile_is_not_noticed(
    emulator: OpenAiAudioEmulator, service: STTService
) -> None:
    await service.transcribe_audio_chunk(wav(), "ko")
    await emulator.kill()
    await emulator.start()
    assert await service.transcribe_audio_chunk(wav(), "ko") == "안녕하세요."


async def test_killed_in_the_middle_of_a_request(emulator: OpenAiAudioEmulator, service: STTService) -> None:
    emulator.fault = "hang"
    asking = asyncio.gather(refused(service))
    await emulator.asked.acquire()
    await emulator.kill()
    (error,) = await asking
    assert error.kind in ("reset", "connect")


async def test_an_unknown_model_is_named(emulator: OpenAiAudioEmulator) -> None:
    service = STTService(OpenAiBatch(replace(options(emulator), model="whisper-9")), QUICK)
    for error in (await refused(service), await ill(service)):
        assert (error.kind, error.retryable) == ("missing_model", False)
        assert "whisper-9" in str(error)
        assert "OPENAI_STT_MODEL" in str(error)
    await service.aclose()


@pytest.mark.parametrize("key", ["wrong-key", "열쇠", "test\nkey"])
async def test_a_wrong_key_is_named_and_never_shown(emulator: OpenAiAudioEmulator, key: str) -> None:
    service = STTService(OpenAiBatch(replace(options(emulator), api_key=key)), QUICK)
    for error in (await refused(service), await ill(service)):
        assert (error.kind, error.retryable) == ("auth", False)
        assert "OPENAI_API_KEY" in str(error)
        assert key not in str(error)
    await service.aclose()
    assert key not in repr(replace(options(emulator), api_key=key))


async def test_a_check_asks_for_the_model_and_recognises_nothing(
    emulator: OpenAiAudioEmulator, service: STTService
) -> None:
    await service.check()
    assert emulator.models_read == ["gpt-transcribe"]
    assert emulator.requests == []


async def test_a_key_that_may_only_transcribe_is_well(emulator: OpenAiAudioEmulator, service: STTService) -> None:
    emulator.fault = "restricted"
    await service.check()
    assert emulator.asked._value == 1


async def test_a_check_of_a_server_that_is_not_there(emulator: OpenAiAudioEmulator, service: STTService) -> None:
    await emulator.kill()
    assert (await ill(service)).kind == "connect"


async def test_no_log_holds_words_or_keys(
    emulator: OpenAiAudioEmulator, service: STTService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    emulator.faults.append("server_error")
    await service.transcribe_audio_chunk(wav(), "ko")
    emulator.fault = "malformed"
    error = await refused(service)
    logged = caplog.text + str(error)
    assert "openai" in logged
    assert emulator.api_key not in logged
    assert emulator.texts[0] not in logged


async def test_a_legacy_stream_over_openai(emulator: OpenAiAudioEmulator, service: STTService) -> None:
    emulator.recognise = lambda pcm, rate: f"{len(pcm) // 16} ms"
    emulator.delay_s = 0.05
    async with LegacyStt(service).open(8000, "ko") as stream:
        for at in range(0, len(PCM + bytes(9600)), 320):
            await stream.send(AudioFrame((PCM + bytes(9600))[at : at + 320], 8000, at // 16))
        heard = await anext(aiter(stream))
    assert heard.final
    assert heard.text == f"{len(emulator.requests[0].pcm) // 16} ms"


def test_nobody_pays_for_a_client_that_is_not_used() -> None:
    program = "import sys, app.services.ai_call.audio_processor; print(*sys.modules)"
    paths = os.pathsep.join(path for path in sys.path if path)
    ran = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": paths}, capture_output=True, check=True)
    imported = ran.stdout.decode().split()
    assert "app.services.ai_call.stt_service" in imported
    assert not {"openai", "httpx2", "grpc", "google.cloud.speech_v1"} & set(imported)


# ---------------------------------------------------------------- the emulator of OpenAI is strict


@pytest.mark.parametrize(
    ("file", "fields", "violation"),
    [
        (("speech", wav()), {}, "does not tell its format"),
        (("speech.mp3", wav()), {}, "only WAV"),
        (("speech.wav", PCM), {}, "no WAV"),
        (("speech.wav", wav(rate=16_000)), {}, "rate"),
        (("speech.wav", wav(channels=2)), {}, "channels"),
        (("speech.wav", wav(b"")), {}, "too short"),
        (("speech.wav", wav()[:-2]), {}, "not as long"),
        (("speech.wav", wav()), {"language": "ko-KR"}, "ISO-639-1"),
        (("speech.wav", wav()), {"response_format": "srt"}, "srt"),
        (("speech.wav", wav()), {"voice": "alloy"}, "unknown field"),
    ],
)
async def test_a_bad_request_is_refused(file: tuple[str, bytes], fields: dict[str, str], violation: str) -> None:
    async with OpenAiAudioEmulator() as emulator, httpx2.AsyncClient(trust_env=False) as client:
        answer = await client.post(
            f"{emulator.url}/audio/transcriptions",
            headers={"authorization": f"Bearer {emulator.api_key}"},
            data={"model": "gpt-transcribe", **fields},
            files={"file": file},
        )
    assert answer.status_code == 400
    assert violation in emulator.violations[0]
    assert emulator.requests == []


# ---------------------------------------------------------------- Google


@pytest.fixture
async def google() -> AsyncIterator[GoogleSpeechEmulator]:
    async with GoogleSpeechEmulator(delay_s=0.02) as google:
        yield google
    assert google.violations == []


@pytest.fixture
async def google_service(google: GoogleSpeechEmulator) -> AsyncIterator[STTService]:
    service = STTService(GoogleBatch(GoogleOptions("", google.url)), QUICK)
    yield service
    await service.aclose()


async def test_google_is_sent_linear_samples(google: GoogleSpeechEmulator, google_service: STTService) -> None:
    assert await google_service.transcribe_audio_chunk(wav(), "ko") == count_aloud(PCM, 8000) != ""
    (request,) = google.requests
    assert request.audio.content == PCM
    assert request.config.encoding == RecognitionConfig.AudioEncoding.LINEAR16
    assert request.config.sample_rate_hertz == 8000
    assert request.config.language_code == "ko-KR"
    assert list(request.config.alternative_language_codes) == []


@pytest.mark.parametrize(("language", "codes"), [("en", ["en-US"]), ("auto", ["ko-KR", "en-US"])])
async def test_the_languages_of_google(
    google: GoogleSpeechEmulator, google_service: STTService, language: str, codes: list[str]
) -> None:
    await google_service.transcribe_audio_chunk(wav(), language)
    config: Any = google.requests[0].config
    assert [config.language_code, *config.alternative_language_codes] == codes


async def test_the_model_of_google(google: GoogleSpeechEmulator) -> None:
    service = STTService(GoogleBatch(GoogleOptions("", google.url, model="telephony")), QUICK)
    await service.transcribe_audio_chunk(wav(), "ko")
    assert google.requests[0].config.model == "telephony"
    await service.aclose()


async def test_google_may_hear_no_words(google: GoogleSpeechEmulator, google_service: STTService) -> None:
    google.fault = "empty"
    assert await google_service.transcribe_audio_chunk(wav(), "ko") == ""


@pytest.mark.parametrize(
    ("fault", "kind", "retryable", "asked"),
    [
        ("unavailable", "unavailable", True, 2),
        ("resource_exhausted", "throttled", True, 2),
        ("unauthenticated", "auth", False, 1),
        ("permission_denied", "auth", False, 1),
        ("invalid_argument", "rejected", False, 1),
    ],
)
async def test_a_failure_of_google(
    google: GoogleSpeechEmulator,
    google_service: STTService,
    fault: GoogleFault,
    kind: str,
    retryable: bool,
    asked: int,
) -> None:
    google.fault = fault
    error = await refused(google_service)
    assert (error.provider, error.kind, error.retryable) == ("google", kind, retryable)
    assert len(google.requests) == asked


async def test_google_never_answers(google: GoogleSpeechEmulator) -> None:
    service = STTService(GoogleBatch(GoogleOptions("", google.url)), HASTY)
    await service.check()  # connects
    google.fault = "silent"
    assert (await refused(service)).kind == "timeout"
    await service.aclose()


async def test_google_is_restarted(google: GoogleSpeechEmulator, google_service: STTService) -> None:
    await google_service.check()
    await google.kill()
    assert (await refused(google_service)).kind in ("unavailable", "timeout")
    await google.start()
    assert await google_service.transcribe_audio_chunk(wav(), "ko")


async def test_a_check_of_google_recognises_nothing(google: GoogleSpeechEmulator, google_service: STTService) -> None:
    await google_service.check()
    assert google.requests == []


def test_google_without_a_key_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        GoogleBatch(GoogleOptions(""))
