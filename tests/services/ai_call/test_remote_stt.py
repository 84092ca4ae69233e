"""Our recogniser as a service, heard from the call's side: against the real one over real sockets, and for what that
one never does against an emulator."""

import asyncio
import signal
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.asr.live import LiveLimits
from app.asr.models import ModelOptions, ModelShelf
from app.asr.server import AsrOptions, create_app
from app.audio import g711
from app.audio.endpoint import Endpointer, EndpointOptions, SpeechStopped
from app.audio.types import AudioFrame, Transcript
from app.audio.vad import load_silero
from app.errors import SttError
from app.services.ai_call.listening import Listener
from app.services.ai_call.local_stt import LocalStt
from app.services.ai_call.ports import Admitting, Checkable, Guessing, SpeechToText
from app.services.ai_call.preflight import preflight
from app.services.ai_call.remote_stt import RemoteOptions, RemoteStream, RemoteStt
from app.services.ai_call.succession import Candidate, Succession
from app.services.ai_call.types import Event, Heard, RecogniserLost
from tests.asr.files import silence
from tests.asr.sample_calls import RATE, sample_calls, spoken
from tests.asr.served import recogniser, served
from tests.asr.test_speech import at_rate
from tests.emulators.asr_service import AsrServiceEmulator, Fault
from tests.servers import free_port, process, until

KEY = "0123456789abcdef0123456789abcdef"
FRAME_MS = 32
ASKING = spoken("영업시간이 어떻게 되나요?").pcm
QUICK = {"patience_s": 0.0, "send_s": 0.3, "check_s": 0.5, "head_s": 0.2, "guess_s": 0.2, "final_s": 0.3}


def frames(pcm: bytes, at_ms: int = 0, rate: int = RATE) -> Iterator[AudioFrame]:
    size = rate * FRAME_MS // 1000 * 2
    for number, start in enumerate(range(0, len(pcm), size)):
        yield AudioFrame(pcm[start : start + size], rate, at_ms + number * FRAME_MS)


async def say(stream: RemoteStream, pcm: bytes, at_ms: int = 0, rate: int = RATE) -> None:
    for frame in frames(pcm, at_ms, rate):
        await stream.send(frame)


async def told(stream: RemoteStream, finals: int = 1) -> list[Transcript]:
    """All transcripts up to so many finals."""
    heard: list[Transcript] = []
    async with asyncio.timeout(20), aclosing(aiter(stream)) as transcripts:  # type: ignore[type-var]
        async for transcript in transcripts:
            heard.append(transcript)
            finals -= transcript.final
            if not finals:
                break
    return heard


async def final(stream: RemoteStream) -> Transcript:
    return (await told(stream))[-1]


def quick(url: str, **options: float) -> RemoteStt:
    return RemoteStt(RemoteOptions(url, **(QUICK | options)))  # type: ignore[arg-type]


@asynccontextmanager
async def emulated(
    fault: Fault | None = None, **options: float
) -> AsyncIterator[tuple[AsrServiceEmulator, RemoteStt, RemoteStream]]:
    async with AsrServiceEmulator(fault=fault) as service:
        stt = quick(service.url, **options)
        async with stt.open(RATE, "ko") as stream:
            yield service, stt, stream
        await until(lambda: not service.open_now)
    assert service.violations == []


async def failure(stream: RemoteStream) -> tuple[str, bool]:
    with pytest.raises(SttError) as caught:
        await told(stream)
    assert caught.value.provider == "remote"
    return caught.value.kind, caught.value.retryable


# ---------------------------------------------------------------- the real service


async def test_its_words_are_those_of_the_recogniser_in_process(tmp_path: Path) -> None:
    calls = [call for call in sample_calls() if call.text][::5]
    async with recogniser(tmp_path) as (url, shelf):
        local: SpeechToText = LocalStt(shelf)
        remote: SpeechToText = RemoteStt(RemoteOptions(url))
        assert (remote.name, remote.hears) == ("remote", "speech")
        for call in calls:
            heard = []
            for stt in (local, remote):
                async with stt.open(RATE, call.language) as stream:
                    await say(stream, silence(0.3) + call.pcm + silence(0.2), 5000)  # type: ignore[arg-type]
                    await stream.flush(1500)
                    heard.append(await final(stream))  # type: ignore[arg-type]
            assert [one.text for one in heard] == [call.text] * 2
            assert (heard[1].start_ms, heard[1].end_ms) == (heard[0].start_ms, heard[0].end_ms)
            assert 0 < (heard[1].confidence or 0) <= 1


async def test_other_rates_go_as_they_are(tmp_path: Path) -> None:
    async with recogniser(tmp_path) as (url, _):
        for rate in (16_000, 48_000):
            async with RemoteStt(RemoteOptions(url)).open(rate, "ko") as stream:
                await say(stream, at_rate(silence(0.3) + ASKING, rate), rate=rate)
                await stream.flush(1500)
                assert (await final(stream)).text == "영업시간이 어떻게 되나요?"


async def test_partials_arrive_while_the_caller_still_speaks(tmp_path: Path) -> None:
    async with recogniser(tmp_path) as (url, _), RemoteStt(RemoteOptions(url)).open(RATE, "ko") as stream:
        half = len(ASKING) // 64 * 32
        await say(stream, silence(0.32) + ASKING[:half], 4000)  # and not a byte more until we were told
        async with asyncio.timeout(10):
            first = await anext(aiter(stream))
        assert first.text
        assert not first.final
        assert 4000 == first.start_ms < first.end_ms <= 4320 + half // 16
        await say(stream, ASKING[half:], 4320 + half // 16)
        await stream.flush(1500)
        assert (await final(stream)).text == "영업시간이 어떻게 되나요?"


async def test_one_utterance_after_the_other_and_the_empty_ones(tmp_path: Path) -> None:
    """The second begins before the first has its final; its pauses may be longer than the service's own waits."""
    hello, thanks = (spoken(text).pcm for text in ("안녕하세요.", "감사합니다."))
    async with recogniser(tmp_path) as (url, _), RemoteStt(RemoteOptions(url)).open(RATE, "ko") as stream:
        for at_ms, pcm in enumerate((hello, silence(1), b"", hello + silence(0.8) + thanks, thanks)):
            await say(stream, pcm and silence(0.3) + pcm, at_ms * 10_000)
            await stream.flush(1000)
        heard = [one for one in await told(stream, 5) if one.final]
        assert [one.text for one in heard] == ["안녕하세요.", "", "", "안녕하세요. 감사합니다.", "감사합니다."]
        assert [one.start_ms for one in heard] == [0, 10_000, 0, 30_000, 40_000]


async def test_ten_callers_at_once_each_hear_their_own(tmp_path: Path) -> None:
    calls = [call for call in sample_calls() if call.text][:10]
    async with recogniser(tmp_path) as (url, _):
        stt = RemoteStt(RemoteOptions(url))

        async def one(text: str, pcm: bytes, language: str) -> None:
            async with stt.open(RATE, language) as stream:
                await say(stream, silence(0.3) + pcm)
                await stream.flush(1500)
                assert (await final(stream)).text == text

        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(one(call.text, call.pcm, call.language))


async def test_it_is_checked_and_passes_the_preflight(tmp_path: Path) -> None:
    async with recogniser(tmp_path, AsrOptions(api_key=KEY)) as (url, _):
        stt = RemoteStt(RemoteOptions(url, KEY))
        assert isinstance(stt, Checkable)
        assert isinstance(stt, Guessing)
        assert isinstance(stt, Admitting)
        await stt.check()
        assert not stt.full
        assert await preflight(stt, "ko") == "영업시간이 어떻게 되나요?"
        for key in ("", "wrong"):
            ill = RemoteStt(RemoteOptions(url, key))
            with pytest.raises(SttError, match="ASR_API_KEY") as caught:
                await ill.check()
            assert (caught.value.kind, caught.value.retryable) == ("auth", False)
            async with ill.open(RATE, "ko") as stream:
                await say(stream, ASKING)
                assert await failure(stream) == ("auth", False)


async def test_a_service_without_a_model_is_not_well_and_opens_nothing(tmp_path: Path) -> None:
    shelf = ModelShelf(ModelOptions(name="demo", data=tmp_path, cache=tmp_path), clock=lambda: 0.0)
    async with served(create_app(shelf, load_silero().detector)) as url:
        stt = quick(url)
        with pytest.raises(SttError, match="not loaded its model yet") as caught:
            await stt.check()
        assert (caught.value.kind, caught.value.retryable) == ("not_loaded", True)
        with pytest.raises(SttError, match="not loaded its model yet"):
            async with stt.open(RATE, "ko"):
                pass


async def test_a_service_that_is_full_is_known_to_be(tmp_path: Path) -> None:
    async with recogniser(tmp_path, AsrOptions(live=LiveLimits(streams=1))) as (url, _):
        stt = quick(url, final_s=8.0, full_s=0.3)
        async with stt.open(RATE, "ko") as one, stt.open(RATE, "ko") as other:
            await say(one, silence(0.3) + ASKING)
            await anext(aiter(one))
            await say(other, ASKING)
            assert await failure(other) == ("busy", True)
            assert stt.full
            await one.flush(1500)
            assert (await final(one)).text == "영업시간이 어떻게 되나요?"
        async with RemoteStt(RemoteOptions(url)).open(RATE, "ko") as stream:
            await say(stream, silence(0.3) + ASKING)
            await stream.flush(1500)
            assert (await final(stream)).text == "영업시간이 어떻게 되나요?"
        await until(lambda: not stt.full)


class Ears:
    """The real listener, with audio as fast as it takes it."""

    def __init__(self, stt: SpeechToText) -> None:
        self.posted: list[Event] = []
        self.faults: list[str] = []
        self._stt = stt
        self._at_ms = 0

    async def __aenter__(self) -> "Ears":
        candidate = Candidate("remote", self._stt)
        loop = asyncio.get_running_loop()
        recognisers = Succession([candidate], loop.time, on_fault=lambda name, kind: self.faults.append(kind))
        detector = load_silero().detector()
        endpointer = Endpointer(EndpointOptions())
        self.listener = Listener(recognisers, detector, endpointer, self.posted.append, rate=RATE, language="ko")
        self.running = loop.create_task(self.listener.run())
        return self

    async def __aexit__(self, *error: object) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)

    async def hears(self, pcm: bytes) -> None:
        for frame in frames(pcm, self._at_ms):
            self.listener.hear(frame)
            await asyncio.sleep(0.002)
        self._at_ms += len(pcm) // 16

    @property
    def heard(self) -> list[str]:
        return [event.transcript.text for event in self.posted if isinstance(event, Heard) and event.transcript.final]

    @property
    def partials(self) -> int:
        return sum(isinstance(event, Heard) and not event.transcript.final for event in self.posted)


async def test_the_words_of_a_pause_say_how_long_it_may_be(tmp_path: Path) -> None:
    async with recogniser(tmp_path) as (url, _), Ears(RemoteStt(RemoteOptions(url))) as ears:
        await ears.hears(silence(0.5) + spoken("안녕하세요.").pcm + silence(0.8))
        await until(lambda: bool(ears.heard))
        waits: list[int] = []
        for text in ("영업시간이 어떻게 되나요?", "감사합니다.", "안녕히 계세요."):
            heard = len(ears.heard)
            await ears.hears(spoken(text).pcm)
            while len(ears.heard) == heard:  # silence at the pace of a call, for the words must be there in time
                await ears.hears(silence(FRAME_MS / 1000))
                await asyncio.sleep(FRAME_MS / 1000)
            assert ears.heard[-1] == text
            waits += [event.silence_ms for event in ears.posted if isinstance(event, SpeechStopped)][-1:]
    assert min(waits) <= 224, "a whole sentence waits for 200 ms"
    assert max(waits) < 1200


async def test_a_service_that_is_killed_in_midsentence_and_started_again_costs_no_word() -> None:
    port = free_port()
    settings = {"APP_ENV": "development", "MODEL_NAME": "demo", "ASR_PORT": str(port), "PORT": str(port)}
    with process("asr", **settings) as first:
        await first.serving()
        async with Ears(RemoteStt(RemoteOptions(first.url))) as ears:
            await ears.hears(silence(0.5) + spoken("안녕하세요.").pcm + silence(0.8))
            await until(lambda: ears.heard == ["안녕하세요."])
            known = ears.partials
            await ears.hears(ASKING[: len(ASKING) // 2])
            await until(lambda: ears.partials > known)
            first.signal(signal.SIGKILL)
            await ears.hears(ASKING[len(ASKING) // 2 :] + silence(0.8))
            with process("asr", **settings) as second:
                await until(lambda: len(ears.heard) == 2, 15)
                await ears.hears(spoken("감사합니다.").pcm + silence(0.8))
                await until(lambda: len(ears.heard) == 3)
                assert second.popen.poll() is None
            assert ears.heard == ["안녕하세요.", "영업시간이 어떻게 되나요?", "감사합니다."]
            assert not any(isinstance(event, RecogniserLost) for event in ears.posted)
            assert ears.faults[0] in ("cut", "reset")


# ---------------------------------------------------------------- what the real one never does


@pytest.mark.parametrize(
    ("fault", "kind", "retryable"),
    [
        ("unauthorised", "auth", False),
        ("forbidden", "auth", False),
        ("not_found", "rejected", False),
        ("unsupported", "rejected", False),
        ("undecodable", "rejected", False),
        ("busy", "busy", True),
        ("bad_gateway", "unavailable", True),
        ("html", "format", False),
        ("reset", "reset", True),
        ("cut", "cut", True),
        ("early", "cut", True),
        ("garbage", "format", True),
        ("array", "format", True),
        ("no_text", "format", True),
        ("long_line", "format", True),
        ("error", "unavailable", True),
    ],
)
async def test_a_fault_while_the_caller_speaks(fault: Fault, kind: str, retryable: bool) -> None:
    async with emulated(fault) as (service, stt, stream):
        await say(stream, ASKING)
        assert await failure(stream) == (kind, retryable)
        await say(stream, ASKING, 5000)  # into the void
        await stream.flush(1500)
        service.fault = None
        async with stt.open(RATE, "ko") as following:
            await say(following, ASKING)
            await following.flush(1500)
            assert (await final(following)).text == "안녕하세요."


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("hang", "timeout"), ("stall", "stall"), ("endless", "stall"), ("no_final", "cut"), ("half_line", "cut")],
)
async def test_a_fault_after_the_caller_has_spoken(fault: Fault, kind: str) -> None:
    async with emulated(fault, answer_s=0.5) as (_, _, stream):
        await say(stream, ASKING)
        await stream.flush(1500)
        assert await failure(stream) == (kind, True)


async def test_a_hang_is_noticed_while_the_caller_still_speaks_where_answers_begin_at_once() -> None:
    async with emulated(final_s=60.0) as (service, stt, stream):
        await say(stream, ASKING)
        await anext(aiter(stream))
        service.fault = "hang"
        async with stt.open(RATE, "ko") as other:
            await say(other, ASKING)
            assert await failure(other) == ("timeout", True)


async def test_a_service_that_takes_no_audio_is_noticed() -> None:
    async with AsrServiceEmulator(fault="deaf") as service, quick(service.url, send_s=0.1).open(RATE, "ko") as stream:
        with pytest.raises(SttError) as caught:
            await say(stream, bytes(64_000_000))
        assert (caught.value.kind, caught.value.retryable) == ("stall", True)


async def test_a_proxy_that_holds_the_answer_back_costs_only_the_partials() -> None:
    async with emulated("buffered", guess_s=60.0) as (_, _, stream):
        await say(stream, ASKING, 1000)
        await stream.pause(1500)
        cannot_tell = await anext(aiter(stream))
        end_ms = 1000 + len(ASKING) // 16
        assert (cannot_tell.text, cannot_tell.final, cannot_tell.end_ms) == ("", False, end_ms)
        await stream.flush(1500)
        *_, last = await told(stream)
        assert (last.text, last.start_ms, last.end_ms, last.confidence) == ("안녕하세요.", 1000, end_ms, 0.5)


async def test_a_pause_whose_words_do_not_come_is_answered_all_the_same() -> None:
    async with emulated() as (_, _, stream):
        await say(stream, ASKING)
        transcripts = aiter(stream)
        known = await anext(transcripts)
        assert known.text
        await stream.pause(1500)
        assert (await anext(transcripts)).text == ""
        await stream.pause(1500)
        await stream.resume()
        await stream.flush(1500)
        assert [one.final for one in await told(stream)] == [False, True], "its last line, and then all of them"


async def test_a_new_connection_for_each_utterance_is_none_that_went_stale() -> None:
    async with emulated() as (service, _, stream):
        service.texts = deque(["하나", "둘"])
        for at_ms, text in ((0, "하나"), (60_000, "둘")):
            await say(stream, ASKING, at_ms)
            await stream.flush(1500)
            assert (await final(stream)).text == text
            await until(lambda: not service.open_now)
        assert service.bodies == [g711.encode(ASKING)] * 2
        assert service.requests == ["GET /health", *["POST /transcribe?language=ko"] * 2]


async def test_thirty_seconds_told_again_at_once_are_taken() -> None:
    async with emulated() as (service, _, stream):
        await say(stream, bytes(480_000))
        await stream.flush(20_000)
        assert (await final(stream)).end_ms == 30_000
        assert len(service.bodies[0]) == 240_000


async def test_leaving_closes_what_is_under_way() -> None:
    async with AsrServiceEmulator() as service, quick(service.url).open(RATE, "ko") as stream:
        await say(stream, ASKING)
        await until(lambda: service.open_now == 1)
        iterating = asyncio.get_running_loop().create_task(told(stream))
        await until(lambda: bool(service.bodies) or service.open_now == 1)
        iterating.cancel()
        await asyncio.gather(iterating, return_exceptions=True)
        assert service.open_now == 1
        stream.close()
        await until(lambda: not service.open_now)


async def test_nobody_at_the_address() -> None:
    stt = quick(f"http://user:secret@127.0.0.1:{free_port()}")
    for attempt in (stt.check(), stt.open(RATE, "ko").__aenter__()):
        with pytest.raises(SttError, match=r"malgil asr.*ASR_URL") as caught:
            await attempt
        assert (caught.value.kind, caught.value.retryable) == ("connect", True)
        assert "secret" not in str(caught.value)


async def test_a_service_that_goes_between_two_words_is_missed_at_the_next() -> None:
    async with emulated() as (service, _, stream):
        assert service._server is not None
        service._server.close()
        with pytest.raises(SttError) as caught:
            await say(stream, ASKING)
        assert caught.value.kind == "connect"


async def test_a_service_that_is_starting_is_waited_for() -> None:
    port = free_port()
    service = AsrServiceEmulator(port=port, health=(503, {"status": "not_loaded"}))
    loop = asyncio.get_running_loop()
    opening = loop.create_task(quick(service.url, patience_s=10.0, retry_s=0.01).open(RATE, "ko").__aenter__())
    await asyncio.sleep(0.05)
    async with service:
        await until(lambda: len(service.requests) > 2)
        assert not opening.done()
        service.health = (200, {"status": "ok"})
        await opening
    assert service.violations == []


@pytest.mark.parametrize(
    ("health", "kind", "retryable"),
    [
        ((503, {"status": "stuck"}), "stuck", True),
        ((503, b"no backend"), "unavailable", True),
        ((502, b"<html>"), "unavailable", True),
        ((404, b"<html>"), "rejected", False),
        ((200, b"<html>Welcome</html>"), "format", False),
        ((200, {"status": "fine"}), "format", False),
        ((200, b"x" * 100_000), "format", True),
    ],
)
async def test_what_answers_may_not_be_well(health: tuple[int, Any], kind: str, retryable: bool) -> None:
    async with AsrServiceEmulator(health=health) as service:
        for attempt in (quick(service.url).check(), quick(service.url).open(RATE, "ko").__aenter__()):
            with pytest.raises(SttError) as caught:
                await attempt
            assert (caught.value.kind, caught.value.retryable) == (kind, retryable)


async def test_a_check_that_is_not_answered() -> None:
    async with AsrServiceEmulator(health_hangs=True) as service:
        with pytest.raises(SttError, match="ASR_URL") as caught:
            await quick(service.url, check_s=0.1).check()
        assert (caught.value.kind, caught.value.retryable) == ("timeout", True)


async def test_plain_http_where_tls_is_asked_for() -> None:
    async with AsrServiceEmulator() as service:
        with pytest.raises(SttError) as caught:
            await quick(service.url.replace("http", "https")).check()
        assert caught.value.kind == "connect"


async def test_a_folder_and_a_slash_in_the_address_are_kept() -> None:
    async with AsrServiceEmulator() as service:
        with pytest.raises(SttError):
            await quick(f"{service.url}/recogniser/").check()
        assert service.requests == ["GET /recogniser/health"]


def test_the_key_is_not_shown() -> None:
    assert KEY not in repr(RemoteOptions("http://asr:5005", KEY))


async def test_no_word_of_a_caller_is_in_the_log(log_lines: list[Any]) -> None:
    async with emulated() as (_, _, stream):
        await say(stream, ASKING)
        await stream.flush(1500)
        assert (await final(stream)).text == "안녕하세요."
    assert not [line for line in log_lines if line["log_level"] != "debug"]
