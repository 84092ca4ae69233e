"""Whether a call could be served now: asked often while something is ill, seldom while all is well."""

import asyncio
from typing import Any

import pytest

from app.errors import ConfigError, MalgilError
from app.services.ai_call.readiness import Health, Readiness
from tests.conversation import VIRTUAL

pytestmark = VIRTUAL


class Component:
    def __init__(self, error: Exception | None = None, takes_s: float = 0.0) -> None:
        self.error = error
        self.takes_s = takes_s
        self.asked: list[float] = []

    async def check(self) -> None:
        self.asked.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.takes_s)
        if self.error:
            raise self.error


def readiness(needed: str = "stt llm", **components: Component) -> Readiness:
    return Readiness({name: one.check for name, one in components.items()}, frozenset(needed.split()))


async def test_nothing_is_ready_before_it_was_asked() -> None:
    subject = readiness(stt=Component(), llm=Component())
    assert (subject.ready, subject.can_talk) == (False, False)
    await subject.check()
    assert (subject.ready, subject.can_talk) == (True, True)


async def test_a_component_that_is_ill_says_what_to_do() -> None:
    subject = readiness(stt=Component(), llm=Component(), tts=Component(MalgilError("top up your account")))
    await subject.check()
    assert (subject.ready, subject.can_talk) == (False, True), "canned phrases can still be said"
    assert subject.components["tts"] == Health(False, "top up your account")


@pytest.mark.parametrize("ill", ["stt", "llm"])
async def test_without_ears_or_mind_no_conversation(ill: str) -> None:
    components = {"stt": Component(), "llm": Component(), ill: Component(ConfigError("pull the model"))}
    subject = readiness("stt llm", **components)
    await subject.check()
    assert not subject.can_talk


async def test_a_needed_component_that_offers_no_check_is_taken_to_be_well() -> None:
    subject = readiness(stt=Component())
    await subject.check()
    assert subject.can_talk


async def test_checks_run_side_by_side_and_a_slow_one_is_ill() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    subject = readiness(stt=Component(takes_s=4.0), llm=Component(takes_s=60.0), tts=Component(takes_s=4.0))
    await subject.check()
    assert loop.time() - began == pytest.approx(5.0)
    assert subject.components["llm"] == Health(False, "no answer within 5 s")
    assert subject.components["stt"].ok


async def test_a_check_that_breaks_is_an_ill_component_and_breaks_nothing(log_lines: list[Any]) -> None:
    subject = readiness(stt=Component(), llm=Component(KeyError("a bug")))
    await subject.check()
    assert not subject.components["llm"].ok
    assert subject.components["stt"].ok
    assert "error" in {line["log_level"] for line in log_lines}


async def test_what_is_ill_is_asked_often_and_what_is_well_seldom(log_lines: list[Any]) -> None:
    llm = Component(MalgilError("start Ollama"))
    subject = readiness(stt=Component(), llm=llm)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await subject.check()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(subject.run())
        await asyncio.sleep(7.0)
        llm.error = None
        await asyncio.sleep(70.0)
        running.cancel()
    assert [round(at - began) for at in llm.asked] == [0, 2, 4, 6, 8, 38, 68]
    changes = [(line["component"], line["ok"]) for line in log_lines if line["event"] == "- component changed"]
    assert changes == [("llm", False), ("llm", True)], "told once, when it changes; well from the start is no news"
