"""Who hears a call: the recognisers it may use, in order, and when one gives way to the next.

A call begins with the first one that is thought well, moves on when that one fails, and never goes back: what it is
used to works. Others begin with the first again as soon as a probe has found it well (recognition.py).
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import quantiles

from app.services.ai_call.breaker import Breaker
from app.services.ai_call.ports import SpeechToText

FINALS_KEPT = 200


class Candidate:
    """A recogniser, and what all calls together know of it."""

    def __init__(
        self,
        name: str,
        stt: SpeechToText,
        breaker: Breaker | None = None,
        on_final: Callable[[str, float], None] = lambda name, ms: None,
    ) -> None:
        self.name = name
        self.stt = stt
        self.breaker = breaker or Breaker()
        self.calls = 0
        """Calls that listen through it now."""
        self.suspected = False
        """A call heard nothing from it."""
        self._on_final = on_final
        self._finals_ms: deque[float] = deque(maxlen=FINALS_KEPT)

    def heard(self, final_ms: float) -> None:
        """It gave a final with words, so long after the end of speech."""
        self._finals_ms.append(final_ms)
        self._on_final(self.name, final_ms)

    def latency_ms(self) -> tuple[int, int] | None:
        """Of its last finals with words, from the end of speech to the words: the median and the 95th percentile."""
        if not self._finals_ms:
            return None
        if len(self._finals_ms) == 1:
            return round(self._finals_ms[0]), round(self._finals_ms[0])
        cuts = quantiles(self._finals_ms, n=20, method="inclusive")
        return round(cuts[9]), round(cuts[18])


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """How a recogniser's stream ended. `useful`: it gave a final for something it was sent."""

    kind: str
    curable: bool
    useful: bool
    lived_s: float


EOF = "eof"
"""The recogniser ended its stream without an error."""
MUTE = "mute"
"""It takes audio and tells no words. Perhaps there were none: a probe decides (recognition.py)."""
SLOW = ("timeout", "stall", MUTE)
"""Ends that the caller has waited for too long to wait for another."""


@dataclass(frozen=True, slots=True)
class SuccessionOptions:
    """`reopen_s`: the waits before the 2nd, 3rd … opening in a row. A stream that lived `healthy_s` or was useful
    starts the row anew; when the row is used up the recogniser is given up. One that has a successor has a shorter
    row. An error after less than `idle_s` without any use counts against the recogniser's health."""

    reopen_s: tuple[float, ...] = (0.0, 0.2, 0.5, 1.0)
    reopen_before_successor_s: tuple[float, ...] = (0.0,)
    healthy_s: float = 5.0
    idle_s: float = 60.0


class Succession:
    """Of one call. `now` is the loop's time in seconds; `on_fault` is told the recogniser's name and the kind."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        now: Callable[[], float],
        options: SuccessionOptions | None = None,
        on_fault: Callable[[str, str], None] = lambda name, kind: None,
    ) -> None:
        self._left = deque(candidates)
        self._now = now
        self._options = options or SuccessionOptions()
        self._on_fault = on_fault
        self._failures = 0
        self._skip_broken()

    @property
    def current(self) -> Candidate:
        return self._left[0]

    def ended(self, end: StreamEnd) -> float | None:
        """The stream of `current` ended. Seconds to wait before `current`, perhaps another one by now, is opened; None
        when the last one is given up."""
        if end.useful or end.lived_s >= self._options.healthy_s:
            self._failures = 0
        if end.useful:
            self.current.breaker.succeeded()
        if not (end.useful and end.kind == EOF):  # some end after each utterance: no fault of theirs
            self._fault(end)
        row = self._options.reopen_s if self._is_last else self._options.reopen_before_successor_s
        hopeless = not self._is_last and (not end.curable or end.kind in SLOW or self.current.breaker.open)
        if hopeless or self._failures >= len(row):
            return self._move_on()
        self._failures += 1
        return row[self._failures - 1]

    @property
    def _is_last(self) -> bool:
        return len(self._left) == 1

    def _fault(self, end: StreamEnd) -> None:
        self._on_fault(self.current.name, end.kind)
        if end.kind == MUTE:
            self.current.suspected = True
            return
        # a silent caller's stream that is closed after minutes says nothing about the recogniser
        lived_s = self._options.healthy_s if end.kind == EOF else self._options.idle_s
        if not end.useful and (end.lived_s < lived_s or not end.curable):
            self.current.breaker.failed(self._now(), end.kind, curable=end.curable)

    def _move_on(self) -> float | None:
        if self._is_last:
            return None
        self._left.popleft()
        self._failures = 0
        self._skip_broken()
        return 0.0

    def _skip_broken(self) -> None:
        """Ill ones are passed over; should all be ill, the last one is tried all the same."""
        while not self._is_last and self.current.breaker.open:
            self._left.popleft()
