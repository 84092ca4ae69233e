"""The way to Google: settings that cannot work are named before a call needs them; errors are told in our words."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.api_core.exceptions import GoogleAPICallError, from_grpc_status
from google.cloud.speech_v1 import (
    RecognitionAudio,
    RecognitionConfig,
    SpeechAsyncClient,
    StreamingRecognitionConfig,
    StreamingRecognizeRequest,
)

from app.audio import g711
from app.errors import ConfigError, SttError
from app.services.ai_call.google_client import (
    GoogleOptions,
    close_client,
    connect,
    error_of,
    open_client,
    reach,
    require,
    status_name,
    translate,
    verify,
)
from tests.emulators.google_speech import GoogleSpeechEmulator
from tests.fakes import sound

LOOPBACK = "http://127.0.0.1:1"
CONFIG = RecognitionConfig(encoding="LINEAR16", sample_rate_hertz=8000, language_code="ko-KR")


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """Of a service account that nobody knows."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key = {
        "type": "service_account",
        "project_id": "nobody",
        "private_key_id": "1",
        "private_key": private.decode(),
        "client_email": "nobody@nobody.iam.gserviceaccount.com",
        "token_uri": "https://oauth2.googleapis.com/token",
    }
    file = tmp_path / "key.json"
    file.write_text(json.dumps(key))
    return file


# ---------------------------------------------------------------- settings


def test_nothing_of_googles_is_imported_before_it_is_used() -> None:
    code = (
        "import sys\n"
        "from app.services.ai_call.google_stt import GoogleStt\n"
        "from app.services.ai_call.google_client import GoogleOptions\n"
        f"GoogleStt(GoogleOptions('', '{LOOPBACK}'))\n"
        "print(sorted({'grpc', 'google.cloud.speech_v1', 'google.auth', 'google.api_core'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="backend", check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud.speech_v1", None)
    with pytest.raises(ConfigError, match=r"pip install 'malgil\[google\]'"):
        require(GoogleOptions("", LOOPBACK))


def test_no_key_is_needed_for_this_machine_and_only_for_it() -> None:
    require(GoogleOptions("", LOOPBACK))
    for endpoint in ("", "eu-speech.googleapis.com", "https://127.0.0.1:8443"):
        with pytest.raises(ConfigError, match="GOOGLE_APPLICATION_CREDENTIALS is not set"):
            require(GoogleOptions("", endpoint))


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://speech.googleapis.com",
        "http://10.0.0.1:8091",
        "http://127.0.0.1",
        "http://127.0.0.1:99999",
        "ftp://speech.googleapis.com",
        "https://speech.googleapis.com/v1",
        "https://",
    ],
)
def test_an_endpoint_in_the_clear_or_out_of_shape_is_refused(endpoint: str, key_file: Path) -> None:
    with pytest.raises(ConfigError, match="GOOGLE_SPEECH_ENDPOINT"):
        require(GoogleOptions(str(key_file), endpoint))


@pytest.mark.parametrize(
    "content", ["", "no json, but a secret", '["secret"]', '{"private_key": "secret"}', '{"type": "secret"}']
)
def test_a_file_that_is_no_key_is_refused_without_its_content(content: str, tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match="GOOGLE_APPLICATION_CREDENTIALS") as refused:
        require(GoogleOptions(str(file)))
    assert "secret" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"GOOGLE_APPLICATION_CREDENTIALS .* No such file"):
        require(GoogleOptions(str(tmp_path / "key.json")))


@pytest.mark.parametrize(
    "key",
    [{"type": "service_account", "private_key": "secret"}, {"type": "authorized_user", "client_secret": "secret"}],
)
def test_a_key_that_cannot_be_used_is_refused_without_its_content(key: Any, key_file: Path) -> None:
    key_file.write_text(json.dumps(key))
    with pytest.raises(ConfigError, match="GOOGLE_APPLICATION_CREDENTIALS") as refused:
        open_client(GoogleOptions(str(key_file)))
    assert "secret" not in str(refused.value)
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("", "speech.googleapis.com:443"),
        ("eu-speech.googleapis.com", "eu-speech.googleapis.com:443"),
        ("https://us-speech.googleapis.com", "us-speech.googleapis.com:443"),
    ],
)
async def test_the_client_of_a_region(endpoint: str, host: str, key_file: Path) -> None:
    client = open_client(GoogleOptions(str(key_file), endpoint))
    transport: Any = client.transport
    try:
        assert transport.host == host
        assert transport._credentials.service_account_email == "nobody@nobody.iam.gserviceaccount.com"
    finally:
        await close_client(client)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("status", "details", "kind", "retryable"),
    [
        ("UNAUTHENTICATED", "", "auth", False),
        ("PERMISSION_DENIED", "", "auth", False),
        ("RESOURCE_EXHAUSTED", "", "throttled", True),
        ("INVALID_ARGUMENT", "", "rejected", False),
        ("NOT_FOUND", "", "rejected", False),
        ("FAILED_PRECONDITION", "", "rejected", False),
        ("UNAVAILABLE", "failed to connect to all addresses", "unavailable", True),
        ("UNAVAILABLE", "Getting metadata from plugin failed with error: invalid_grant", "auth", True),
        ("INTERNAL", "", "unavailable", True),
        ("UNKNOWN", "", "unavailable", True),
        ("DEADLINE_EXCEEDED", "", "timeout", True),
        ("CANCELLED", "", "cut", True),
        ("ABORTED", "Stream timed out after receiving no more client requests.", "cut", True),
        ("OUT_OF_RANGE", "Exceeded maximum allowed stream duration of 305 seconds.", "expired", True),
        ("OUT_OF_RANGE", "Audio Timeout Error: Long duration elapsed without audio.", "cut", True),
    ],
)
def test_a_status_in_our_words(status: str, details: str, kind: str, retryable: bool) -> None:
    vendors: Any = from_grpc_status(grpc.StatusCode[status], f"{details} 'my number is secret'")  # type: ignore[no-untyped-call]
    error = translate(vendors)
    assert (error.kind, error.retryable, error.provider) == (kind, retryable, "google")
    assert "secret" not in str(error)
    assert str(error) == str(error_of(status, details))


def test_errors_without_a_status() -> None:
    assert translate(TimeoutError()).kind == "timeout"
    assert translate(GoogleAPICallError("odd")).kind == "unavailable"  # type: ignore[no-untyped-call]


def test_a_status_inside_an_answer_has_the_name_of_grpc() -> None:
    assert [status_name(code) for code in (11, 13, 16, 99)] == [
        "OUT_OF_RANGE",
        "INTERNAL",
        "UNAUTHENTICATED",
        "UNKNOWN",
    ]


# ---------------------------------------------------------------- the emulator is as strict as it says


async def test_the_client_reaches_the_server_and_one_utterance_is_recognised() -> None:
    audio = g711.decode(sound(1, 0) * 50)
    async with GoogleSpeechEmulator(delay_s=0.05) as google:
        client = await connect(GoogleOptions("", google.url))
        try:
            await reach(client, 3)
            answer = await client.recognize(config=CONFIG, audio=RecognitionAudio(content=audio), retry=None, timeout=3)
            silence = await client.recognize(
                config=CONFIG, audio=RecognitionAudio(content=bytes(1600)), retry=None, timeout=3
            )
        finally:
            await close_client(client)
    assert answer.results[0].alternatives[0].transcript == "일 이 삼 사"
    assert list(silence.results) == []
    assert google.violations == []


def audio(size: int = 1600) -> StreamingRecognizeRequest:
    return StreamingRecognizeRequest(audio_content=bytes(size))


def head(**changes: Any) -> StreamingRecognizeRequest:
    config = RecognitionConfig(CONFIG)
    for name, value in changes.items():
        setattr(config, name, value)
    return StreamingRecognizeRequest(streaming_config=StreamingRecognitionConfig(config=config))


@pytest.mark.parametrize(
    ("requests", "violation"),
    [
        ([audio()], "the first message must hold a streaming_config"),
        ([head(), head()], "a streaming_config after the first message"),
        ([head(), audio(0)], "no audio"),
        ([head(), audio(15 * 1024 + 2)], "exceeds 15360"),
        ([head(), audio(161)], "half a sample"),
        ([head(language_code="ko")], "bad language code ko"),
        ([head(alternative_language_codes=["ko-KR"])], "bad alternative languages"),
        ([head(model="whisper")], "Incorrect model specified: whisper"),
        ([head(encoding="FLAC")], "bad encoding"),
        ([head(sample_rate_hertz=4000)], "bad sample rate"),
    ],
)
async def test_a_stream_out_of_protocol_is_refused(requests: list[StreamingRecognizeRequest], violation: str) -> None:
    async with GoogleSpeechEmulator() as google:
        with pytest.raises(GoogleAPICallError):  # which one, gRPC does not always tell while the client still writes
            await stream_all(google, requests)
    assert len(google.violations) == 1
    assert violation in google.violations[0]


async def test_audio_that_comes_too_fast_is_refused() -> None:
    async with GoogleSpeechEmulator() as google:
        with pytest.raises(GoogleAPICallError):
            await stream_all(google, [head(), *[audio()] * 40])
    assert google.violations == ["the audio comes far faster than real time"]


async def test_mulaw_is_taken_too_and_the_end_of_the_audio_ends_the_utterance() -> None:
    spoken = StreamingRecognizeRequest(audio_content=sound(1, 0) * 50)
    async with GoogleSpeechEmulator() as google:
        responses = await stream_all(google, [head(encoding="MULAW"), spoken])
    [result] = responses[-1].results
    assert result.is_final
    assert result.alternatives[0].transcript == "일 이 삼 사"
    assert result.result_end_time.total_seconds() == 1.0
    assert google.violations == []


async def stream_all(google: GoogleSpeechEmulator, requests: list[StreamingRecognizeRequest]) -> list[Any]:
    async def generated() -> AsyncIterator[StreamingRecognizeRequest]:
        for request in requests:
            yield request

    client: SpeechAsyncClient = await connect(GoogleOptions("", google.url))
    try:
        async with asyncio.timeout(5):
            stream = await client.streaming_recognize(generated(), retry=None, timeout=5)
            return [response async for response in stream]
    finally:
        await close_client(client)


async def test_a_key_that_cannot_be_used_is_found_at_the_start_and_never_ends_a_call(tmp_path: Path) -> None:
    """It looks like one: what stands in it is no private key."""
    key = {"type": "service_account", "client_email": "bot@x.test", "token_uri": "https://x.test", "private_key": "no"}
    file = tmp_path / "key.json"
    file.write_text(json.dumps(key), encoding="utf-8")
    options = GoogleOptions(str(file))
    with pytest.raises(ConfigError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        await verify(options)
    with pytest.raises(SttError) as failed:
        await connect(options)
    assert (failed.value.kind, failed.value.retryable) == ("config", False)
