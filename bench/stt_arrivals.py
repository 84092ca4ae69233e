"""Utterances that arrive at random, through the real DecodeEngine: how many are done, and how long each waits.

Part arrivals: the same arrivals in batches and one by one, with a model of base's shape.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from app.asr.engine import DecodeEngine, Kind
from app.asr.models import MAX_WORKERS
from app.asr.recogniser import Recogniser, Request
from app.errors import SttError
from bench.figures import Spread
from bench.random_models import random_model
from bench.stt_meter import Meter, Use
from bench.stt_speech import RATE, utterances
from bench.stt_table import Report, aligned, number, times

RATES = (2, 4, 8, 14)
SPEECH_S = (0.8, 2.4)
"""With its margin each fits into the window of 5 s."""
BATCHES = (1, 8)
SECONDS = 6.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """`at_s` since the beginning."""

    at_s: float
    request: Request


def arrivals(rate: float, seconds: float, seed: int) -> list[Arrival]:
    """Poisson: the gaps are exponential, whatever came before."""
    rng = np.random.default_rng(seed)
    speech = utterances(seed, *SPEECH_S)
    found = []
    at_s = float(rng.exponential(1 / rate))
    while at_s < seconds:
        pcm = next(speech)
        found.append(Arrival(at_s, Request(pcm, RATE, "ko", round(len(pcm) * 500 / RATE))))
        at_s += float(rng.exponential(1 / rate))
    return found


@dataclass(frozen=True, slots=True)
class Load:
    """What became of them. `wait`: ms from an arrival to its words. `per_s`: until the last was done."""

    arrived: int
    refused: int
    wait: Spread
    per_s: float
    batch: float
    cpu_ms: float
    use: Use


async def serve(engine: DecodeEngine, arriving: Iterable[Arrival]) -> Load:
    """A decode that waits for nobody: each is submitted at its moment, whatever became of those before."""
    loop = asyncio.get_running_loop()
    waits_ms: list[float] = []
    meter, cpu_s, decodes, batches = Meter(), time.process_time(), engine.decodes, engine.batches
    began = loop.time()

    async def one(arrival: Arrival) -> bool:
        try:
            await engine.decode(arrival.request, Kind.FINAL)
        except SttError:
            return False
        waits_ms.append((loop.time() - began - arrival.at_s) * 1000)
        return True

    async with asyncio.TaskGroup() as group:
        tasks = []
        for arrival in arriving:
            await asyncio.sleep(began + arrival.at_s - loop.time())
            tasks.append(group.create_task(one(arrival)))
    took_s = max(1e-9, loop.time() - began)
    done = engine.decodes - decodes
    return Load(
        arrived=len(tasks),
        refused=sum(not task.result() for task in tasks),
        wait=Spread.of(waits_ms),
        per_s=len(waits_ms) / took_s,
        batch=done / max(1, engine.batches - batches),
        cpu_ms=(time.process_time() - cpu_s) * 1000 / max(1, done),
        use=meter.use(),
    )


@dataclass(frozen=True, slots=True)
class Row:
    """`loads` by the most that share a decode."""

    rate: float
    loads: dict[int, Load]


async def measure(recogniser: Recogniser, rates: Sequence[float], seconds: float, seed: int) -> list[Row]:
    rows = []
    for rate in rates:
        arriving = arrivals(rate, seconds, seed)
        loads = {}
        for batch in BATCHES:
            recogniser.max_batch = batch
            engine = DecodeEngine(recogniser)
            engine.start()
            try:
                loads[batch] = await serve(engine, arriving)
            finally:
                await engine.aclose()
        rows.append(Row(rate, loads))
    return rows


def report(models: Path, seed: int, seconds: float = SECONDS) -> Report:
    folder = random_model(models, "base")
    cores = Meter().use().cores
    recogniser = Recogniser.load(folder, "base", workers=min(MAX_WORKERS, cores))
    recogniser.warm_up()
    rows = asyncio.run(measure(recogniser, RATES, seconds, seed))
    return Report(table(rows), _remarks(recogniser.workers, seconds), [asdict(row) for row in rows])


def _remarks(workers: int, seconds: float) -> list[str]:
    low, high = SPEECH_S
    return [
        f"base's shape, 12 words, window of 5 s, {low:g} to {high:g} s of speech, {workers} workers of one thread; the "
        f"same arrivals of {seconds:g} s for both",
        "p50, p95: ms from an arrival to its words, and as multiples of those one by one; each: CPU ms of an "
        "utterance; batch: utterances in a decode, on average; others: cores that anybody else used (!: many)",
    ]


def table(rows: Sequence[Row]) -> str:
    lines = [["arrivals /s", "", "done /s", "p50 ms", "p95 ms", "each ms", "batch", "refused", "others", "p50", "p95"]]
    for row in rows:
        alone = row.loads[min(row.loads)]
        for batch, load in row.loads.items():
            lines.append(
                [
                    ("! " if load.use.disturbed else "") + f"{row.rate:g}",
                    "one by one" if batch == 1 else f"up to {batch}",
                    number(load.per_s, 1),
                    number(load.wait.p50),
                    number(load.wait.p95),
                    number(load.cpu_ms),
                    number(load.batch, 1),
                    f"{load.refused}/{load.arrived}",
                    f"{load.use.others:.2f}",
                    "" if load is alone else times(load.wait.p50, alone.wait.p50),
                    "" if load is alone else times(load.wait.p95, alone.wait.p95),
                ]
            )
    return aligned(lines, texts=2)
