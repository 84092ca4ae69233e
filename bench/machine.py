"""What Linux tells of processes and cores."""

import os
import time
from pathlib import Path

_CPUCLOCK_SCHED = 2


def cores() -> tuple[int, int]:
    """One for the server and one for the callers: the same where there is only one."""
    mine = sorted(os.sched_getaffinity(0))
    return mine[0], mine[-1]


def pin(core: int) -> None:
    """This process and what it starts."""
    os.sched_setaffinity(0, {core})


def cpu_s(pid: int) -> float:
    """Seconds of CPU, user and system, of all threads of a process. To the nanosecond, unlike /proc: this is
    clock_getcpuclockid(3), which Python lacks."""
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def rss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def core_busy_s(core: int) -> float:
    """Seconds in which a core did anything for anybody, the hypervisor's other guests included."""
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(tick) for tick in ticks[:8])
            return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return 0.0


def describe() -> dict[str, str]:
    """The processor and the kernel: figures of two machines are not to be compared."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {"processor": model, "cores": str(os.cpu_count()), "kernel": os.uname().release}
