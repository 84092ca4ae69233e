from datetime import UTC, datetime

import pytest

from app.services.ai_call.registry import InMemoryRegistry
from app.services.ai_call.types import CallInfo


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def call(sid: str) -> CallInfo:
    return CallInfo(sid, "AC1", "", "", "ko", datetime(2025, 3, 1, tzinfo=UTC))


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_a_nonce_is_good_once(clock: Clock) -> None:
    registry = InMemoryRegistry(clock)
    await registry.expect(call("CA1"), "n1", 60)
    await registry.expect(call("CA2"), "n2", 60)
    assert await registry.claim("n2") == call("CA2")
    assert await registry.claim("n2") is None
    assert await registry.claim("unknown") is None
    assert await registry.claim("") is None
    assert await registry.claim("n1") == call("CA1")


@pytest.mark.parametrize(("after", "good"), [(0.0, True), (59.9, True), (60.0, False), (1e6, False)])
async def test_a_nonce_is_good_until_its_time(clock: Clock, after: float, good: bool) -> None:
    registry = InMemoryRegistry(clock)
    await registry.expect(call("CA1"), "n1", 60)
    clock.now += after
    assert await registry.claim("n1") == (call("CA1") if good else None)
    clock.now -= after
    assert await registry.claim("n1") is None


async def test_a_nonce_announced_again_counts_from_then(clock: Clock) -> None:
    registry = InMemoryRegistry(clock)
    await registry.expect(call("CA1"), "n1", 60)
    clock.now += 50
    await registry.expect(call("CA2"), "n1", 60)
    clock.now += 50
    assert await registry.claim("n1") == call("CA2")


async def test_beyond_its_size_the_oldest_is_forgotten(clock: Clock) -> None:
    registry = InMemoryRegistry(clock, max_expected=3)
    for number in range(3):
        await registry.expect(call(f"CA{number}"), f"n{number}", 60)
    await registry.expect(call("CA0"), "n0", 60)  # announced again: now the newest, and no fourth
    await registry.expect(call("CA3"), "n3", 60)
    assert await registry.claim("n1") is None
    assert [await registry.claim(f"n{number}") for number in (0, 2, 3)] == [
        call("CA0"),
        call("CA2"),
        call("CA3"),
    ]


async def test_calls_that_never_streamed_take_no_place(clock: Clock) -> None:
    registry = InMemoryRegistry(clock, max_expected=2)
    await registry.expect(call("CA-lasting"), "lasting", 3600)
    await registry.expect(call("CA-late"), "late", 60)
    clock.now += 61
    assert await registry.claim("late") is None
    await registry.expect(call("CA-new"), "new", 60)
    assert await registry.claim("lasting") == call("CA-lasting")
    assert await registry.claim("new") == call("CA-new")


async def test_ten_thousand_are_expected_by_default(clock: Clock) -> None:
    registry = InMemoryRegistry(clock)
    for number in range(10_001):
        await registry.expect(call(f"CA{number}"), f"n{number}", 60)
    assert await registry.claim("n0") is None
    assert await registry.claim("n1") == call("CA1")
    assert await registry.claim("n10000") == call("CA10000")
