#!/usr/bin/env python3
"""Shows that each of the four old faults has a cure, and that its test would notice if the cure were gone.

    make prove

For each cure the tree is copied into a temporary folder, the cure is taken out of the copy, and the test that
watches over it is run there: it must turn red. The working tree is never touched. Exit code 1 if a test stays green
without its cure, is red with it, or if the text of a cure is no longer found.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
APP = "backend/app"
OLD_FAULTS = "tests/e2e/test_old_faults.py"
WEBHOOKS = "tests/api/test_twilio.py"
AT_ONCE = 2
TEST_S = 60
FAILED = 1
"""What pytest exits with when a test failed; anything above is a run that never got so far."""


@dataclass(frozen=True, slots=True)
class Without:
    """One place of a cure: `old` stands there once, and `new` is the code as it was before the cure."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Cure:
    fault: str
    name: str
    places: tuple[Without, ...]
    test: str


CREDENTIALS = "1 credentials"
ONE_ANSWER = "2 one answer"
HANG_UP = "3 hang-up"
SENT_AFTER = "4 sent after"

CURES = (
    Cure(
        CREDENTIALS,
        "the chosen voice must have its key",
        (Without(f"{APP}/config.py", '_require("ELEVENLABS_API_KEY"', '("ELEVENLABS_API_KEY"'),),
        f"{OLD_FAULTS}::test_a_voice_without_its_key_stops_the_start",
    ),
    Cure(
        CREDENTIALS,
        "production must have Twilio's token",
        (
            Without(
                f"{APP}/config.py",
                '        _require("TWILIO_AUTH_TOKEN", self.twilio_auth_token, why)\n        _require("MEDIA',
                '        _require("MEDIA',
            ),
        ),
        f"{OLD_FAULTS}::test_production_without_a_credential_does_not_start[TWILIO_AUTH_TOKEN]",
    ),
    Cure(
        ONE_ANSWER,
        "a recogniser's stream that ends is opened again",
        (
            Without(
                f"{APP}/services/ai_call/listening.py",
                "            await asyncio.sleep(wait_s)\n            self._begin_again()\n",
                "            return\n",
            ),
        ),
        f"{OLD_FAULTS}::test_ten_utterances_are_answered_by_a_recogniser_that_stops_after_each",
    ),
    Cure(
        ONE_ANSWER,
        "a stream that gave words was no failure",
        (Without(f"{APP}/services/ai_call/succession.py", "if end.useful or end.lived_s >=", "if end.lived_s >="),),
        f"{OLD_FAULTS}::test_ten_utterances_are_answered_by_a_recogniser_that_stops_after_each",
    ),
    Cure(
        ONE_ANSWER,
        "the recogniser begins each utterance afresh",
        (
            Without(
                f"{APP}/asr/stream.py",
                "        self._begin()\n        self._changed.set()\n",
                "        self._changed.set()\n",
            ),
        ),
        f"{OLD_FAULTS}::test_ten_utterances_are_answered_on_real_recognition",
    ),
    Cure(
        HANG_UP,
        "to ask for a call that has ended is normal",
        (
            Without(
                f"{APP}/services/ai_call/switchboard.py",
                "    def find(self, call_sid: str) -> CallSession | None:\n        return self._live.get(call_sid)\n",
                "    def find(self, call_sid: str) -> CallSession | None:\n        return self._live[call_sid]\n",
            ),
        ),
        f"{WEBHOOKS}::test_the_status_callback_is_204_whatever_it_says",
    ),
    Cure(
        HANG_UP,
        "the end of a call ends its tasks",
        (
            Without(
                f"{APP}/services/ai_call/session.py",
                "                self._release()\n        return self._ended\n",
                "        return self._ended\n",
            ),
        ),
        f"{OLD_FAULTS}::test_300_hang_ups_at_every_stage_leave_one_record_each_and_nothing_else",
    ),
    Cure(
        HANG_UP,
        "the record is finished after the call, whatever ended it",
        (
            Without(
                f"{APP}/services/ai_call/session.py",
                '            group.create_task(_guarded("record", self._parts.recorder.close(reason, utc_now())))\n',
                "",
            ),
        ),
        f"{OLD_FAULTS}::test_300_hang_ups_at_every_stage_leave_one_record_each_and_nothing_else",
    ),
    Cure(
        HANG_UP,
        "a socket that refuses a send is the end of the call, not of the program",
        (
            Without(
                f"{APP}/telephony/twilio_line.py",
                "            except (WebSocketDisconnect, RuntimeError, OSError) as error:\n                log.debug",
                "            except ArithmeticError as error:\n                log.debug",
            ),
        ),
        "tests/telephony/test_twilio_line.py::test_a_socket_that_refuses_is_neither_sent_to_nor_closed",
    ),
    Cure(
        SENT_AFTER,
        "`stop` ends the stream for sending too",
        (
            Without(
                f"{APP}/telephony/twilio_line.py",
                "            case Stopped():\n                return True\n",
                "            case Stopped():\n                return False\n",
            ),
            Without(
                f"{APP}/telephony/media_stream.py",
                "        self.close()\n        return Stopped()\n",
                "        return Stopped()\n",
            ),
        ),
        f"{OLD_FAULTS}::test_nothing_is_sent_after_a_stop",
    ),
    Cure(
        SENT_AFTER,
        "a socket that is gone is not closed again",
        (
            Without(
                f"{APP}/telephony/twilio_line.py",
                "                    self._closed = self._gone = self._disconnected = True\n",
                "                    self._gone = True\n",
            ),
        ),
        f"{OLD_FAULTS}::test_nothing_is_sent_after_the_socket_is_gone[close]",
    ),
    Cure(
        SENT_AFTER,
        "nor one that went before the call began",
        (Without(f"{APP}/api/twilio.py", "        if violation.close_code != PEER_LEFT:\n", "        if True:\n"),),
        "tests/e2e/test_bad_input.py::test_who_hangs_up_before_the_start_is_let_go",
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None).parse_args(arguments)
    tests = list(dict.fromkeys(cure.test for cure in CURES))
    print(f"{len(CURES)} cures, {len(tests)} tests; a minute or two.", flush=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        with_cure = dict(zip(tests, pool.map(lambda test: run(test, ()), tests), strict=True))
        without = list(pool.map(lambda cure: run(cure.test, cure.places), CURES))
    rows = [
        (cure.fault, cure.name, cure.places[0].file, cure.test, red, with_cure[cure.test])
        for cure, red in zip(CURES, without, strict=True)
    ]
    print_table(rows)
    bad = [row for row in rows if row[4:] != ("red", "green")]
    print("\nEvery cure is needed." if not bad else f"\n{len(bad)} of {len(rows)} are not as they should be.")
    return 1 if bad else 0


def run(test: str, places: Sequence[Without]) -> str:
    """The test's colour in a copy of the tree without these places, or what stood in the way."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("backend", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for place in places:
            if problem := take_out(copy / place.file, place):
                return problem
        return colour(test, copy)


def take_out(file: Path, place: Without) -> str:
    """An empty string, or why it cannot be done."""
    source = file.read_text(encoding="utf-8")
    if source.count(place.old) != 1:
        return f"its text stands in {place.file} {source.count(place.old)} times"
    patched = source.replace(place.old, place.new)
    compile(patched, str(file), "exec")  # a typing error would turn every test red
    file.write_text(patched, encoding="utf-8")
    return ""


def colour(test: str, copy: Path) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--timeout={TEST_S}", test]
    environment = os.environ | {"PYTHONPATH": str(copy / "backend"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return "green"
    return "red" if done.returncode == FAILED else f"pytest could not run it: exit {done.returncode}"


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    head = ("fault", "cure", "file", "test", "without cure", "with cure")
    rows = [(*row[:2], row[2].removeprefix(f"{APP}/"), row[3].partition("::")[2], *row[4:]) for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, tuple("-" * width for width in widths), *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    raise SystemExit(main())
