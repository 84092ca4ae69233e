"""Whole conversations in real time: real recognition, real voices, a software phone that keeps to Twilio's protocol."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.audio import g711
from app.services.ai_call.dialogue import Dialogue
from app.simulator.clip import Clip
from app.simulator.phone import Phone
from app.simulator.playout import AUDIBLE
from app.simulator.report import CallReport
from app.simulator.script import BotFinished, BotSpeaking, HangUp, Say, Step, conversation
from app.simulator.voice import speak
from tests.e2e.by_hand import new_call_sid, record
from tests.emulators.elevenlabs import ElevenLabsEmulator
from tests.emulators.ollama import OllamaEmulator
from tests.emulators.twilio_rest import TwilioRestEmulator
from tests.servers import ACCOUNT, TOKEN, Running, serving

pytestmark = pytest.mark.usefixtures("quiet_log")

HELLO, HOURS, THANKS, STOP = "안녕하세요.", "영업시간이 어떻게 되나요?", "감사합니다.", "그만해 주세요."
WAIT = BotFinished(silent_ms=500)


async def call(running: Running, script: Sequence[Step], call_sid: str = "") -> tuple[CallReport, dict[str, Any]]:
    """The phone's report, in which the server broke no rule, and the server's record."""
    report = await Phone(running.phone, script, call_sid=call_sid).call()
    assert report.refusal is None
    assert report.violations == []
    assert not any(turn.answer_ms is None for turn in report.turns), report.turns
    spoken = 1 + len(report.turns)
    return report, await record(running.url, report.call_sid, spoken)


def turns(clips: Sequence[Clip]) -> list[Step]:
    """Each said when the bot has finished; the last answer is heard to its end."""
    steps: list[Step] = []
    for clip in clips:
        steps += [WAIT, Say(clip)]
    return [*steps, WAIT, HangUp()]


def said(call: dict[str, Any]) -> list[tuple[str, str]]:
    return [(exchange["user"], exchange["bot"]) for exchange in call["exchanges"]]


def loud_ms(report: CallReport, from_ms: float) -> float:
    """How much of the bot's track after this moment can be heard."""
    track = np.frombuffer(g711.decode(report.bot[round(from_ms * 8) :]), "<i2")
    return float((np.abs(track.astype(np.int32)) > AUDIBLE).sum()) / 8


# ---------------------------------------------------------------- the first call


async def test_three_phrases_in_and_three_answers_out(tmp_path: Path) -> None:
    words = Dialogue.load().words("ko")
    answers = {phrase: answer.say for answer in words.answers for phrase in answer.heard}
    clips = await speak([HELLO, HOURS, THANKS], "ko")
    async with serving(tmp_path) as running:
        report, ended = await call(running, conversation(clips))
    assert said(ended) == [
        ("", words.greeting),
        (HELLO, answers[HELLO]),
        (HOURS, answers[HOURS]),
        (THANKS, answers[THANKS]),
    ]
    assert ended["end_reason"] == "caller"
    assert report.ended_by == "caller"
    assert report.greeting_ms is not None
    assert report.greeting_ms < 1_000
    for turn, exchange in zip(report.turns, ended["exchanges"][1:], strict=True):
        assert loud_ms(report, turn.end_ms) > 500
        latency = exchange["latency"]
        moments = [latency[f"{moment}_ms"] for moment in ("speech_end", "final", "first_token", "first_audio")]
        assert moments == sorted(moments)
        assert abs(latency["speech_end_ms"] - turn.end_ms) < 500
        assert 0 < latency["response_ms"] < 3_000


async def test_other_languages_models_and_voices(tmp_path: Path) -> None:
    """Side by side: each takes the time that a conversation takes."""
    async with asyncio.TaskGroup() as group:
        for conversation_with in (english, ollama_model, elevenlabs_voice):
            folder = tmp_path / conversation_with.__name__
            folder.mkdir()
            group.create_task(conversation_with(folder))


async def english(folder: Path) -> None:
    phrases = ["Hello.", "Thank you."]
    answers = {phrase: answer.say for answer in Dialogue.load().words("en").answers for phrase in answer.heard}
    async with serving(folder, lang_hint="en") as running:
        _, ended = await call(running, turns(await speak(phrases, "en")))
    assert said(ended)[1:] == [(phrase, answers[phrase]) for phrase in phrases]


async def ollama_model(folder: Path) -> None:
    clips = await speak([HELLO, THANKS], "ko")
    async with OllamaEmulator(lambda messages: "네, 그렇습니다. 또 있으세요?", tokens_per_s=40) as ollama:
        async with serving(folder, llm_provider="ollama", llm_url=ollama.url) as running:
            assert running.services.providers.llm.name == "ollama"
            _, ended = await call(running, turns(clips))
        assert said(ended)[1:] == [(phrase, "네, 그렇습니다. 또 있으세요?") for phrase in (HELLO, THANKS)]
        assert [message["content"] for message in ollama.requests[-1]["messages"]][-1] == THANKS
        assert ollama.violations == []


async def elevenlabs_voice(folder: Path) -> None:
    clips = await speak([HELLO, THANKS], "ko")
    async with ElevenLabsEmulator(speed=10, first_byte_ms=75) as voice:
        async with serving(folder, **elevenlabs(voice)) as running:
            _, ended = await call(running, turns(clips))
        assert [user for user, _ in said(ended)[1:]] == [HELLO, THANKS]
        assert all(bot for _, bot in said(ended))
        assert voice.violations == []
        assert any(HELLO in request.body["text"] for request in voice.requests if request.method == "POST")


def elevenlabs(voice: ElevenLabsEmulator) -> dict[str, Any]:
    return {
        "tts_provider": "elevenlabs",
        "elevenlabs_api_key": voice.api_key,
        "elevenlabs_voice_id": voice.voice_id,
        "elevenlabs_base_url": voice.url,
    }


# ---------------------------------------------------------------- talking over the bot


async def test_the_caller_talks_over_the_bot(tmp_path: Path) -> None:
    first, *rest = (
        "네, 안내해 드릴게요.",
        "평일은 오전 열 시부터 저녁 아홉 시까지 영업합니다.",
        "주말은 저녁 여덟 시까지예요.",
    )
    hours, stop = await speak([HOURS, STOP], "ko")
    script: list[Step] = [WAIT, Say(hours), BotSpeaking(after_ms=2_600), Say(stop), WAIT, HangUp()]
    answer = {HOURS: " ".join((first, *rest)), STOP: "네, 알겠습니다."}
    async with OllamaEmulator(lambda messages: answer[messages[-1]["content"]]) as ollama:
        async with serving(tmp_path, llm_provider="ollama", llm_url=ollama.url) as running:
            report, ended = await call(running, script)
        history = {message["role"]: message["content"] for message in ollama.requests[-1]["messages"][:-1]}
        assert ollama.violations == []
    asked, stopped = report.turns
    assert (asked.interrupted, stopped.interrupted) == (False, True)
    assert stopped.clear_ms is not None
    assert stopped.clear_ms < 1_000
    cut, last = ended["exchanges"][1:]
    assert (cut["user"], cut["bot"], cut["interrupted"]) == (HOURS, first, True)
    assert (last["user"], last["interrupted"]) == (STOP, False)
    assert history["user"] == HOURS
    assert history["assistant"].startswith(first)
    assert rest[0] not in history["assistant"]


# ---------------------------------------------------------------- never a mute line


async def test_a_dead_voice_and_a_model_that_dies_are_never_a_mute_line(tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as group:
        for fault in (dead_voice, dying_model):
            folder = tmp_path / fault.__name__
            folder.mkdir()
            group.create_task(fault(folder))


async def dead_voice(folder: Path) -> None:
    """Greeting, apology and goodbye are rendered ahead."""
    words = Dialogue.load().words("ko")
    clips = await speak([HELLO, HELLO], "ko")
    async with ElevenLabsEmulator(fault="server_error") as voice, serving(folder, **elevenlabs(voice)) as running:
        report, ended = await call(running, turns(clips))
        assert running.count("provider_faults_total", component="tts") > 0
    assert report.greeting_ms is not None
    assert said(ended) == [("", words.greeting), (HELLO, words.apology), (HELLO, words.goodbye)]
    assert (ended["end_reason"], report.ended_by, report.close_code) == ("failed_turns", "bot", 1000)
    assert report.verbs == ["Connect", "Redirect", "Hangup"]
    for turn in report.turns:
        assert loud_ms(report, turn.end_ms) > 500


async def dying_model(folder: Path) -> None:
    """One answer, one apology, and then the bot takes leave."""
    words = Dialogue.load().words("ko")
    clips = await speak([HELLO, HELLO, THANKS], "ko")
    async with OllamaEmulator(lambda messages: "네, 안녕하세요.") as ollama:

        async def dies() -> None:
            await ollama.generating.wait()
            await ollama.idle.wait()
            await ollama.refuse()

        async with (
            serving(folder, llm_provider="ollama", llm_url=ollama.url) as running,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(dies())
            report, ended = await call(running, turns(clips))
        assert ollama.violations == []
    assert said(ended)[1:] == [(HELLO, "네, 안녕하세요."), (HELLO, words.apology), (THANKS, words.goodbye)]
    assert (ended["end_reason"], report.close_code) == ("failed_turns", 1000)


# ---------------------------------------------------------------- the bot hangs up


async def test_a_call_that_we_end_is_ended_by_rest_before_its_stream_is_closed(tmp_path: Path) -> None:
    words = Dialogue.load().words("ko")
    call_sid = new_call_sid()
    open_streams: list[int] = []
    rest = TwilioRestEmulator(ACCOUNT, TOKEN, {call_sid: "in-progress"})
    async with rest.serving(), serving(tmp_path, twilio_account_sid=ACCOUNT, twilio_api_base=rest.url) as running:
        rest.on_completed = lambda _: open_streams.append(len(running.services.switchboard.live))
        async with asyncio.TaskGroup() as group:
            calling = group.create_task(call(running, [], call_sid))
            await greeted(running, call_sid)
            async with httpx.AsyncClient(trust_env=False) as http:
                assert (await http.post(f"{running.url}/api/calls/{call_sid}/hangup")).status_code == 202
        report, ended = calling.result()
    assert (report.ended_by, report.close_code, report.verbs) == ("bot", 1000, ["Connect", "Redirect", "Hangup"])
    assert (ended["end_reason"], said(ended)[-1]) == ("admin", ("", words.goodbye))
    assert rest.calls[call_sid] == "completed"
    assert (len(rest.requests), rest.violations, open_streams) == (1, [], [1])


async def greeted(running: Running, call_sid: str) -> None:
    async with asyncio.timeout(10):
        while True:
            stored = await running.services.store.get(call_sid)
            if stored is not None and stored.exchanges:
                return
            await asyncio.sleep(0.05)
