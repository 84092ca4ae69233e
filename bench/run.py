"""Starts a server and its callers, each on a core of its own, and brings back the row."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench import machine
from bench.callers import Plan
from bench.ears import EarName
from bench.figures import Row

ROOT = Path(__file__).parents[1]
START_S = 30.0
STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    module: str
    ears: EarName
    has_folder: bool


OURS = Server("malgil", "bench.server", "silero", True)
FLOOR = Server("floor", "bench.floor", "loudness", False)


def measure(server: Server, calls: int, window_s: float) -> Row:
    """One server under so many calls. Raises RuntimeError when either process fails."""
    server_core, caller_core = machine.cores()
    with _serving(server, server_core) as (pid, where, log):
        plan = Plan(
            server.name,
            where["url"],
            where["stream_url"],
            server.ears,
            pid,
            server_core,
            caller_core,
            calls,
            window_s,
        )
        row = Row.of_json(_output("bench.callers", json.dumps(asdict(plan)), timeout_s=60 + calls + 4 * window_s))
        return _with_log(row, log)


@contextmanager
def _serving(server: Server, core: int) -> Iterator[tuple[int, dict[str, str], Path]]:
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        arguments = [str(core), folder] if server.has_folder else [str(core)]
        process = subprocess.Popen(
            [sys.executable, "-m", server.module, *arguments],
            cwd=folder,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=log,
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{server.name} did not start:\n{Path(log.name).read_text(encoding='utf-8')}")
            yield process.pid, json.loads(line), Path(log.name)
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def _output(module: str, given: str, timeout_s: float) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=given,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=_environment(),
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def _environment() -> dict[str, str]:
    """Nothing of this shell's settings reaches the server."""
    kept = {name: value for name in ("PATH", "HOME", "LANG", "TMPDIR") if (value := os.environ.get(name))}
    return kept | {"PYTHONPATH": f"{ROOT / 'backend'}{os.pathsep}{ROOT}", "PYTHONUTF8": "1"}


def _with_log(row: Row, log: Path) -> Row:
    """What the server complained of counts as a fault."""
    complaints = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            entry = {"level": "error", "event": line}
        if entry.get("level") not in ("info", "debug"):
            complaints.append(f"in the log: {entry.get('event')}")
    return replace(row, faults=[*row.faults, *sorted(set(complaints))])
