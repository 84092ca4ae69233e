"""`python -m bench.stt` (`make bench-stt`): the recognisers side by side, and what recognition costs on this machine.

Five parts, one table each: calls (from the end of speech to the words, the original's way against ours), windows (a
decode by the encoder's window), arrivals (batched against one by one), sizes (tiny, base and small without a download),
gpu (medium and large-v3, where there is one). Compare ratios, and what one run measured; never bare milliseconds of two
machines. Everything is seeded but the machine.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as app.cli does, before numpy is imported

from app.log import configure_logging
from bench import machine, stt_arrivals, stt_calls, stt_gpu, stt_sizes, stt_windows
from bench.stt_meter import Meter, load_remark
from bench.stt_table import Report

RESULTS = Path(__file__).parent / "results"
TITLES = {
    "calls": "From the end of speech to the final words",
    "windows": "A decode, by the encoder's window",
    "arrivals": "Utterances at random, batched against one by one",
    "sizes": "The true sizes, with random weights",
    "gpu": "Callers held on a GPU",
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    configure_logging("WARNING", console=True)
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    about = machine.describe()
    print(f"{about['processor']}, {cores} cores of {about['cores']}, load average {load:.1f}, seed {options.seed}")
    if remark := load_remark(load, cores):
        print(remark)
    told: dict[str, Any] = {}
    faults: list[str] = []
    with ExitStack() as kept:
        models = options.models or Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="bench-stt-")))
        parts = _parts(options, models)
        for name in options.parts or parts:
            print(f"{name} …", file=sys.stderr, flush=True)
            meter = Meter()
            report = parts[name]()
            use = meter.use()
            print(f"\n{name}: {TITLES[name]} ({use})\n{report.table}", flush=True)
            print("".join(f"  {remark}\n" for remark in report.remarks), end="", flush=True)
            faults += [f"{name}: {fault}" for fault in report.faults]
            told[name] = {"use": asdict(use), "figures": report.figures, "faults": list(report.faults)}
    print("".join(f"FAULT: {fault}\n" for fault in faults), end="")
    result = {"machine": about, "load_average": load, "seed": options.seed, "parts": told}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    return 1 if faults else 0


def _parts(options: argparse.Namespace, models: Path) -> Mapping[str, Callable[[], Report]]:
    return {
        "calls": lambda: stt_calls.report(models, options.seed, options.calls),
        "windows": lambda: stt_windows.report(models),
        "arrivals": lambda: stt_arrivals.report(models, options.seed, options.seconds),
        "sizes": lambda: stt_sizes.report(models),
        "gpu": lambda: stt_gpu.report(models, options.seed),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.stt", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", type=_part, metavar="PART", help=f"of {', '.join(TITLES)} (default: all)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calls", type=int, metavar="N", help="at once, in `calls` (default: all recordings, 19)")
    seconds = stt_arrivals.SECONDS
    parser.add_argument("--seconds", type=float, default=seconds, help=f"of each run in `arrivals` ({seconds:g})")
    parser.add_argument("--models", type=Path, metavar="DIR", help="where random models are kept (default: nowhere)")
    parser.add_argument("--json", type=Path, default=RESULTS / "stt.json", metavar="FILE")
    return parser


def _part(name: str) -> str:
    if name not in TITLES:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(TITLES)}")
    return name


if __name__ == "__main__":
    sys.exit(main())
