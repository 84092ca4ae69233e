"""What serves, for people: a row of the start table and of /ready."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InUse:
    """What serves, why, and what to set for better."""

    name: str
    why: str
    better: str = ""


Row = Callable[[], InUse]
