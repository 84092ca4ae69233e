"""`python -m bench` (`make bench`): the table. `python -m bench pieces`: where the time of a frame goes."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench import machine
from bench.run import FLOOR, OURS, measure
from bench.table import remarks, table

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.what == "pieces":
        from bench.pieces import report

        print(report())
        return 0
    rows = []
    for calls in options.calls:
        for server in (FLOOR, OURS):
            print(f"{server.name} under {calls} calls …", file=sys.stderr, flush=True)
            rows.append(measure(server, calls, options.seconds))
    rows.sort(key=lambda row: (row.server, row.calls), reverse=False)
    print(table(rows))
    print("\n".join(remarks(rows)))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine.describe(), "rows": [asdict(row) for row in rows]}
    options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 1 if any(row.void or row.faults for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("calls", "pieces"), default="calls")
    parser.add_argument("--calls", type=_counts, default=(1, 10, 50), metavar="N,N,…", help="default 1,10,50")
    parser.add_argument("--seconds", type=float, default=15.0, help="measured while all calls talk (default 15)")
    parser.add_argument(
        "--json", type=Path, default=RESULTS / "latest.json", metavar="FILE", help="default bench/results/latest.json"
    )
    return parser


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(","))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError("a bench has one call at least")
    return counts


if __name__ == "__main__":
    sys.exit(main())
