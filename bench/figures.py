"""The arithmetic: from what the callers heard to the figures of the table. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from bench.task import FRAME_MS

LATE_MS = 5.0
LATE_SHARE = 0.01
"""More of the callers' wake-ups than this later than LATE_MS, and the run is void."""
FOREIGN_SHARE = 0.05
"""More of the server's core than this taken by others, and the milliseconds are the machine's rather than ours."""


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The nearest rank: one of the values, never between two. None of none."""
    return sorted(values)[max(0, ceil(percent / 100 * len(values)) - 1)] if values else None


@dataclass(frozen=True, slots=True)
class Spread:
    count: int
    p50: float | None
    p95: float | None
    max: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(len(values), percentile(values, 50), percentile(values, 95), max(values, default=None))


@dataclass(frozen=True, slots=True)
class Decision:
    """The server's endpointing took speech for begun, or for ended, when it had heard `heard_ms` of the call.

    `of_ms` is the moment of which it was decided: where the speech began or ended by its own detector."""

    heard_ms: float
    of_ms: float

    @property
    def sent_ms(self) -> float:
        """When the caller sent the frame with which that audio was complete: a frame is sent when it is over."""
        return ceil(self.heard_ms / FRAME_MS) * FRAME_MS


@dataclass(frozen=True, slots=True)
class Decisions:
    begins: Sequence[Decision]
    ends: Sequence[Decision]


@dataclass(frozen=True, slots=True)
class Spoken:
    """One utterance of a caller, as the phone reports it; ms since the call's media began. `answer_ms` and `clear_ms`
    are moments of the call, too, None where they did not come."""

    onset_ms: float
    end_ms: float
    answer_ms: float | None
    clear_ms: float | None


@dataclass
class Latencies:
    """Milliseconds. `heard`: from the true end of speech to the first sound of the answer. `beyond`: from the sending
    of the frame on which the turn was taken to be over to that sound. `clear_heard`: from the true onset of an
    interruption to `clear`; `clear_onset`: from the onset as the detector dates it; `clear_beyond`: from the sending
    of the frame on which the speech was believed."""

    heard: list[float] = field(default_factory=list)
    beyond: list[float] = field(default_factory=list)
    clear_heard: list[float] = field(default_factory=list)
    clear_onset: list[float] = field(default_factory=list)
    clear_beyond: list[float] = field(default_factory=list)
    unanswered: int = 0
    unexplained: int = 0
    """Answers and clears that came before anything was decided, by our reckoning: something is wrong."""

    def add_call(self, turns: Sequence[Spoken], decisions: Decisions, begins_ms: float, until_ms: float) -> None:
        """The turns that lie between the two moments of the call."""
        for turn in turns:
            if turn.onset_ms < begins_ms or (turn.answer_ms or turn.end_ms + ANSWER_WITHIN_MS) > until_ms:
                continue
            self._add_answer(turn, decisions.ends)
            if turn.clear_ms is not None:
                self._add_clear(turn.onset_ms, turn.clear_ms, decisions.begins)

    def _add_answer(self, turn: Spoken, ends: Sequence[Decision]) -> None:
        if turn.answer_ms is None:
            self.unanswered += 1
            return
        end = _first(ends, lambda decision: decision.heard_ms > turn.end_ms)
        if end is None or turn.answer_ms < end.sent_ms:
            self.unexplained += 1
            return
        self.heard.append(turn.answer_ms - turn.end_ms)
        self.beyond.append(turn.answer_ms - end.sent_ms)

    def _add_clear(self, onset_ms: float, clear_ms: float, begins: Sequence[Decision]) -> None:
        begin = _first(begins, lambda decision: decision.heard_ms > onset_ms)
        if begin is None or clear_ms < begin.sent_ms:
            self.unexplained += 1
            return
        self.clear_heard.append(clear_ms - onset_ms)
        self.clear_onset.append(clear_ms - begin.of_ms)
        self.clear_beyond.append(clear_ms - begin.sent_ms)


ANSWER_WITHIN_MS = 2_000
"""An utterance without an answer for so long is unanswered."""


def _first(decisions: Sequence[Decision], wanted: Callable[[Decision], bool]) -> Decision | None:
    return next((decision for decision in decisions if wanted(decision)), None)


@dataclass(frozen=True, slots=True)
class Row:
    """One server under so many calls."""

    server: str
    calls: int
    window_s: float
    cpu_us_per_frame: float
    cpu_ms_per_call_s: float
    core_share: float
    foreign_share: float
    heard: Spread
    beyond: Spread
    in_server: Spread
    clear_heard: Spread
    clear_onset: Spread
    clear_beyond: Spread
    underruns: int
    unanswered: int
    faults: Sequence[str]
    rss_kb_per_call: float
    bot_share: float
    late_p99_ms: float
    late_max_ms: float
    late_share: float

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> "Row":
        row: dict[str, Any] = {
            name: Spread(**value) if isinstance(value, dict) else value for name, value in fields.items()
        }
        return cls(**row)

    @property
    def void(self) -> str:
        """Why the milliseconds of this row mean nothing; empty where they do."""
        if self.late_share > LATE_SHARE:
            return f"the callers themselves were late: {self.late_share:.1%} of their wake-ups by over {LATE_MS:.0f} ms"
        return ""

    @property
    def disturbed(self) -> bool:
        return self.foreign_share > FOREIGN_SHARE


@dataclass(frozen=True, slots=True)
class Reading:
    """The clocks and meters at one moment."""

    at_s: float
    cpu_s: float
    core_busy_s: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What the server took between two readings, while `calls` were sending a frame every 20 ms."""

    window_s: float
    cpu_us_per_frame: float
    cpu_ms_per_call_s: float
    core_share: float
    foreign_share: float

    @classmethod
    def between(cls, first: Reading, second: Reading, calls: int) -> "Usage":
        window = second.at_s - first.at_s
        cpu = second.cpu_s - first.cpu_s
        foreign = max(0.0, second.core_busy_s - first.core_busy_s - cpu)
        frames = calls * window * 1000 / FRAME_MS
        return cls(window, cpu * 1e6 / frames, cpu * 1e3 / (calls * window), cpu / window, foreign / window)
