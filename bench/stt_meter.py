"""Who used the processor while a part ran: this bench, or others."""

import os
import resource
import time
from dataclasses import dataclass

from bench import machine

BUSY_SHARE = 0.1
"""Others took more of all cores than this: the milliseconds are theirs, too."""
HIGH_LOAD = 0.5
"""Of the number of cores."""


@dataclass(frozen=True, slots=True)
class Use:
    """In cores: 0.5 is half of one core for the whole time."""

    seconds: float
    cores: int
    own: float
    others: float

    @property
    def disturbed(self) -> bool:
        return self.others > BUSY_SHARE * self.cores

    def __str__(self) -> str:
        mark = "! " if self.disturbed else ""
        own = f"this bench used {self.own:.1f} of {self.cores} cores"
        return f"{mark}{self.seconds:.0f} s; {own}, others {self.others:.1f}"


class Meter:
    """From its making. Processes that this one started count when they have ended."""

    def __init__(self) -> None:
        self._cores = sorted(os.sched_getaffinity(0))
        self._began = self._now()

    def use(self) -> Use:
        (began_s, own, busy), (now_s, own_now, busy_now) = self._began, self._now()
        seconds = max(1e-9, now_s - began_s)
        others = max(0.0, busy_now - busy - (own_now - own))
        return Use(seconds, len(self._cores), (own_now - own) / seconds, others / seconds)

    def _now(self) -> tuple[float, float, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        own = time.process_time() + children.ru_utime + children.ru_stime
        return time.perf_counter(), own, sum(machine.core_busy_s(core) for core in self._cores)


def load_remark(load: float, cores: int) -> str:
    """Of the load average at the start; empty where the machine is quiet."""
    if load <= HIGH_LOAD * cores:
        return ""
    return (
        f"! the load average is {load:.1f} on {cores} cores: others are at work, and times are too long. "
        "Compare only what one run measured, or repeat at a quiet moment."
    )
