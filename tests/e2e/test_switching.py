"""Recognisers exchanged under running calls: real recognition, a software phone in real time, and RTZR's emulator
listening with the demo model. Every word is heard, and once."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.providers import Providers, recognisers
from app.simulator.clip import Clip
from app.simulator.phone import Phone
from app.simulator.script import BotFinished, HangUp, Say, Step
from app.simulator.voice import speak
from tests.e2e.by_hand import new_call_sid, record
from tests.emulators.rtzr import RtzrEmulator, demo_model
from tests.fakes import ScriptedLlm, ToneTts
from tests.servers import DEVELOPMENT, Running, free_port, process, serving, settings, until

pytestmark = pytest.mark.usefixtures("quiet_log")

PHRASES = ("안녕하세요.", "영업시간이 어떻게 되나요?", "감사합니다.")
WAIT = BotFinished(silent_ms=300)


def phone_script(clips: Sequence[Clip]) -> list[Step]:
    steps: list[Step] = []
    for clip in clips:
        steps += [WAIT, Say(clip)]
    return [*steps, WAIT, HangUp()]


@asynccontextmanager
async def with_rtzr(folder: Path, **changes: Any) -> AsyncIterator[tuple[Running, RtzrEmulator]]:
    """The product's recognisers; an answer is a short tone, so that a call takes as long as its questions."""
    async with AsyncExitStack() as stack:
        rtzr = await stack.enter_async_context(RtzrEmulator(recognise=demo_model(), max_streams=20))
        changes |= {"rtzr_client_id": "test-id", "rtzr_client_secret": "test-secret", "rtzr_api_base": rtzr.url}
        theirs = recognisers(settings(folder, **changes), stack)
        providers = Providers(theirs, ScriptedLlm(first_s=0.01, word_s=0), ToneTts(first_s=0, ms_per_char=60))
        yield await stack.enter_async_context(serving(folder, providers, **changes)), rtzr
    assert rtzr.violations == []


async def words_of(running: Running, script: Sequence[Step]) -> list[str]:
    """What a caller said, as the server's record has it; the answers come in between."""
    call_sid = new_call_sid()
    report = await Phone(running.phone, script, call_sid=call_sid).call()
    assert report.refusal is None
    assert report.violations == []
    ended = await record(running.url, call_sid, 1)
    return [exchange["user"] for exchange in ended["exchanges"][1:]]


async def switch(running: Running, name: str) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
        answer = await http.put(f"{running.url}/api/providers/stt", json={"name": name})
    assert answer.status_code == 200, answer.text


def heard_by(running: Running) -> dict[str, int]:
    """Finals with words, by recogniser."""
    return {name: round(running.count("final_seconds_count", recogniser=name)) for name in ("local", "rtzr")}


async def test_ten_calls_go_on_while_the_recogniser_is_switched_there_and_back(tmp_path: Path) -> None:
    script = phone_script(await speak(list(PHRASES), "ko"))
    async with with_rtzr(tmp_path) as (running, rtzr):
        said: list[asyncio.Task[list[str]]] = []

        async def ring(group: asyncio.TaskGroup, calls: int) -> None:
            live = len(running.services.switchboard.live)
            said.extend(group.create_task(words_of(running, script)) for _ in range(calls))
            await until(lambda: len(running.services.switchboard.live) == live + calls)

        async with asyncio.TaskGroup() as group:
            await ring(group, 4)
            await switch(running, "rtzr")
            await ring(group, 4)
            await switch(running, "local")
            await ring(group, 2)
        assert [task.result() for task in said] == [list(PHRASES)] * 10
        assert heard_by(running) == {"local": 6 * 3, "rtzr": 4 * 3}
        assert len(rtzr.streams) == 4 + 1, "one a call, and the sentence that it was tried with"


async def test_a_vendor_that_dies_in_mid_utterance_costs_no_word(tmp_path: Path) -> None:
    """And the calls after it begin with the successor, until the vendor is back."""
    clips = await speak(list(PHRASES), "ko")
    script = phone_script(clips)
    async with with_rtzr(tmp_path, stt_provider="rtzr", stt_fallback=("local",)) as (running, rtzr):
        async with asyncio.TaskGroup() as group:
            said = group.create_task(words_of(running, script))
            await until(lambda: heard_by(running)["rtzr"] == 1, 10)
            await until(lambda: any(stream.open and stream.hearing for stream in rtzr.streams), 10)
            await asyncio.sleep(0.5)  # half-way through the question
            await rtzr.kill()
        assert said.result() == list(PHRASES)
        assert heard_by(running) == {"local": 2, "rtzr": 1}
        for _ in range(2):  # each fails once and goes on with the successor, until the third failure in a row
            assert await words_of(running, script) == list(PHRASES)
        first, second = running.services.recognition.for_call("")
        assert (first.breaker.open, second.breaker.open) == (True, False)
        await rtzr.listen()
        await until(lambda: not first.breaker.open, 30)
        assert await words_of(running, script) == list(PHRASES)
        assert heard_by(running)["rtzr"] == 1 + 3


async def test_two_workers_over_one_database(tmp_path: Path) -> None:
    """Processes of their own. What one is told the other does, and both still do after a restart."""
    async with RtzrEmulator(recognise=demo_model()) as rtzr:
        environment = DEVELOPMENT | {
            "DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/malgil.db",
            "RTZR_CLIENT_ID": "test-id",
            "RTZR_CLIENT_SECRET": "test-secret",
            "RTZR_API_BASE": rtzr.url,
        }
        with process("serve", PORT=str(free_port()), **environment) as one:
            await one.serving()
            with process("serve", PORT=str(free_port()), **environment) as other:
                await other.serving()
                async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
                    answer = await http.put(f"{one.url}/api/providers/stt", json={"name": "rtzr"})
                    assert answer.status_code == 200, answer.text
                    await chosen(http, other.url, "rtzr")
        with process("serve", PORT=str(free_port()), **environment) as again:
            await again.serving()
            async with httpx.AsyncClient(trust_env=False) as http:
                await chosen(http, again.url, "rtzr")


async def chosen(http: httpx.AsyncClient, url: str, name: str) -> None:
    """Until new calls at this worker get this one."""
    async with asyncio.timeout(5):
        while True:
            rows = (await http.get(f"{url}/api/providers")).json()["stt"]
            if [row["name"] for row in rows if row["chosen"]] == [name]:
                return
            await asyncio.sleep(0.1)
