"""Part gpu: how many callers medium and large-v3 hold on a GPU before the slowest twentieth waits 300 ms.

As in the server: the model in a process of its own, full windows, batches of what is waiting. The number is doubled
until it is too many, then halved in. Where CTranslate2 can use no GPU it says why.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from app.asr.device import gpu_trouble
from app.asr.models import ModelOptions, ModelShelf
from bench.random_models import random_model
from bench.stt_arrivals import Load, arrivals, serve
from bench.stt_sizes import DECODES, TURN_S
from bench.stt_table import Report, aligned, number

MODELS = ("medium", "large-v3")
MOST_MS = 300.0
SECONDS = 6.0
FIRST, LIMIT, STEPS = 16, 4096, 3


@dataclass(frozen=True, slots=True)
class Row:
    """`load` is that of `callers`, the most that were held; None where one was too many already."""

    model: str
    callers: int
    alone_ms: float
    load: Load | None


async def most(held: Callable[[int], Awaitable[bool]], first: int, limit: int, steps: int) -> int:
    """The largest number that was held: `first`, doubled while it is held (up to `limit`) or halved until it is; then
    the gap is halved `steps` times. 0 where not even one is."""
    low, high = 0, first
    while high <= limit and await held(high):
        low, high = high, 2 * high
    while not low and high > 1:
        high //= 2
        if await held(high):
            low, high = high, 2 * high
    for _ in range(steps):
        if high - low < 2 or high > limit:
            break
        middle = (low + high) // 2
        if await held(middle):
            low = middle
        else:
            high = middle
    return low


async def measure(name: str, folder: Path, seed: int) -> Row:
    loads: dict[int, Load] = {}
    async with ModelShelf(ModelOptions(str(folder), device="cuda"), lambda: 0.0) as shelf, shelf.borrow() as engine:
        alone_ms = engine.decode_ms

        async def held(callers: int) -> bool:
            load = loads[callers] = await serve(engine, arrivals(callers * DECODES / TURN_S, SECONDS, seed))
            return not load.refused and load.wait.p95 is not None and load.wait.p95 < MOST_MS

        callers = await most(held, FIRST, LIMIT, STEPS)
    return Row(name, callers, alone_ms, loads.get(callers))


def report(models: Path, seed: int) -> Report:
    if trouble := gpu_trouble():
        return Report(f"not measured: {trouble}", [], {"trouble": trouble})
    rows = [asyncio.run(measure(name, random_model(models, name), seed)) for name in MODELS]
    said = [
        f"callers: each with {DECODES:g} decodes every {TURN_S:g} s, at random, full windows, 12 words; the most at "
        f"which 95 of 100 have their words within {MOST_MS:.0f} ms, over {SECONDS:g} s",
    ]
    return Report(table(rows), said, [asdict(row) for row in rows])


def table(rows: list[Row]) -> str:
    lines = [["model", "callers", "done /s", "p50 ms", "p95 ms", "batch", "alone ms"]]
    for row in rows:
        load = row.load
        cells = (load.per_s, load.wait.p50, load.wait.p95, load.batch) if load else (None,) * 4
        numbers = [number(cell, digits) for cell, digits in zip(cells, (1, 0, 0, 1), strict=True)]
        lines.append([row.model, str(row.callers), *numbers, number(row.alone_ms)])
    return aligned(lines)
