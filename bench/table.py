"""The one table, and what must be said beneath it."""

from collections.abc import Sequence

from bench.figures import Row, Spread

AIM_US_PER_FRAME = 150
AIM_BEYOND_P95_MS = 25
AIM_CALLS = 50

_HEADS = (
    ("", "calls"),
    ("CPU µs", "/frame"),
    ("CPU ms", "/call-s"),
    ("core", "%"),
    ("first audio, ms", "heard p50/p95/max"),
    ("first audio, ms", "beyond p50/p95/max"),
    ("its server", "p50/p95"),
    ("clear, ms", "onset p50/p95"),
    ("clear, ms", "beyond p95"),
    ("under-", "runs"),
    ("no", "answer"),
    ("RSS KB", "/call"),
    ("late", "p99 ms"),
)


def table(rows: Sequence[Row]) -> str:
    cells = [[upper for upper, _ in _HEADS], [lower for _, lower in _HEADS]]
    names = ["", "server"]
    for row in rows:
        names.append(row.server + ("*" if row.disturbed else "") + ("!" if row.void else ""))
        cells.append(_cells(row))
        if (below := _partner(row, rows)) is not None:
            names.append("  × floor")
            cells.append(_ratios(row, below))
    widths = [max(len(line[at]) for line in cells) for at in range(len(_HEADS))]
    first = max(len(name) for name in names)
    return "\n".join(
        f"{name:<{first}}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        for name, line in zip(names, cells, strict=True)
    )


def remarks(rows: Sequence[Row]) -> list[str]:
    """The aims, whether they are met, and whatever makes the figures doubtful."""
    said = []
    for row in rows:
        who = f"{row.server} at {row.calls}"
        if row.void:
            said.append(f"! {who}: VOID, {row.void}")
        if row.disturbed:
            said.append(
                f"* {who}: others took {row.foreign_share:.0%} of the server's core: its milliseconds are theirs"
            )
        said += [f"  {who}: {fault}" for fault in row.faults]
    said += _aims([row for row in rows if row.server == "malgil"])
    return said


def _aims(rows: Sequence[Row]) -> list[str]:
    said = []
    for row in rows:
        met = "met" if row.cpu_us_per_frame < AIM_US_PER_FRAME else "MISSED"
        said.append(f"aim: under {AIM_US_PER_FRAME} µs a frame, at {row.calls}: {row.cpu_us_per_frame:.0f} µs, {met}")
        p95 = row.beyond.p95
        if row.calls == AIM_CALLS and p95 is not None:
            met = "not judged" if row.disturbed or row.void else "met" if p95 < AIM_BEYOND_P95_MS else "MISSED"
            said.append(
                f"aim: first audio under {AIM_BEYOND_P95_MS} ms beyond the endpoint, p95 at {AIM_CALLS} calls: "
                f"{p95:.1f} ms, {met}"
            )
    return said


def _cells(row: Row) -> list[str]:
    return [
        str(row.calls),
        f"{row.cpu_us_per_frame:.1f}",
        f"{row.cpu_ms_per_call_s:.2f}",
        f"{row.core_share:.0%}",
        _three(row.heard, 0),
        _three(row.beyond, 1),
        _number(row.in_server.p50, 0) + "/" + _number(row.in_server.p95, 0) if row.in_server.count else "",
        _number(row.clear_onset.p50, 0) + "/" + _number(row.clear_onset.p95, 0),
        _number(row.clear_beyond.p95, 1),
        str(row.underruns),
        str(row.unanswered),
        f"{row.rss_kb_per_call:.0f}",
        f"{row.late_p99_ms:.1f}",
    ]


def _ratios(row: Row, floor: Row) -> list[str]:
    share = f"{row.cpu_us_per_frame / floor.cpu_us_per_frame:.1f}×"
    cells = [""] * len(_HEADS)
    cells[1] = cells[2] = share
    doubtful = any(one.void or one.disturbed for one in (row, floor))
    if not doubtful and row.beyond.p95 is not None and floor.beyond.p95:
        cells[5] = f"{row.beyond.p95 / floor.beyond.p95:.1f}× p95"
    return cells


def _partner(row: Row, rows: Sequence[Row]) -> Row | None:
    if row.server == "floor":
        return None
    return next((other for other in rows if other.server == "floor" and other.calls == row.calls), None)


def _three(spread: Spread, digits: int) -> str:
    return "/".join(_number(value, digits) for value in (spread.p50, spread.p95, spread.max))


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
