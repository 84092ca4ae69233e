"""What a part of the recognition bench has to tell, and how it is laid out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Report:
    """`figures` go into the JSON. `faults`: what makes the part worthless, such as a protocol broken by the client."""

    table: str
    remarks: Sequence[str]
    figures: Any
    faults: Sequence[str] = field(default=())


def aligned(lines: Sequence[Sequence[str]], texts: int = 1) -> str:
    """The first `texts` columns to the left, the others to the right."""
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    sides = ["<" if at < texts else ">" for at in range(len(widths))]
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)).rstrip()
        for line in lines
    )


def number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def times(value: float | None, base: float | None) -> str:
    """`value` as a multiple of `base`."""
    ratio = ratio_of(value, base)
    return "-" if ratio is None else f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.0f}×"


def ratio_of(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base
