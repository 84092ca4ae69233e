"""Google's streaming recognition: the real client against a strict server, many streams that look like one."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from app.audio import g711
from app.audio.types import AudioFrame, Transcript
from app.errors import SttError
from app.services.ai_call.google_client import GoogleOptions
from app.services.ai_call.google_stt import GoogleStt, GoogleSttOptions, GoogleSttStream
from tests.emulators.google_speech import Fault, GoogleSpeechEmulator
from tests.fakes import SILENT_BLOCK, names_in, sound

FAST = 40.0
"""Times real time at which these tests send audio, and the emulator takes it."""
SHORT = GoogleSttOptions(renew_after_s=4, renew_at_latest_s=12, keep_ms=10_000, idle_keep_ms=1_000, pace=FAST)
LONG = GoogleSttOptions(pace=FAST)


def read_aloud(pcm: bytes, rate: int) -> str:
    """Each name in the sound is a word; a word that is cut and heard twice shows as two."""
    return " ".join(f"{number}.{place}" for number, place in names_in(g711.encode(pcm)))


def emulator(**options: object) -> GoogleSpeechEmulator:
    return GoogleSpeechEmulator(**{"recognise": read_aloud, "pace": 2 * FAST, **options})  # type: ignore[arg-type]


class Caller:
    """Speaks into a stream and writes down what comes back; ten blocks of 20 ms are a word."""

    stream: GoogleSttStream

    def __init__(self, at_ms: int = 0) -> None:
        self.at_ms = at_ms
        self.said: list[str] = []
        self.heard: list[Transcript] = []
        self.news = asyncio.Event()
        self.ended: str | None = None
        self.utterances = 0

    async def listen(self) -> None:
        try:
            async for transcript in self.stream:
                self.heard.append(transcript)
                self.news.set()
            self.ended = "eof"
        except SttError as error:
            self.end(error)
        self.news.set()

    def end(self, error: SttError) -> None:
        self.ended, self.error = error.kind, error

    async def says(self, words: int) -> None:
        self.utterances += 1
        for place in range(words):
            self.said.append(f"{self.utterances}.{place}")
            for _ in range(10):
                await self._block(sound(self.utterances, place))

    async def waits(self, ms: int) -> None:
        for _ in range(ms // 20):
            await self._block(SILENT_BLOCK)

    async def _block(self, mulaw: bytes) -> None:
        await self.stream.send(AudioFrame(g711.decode(mulaw), 8000, self.at_ms))
        self.at_ms += 20

    async def until(self, *, finals: int = 0, ended: bool = False, partials: int = 0) -> None:
        """Goes on being silent meanwhile, as a line does."""
        async with asyncio.timeout(5):
            while len(self.finals) < finals or len(self.partials) < partials or (ended and self.ended is None):
                await self.waits(100)
                await asyncio.sleep(0.005)

    @property
    def finals(self) -> list[Transcript]:
        return [transcript for transcript in self.heard if transcript.final]

    @property
    def partials(self) -> list[Transcript]:
        return [transcript for transcript in self.heard if not transcript.final]

    @property
    def words(self) -> list[str]:
        return " ".join(transcript.text for transcript in self.finals).split()


Script = Callable[[Caller], Awaitable[None]]


async def call(
    google: GoogleSpeechEmulator,
    script: Script,
    options: GoogleSttOptions = LONG,
    *,
    rate: int = 8000,
    language: str = "ko",
    at_ms: int = 0,
) -> Caller:
    stt = GoogleStt(GoogleOptions("", google.url), options)
    caller = Caller(at_ms)
    try:
        async with stt.open(rate, language) as caller.stream, asyncio.TaskGroup() as group:
            listening = group.create_task(caller.listen())
            await script(caller)
            listening.cancel()
    except SttError as error:  # a refusal may come before the stream is open, or after
        caller.end(error)
    finally:
        await stt.aclose()
    return caller


# ---------------------------------------------------------------- one stream


async def test_many_utterances_on_one_stream() -> None:
    async def script(caller: Caller) -> None:
        for number in range(20):
            await caller.says(1 + number % 4)
            await caller.waits(800)
        await caller.until(finals=20)

    async with emulator() as google:
        caller = await call(google, script)
    assert caller.words == caller.said
    assert len(caller.finals) == 20
    assert google.violations == []
    [stream] = google.streams
    assert stream.config.config.language_code == "ko-KR"
    assert stream.config.config.sample_rate_hertz == 8000
    assert stream.config.config.enable_automatic_punctuation


async def test_partials_are_whole_and_grow() -> None:
    async def script(caller: Caller) -> None:
        await caller.says(5)
        await caller.until(finals=1)

    async with emulator() as google:
        caller = await call(google, script)
    texts = [transcript.text for transcript in caller.partials]
    assert texts == sorted(set(texts), key=len)  # each longer than the one before
    assert texts[-1] == "1.0 1.1 1.2 1.3 1.4"  # of two results: the sure part and the last word
    assert caller.heard[-1].confidence == pytest.approx(0.9)
    assert all(transcript.confidence is None for transcript in caller.partials)
    assert google.violations == []


async def test_times_are_those_of_the_call() -> None:
    async def script(caller: Caller) -> None:
        await caller.says(2)
        await caller.until(finals=1)
        caller.at_ms += 10_000  # a stretch that was never sent
        await caller.says(2)
        await caller.until(finals=2)

    async with emulator() as google:
        caller = await call(google, script, at_ms=100_000)
    first, second = caller.finals
    assert (first.start_ms, first.end_ms) == (100_000, 101_000)  # 400 of speech, 600 of silence end it
    assert second.start_ms == first.end_ms
    assert second.end_ms > 111_000
    assert google.violations == []


@pytest.mark.parametrize(
    ("language", "code", "others"), [("ko", "ko-KR", []), ("en", "en-US", []), ("auto", "ko-KR", ["en-US"])]
)
async def test_the_language_is_asked_for(language: str, code: str, others: list[str]) -> None:
    async def script(caller: Caller) -> None:
        await google.opened.acquire()

    async with emulator() as google:
        await call(google, script, language=language)
    config = google.streams[0].config.config
    assert (config.language_code, list(config.alternative_language_codes)) == (code, others)
    assert google.violations == []


async def test_what_is_sent_again_comes_close_to_real_time() -> None:
    async def script(caller: Caller) -> None:
        await caller.says(20)  # 4 s at once
        await caller.until(finals=1)

    async with emulator(pace=5.0) as google:
        caller = await call(google, script, GoogleSttOptions())
    assert caller.words == caller.said
    assert google.violations == []


async def test_a_long_frame_leaves_in_small_messages() -> None:
    async def script(caller: Caller) -> None:
        pcm = g711.decode(sound(1, 0) * 100)
        await caller.stream.send(AudioFrame(pcm, 8000, 0))  # 32 kB
        caller.at_ms = 2000
        await caller.until(finals=1)

    async with emulator() as google:
        caller = await call(google, script)
    assert caller.words == ["1.0"]
    assert google.violations == []


# ---------------------------------------------------------------- renewal


async def test_a_stream_is_renewed_in_pauses_and_every_word_comes_once() -> None:
    async def script(caller: Caller) -> None:
        for number in range(24):
            await caller.says(1 + number % 5)
            await caller.stream.pause(200)
            await caller.waits(900)
            await caller.stream.flush(200)
        await caller.until(finals=24)

    async with emulator(life_s=12.1) as google:
        caller = await call(google, script, SHORT)
    assert caller.words == caller.said
    assert caller.ended is None
    assert len(google.streams) >= 5
    assert google.expired == 0
    assert google.violations == []


async def test_rough_times_do_not_double_the_last_syllable() -> None:
    async def script(caller: Caller) -> None:
        for finals in range(1, 9):
            await caller.says(4)
            await caller.stream.pause(800)
            await caller.waits(700)
            await caller.until(finals=finals)

    # a final that says it ends 300 ms before the last word did
    async with emulator(life_s=12.1, rough_ms=900) as google:
        caller = await call(google, script, replace(SHORT, renew_after_s=3.1, idle_keep_ms=3_000))
    assert caller.words == caller.said
    assert len(google.streams) >= 4
    assert google.violations == []


async def test_a_silent_caller_is_renewed_too_and_then_heard() -> None:
    async def script(caller: Caller) -> None:
        await caller.waits(20_000)
        await caller.says(3)
        await caller.until(finals=1)

    async with emulator(life_s=12.1) as google:
        caller = await call(google, script, SHORT)
    assert caller.words == caller.said
    assert len(google.streams) > 3
    assert google.expired == 0
    assert google.violations == []


async def test_endless_speech_is_renewed_in_its_midst_and_every_word_comes_once() -> None:
    async def script(caller: Caller) -> None:
        for _ in range(10):
            await caller.says(20)  # 4 s each, without a pause between them
        await caller.until(finals=6)

    # Google ends an utterance after 7 s, between two words; the renewal is due at 10.05 s, with words pending and
    # half a message unsent
    async with emulator(life_s=12.1, max_utterance_ms=7_000) as google:
        options = replace(SHORT, renew_after_s=9.9, renew_at_latest_s=10.05, keep_ms=8_000)
        caller = await call(google, script, options)
    assert caller.words == caller.said
    assert len(google.streams) >= 4
    assert google.expired == 0
    assert google.violations == []


def test_what_is_sent_again_must_not_be_due_for_renewal() -> None:
    with pytest.raises(ValueError, match="next renewal"):
        GoogleSttOptions(renew_after_s=4)


async def test_words_that_are_pending_delay_the_renewal() -> None:
    async def script(caller: Caller) -> None:
        await caller.says(30)  # 6 s; from 4 s on it could be renewed
        await caller.until(finals=1)
        await caller.waits(500)

    async with emulator() as google:
        caller = await call(google, script, SHORT)
    assert caller.words == caller.said
    assert len(google.streams) == 2
    assert google.streams[0].audio_ms > 6_000  # not before the final
    assert google.violations == []


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("fault", "kind", "retryable"),
    [
        ("unavailable", "unavailable", True),
        ("unauthenticated", "auth", False),
        ("permission_denied", "auth", False),
        ("resource_exhausted", "throttled", True),
        ("invalid_argument", "rejected", False),
        ("cut", "unavailable", True),
        ("status", "unavailable", True),
    ],
)
async def test_a_fault_ends_the_stream_in_our_words(fault: Fault, kind: str, retryable: bool) -> None:
    async def script(caller: Caller) -> None:
        await caller.says(3)
        await caller.until(ended=True)

    async with emulator(fault=fault) as google:
        caller = await call(google, script)
    assert caller.ended == kind
    assert caller.error.retryable is retryable
    assert caller.error.provider == "google"
    assert "emulator" not in str(caller.error)  # nothing of the vendor's prose
    assert caller.finals == []
    assert google.violations == []


async def test_the_true_reason_is_told_while_audio_is_being_written() -> None:
    """gRPC overwrites the status of a call that ends in the midst of a write."""

    async def script(caller: Caller) -> None:
        await caller.waits(4_000)
        await caller.until(ended=True)

    options = GoogleSttOptions(pace=500)
    async with emulator(life_s=0.5, pace=2_000) as google:
        reasons = [(await call(google, script, options)).ended for _ in range(10)]
    assert set(reasons) == {"expired"}


async def test_the_limit_of_a_stream_is_named() -> None:
    async def script(caller: Caller) -> None:
        await caller.waits(3_000)
        await caller.until(ended=True)

    async with emulator(life_s=2.0) as google:
        caller = await call(google, script)
    assert caller.ended == "expired"
    assert caller.error.retryable
    assert google.expired == 1


async def test_a_line_that_sends_nothing_is_cut_off() -> None:
    async def script(caller: Caller) -> None:
        await caller.waits(200)
        async with asyncio.timeout(5):
            while caller.ended is None:
                caller.news.clear()
                await caller.news.wait()

    async with emulator(gap_s=0.2) as google:
        caller = await call(google, script)
    assert caller.ended == "cut"
    assert caller.error.retryable


async def test_a_clean_end_ends_the_iteration() -> None:
    async def script(caller: Caller) -> None:
        await caller.says(2)
        await caller.until(ended=True)

    async with emulator(fault="end") as google:
        caller = await call(google, script)
    assert caller.ended == "eof"
    assert caller.words == caller.said
    assert google.violations == []


async def test_a_final_comes_once_and_nothing_after_it() -> None:
    async def script(caller: Caller) -> None:
        for finals in (1, 2, 3):
            await caller.says(2)
            await caller.until(finals=finals)

    async with emulator(fault="duplicate") as google:
        caller = await call(google, script)
    assert caller.words == caller.said
    assert len(caller.finals) == 3
    ends = [transcript.end_ms for transcript in caller.heard]
    assert ends == sorted(ends)
    assert google.violations == []


async def test_a_final_without_words_is_no_turn() -> None:
    async def script(caller: Caller) -> None:
        await caller.says(2)
        await caller.until(partials=1)
        await caller.waits(1_500)

    async with emulator(fault="empty") as google:
        caller = await call(google, script)
    assert caller.finals == []
    assert caller.ended is None
    assert google.violations == []


async def test_a_vendor_that_never_answers_leaves_the_stream_open() -> None:
    async def script(caller: Caller) -> None:
        await caller.says(2)
        await caller.waits(2_000)

    async with emulator(fault="silent") as google:
        caller = await call(google, script)
    assert caller.heard == []
    assert caller.ended is None  # Google says nothing about noise, too
    assert google.violations == []


async def test_a_vendor_that_takes_no_audio_is_given_up() -> None:
    failed: list[SttError] = []

    async def script(caller: Caller) -> None:
        try:
            for second in range(300):  # megabytes go into buffers on the way
                await caller.stream.send(AudioFrame(bytes(96_000), 48_000, second * 1000))
        except SttError as error:
            failed.append(error)

    options = GoogleSttOptions(renew_after_s=1_000, renew_at_latest_s=1_000, pace=100_000, write_s=0.2)
    async with emulator(fault="deaf") as google:
        await call(google, script, options, rate=48_000)
    assert [(error.kind, error.retryable) for error in failed] == [("timeout", True)]


async def test_a_server_that_dies_is_noticed_and_found_again() -> None:
    async with emulator() as google:
        stt = GoogleStt(GoogleOptions("", google.url), LONG)
        try:
            caller = Caller()
            async with stt.open(8000, "ko") as caller.stream, asyncio.TaskGroup() as group:
                group.create_task(caller.listen())
                await caller.says(2)
                await caller.until(partials=1)
                await google.kill()
                await caller.until(ended=True)
            assert caller.ended == "unavailable"
            with pytest.raises(SttError) as refused:
                await stt.check()
            assert refused.value.kind == "unavailable"
            await google.start()
            async with asyncio.timeout(5):
                await eventually(stt)
        finally:
            await stt.aclose()
    assert google.violations == []


async def eventually(stt: GoogleStt) -> None:
    while True:
        try:
            return await stt.check()
        except SttError:
            await asyncio.sleep(0.05)


async def test_a_renewal_that_fails_is_told() -> None:
    async def script(caller: Caller) -> None:
        with pytest.raises(SttError) as failed:
            await caller.waits(60_000)
        assert failed.value.kind in ("unavailable", "timeout")

    async with emulator() as google:

        async def dying(caller: Caller) -> None:
            await caller.waits(1_000)
            await google.kill()
            await script(caller)

        await call(google, dying, SHORT)
        await google.start()


async def test_nobody_at_the_port() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        stt = GoogleStt(GoogleOptions("", f"http://127.0.0.1:{port}"))
        try:
            with pytest.raises(SttError) as failed:
                async with stt.open(8000, "ko"):
                    pass
        finally:
            await stt.aclose()
    assert (failed.value.kind, failed.value.retryable) == ("unavailable", True)


async def test_a_handshake_that_hangs_is_bounded() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        stt = GoogleStt(GoogleOptions("", f"http://127.0.0.1:{port}", connect_s=0.3))
        try:
            with pytest.raises(SttError) as failed:
                async with stt.open(8000, "ko"):
                    pass
        finally:
            await stt.aclose()
    assert (failed.value.kind, failed.value.retryable) == ("timeout", True)


async def test_leaving_closes_the_vendors_stream() -> None:
    async def script(caller: Caller) -> None:
        await caller.says(1)

    async with emulator() as google:
        await call(google, script)
        async with asyncio.timeout(2):
            await google.left.acquire()
    assert google.streams[0].ended == "CANCELLED"
    assert google.violations == []
