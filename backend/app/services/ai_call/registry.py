"""Which calls are expected, in this process alone: one worker."""

from collections.abc import Callable

from app.services.ai_call.types import CallInfo

MAX_EXPECTED = 10_000


class InMemoryRegistry:
    """A SessionRegistry. `now` is a monotonic clock in seconds, such as `loop.time`."""

    def __init__(self, now: Callable[[], float], max_expected: int = MAX_EXPECTED) -> None:
        self._now = now
        self._max_expected = max_expected
        self._expected: dict[str, tuple[CallInfo, float]] = {}  # nonce -> call, deadline; the oldest first

    async def expect(self, call: CallInfo, nonce: str, ttl_s: int) -> None:
        """Where too many are expected, the one announced longest ago is forgotten."""
        self._forget_late()
        self._expected.pop(nonce, None)
        while len(self._expected) >= self._max_expected:
            del self._expected[next(iter(self._expected))]
        self._expected[nonce] = (call, self._now() + ttl_s)

    async def claim(self, nonce: str) -> CallInfo | None:
        call, deadline = self._expected.pop(nonce, (None, 0.0))
        return call if self._now() < deadline else None

    def _forget_late(self) -> None:
        """Calls that never streamed: with one TTL for all, the late ones stand first."""
        now = self._now()
        while self._expected:
            nonce, (_call, deadline) = next(iter(self._expected.items()))
            if now < deadline:
                return
            del self._expected[nonce]
