"""The four faults that bots like this one have had, each with a test that fails without its cure. `make prove` takes
the cures away one by one and shows that."""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import get_args

import httpx
import pytest

from app.audio import g711
from app.audio.types import AudioFrame
from app.providers import Providers, open_providers
from app.services.ai_call.dialogue import Dialogue
from app.services.ai_call.types import EndReason, Message
from app.simulator.webhooks import Webhooks
from tests.asr.sample_calls import sample_calls
from tests.e2e.by_hand import QUESTION, Call, dialled, new_call_sid, question, record, ring
from tests.fakes import LoudnessDetector, ScriptedLlm, ScriptedStt, ToneTts
from tests.servers import DEVELOPMENT, PARTIES, PRODUCTION_ENV, Running, free_port, process, serving, settings, until

pytestmark = pytest.mark.usefixtures("quiet_log")

# ---------------------------------------------------------------- 1: a missing credential was found by the first caller

PRODUCTION_SECRETS = ("TWILIO_AUTH_TOKEN", "MEDIA_TOKEN_SECRET", "ADMIN_API_KEY")


async def refused_start(variable: str, why: str, **environment: str) -> None:
    """`serve` leaves at once with 78 and one line that names the variable; no value of any is in it."""
    with process("serve", **environment) as server:
        assert await server.exit_code() == 78, server.output
        (line,) = server.output.splitlines()
        assert line.startswith(f"malgil: {variable}: ")
        assert why in line
        assert not any(value in line for value in environment.values() if len(value) > 15)


async def test_a_voice_without_its_key_stops_the_start() -> None:
    environment = {"TTS_PROVIDER": "elevenlabs", "ELEVENLABS_VOICE_ID": "voice", "PORT": str(free_port())}
    await refused_start("ELEVENLABS_API_KEY", "not set", **(DEVELOPMENT | environment))


async def test_a_voice_without_its_name_stops_the_start() -> None:
    await refused_start("ELEVENLABS_VOICE_ID", "not set", **DEVELOPMENT, ELEVENLABS_API_KEY="sk_" + "0" * 30)


@pytest.mark.parametrize("variable", [*PRODUCTION_SECRETS, "PUBLIC_BASE_URL", "TWILIO_ACCOUNT_SID", "TTS_PROVIDER"])
async def test_production_without_a_credential_does_not_start(variable: str) -> None:
    environment = PRODUCTION_ENV | {"MODEL_NAME": "demo", "LLM_PROVIDER": "scripted", "PORT": str(free_port())}
    del environment[variable]
    await refused_start(variable, "not set", **environment)


async def test_production_with_a_placeholder_does_not_start() -> None:
    placeholder = {"ADMIN_API_KEY": "changeme-changeme-changeme-changeme"}
    await refused_start("ADMIN_API_KEY", "placeholder", **(PRODUCTION_ENV | placeholder))


# ---------------------------------------------------------------- 2: only the first utterance of a call was answered

UTTERANCES = 10


async def asked_one_by_one(running: Running, questions: Sequence[bytes]) -> list[tuple[str, str]]:
    """Each question when the one before was answered to the end; what the record then says was said."""
    call_sid = new_call_sid()
    async with dialled(await ring(running.url, call_sid), call_sid) as call:
        await call.begin()
        await call.greeted()
        for asked, spoken in enumerate(questions, 1):
            await call.say(spoken)
            await _exchanges(running, call_sid, 1 + asked)
        await call.stop()
    ended = await record(running.url, call_sid, 1 + len(questions))
    assert ended["end_reason"] == "caller"
    assert not any(exchange["interrupted"] for exchange in ended["exchanges"])
    return [(exchange["user"], exchange["bot"]) for exchange in ended["exchanges"][1:]]


async def _exchanges(running: Running, call_sid: str, count: int) -> None:
    async with asyncio.timeout(8):
        while True:
            call = await running.services.store.get(call_sid)
            if call is not None and len(call.exchanges) >= count:
                return
            await asyncio.sleep(0.02)


async def test_ten_utterances_are_answered_on_real_recognition(tmp_path: Path) -> None:
    phrases = [sample for sample in sample_calls() if sample.language == "ko" and sample.text][6:36:3]
    assert len(phrases) == UTTERANCES
    dialogue = Dialogue.load()
    async with AsyncExitStack() as stack:
        real = await open_providers(settings(tmp_path), dialogue, stack)
        providers = replace(real, tts=ToneTts(first_s=0, ms_per_char=3))
        async with serving(tmp_path, providers) as running:
            said = await asked_one_by_one(running, [_mulaw(phrase.pcm) for phrase in phrases])
    assert [user for user, _ in said] == [phrase.text for phrase in phrases]
    answers = {phrase: answer.say for answer in dialogue.words("ko").answers for phrase in answer.heard}
    for user, bot in said[:5]:
        assert bot == answers[user]
    assert all(bot for _, bot in said)


async def test_ten_utterances_are_answered_by_a_recogniser_that_stops_after_each(tmp_path: Path) -> None:
    """As vendors do that end a stream with its first final."""
    stt = ScriptedStt(decode_s=0.02, ends_after_final=True)
    stt.words[QUESTION] = "주차장 있어요?"
    providers = Providers.of(stt, ScriptedLlm(first_s=0.01, word_s=0), ToneTts(first_s=0, ms_per_char=10))
    async with serving(tmp_path, providers, detector=LoudnessDetector) as running:
        said = await asked_one_by_one(running, [question()] * UTTERANCES)
    assert said == [("주차장 있어요?", "네.")] * UTTERANCES
    assert stt.opened == UTTERANCES + 1


def _mulaw(pcm: bytes) -> bytes:
    return g711.encode(pcm) + bytes([g711.SILENCE]) * 8 * 700


# ---------------------------------------------------------------- 3: a hang-up at a bad moment left a stack, or tasks

STAGES = ("greeting", "listening", "recognising", "thinking", "speaking", "interrupted", "closing")
WAYS = ("stop", "close", "reset", "completed")
HANG_UPS = 300
BEFORE_START = 40
AT_ONCE = 30
STAGE_S = 0.15
RELEASED_S = 5.0
ANSWER = "네, 안내해 드릴게요. 평일은 오전 열 시부터 저녁 아홉 시까지 영업합니다."


class CutLlm(ScriptedLlm):
    """Counts the answers that were given up while they were written."""

    cut = 0

    async def reply(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        self.cut += 1
        async with aclosing(super().reply(messages)) as words:
            async for word in words:
                yield word
        self.cut -= 1


class CutTts(ToneTts):
    """Counts the pieces that were given up while they were spoken."""

    cut = 0

    async def speak(self, text: str, rate: int) -> AsyncGenerator[AudioFrame, None]:
        self.cut += 1
        async with aclosing(super().speak(text, rate)) as frames:
            async for frame in frames:
                await asyncio.sleep(0.005)
                yield frame
        self.cut -= 1


async def reach(call: Call, stage: str, url: str, moment: float) -> None:
    """Into the stage, and so much of it: 0 to 1."""
    call.echoes = stage not in ("greeting", "closing")
    await call.begin()
    if stage == "greeting":
        await call.until(lambda: call.count("media") > 0)
    else:
        await call.until(lambda: call.count("mark") >= 2)
    if stage in ("recognising", "thinking", "speaking", "interrupted"):
        call.echoes = stage == "recognising"
        media = call.count("media")
        await call.say(question())
        if stage == "thinking":
            await asyncio.sleep(STAGE_S)
        elif stage != "recognising":
            await call.until(lambda: call.count("media") > media)
        if stage == "interrupted":
            await call.say(question()[: 8 * 200])
    elif stage == "closing":
        media = call.count("media")
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.post(f"{url}/api/calls/{call.call_sid}/hangup")).status_code == 202
        await call.until(lambda: call.count("media") > media)
    await asyncio.sleep(moment * STAGE_S)


async def leave(call: Call, way: str, url: str) -> None:
    match way:
        case "stop":
            await call.stop()
            assert await call.closed() == 1000
        case "close":
            await call.socket.close()
        case "reset":
            raw = call.socket.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            call.abort()
        case "completed":
            async with Webhooks(PARTIES, call.call_sid, url) as webhooks:
                await webhooks.report_completed(f"{url}/twilio/status", 1)
            assert await call.closed() == 1000


async def hang_up(running: Running, stage: str, way: str, moment: float) -> str:
    call_sid = new_call_sid()
    async with dialled(await ring(running.url, call_sid), call_sid) as call:
        await reach(call, stage, running.url, moment)
        assert running.services.switchboard.find(call_sid)
        await leave(call, way, running.url)
        switchboard = running.services.switchboard
        await until(lambda: switchboard.ended(call_sid) is not None and switchboard.find(call_sid) is None, RELEASED_S)
    return call_sid


async def hang_up_before_start(running: Running, way: str, moment: float) -> None:
    call_sid = new_call_sid()
    async with dialled(await ring(running.url, call_sid), call_sid) as call:
        if moment > 0.3:
            await call.send(call.wire.connected())
        if moment > 0.6:
            await call.say(question()[:800])
        await asyncio.sleep(moment * 0.05)
        await leave(call, "close" if way in ("stop", "completed") else way, running.url)


async def test_300_hang_ups_at_every_stage_leave_one_record_each_and_nothing_else(tmp_path: Path) -> None:
    stt = ScriptedStt(decode_s=STAGE_S)
    stt.words[QUESTION] = "영업시간이 어떻게 되나요?"
    llm = CutLlm(*[ANSWER] * HANG_UPS, first_s=STAGE_S, word_s=0.01)
    tts = CutTts(first_s=0.03, ms_per_char=20)
    providers = Providers.of(stt, llm, tts)
    chance = random.Random(2)
    plan = [(STAGES[n % len(STAGES)], chance.choice(WAYS), chance.random()) for n in range(HANG_UPS)]
    async with serving(tmp_path, providers, detector=LoudnessDetector) as running:
        await until(lambda: running.services.book.complete)
        before = asyncio.all_tasks()
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> str:
            stage, way, moment = plan[number]
            async with slots:
                return await hang_up(running, stage, way, moment)

        async def one_before_start() -> None:
            way, moment = chance.choice(WAYS), chance.random()
            async with slots:
                await hang_up_before_start(running, way, moment)

        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(one(number)) for number in range(HANG_UPS)]
            for _ in range(BEFORE_START):
                group.create_task(one_before_start())
        call_sids = [call.result() for call in calls]

        await until(lambda: not running.services.switchboard.live, RELEASED_S)
        await until(lambda: asyncio.all_tasks() <= before, RELEASED_S)
        assert (stt.open_now, llm.open, tts.open) == (0, 0, 0)
        assert llm.cut > HANG_UPS / 20  # the moments were what they are called
        assert tts.cut > HANG_UPS / 20
        assert running.count("streams_refused_total", reason="no_start") == BEFORE_START
        assert running.count("live_calls") == 0

        records = {call.call.call_sid: call for call in await running.services.store.recent(2 * HANG_UPS)}
        assert records.keys() == set(call_sids)
        for call_sid, (stage, _, _) in zip(call_sids, plan, strict=True):
            assert records[call_sid].ended_at is not None
            assert records[call_sid].end_reason in get_args(EndReason)
            assert records[call_sid].end_reason == ("admin" if stage == "closing" else "caller")


# ---------------------------------------------------------------- 4: frames were sent to a stream that was over

LONG = "천천히 말씀드리겠습니다. " * 20
SEEN_S = 0.05
"""What left before the server had read our `stop` has arrived by then."""


async def in_mid_sentence(running: Running, call: Call) -> None:
    await call.begin()
    await call.greeted()
    media = call.count("media")
    await call.say(question())
    await call.until(lambda: call.count("media") > media + 40)  # more than is sent ahead: it is being paced


def talkative() -> Providers:
    stt = ScriptedStt(decode_s=0.01)
    stt.words[QUESTION] = "천천히 말해 주세요."
    return Providers.of(stt, ScriptedLlm(LONG, first_s=0.01, word_s=0), ToneTts(first_s=0, ms_per_char=12))


async def test_nothing_is_sent_after_a_stop(tmp_path: Path) -> None:
    async with serving(tmp_path, talkative(), detector=LoudnessDetector) as running:
        call_sid = new_call_sid()
        async with dialled(await ring(running.url, call_sid), call_sid) as call:
            await in_mid_sentence(running, call)
            await call.stop()
            await call.pong()
            await asyncio.sleep(SEEN_S)
            received = len(call.received)
            assert await call.closed(0.5) == 1000
            assert len(call.received) == received
    assert running.watch.streams == 1


@pytest.mark.parametrize("way", ["close", "reset"])
async def test_nothing_is_sent_after_the_socket_is_gone(tmp_path: Path, way: str) -> None:
    async with serving(tmp_path, talkative(), detector=LoudnessDetector) as running:
        call_sid = new_call_sid()
        async with dialled(await ring(running.url, call_sid), call_sid) as call:
            await in_mid_sentence(running, call)
            await leave(call, way, running.url)
        await until(lambda: running.services.switchboard.ended(call_sid) == "caller")
    assert running.watch.streams == 1
    assert not running.watch.violations
