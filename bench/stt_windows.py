"""Part windows: what a decode costs by the window that the encoder looks at, and by the length of the speech.

The decode is the Recogniser's own, one utterance at a time, with the beam of finals. The demo model decodes speech that
it knows; a random one always writes its twelve words.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from app.asr.engine import EngineOptions
from app.asr.models import DEMO_FOLDER
from app.asr.recogniser import Recogniser, RecogniserOptions, Request
from app.asr.windows import FULL_S, MARGIN_S, WINDOWS_S
from bench.random_models import random_model
from bench.stt_speech import LENGTHS_S, RATE, utterance
from bench.stt_table import Report, aligned, ratio_of, times

RANDOM = ("tiny", "base", "small")
BUDGET_S = 0.3
MOST_RUNS = 20

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class OneWindow(RecogniserOptions):
    """The same window for every utterance."""

    seconds: int = FULL_S

    def window_s(self, request: Request, device: str) -> int:
        return self.seconds


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one decode: the least of all runs. CPU of all threads of this process."""

    cpu_ms: float
    wall_ms: float
    runs: int


@dataclass(frozen=True, slots=True)
class Row:
    """`costs` by window, the shortest first. `redecoded` by window: of a short one that means that the full one was
    paid for, too."""

    model: str
    speech_s: int
    costs: dict[int, Cost]
    redecoded: dict[int, bool]

    @property
    def chosen_s(self) -> int:
        """The window that ENCODER_WINDOW=auto takes on a CPU."""
        return min(self.costs)

    @property
    def gain(self) -> float | None:
        return ratio_of(self.costs[FULL_S].cpu_ms, self.costs[self.chosen_s].cpu_ms)


def cost(work: Callable[[], _Result], budget_s: float = BUDGET_S) -> tuple[Cost, _Result]:
    """Of work that is warm, and its last result: at least one run, and no further one when the budget is spent."""
    cpu_ms, wall_ms, runs = float("inf"), float("inf"), 0
    until = time.perf_counter() + budget_s
    while not runs or (runs < MOST_RUNS and time.perf_counter() < until):
        began, began_cpu = time.perf_counter(), time.process_time()
        result = work()
        cpu_ms = min(cpu_ms, (time.process_time() - began_cpu) * 1000)
        wall_ms = min(wall_ms, (time.perf_counter() - began) * 1000)
        runs += 1
    return Cost(cpu_ms, wall_ms, runs), result


def windows_for(speech_s: float) -> list[int]:
    """Those with Whisper's margin behind the speech."""
    return [window_s for window_s in WINDOWS_S if window_s >= speech_s + MARGIN_S]


def measure(name: str, folder: Path) -> list[Row]:
    rows = {seconds: Row(name, seconds, {}, {}) for seconds in LENGTHS_S}
    requests = {seconds: Request(utterance(seconds), RATE, "ko", seconds * 1000) for seconds in LENGTHS_S}
    for window_s in WINDOWS_S:
        recogniser = Recogniser.load(folder, name, options=OneWindow(seconds=window_s))
        decode(recogniser, requests[min(LENGTHS_S)])  # the first one is slow
        for seconds, row in rows.items():
            if window_s in windows_for(seconds):
                row.costs[window_s], row.redecoded[window_s] = cost(
                    functools.partial(decode, recogniser, requests[seconds])
                )
    return list(rows.values())


def decode(recogniser: Recogniser, request: Request) -> bool:
    """As a final. Whether it took a second look."""
    (decoded,) = recogniser.decode([request], beam=EngineOptions().beam)
    return decoded.redecoded


def report(models: Path) -> Report:
    folders = {"demo": DEMO_FOLDER} | {name: random_model(models, name) for name in RANDOM}
    rows = [row for name, folder in folders.items() for row in measure(name, folder)]
    said = [
        "CPU ms / wall ms of one utterance, the least of several runs, one thread; a window holds the speech and "
        f"{MARGIN_S:g} s more",
        "30 s : short is CPU, the full window against the one that ENCODER_WINDOW=auto takes on a CPU",
    ]
    if any(window_s < FULL_S and twice for row in rows for window_s, twice in row.redecoded.items()):
        said.append("+ looked wrong after the short window, and was decoded over 30 s as well")
    return Report(table(rows), said, [asdict(row) | {"gain": row.gain} for row in rows])


def table(rows: list[Row]) -> str:
    lines = [["model", "speech", *(f"{window_s} s" for window_s in WINDOWS_S), "30 s : short"]]
    for row in rows:
        cells = [_cell(row, window_s) for window_s in WINDOWS_S]
        gain = times(row.costs[FULL_S].cpu_ms, row.costs[row.chosen_s].cpu_ms)
        lines.append([row.model, f"{row.speech_s} s", *cells, gain])
    return aligned(lines)


def _cell(row: Row, window_s: int) -> str:
    if window_s not in row.costs:
        return ""
    cost_ = row.costs[window_s]
    twice = "+" if row.redecoded[window_s] and window_s < FULL_S else ""
    return f"{twice}{_ms(cost_.cpu_ms)} / {_ms(cost_.wall_ms)}"


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"
