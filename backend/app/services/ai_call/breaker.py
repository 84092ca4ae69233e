"""Whether a vendor is worth asking: a circuit breaker. No clock; `now` is the loop's time in seconds.

closed ──too many failures in a row, or one that no retry can cure──▶ open ──the wait is over──▶ half open
   ▲                                                                    ▲                            │
   └──────────────────── the probe succeeded ────────────────────────────┴── it failed: wait longer ─┘
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BreakerOptions:
    """`failures` in a row open it. It is probed after `wait_s`, then after twice as long, at most `longest_wait_s`."""

    failures: int = 3
    wait_s: float = 5.0
    longest_wait_s: float = 300.0


class Breaker:
    def __init__(self, options: BreakerOptions | None = None) -> None:
        self._options = options or BreakerOptions()
        self._failures = 0
        self._wait_s = self._options.wait_s
        self._probe_at: float | None = None
        self.reason = ""
        """Why it is open, in a word."""

    @property
    def open(self) -> bool:
        return self._probe_at is not None

    def probe_due(self, now: float) -> bool:
        return self._probe_at is not None and now >= self._probe_at

    def succeeded(self) -> None:
        self._failures = 0
        self._wait_s = self._options.wait_s
        self._probe_at = None
        self.reason = ""

    def failed(self, now: float, reason: str, *, curable: bool) -> bool:
        """`curable`: the same request may work a moment later. Whether the breaker opened now."""
        self._failures += 1
        if self.open or (curable and self._failures < self._options.failures):
            return False
        self._probe_at = now + self._wait_s
        self.reason = reason
        return True

    def probe_failed(self, now: float, reason: str) -> None:
        self._wait_s = min(2 * self._wait_s, self._options.longest_wait_s)
        self._probe_at = now + self._wait_s
        self.reason = reason
