"""The recogniser as a program of its own: `malgil asr`, its settings, its drain."""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from app.asr.models import ModelOptions, ModelShelf
from app.asr_service import asr_options, serve_asr, start_lines
from app.audio.vad import EnergyDetector, SileroDetector
from app.config import AsrSettings, load_asr_settings
from app.errors import ConfigError
from app.hearing import detectors, model_options
from app.serving import listen
from tests.asr.files import encoded, silence
from tests.asr.sample_calls import spoken
from tests.asr.served import Speaker, error_of, lines, next_line
from tests.servers import Process, free_port, process, until

HELLO = spoken("안녕하세요.").pcm
KEY = "0123456789abcdef0123456789abcdef"
L16 = {"Content-Type": "audio/L16;rate=8000"}
DEMO = {"APP_ENV": "development", "MODEL_NAME": "demo"}


@asynccontextmanager
async def running(**environment: str) -> AsyncIterator[tuple[Process, str, aiohttp.ClientSession]]:
    """The program, its URL, and somebody who asks."""
    port = free_port()
    with process("asr", **{**DEMO, "PORT": str(port), "ASR_PORT": str(port), **environment}) as server:
        await server.serving()
        async with aiohttp.ClientSession() as http:
            yield server, server.url, http


def listens(url: str) -> bool:
    host, _, port = url.rpartition("/")[2].partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


async def test_the_program_listens_and_answers_and_needs_no_telephone() -> None:
    async with running() as (server, url, http):
        async with http.post(f"{url}/transcribe", data=HELLO + silence(1), headers=L16) as answer:
            assert [line["text"] for line in await lines(answer) if line["final"]] == ["안녕하세요."]
        async with http.post(f"{url}/transcribe-sync", data=encoded("mp3", HELLO)) as answer:
            assert (await answer.json())["text"] == "안녕하세요."
        assert "54 phrases" in server.output
        assert url.rpartition(":")[2] in server.output
        server.signal(signal.SIGTERM)
        assert await server.exit_code() == 0
        assert "Traceback" not in server.output


async def test_in_production_it_asks_for_the_key_and_logs_json() -> None:
    async with running(APP_ENV="production", ASR_API_KEY=KEY) as (server, url, http):
        async with http.post(f"{url}/transcribe", data=HELLO, headers=L16) as answer:
            assert answer.status == 401
        async with http.get(f"{url}/models", headers={"Authorization": f"Bearer {KEY}"}) as answer:
            assert (await answer.json())["current"] == "demo"
        logged = [json.loads(line) for line in server.output.splitlines()]
        assert "- recogniser serving" in {line["event"] for line in logged}
        assert KEY not in server.output


async def test_the_first_signal_lets_a_speaker_finish_and_takes_nobody_new() -> None:
    async with running() as (server, url, http):
        speaker = Speaker()
        speaker.say(HELLO + silence(1))
        async with http.post(f"{url}/transcribe", data=speaker, headers=L16) as answer:
            await next_line(answer)
            server.signal(signal.SIGTERM)
            await until(lambda: not listens(url))
            speaker.say(spoken("감사합니다.").pcm)
            speaker.end()
            assert "감사합니다." in [line["text"] for line in await lines(answer) if line["final"]]
        assert await server.exit_code() == 0


@pytest.mark.parametrize("how", ["a second signal", "the drain is over"])
async def test_a_speaker_who_does_not_finish_is_told_that_we_leave(how: str) -> None:
    async with running(DRAIN_S="1" if how == "the drain is over" else "300") as (server, url, http):
        speaker = Speaker()
        speaker.say(HELLO + silence(1) + spoken("감사합니다.").pcm)
        async with http.post(f"{url}/transcribe", data=speaker, headers=L16) as answer:
            await next_line(answer)
            server.signal(signal.SIGTERM)
            if how == "a second signal":
                await until(lambda: "draining" in server.output)
                server.signal(signal.SIGTERM)
            *told, last = await lines(answer)
            assert [line["text"] for line in told if line["final"]][-1] == "감사합니다."
            assert last["error"]["code"] == "shutdown"
            speaker.end()
        assert await server.exit_code() == 0
        assert "Traceback" not in server.output


@pytest.mark.parametrize("path", ["/transcribe", "/transcribe-sync"])
async def test_who_has_been_told_nothing_yet_is_refused_when_we_leave(path: str) -> None:
    """A stream whose WAV header is not there yet, and an upload: neither may wait for its connection to be cut."""
    async with running() as (server, url, http), asyncio.TaskGroup() as group:
        speaker = Speaker()
        speaker.say(encoded("wav", HELLO)[:20])
        asking = group.create_task(http.post(url + path, data=speaker, headers={"Content-Type": "audio/wav"}))
        await asyncio.sleep(0.5)  # it says nothing by which we could know that it is there
        server.signal(signal.SIGTERM)
        await until(lambda: "draining" in server.output)
        server.signal(signal.SIGTERM)
        async with await asking as answer:
            assert await error_of(answer) == (503, "shutdown")
        speaker.end()
        assert await server.exit_code() == 0
        assert "Traceback" not in server.output


async def test_a_signal_while_the_model_is_fetched_ends_it_at_once(tmp_path: Path) -> None:
    """By a handler: without one the first process of a container ignores SIGTERM."""
    asked = asyncio.Event()

    async def hangs(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        asked.set()

    async with await asyncio.start_server(hangs, "127.0.0.1", 0) as hub:
        endpoint = f"http://127.0.0.1:{hub.sockets[0].getsockname()[1]}"
        fetching = {"MODEL_NAME": "tiny", "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)}
        with process("asr", **{**DEMO, **fetching, "ASR_PORT": str(free_port())}) as server:
            async with asyncio.timeout(10):
                await asked.wait()
            server.signal(signal.SIGTERM)
            assert await server.exit_code(2) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"MODEL_NAME": "smal"}, "MODEL_NAME: "),
        ({"HOST": "0.0.0.0"}, "HOST: development mode"),
        ({"APP_ENV": "production", "HOST": "0.0.0.0"}, "ASR_API_KEY: not set"),
        ({"APP_ENV": "production", "HOST": "0.0.0.0", "ASR_API_KEY": "short"}, "ASR_API_KEY: too short"),
    ],
)
async def test_what_stands_in_the_way_is_named_and_ends_it_with_78(environment: dict[str, str], words: str) -> None:
    with process("asr", **{**DEMO, "ASR_PORT": str(free_port()), **environment}) as server:
        assert await server.exit_code() == 78
        assert server.output.splitlines()[-1].startswith(f"malgil: {words}")


def test_a_port_in_use_is_named() -> None:
    refusal = r"ASR_PORT: cannot listen .* set another ASR_PORT"
    with listen("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match=refusal):
        serve_asr(settings(asr_port=taken.getsockname()[1]))


# ---------------------------------------------------------------- settings


def settings(**changes: object) -> AsrSettings:
    return load_asr_settings(None, **{"app_env": "development", "model_name": "demo", **changes})


def test_each_setting_of_the_recogniser_arrives() -> None:
    asked = settings(
        model_name="tiny",
        device="cpu",
        compute_type="float32",
        beam_size=5,
        lang_hint="en",
        no_speech_threshold=0.4,
        condition_on_prev=True,
        window_s=9.5,
        window_overlap_ms=200,
        encoder_window="full",
        partial_flush_ms=300,
        final_flush_silence_ms=700,
        asr_api_key=KEY,
        max_calls=7,
    )
    model, options = model_options(asked), asr_options(asked)
    assert (model.name, model.device, model.compute_type, model.encoder_window) == ("tiny", "cpu", "float32", "full")
    assert (model.no_speech_threshold, model.engine.beam, model.development) == (0.4, 5, True)
    assert (options.api_key, options.language, options.live.streams) == (KEY, "en", 7)
    assert options.endpoint.silence_ms == options.stream.wait_ms == 700
    assert (options.stream.partial_ms, options.stream.window_s, options.stream.overlap_ms) == (300, 9.5, 200)
    assert options.stream.condition_on_prev


def test_vad_chooses_what_finds_speech() -> None:
    assert isinstance(detectors(settings())[1](), SileroDetector)
    loudness = detectors(settings(vad="energy", vad_frame_ms=20))[1]()
    assert isinstance(loudness, EnergyDetector)
    assert loudness.frame_ms == 20


async def test_the_start_tells_what_to_type(tmp_path: Path) -> None:
    async with ModelShelf(ModelOptions(name="demo", data=tmp_path), clock=lambda: 0.0) as shelf:
        text = start_lines(settings(asr_api_key=KEY, host="::1"), shelf)
    assert "http://[::1]:5005/transcribe-sync" in text
    assert "$ASR_API_KEY" in text
    assert KEY not in text
