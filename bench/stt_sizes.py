"""Part sizes: the true sizes without a download. What each model weighs, and how many callers it would hold.

Each is loaded in a process of its own, so that its memory is its own: `python -m bench.stt_sizes FOLDER NAME` prints
the figures as JSON.
"""

import functools
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from app.asr.recogniser import Recogniser, Request
from bench import machine
from bench.random_models import random_model
from bench.run import ROOT
from bench.stt_speech import RATE, utterances
from bench.stt_table import Report, aligned, number, times
from bench.stt_windows import RANDOM, Cost, OneWindow, cost, decode

SPEECH_S = 2
SHORT_S, FULL_S = 5, 30
TIMEOUT_S = 120

PARTIAL_MS = 250
"""PARTIAL_FLUSH_MS, by its default."""
TURN_S = 8.0
"""A caller says something so often."""
SPOKEN_MS = 3000
DECODES = 1.2
"""Of each utterance, without partials: a guess that was wrong is decoded again."""
BUSY = 0.6


@dataclass(frozen=True, slots=True)
class Size:
    """`memory_mb`: what loading and warming added to the process. The file was in the page cache when it was loaded."""

    name: str
    file_mb: float
    load_s: float
    warm_up_s: float
    memory_mb: float
    short: Cost
    full: Cost


def partial_every_ms(decode_ms: float) -> float | None:
    """How often a caller who is alone is told partials; None: never, as decodes take longer than two of them."""
    return max(float(PARTIAL_MS), decode_ms) if decode_ms <= 2 * PARTIAL_MS else None


def callers(cpu_ms: float, cores: int, partials: int = 0) -> float:
    """That fill BUSY of the cores, each with an utterance every TURN_S, of DECODES + partials decodes."""
    return BUSY * cores / ((DECODES + partials) * cpu_ms / 1000 / TURN_S)


def partials_of(every_ms: float | None) -> int:
    """In an utterance of SPOKEN_MS: the first comes after two intervals."""
    return 0 if every_ms is None else int((SPOKEN_MS - 2 * PARTIAL_MS) / every_ms) + 1


def size(folder: Path, name: str) -> Size:
    """Of this process, which has loaded no model yet."""
    request = Request(next(utterances(0, SPEECH_S, SPEECH_S + 0.01)), RATE, "ko", SPEECH_S * 1000)
    for module in ("ctranslate2", "faster_whisper", "soxr"):
        import_module(module)  # their own megabytes are not the model's
    before_kb = machine.rss_kb(os.getpid())
    began = time.perf_counter()
    recogniser = Recogniser.load(folder, name)
    loaded = time.perf_counter()
    recogniser.warm_up()
    warm = time.perf_counter()
    memory_mb = (machine.rss_kb(os.getpid()) - before_kb) / 1024
    costs = {}
    for window_s in (SHORT_S, FULL_S):
        recogniser = Recogniser.load(folder, name, options=OneWindow(seconds=window_s))
        decode(recogniser, request)  # the first one is slow
        costs[window_s], _ = cost(functools.partial(decode, recogniser, request))
    file_mb = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    return Size(name, file_mb, loaded - began, warm - loaded, memory_mb, costs[SHORT_S], costs[FULL_S])


def measure(folder: Path, name: str) -> Size:
    """In a process of its own. RuntimeError with what it said, where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.stt_sizes", str(folder), name],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'backend'}{os.pathsep}{ROOT}"},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} could not be measured:\n{done.stderr}")
    fields = json.loads(done.stdout)
    return Size(**{**fields, "short": Cost(**fields["short"]), "full": Cost(**fields["full"])})


def report(models: Path) -> Report:
    sizes = [measure(random_model(models, name), name) for name in RANDOM]
    cores = len(os.sched_getaffinity(0))
    said = [
        f"decode: CPU ms / wall ms of {SPEECH_S} s of speech, 12 words, one thread, by the window; memory: added by "
        "loading and warming up; load: from the page cache",
        f"partials: how often for a caller who is alone: every PARTIAL_FLUSH_MS ({PARTIAL_MS}) or decode, whichever is "
        "longer; none where a decode takes more than two of them",
        f"callers: {BUSY:.0%} of {cores} cores / (decodes × CPU s / {TURN_S:g} s), with {DECODES:g} decodes an "
        f"utterance, and so many partials more in {SPOKEN_MS / 1000:g} s of speech; batches hold more",
    ]
    return Report(table(sizes, cores), said, [asdict(size_) for size_ in sizes])


def table(sizes: list[Size], cores: int) -> str:
    short, full = f"{SHORT_S} s", f"{FULL_S} s"
    heads = ["model", "file MB", "load s", "warm s", "memory MB", f"decode {short}", full, f"{full} : {short}"]
    heads += [f"partials {short}", full, f"callers {short}", "with partials", full]
    lines = [heads]
    for size_ in sizes:
        short_ms, full_ms = (partial_every_ms(cost_.wall_ms) for cost_ in (size_.short, size_.full))
        lines.append(
            [
                size_.name,
                number(size_.file_mb),
                number(size_.load_s, 2),
                number(size_.warm_up_s, 2),
                number(size_.memory_mb),
                *(f"{cost_.cpu_ms:.0f} / {cost_.wall_ms:.0f}" for cost_ in (size_.short, size_.full)),
                times(size_.full.cpu_ms, size_.short.cpu_ms),
                *("none" if ms is None else f"{ms:.0f} ms" for ms in (short_ms, full_ms)),
                number(callers(size_.short.cpu_ms, cores)),
                "-" if short_ms is None else number(callers(size_.short.cpu_ms, cores, partials_of(short_ms)), 1),
                number(callers(size_.full.cpu_ms, cores), 1),
            ]
        )
    return aligned(lines)


if __name__ == "__main__":
    print(json.dumps(asdict(size(Path(sys.argv[1]), sys.argv[2]))))
