"""What importing the package does: nothing but to tell two libraries how to behave."""

import os
import subprocess
import sys

NAMES = ("ORT_DISABLE_TELEMETRY", "OPENBLAS_NUM_THREADS")


def test_no_library_reports_to_its_maker_or_spins() -> None:
    program = f"import app, os; print(*(os.environ[name] for name in {NAMES}))"
    bare = {name: value for name, value in os.environ.items() if name not in NAMES}
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True, env=bare
    )
    assert told.stdout.split() == ["1", "1"]
