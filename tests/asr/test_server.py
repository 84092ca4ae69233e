"""The service with the demo model, over real sockets."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import aiohttp
import numpy as np
import pytest
from fastapi.routing import APIRoute

from app.asr.duplex import Answer, Body
from app.asr.engine import DecodeEngine, EngineOptions, Kind
from app.asr.formats import AudioFormat
from app.asr.live import LiveLimits, LiveStream, PcmBody
from app.asr.models import ModelOptions, ModelShelf, ModelStatus
from app.asr.recogniser import Decoded, Request
from app.asr.schemas import Refused, shutdown
from app.asr.server import AsrOptions, create_app
from app.asr.speech import SpeechFinder
from app.asr.stream import RecogniserStream, StreamOptions
from app.asr.uploads import UploadLimits
from app.audio import g711
from app.audio.endpoint import Endpointer, EndpointOptions
from app.audio.vad import load_silero
from tests.asr.files import encoded, silence
from tests.asr.sample_calls import spoken
from tests.asr.served import Speaker, error_of, lines, next_line, recogniser, served
from tests.asr.test_speech import at_rate
from tests.servers import until

HELLO, THANKS, BYE = (spoken(text).pcm for text in ("안녕하세요.", "감사합니다.", "안녕히 계세요."))
ASKING = spoken("영업시간이 어떻게 되나요?").pcm
PAUSE = silence(0.8)
MULAW = {"Content-Type": "audio/x-mulaw;rate=8000"}
L16 = {"Content-Type": "audio/L16;rate=8000"}
KEY = "0123456789abcdef0123456789abcdef"


@asynccontextmanager
async def service(
    folder: Path, options: AsrOptions | None = None
) -> AsyncIterator[tuple[str, aiohttp.ClientSession, ModelShelf]]:
    async with recogniser(folder, options) as (url, shelf), aiohttp.ClientSession() as http:
        yield url, http, shelf


class Decoder:
    """A model that fails, or that never comes back until the gate is open."""

    workers = max_batch = 1

    def __init__(self, fault: Literal["fail", "hang"]) -> None:
        self._fault = fault
        self.gate = threading.Event()

    def batch_key(self, request: Request) -> None:
        return None

    def decode(self, requests: Sequence[Request], *, beam: int) -> list[Decoded]:
        if self._fault == "fail":
            raise ValueError("no")
        assert self.gate.wait(20)
        return [Decoded("네.", "ko") for _ in requests]


class Shelf:
    """With one engine on it."""

    loaded = True
    status = ModelStatus("scripted", False, "cpu", "int8")
    trouble = ""

    def __init__(self, engine: DecodeEngine) -> None:
        self.engine = engine

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[DecodeEngine]:
        yield self.engine


@asynccontextmanager
async def scripted(
    folder: Path, decoder: Decoder, options: EngineOptions | None = None
) -> AsyncIterator[tuple[str, aiohttp.ClientSession, Shelf]]:
    engine = DecodeEngine(decoder, options)
    engine.start()
    shelf = Shelf(engine)
    app = create_app(shelf, load_silero().detector, AsrOptions(cache=folder))
    async with served(app) as url, aiohttp.ClientSession() as http:
        yield url, http, shelf
    await engine.aclose()


def finals(told: list[dict[str, Any]]) -> list[str]:
    return [line["text"] for line in told if line["final"]]


# ---------------------------------------------------------------- /transcribe


async def test_words_arrive_while_the_speaker_speaks(tmp_path: Path) -> None:
    options = AsrOptions(endpoint=EndpointOptions(silence_ms=2000))
    async with service(tmp_path, options) as (url, http, _):
        speaker = Speaker()
        speaker.say(g711.encode(PAUSE + ASKING + PAUSE))  # and not a byte more, until we have been told of it
        async with http.post(f"{url}/transcribe", data=speaker, headers=MULAW) as answer:
            assert (answer.status, answer.content_type) == (200, "application/x-ndjson")
            first = line = await next_line(answer)
            assert set(first) == {"text", "final", "start_ms", "end_ms", "confidence"}
            while line["text"] != "영업시간이 어떻게 되나요?":
                line = await next_line(answer)
            assert (first["final"], line["final"]) == (False, False)
            speaker.say(g711.encode(PAUSE * 3))
            while not (line := await next_line(answer))["final"]:
                pass
            assert line["text"] == "영업시간이 어떻게 되나요?"
            assert 0 < line["confidence"] <= 1
            assert 400 <= line["start_ms"] < 1200 < line["end_ms"] <= 4000 + len(ASKING) // 16
            speaker.say(g711.encode(THANKS))
            speaker.end()  # in the middle of what the endpointer would wait for
            assert finals(await lines(answer)) == ["감사합니다."]


async def test_a_long_body_gives_many_finals_in_order(tmp_path: Path) -> None:
    async with service(tmp_path) as (url, http, _):
        body = b"".join(one + PAUSE for one in (HELLO, THANKS, BYE) * 4)
        async with http.post(f"{url}/transcribe", data=body, headers=L16) as answer:
            told = await lines(answer)
    assert finals(told) == ["안녕하세요.", "감사합니다.", "안녕히 계세요."] * 4
    spans = [(line["start_ms"], line["end_ms"]) for line in told if line["final"]]
    assert all(start < end for start, end in spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert spans[-1][1] <= len(body) // 16


async def test_each_kind_of_audio(tmp_path: Path) -> None:
    file = encoded("wav", HELLO)
    kinds = [
        ("audio/L16;rate=16000", at_rate(HELLO, 16_000)),
        ("audio/L16;rate=44100;channels=2", np.repeat(np.frombuffer(at_rate(HELLO, 44_100), "<i2"), 2).tobytes()),
        ("audio/L16;rate=8000;endianness=big-endian", np.frombuffer(HELLO, "<i2").astype(">i2").tobytes()),
        ("audio/basic", g711.encode(HELLO)),
        ("audio/wav", file),
        ("audio/x-wav", encoded("wav", at_rate(HELLO, 48_000), 48_000)),
        ("audio/wav", file.replace(b"data" + len(HELLO).to_bytes(4, "little"), b"data\xff\xff\xff\xff")),
    ]
    async with service(tmp_path) as (url, http, _):
        for content_type, body in kinds:
            speaker = Speaker()
            speaker.say(body, 999)
            speaker.end()
            async with http.post(f"{url}/transcribe", data=speaker, headers={"Content-Type": content_type}) as answer:
                assert finals(await lines(answer)) == ["안녕하세요."], content_type


async def test_where_nobody_speaks_nothing_is_told(tmp_path: Path) -> None:
    bodies = [
        *(("audio/L16;rate=8000", body) for body in (b"", b"\0", silence(2))),
        *(("audio/x-mulaw", g711.encode(body)) for body in (b"", silence(2))),
        *(("audio/wav", body) for body in (b"", encoded("wav", b""), encoded("wav", silence(2)))),
    ]
    async with service(tmp_path) as (url, http, _):
        for content_type, body in bodies:
            async with http.post(f"{url}/transcribe", data=body, headers={"Content-Type": content_type}) as answer:
                assert (answer.status, await lines(answer)) == (200, []), (content_type, len(body))


async def test_two_speak_at_once_and_each_is_told_their_own_words(tmp_path: Path) -> None:
    async with service(tmp_path) as (url, http, _):
        speakers = {"안녕하세요.": Speaker(), "감사합니다.": Speaker()}
        for text, speaker in speakers.items():
            speaker.say(PAUSE + spoken(text).pcm)

        both_began = asyncio.Barrier(2)

        async def one(text: str, speaker: Speaker) -> None:
            async with http.post(f"{url}/transcribe", data=speaker, headers=L16) as answer:
                told = [await next_line(answer)]
                await both_began.wait()
                speaker.say(PAUSE)
                speaker.end()
                assert finals(told + await lines(answer)) == [text]

        async with asyncio.TaskGroup() as group:
            for text, speaker in speakers.items():
                group.create_task(one(text, speaker))


async def test_a_speaker_who_leaves_frees_the_engine(tmp_path: Path) -> None:
    options = AsrOptions(live=LiveLimits(streams=1))
    async with service(tmp_path, options) as (url, http, shelf):
        speaker = Speaker()
        speaker.say(PAUSE + HELLO)
        async with http.post(f"{url}/transcribe", data=speaker, headers=L16) as answer:
            await next_line(answer)
            async with http.post(f"{url}/transcribe", data=HELLO, headers=L16) as second:
                assert await error_of(second) == (503, "busy")
                assert second.headers["Retry-After"] == "2"
            answer.close()
        await until(lambda: shelf.engine.idle)
        await until(lambda: shelf._served().users == 0)
        async with http.post(f"{url}/transcribe", data=HELLO, headers=L16) as answer:
            assert finals(await lines(answer)) == ["안녕하세요."]


async def test_a_speaker_who_says_nothing_more_is_let_go(tmp_path: Path) -> None:
    async with service(tmp_path, AsrOptions(live=LiveLimits(idle_s=0.3))) as (url, http, _):
        speaker = Speaker()
        speaker.say(HELLO + PAUSE)
        async with http.post(f"{url}/transcribe", data=speaker, headers=L16) as answer:
            *told, last = await lines(answer)
    assert finals(told) == ["안녕하세요."]
    assert last["error"]["code"] == "idle"


@pytest.mark.parametrize("limits", [LiveLimits(stream_s=2.0), LiveLimits(stream_s=0.5)])
async def test_a_stream_that_goes_on_for_too_long_is_ended(tmp_path: Path, limits: LiveLimits) -> None:
    """Its audio in the one case, its time in the other."""
    async with service(tmp_path, AsrOptions(live=limits)) as (url, http, _):
        speaker = Speaker()
        speaker.say(silence(2.2 if limits.stream_s == 2 else 0.2))
        async with http.post(f"{url}/transcribe", data=speaker, headers=L16) as answer:
            assert [line["error"]["code"] for line in await lines(answer)] == ["too_long"]


async def test_what_cannot_be_heard_is_refused(tmp_path: Path) -> None:
    refusals = [
        ("", "audio/mpeg", 415, "unsupported_audio"),
        ("", "audio/L16", 415, "unsupported_audio"),
        ("", "audio/wav", 400, "broken_wav"),
        ("?language=klingon", "audio/x-mulaw", 400, "unknown_language"),
    ]
    async with service(tmp_path) as (url, http, _):
        for query, content_type, status, code in refusals:
            headers = {"Content-Type": content_type}
            async with http.post(f"{url}/transcribe{query}", data=b"#EXTM3U" * 100, headers=headers) as answer:
                assert await error_of(answer) == (status, code)


async def test_a_request_may_name_its_language(tmp_path: Path) -> None:
    async with service(tmp_path) as (url, http, _):
        for language in ("ko", "en", "auto", ""):
            async with http.post(f"{url}/transcribe?language={language}", data=HELLO, headers=L16) as answer:
                (heard,) = finals(await lines(answer))
                assert heard == "안녕하세요." or language == "en"


async def test_a_failure_in_the_middle_of_a_stream_is_its_last_line(tmp_path: Path) -> None:
    async with scripted(tmp_path, Decoder("fail")) as (url, http, _):
        async with http.post(f"{url}/transcribe", data=HELLO + PAUSE, headers=L16) as answer:
            *told, last = await lines(answer)
        assert not finals(told)
        assert last["error"]["code"] == "decode"
        async with http.post(f"{url}/transcribe-sync", data=encoded("wav", HELLO)) as answer:
            assert await error_of(answer) == (503, "decode")


async def test_a_recogniser_that_has_too_much_to_do_takes_nobody_more(tmp_path: Path) -> None:
    decoder = Decoder("hang")
    async with scripted(tmp_path, decoder, EngineOptions(max_queued=4)) as (url, http, shelf):
        jobs = [shelf.engine.submit(Request(HELLO, 8000, "ko"), Kind.FINAL)]
        await until(lambda: shelf.engine.queue_depth == 0)
        jobs += [shelf.engine.submit(Request(HELLO, 8000, "ko"), Kind.FINAL) for _ in range(4)]
        async with http.post(f"{url}/transcribe", data=HELLO, headers=L16) as answer:
            assert await error_of(answer) == (503, "busy")
            assert answer.headers["Retry-After"] == "2"
        async with http.get(f"{url}/health") as answer:
            assert (answer.status, (await answer.json())["queue_depth"]) == (200, 4)
        decoder.gate.set()
        await asyncio.wait([job.future for job in jobs])


async def test_a_recogniser_that_never_comes_back_takes_nobody_more(tmp_path: Path) -> None:
    decoder = Decoder("hang")
    async with scripted(tmp_path, decoder, EngineOptions(timeout_s=0.1)) as (url, http, shelf):
        shelf.engine.submit(Request(HELLO, 8000, "ko"), Kind.FINAL)
        await until(lambda: shelf.engine.stuck)
        for path in ("/transcribe", "/transcribe-sync"):
            async with http.post(url + path, data=HELLO, headers=L16) as answer:
                assert await error_of(answer) == (503, "stuck")
        async with http.get(f"{url}/health") as answer:
            assert (answer.status, (await answer.json())["status"]) == (503, "stuck")
        decoder.gate.set()


async def test_a_stream_that_is_ended_before_it_listens_does_not_begin_to() -> None:
    sent: list[Any] = []

    async def says_nothing() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    engine = DecodeEngine(Decoder("fail"))
    engine.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.aclose)
        pcm = PcmBody(Body(says_nothing), AudioFormat("mulaw", 8000), LiveLimits())
        finder = SpeechFinder(load_silero().detector(), Endpointer(EndpointOptions()), 8000)
        stream = RecogniserStream(engine, 8000, "ko", StreamOptions())
        live = LiveStream(pcm, Answer(send), finder, stream, 8000)
        live.end(shutdown())
        with pytest.raises(Refused, match="shut down"):
            async with asyncio.timeout(5):
                await live.run(LiveLimits())
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


async def test_leaving_twice_is_leaving_once(tmp_path: Path) -> None:
    """A second signal, or the end of the drain, while those who were told to end are about to."""
    engine = DecodeEngine(Decoder("fail"))
    engine.start()
    app = create_app(Shelf(engine), load_silero().detector, AsrOptions(cache=tmp_path))
    service = app.state.service
    async with served(app) as url, aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
        speaker, uploader = Speaker(), Speaker()
        for one in (speaker, uploader):
            one.say(silence(0.1))
        uploading = group.create_task(http.post(f"{url}/transcribe-sync", data=uploader))
        async with http.post(f"{url}/transcribe", data=speaker, headers=L16) as answer:
            await until(lambda: bool(service._told_nothing and service._live))
            for _ in range(20):
                service.end_all()
                await asyncio.sleep(0)
            assert [line["error"]["code"] for line in await lines(answer)] == ["shutdown"]
        async with await uploading as answer:
            assert await error_of(answer) == (503, "shutdown")
    await engine.aclose()


async def test_a_recogniser_whose_process_is_gone_takes_nobody_more(tmp_path: Path) -> None:
    """A GPU's: its engine knows nothing of that until it is asked to decode."""
    async with scripted(tmp_path, Decoder("hang")) as (url, http, shelf):
        shelf.trouble = "the recogniser cannot decode: its process is being started again (it died)"
        for path in ("/transcribe", "/transcribe-sync"):
            async with http.post(url + path, data=HELLO, headers=L16) as answer:
                assert (await answer.json())["error"]["message"] == shelf.trouble
                assert await error_of(answer) == (503, "unavailable")
                assert answer.headers["Retry-After"] == "2"
        async with http.get(f"{url}/health") as answer:
            assert (answer.status, (await answer.json())["status"]) == (503, "unavailable")


# ---------------------------------------------------------------- /transcribe-sync


async def test_a_file_becomes_one_object(tmp_path: Path) -> None:
    async with service(tmp_path) as (url, http, _):
        for kind in ("wav", "flac", "mp3", "ogg", "webm"):
            file = encoded(kind, PAUSE + HELLO + PAUSE + THANKS + PAUSE)
            form = aiohttp.FormData()
            form.add_field("file", file, filename="call.bin", content_type="text/plain")
            for data in (file, form):
                async with http.post(f"{url}/transcribe-sync?language=ko", data=data) as answer:
                    assert (answer.status, answer.content_type) == (200, "application/json")
                    told = await answer.json()
                assert set(told) == {"text", "segments", "language", "duration_s", "took_ms"}
                assert told["text"] == "안녕하세요. 감사합니다."
                assert told["language"] == "ko"
                assert told["duration_s"] == pytest.approx((len(HELLO) + len(THANKS)) / 16_000 + 2.4, abs=0.1)
                assert 0 < told["took_ms"] < 20_000
                first, second = told["segments"]
                assert (first["text"], second["text"]) == ("안녕하세요.", "감사합니다.")
                assert 700 <= first["start_ms"] <= 1100 < first["end_ms"] <= second["start_ms"] < second["end_ms"]


async def test_a_long_recording_is_cut_where_nobody_speaks(tmp_path: Path) -> None:
    file = encoded("flac", (HELLO + PAUSE + THANKS + PAUSE) * 8)
    async with service(tmp_path) as (url, http, _), http.post(f"{url}/transcribe-sync", data=file) as answer:
        told = await answer.json()
    assert told["duration_s"] > 25
    assert [segment["text"] for segment in told["segments"]] == ["안녕하세요.", "감사합니다."] * 8
    times = [(segment["start_ms"], segment["end_ms"]) for segment in told["segments"]]
    assert all(end <= start for (_, end), (start, _) in pairwise(times))


async def test_a_file_in_which_nobody_speaks(tmp_path: Path) -> None:
    async with service(tmp_path) as (url, http, _):
        for file in (b"", encoded("wav", b""), encoded("flac", silence(3))):
            async with http.post(f"{url}/transcribe-sync", data=file) as answer:
                told = await answer.json()
            assert (answer.status, told["text"], told["segments"]) == (200, "", [])


async def test_a_file_that_is_refused(tmp_path: Path) -> None:
    refusals = [
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", 415, "unsupported_file"),
        (b"OggS and nothing else", 422, "undecodable"),
        (bytes(100_001), 413, "too_large"),
        (encoded("flac", silence(12)), 422, "audio_too_long"),
    ]
    options = AsrOptions(uploads=UploadLimits(body_bytes=100_000, audio_s=10))
    async with service(tmp_path, options) as (url, http, _):
        for body, status, code in refusals:
            async with http.post(f"{url}/transcribe-sync", data=body) as answer:
                assert await error_of(answer) == (status, code)
        async with http.post(f"{url}/transcribe-sync", data=encoded("flac", HELLO)) as answer:
            assert (await answer.json())["text"] == "안녕하세요."


async def test_an_endless_upload_is_refused_at_its_limit_without_being_told_its_length(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65_536)

    options = AsrOptions(uploads=UploadLimits(body_bytes=1 << 20))
    async with (
        service(tmp_path, options) as (url, http, _),
        http.post(f"{url}/transcribe-sync", data=endless()) as answer,
    ):
        assert await error_of(answer) == (413, "too_large")


async def test_a_slow_upload_and_a_broken_form_are_refused(tmp_path: Path) -> None:
    options = AsrOptions(uploads=UploadLimits(slow_s=0.2))
    async with service(tmp_path, options) as (url, http, _):
        slow = Speaker()
        slow.say(b"RIFF")
        async with http.post(f"{url}/transcribe-sync", data=slow) as answer:
            assert await error_of(answer) == (408, "too_slow")
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        async with http.post(f"{url}/transcribe-sync", data=b"--y\r\n" * 99, headers=headers) as answer:
            assert await error_of(answer) == (400, "broken_form")


async def test_the_seventh_upload_is_told_to_come_back(tmp_path: Path) -> None:
    file = encoded("flac", HELLO)
    async with service(tmp_path) as (url, http, _), asyncio.TaskGroup() as group:

        async def upload(data: Speaker | bytes) -> int:
            async with http.post(f"{url}/transcribe-sync", data=data) as answer:
                if answer.status == 503:
                    assert answer.headers["Retry-After"] == "2"
                    assert await error_of(answer) == (503, "busy")
                else:
                    assert (await answer.json())["text"] == "안녕하세요."
                return answer.status

        async def until_it_is(status: int) -> None:
            async with asyncio.timeout(10):
                while await upload(file) != status:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

        held = asyncio.Event()

        async def hold() -> None:
            """Comes in, perhaps at the second try, and keeps its place."""
            while True:
                speaker = Speaker()
                speaker.say(file[:100])
                sending = group.create_task(upload(speaker))
                await asyncio.wait([sending, group.create_task(held.wait())], return_when="FIRST_COMPLETED")
                speaker.say(file[100:])
                speaker.end()
                if await sending == 200:
                    return

        holding = [group.create_task(hold()) for _ in range(6)]
        await until_it_is(503)
        held.set()
        await until_it_is(200)
        await asyncio.gather(*holding)


async def test_an_uploader_who_leaves_ends_the_work_on_it(tmp_path: Path) -> None:
    options = AsrOptions(uploads=UploadLimits(running=1, waiting=0))
    file = encoded("flac", (HELLO + PAUSE) * 100)
    async with service(tmp_path, options) as (url, http, shelf):
        with pytest.raises(TimeoutError):
            await http.post(f"{url}/transcribe-sync", data=file, timeout=aiohttp.ClientTimeout(total=0.5))
        async with asyncio.timeout(10):
            while True:
                async with http.post(f"{url}/transcribe-sync", data=encoded("flac", HELLO)) as answer:
                    if answer.status == 200:
                        break
                await asyncio.sleep(0.05)
        assert shelf.engine.queue_depth == 0


# ---------------------------------------------------------------- keys, health, models


async def test_without_the_key_nothing_is_served_but_health(tmp_path: Path) -> None:
    shown = {"Authorization": f"Bearer {KEY}"}
    async with service(tmp_path, AsrOptions(api_key=KEY)) as (url, http, _):
        for method, path in (("POST", "/transcribe"), ("POST", "/transcribe-sync"), ("GET", "/models")):
            async with http.request(method, url + path, headers=MULAW, data=b"x") as answer:
                assert await error_of(answer) == (401, "no_key")
                assert answer.headers["WWW-Authenticate"] == "Bearer"
            for wrong in (KEY[:-1], KEY + "0", "열쇠".encode().decode("latin-1")):
                headers = MULAW | {"Authorization": f"Bearer {wrong}"}
                async with http.request(method, url + path, headers=headers, data=b"x") as answer:
                    assert await error_of(answer) == (403, "wrong_key")
        async with http.post(f"{url}/transcribe", data=HELLO, headers=L16 | shown) as answer:
            assert finals(await lines(answer)) == ["안녕하세요."]
        async with http.get(f"{url}/models", headers=shown) as answer:
            assert answer.status == 200
        async with http.get(f"{url}/health") as answer:
            assert answer.status == 200


def test_each_route_asks_for_the_key_or_is_meant_to_be_open(tmp_path: Path) -> None:
    shelf = ModelShelf(ModelOptions(name="demo", data=tmp_path), clock=lambda: 0.0)
    app = create_app(shelf, load_silero().detector, AsrOptions(api_key=KEY))
    routes = {route.path: bool(route.dependencies) for route in app.routes if isinstance(route, APIRoute)}
    assert len(routes) == len(app.routes)
    assert routes == {"/transcribe": True, "/transcribe-sync": True, "/models": True, "/health": False}


async def test_health_and_models_say_what_serves(tmp_path: Path) -> None:
    async with service(tmp_path) as (url, http, _):
        async with http.get(f"{url}/health") as answer:
            assert answer.status == 200
            assert await answer.json() == {
                "status": "ok",
                "model": "demo",
                "device": "cpu",
                "compute_type": "int8",
                "queue_depth": 0,
                "loaded": True,
            }
        async with http.get(f"{url}/models") as answer:
            told = await answer.json()
            assert told["current"] == "demo"
            assert "demo" in told["available"]


async def test_without_a_model_everything_is_declined(tmp_path: Path) -> None:
    shelf = ModelShelf(ModelOptions(name="demo", data=tmp_path, cache=tmp_path), clock=lambda: 0.0)
    app = create_app(shelf, load_silero().detector, AsrOptions(cache=tmp_path))
    async with served(app) as url, aiohttp.ClientSession() as http:
        async with http.get(f"{url}/health") as answer:
            assert (answer.status, (await answer.json())["status"]) == (503, "not_loaded")
        for path in ("/transcribe", "/transcribe-sync"):
            async with http.post(url + path, data=HELLO, headers=L16) as answer:
                assert await error_of(answer) == (503, "not_loaded")
        async with http.get(f"{url}/models") as answer:
            assert await answer.json() == {"available": ["demo"], "current": ""}


async def test_other_paths_and_methods_are_refused_in_the_same_form(tmp_path: Path) -> None:
    async with service(tmp_path) as (url, http, _):
        for path in ("/", "/docs", "/openapi.json", "/nothing"):
            async with http.get(url + path) as answer:
                assert await error_of(answer) == (404, "not_found")
        async with http.get(f"{url}/transcribe") as answer:
            assert await error_of(answer) == (405, "method_not_allowed")
            assert answer.headers["Allow"] == "POST"


def test_no_word_of_a_speaker_is_in_the_log(log_lines: list[Any], tmp_path: Path) -> None:
    async def call() -> None:
        async with (
            service(tmp_path) as (url, http, _),
            http.post(f"{url}/transcribe", data=HELLO, headers=L16) as answer,
        ):
            assert finals(await lines(answer)) == ["안녕하세요."]

    asyncio.run(call())
    assert "안녕" not in json.dumps([line for line in log_lines if line["log_level"] != "debug"], default=str)
