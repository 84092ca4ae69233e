"""Real child processes with the real demo model, and what becomes of a decode when its child dies."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.asr.engine import DecodeEngine, Kind
from app.asr.models import DEMO_FOLDER
from app.asr.recogniser import Decoded, Recogniser, Request
from app.asr.worker import WorkerOptions, WorkerProcess
from app.errors import ConfigError, SttError
from tests.asr import scripted_child
from tests.asr.sample_calls import RATE, sample_calls, spoken

HELLO = "안녕하세요."
THANKS = "감사합니다."

Start = Callable[..., WorkerProcess]


def asking(text: str) -> Request:
    return Request(spoken(text).pcm, RATE, "ko")


def words(decoded: list[Decoded]) -> list[str]:
    return [one.text for one in decoded]


def same_batch(decoder: Recogniser | WorkerProcess, requests: list[Request]) -> list[list[bool]]:
    keys = [decoder.batch_key(request) for request in requests]
    return [[one == other for other in keys] for one in keys]


def command(folder: Path) -> tuple[str, ...]:
    return (sys.executable, "-P", scripted_child.__file__, str(folder))


def born(folder: Path) -> list[int]:
    pids = folder / "pids"
    return [int(pid) for pid in pids.read_text().split()] if pids.exists() else []


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(happened: Callable[[], object], bound_s: float = 20.0) -> None:
    """For what another process does: there is nothing to wait on but its traces."""
    end = time.monotonic() + bound_s
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A worker whose children obey the plan, one line each."""
    started: list[WorkerProcess] = []

    def load(*plan: str, workers: int = 1, **limits: Any) -> WorkerProcess:
        (tmp_path / "plan").write_text("\n".join([*plan, "well"]))
        options = WorkerOptions(
            **{"load_s": 30.0, "answer_s": 20.0, "wait_s": 20.0, **limits}, command=command(tmp_path)
        )
        started.append(WorkerProcess.load(DEMO_FOLDER, "demo", workers=workers, limits=options))
        return started[-1]

    yield load
    for worker in started:
        worker.close()
    assert not [pid for pid in born(tmp_path) if is_there(pid)]


# ---------------------------------------------------------------- well


def test_a_child_hears_what_this_process_hears() -> None:
    here = Recogniser.load(DEMO_FOLDER, "demo")
    worker = WorkerProcess.load(DEMO_FOLDER, "demo", workers=2)
    try:
        assert (worker.name, worker.device, worker.compute_type) == ("demo", "cpu", "int8")
        assert (worker.workers, worker.max_batch, worker.restarts, worker.trouble) == (2, here.max_batch, 0, "")
        assert worker.warm_up() > 0
        requests = [Request(call.pcm, RATE, call.language, speech_ms=900) for call in sample_calls()[::6]]
        requests += [Request(b"", RATE, "ko"), Request(bytes(2 * RATE * 4), RATE, "ko")]
        assert same_batch(worker, requests) == same_batch(here, requests)
        for request in requests:
            [there] = worker.decode([request], beam=2)
            [expected] = here.decode([request], beam=2)
            assert (there.text, there.language) == (expected.text, expected.language)
            assert (there.dropped, there.window_s) == (expected.dropped, expected.window_s)
            assert there.avg_logprob == pytest.approx(expected.avg_logprob, abs=1e-3)
    finally:
        worker.close()


def test_a_child_takes_a_first_look_and_a_second(start: Start) -> None:
    worker = start()
    noise = Request(random.Random(1).randbytes(2 * RATE), RATE, "ko", look="first")
    here = Recogniser.load(DEMO_FOLDER, "demo")
    [expected] = here.decode([noise], beam=2)
    [first] = worker.decode([noise], beam=2)
    [second] = worker.decode([replace(asking(HELLO), look="second")], beam=2)
    assert (first.suspect, first.window_s, first.redecoded) == (expected.suspect, 5, False)
    assert (second.text, second.suspect, second.window_s, second.redecoded) == (HELLO, False, 30, True)
    assert worker.batch_key(replace(noise, look="second")) != worker.batch_key(noise)


def test_several_are_decoded_at_once_and_in_batches(start: Start) -> None:
    worker = start(workers=2)
    with ThreadPoolExecutor(4) as pool:
        pairs = [[asking(HELLO), asking(THANKS)], [asking(THANKS)]] * 4
        heard = list(pool.map(lambda requests: words(worker.decode(requests, beam=1)), pairs))
    assert heard == [[HELLO, THANKS], [THANKS]] * 4
    assert worker.restarts == 0


def test_what_only_fails_is_an_error_and_no_reason_to_restart(start: Start) -> None:
    worker = start("silly")
    with pytest.raises(SttError, match="ValueError: nobody knows this language"):
        worker.decode([asking(HELLO)], beam=1)
    assert words(worker.decode([asking(HELLO)], beam=1)) == [HELLO]
    assert worker.restarts == 0


# ---------------------------------------------------------------- a child that fails once


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("oom", "CUDA failed with error out of memory"),
        ("cuda", "illegal memory access"),
        ("die", "killed by signal 9"),
    ],
)
def test_a_decode_is_tried_once_more_in_another_child(start: Start, fault: str, why: str) -> None:
    worker = start(f"well {fault}")
    with capture_logs() as logs:
        assert words(worker.decode([asking(HELLO)], beam=2)) == [HELLO]
        assert words(worker.decode([asking(THANKS)], beam=2)) == [THANKS]
    assert (worker.restarts, worker.trouble) == (1, "")
    told = [log for log in logs if log["event"] == "x the recogniser's process is started again"]
    assert len(told) == 1
    assert why in told[0]["why"]
    assert not [log for log in logs if THANKS in repr(log)]


def test_a_child_that_is_stopped_is_killed_when_its_time_is_over(start: Start) -> None:
    worker = start("stop", answer_s=1.0)
    assert words(worker.decode([asking(HELLO)], beam=2)) == [HELLO]
    assert worker.restarts == 1


def test_a_child_that_is_stopped_does_not_hold_whoever_writes_more_than_a_pipe_takes(
    start: Start, tmp_path: Path
) -> None:
    worker = start("well", answer_s=1.0)
    os.kill(born(tmp_path)[0], signal.SIGSTOP)
    silence = Request(bytes(2 * RATE * 25), RATE, "ko")
    assert words(worker.decode([silence], beam=1)) == [""]
    assert worker.restarts == 1


def test_those_beside_it_are_tried_once_more_too(start: Start) -> None:
    worker = start("well stop", workers=2, answer_s=1.0)
    with ThreadPoolExecutor(2) as pool:
        heard = list(pool.map(lambda text: words(worker.decode([asking(text)], beam=1)), [HELLO, THANKS]))
    assert heard == [[HELLO], [THANKS]]
    assert worker.restarts == 1


async def test_what_was_too_many_for_the_memory_is_decoded_one_by_one(start: Start) -> None:
    worker = await asyncio.to_thread(start, "crowd crowd", "crowd crowd crowd")
    engine = DecodeEngine(worker)
    engine.start()
    jobs = [engine.submit(asking(text), Kind.FINAL) for text in (HELLO, THANKS, HELLO)]
    assert [(await job.future).text for job in jobs] == [HELLO, THANKS, HELLO]
    await engine.aclose()
    assert worker.restarts == 1


def test_a_child_that_dies_with_nothing_to_do_is_replaced_before_anybody_asks(start: Start, tmp_path: Path) -> None:
    worker = start()
    os.kill(born(tmp_path)[0], signal.SIGKILL)
    until(lambda: worker.restarts == 1 and not worker.trouble)
    assert words(worker.decode([asking(HELLO)], beam=1)) == [HELLO]


def test_a_signal_to_the_whole_group_does_not_end_it(start: Start, tmp_path: Path) -> None:
    worker = start()
    os.kill(born(tmp_path)[0], signal.SIGINT)
    os.kill(born(tmp_path)[0], signal.SIGTERM)
    assert words(worker.decode([asking(HELLO)], beam=1)) == [HELLO]
    assert worker.restarts == 0


BABBLER = """
import json, struct, sys
from pathlib import Path
from app.asr.worker_child import read_frame, write_frame
marker = Path(sys.argv[1]) / "babbled"
read_frame(sys.stdin.buffer)
write_frame(sys.stdout.buffer, {"ready": {"max_batch": 1, "decode_ms": 1.0}})
while (frame := read_frame(sys.stdin.buffer)) is not None:
    if not marker.exists():
        marker.touch()
        sys.stdout.buffer.write(struct.pack(">II", 2, 0) + b"??")
        sys.stdout.buffer.flush()
    else:
        write_frame(sys.stdout.buffer, {"id": frame[0]["id"], "decoded": [{"text": "well", "language": "ko"}]})
"""


def test_a_child_that_babbles_is_replaced(tmp_path: Path) -> None:
    program = tmp_path / "babbler.py"
    program.write_text(BABBLER)
    options = WorkerOptions(command=(sys.executable, "-P", str(program), str(tmp_path)), answer_s=1.0)
    worker = WorkerProcess.load(tmp_path, "babbler", limits=options)
    try:
        with capture_logs() as logs:
            assert words(worker.decode([Request(b"..", RATE, "ko")], beam=1)) == ["well"]
        assert (worker.restarts, worker.trouble) == (1, "")
        again = [log for log in logs if log["event"] == "x the recogniser's process is started again"]
        assert [log["why"] for log in again] == ["nobody understands what it says: JSONDecodeError"]
    finally:
        worker.close()


# ---------------------------------------------------------------- children that fail again


def test_what_fails_twice_is_an_error_of_that_decode_alone(start: Start) -> None:
    worker = start("oom", "oom")
    with pytest.raises(SttError, match="failed twice at this: RuntimeError: CUDA failed") as refusal:
        worker.decode([asking(HELLO)], beam=1)
    assert (refusal.value.provider, refusal.value.kind, refusal.value.retryable) == ("local", "worker", True)
    assert words(worker.decode([asking(THANKS)], beam=1)) == [THANKS]
    assert worker.restarts == 2


def test_children_that_cannot_start_make_decodes_fail_at_once(start: Start) -> None:
    worker = start("die", *["unloaded"] * 3, backoff_s=60.0)
    with pytest.raises(SttError, match=r"cannot decode now: .*the script says that it cannot be loaded"):
        worker.decode([asking(HELLO)], beam=1)
    began = time.monotonic()
    with pytest.raises(SttError, match="cannot decode now"):
        worker.decode([asking(HELLO)], beam=1)
    assert time.monotonic() - began < 1.0
    assert "the script says that it cannot be loaded" in worker.trouble


def test_a_start_is_tried_again_and_again_and_then_all_is_well(start: Start, tmp_path: Path) -> None:
    worker = start("die", "dead", "unloaded", "dead", backoff_s=0.01)
    with pytest.raises(SttError, match="cannot decode now"):
        worker.decode([asking(HELLO)], beam=1)
    until(lambda: not worker.trouble)
    assert words(worker.decode([asking(HELLO)], beam=1)) == [HELLO]
    assert worker.restarts == len(born(tmp_path)) - 1 == 4


# ---------------------------------------------------------------- the first start, and the end


def test_a_model_that_is_not_there_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"MODEL_NAME: .* is not a complete faster-whisper model"):
        WorkerProcess.load(tmp_path, "mine")


def test_a_device_that_is_not_there_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"MODEL_NAME: demo cannot be used from .* on DEVICE=tpu"):
        WorkerProcess.load(DEMO_FOLDER, "demo", "tpu", "int8")


def test_a_first_child_that_dies_is_a_config_error(start: Start) -> None:
    with pytest.raises(ConfigError, match="could not be loaded in a process of its own: killed by signal 9"):
        start("dead")


def test_a_first_child_that_takes_too_long_is_a_config_error(start: Start) -> None:
    with pytest.raises(ConfigError, match=r"in a process of its own: not ready within 0\.01 s"):
        start(load_s=0.01)


def test_a_program_that_is_not_there_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"in a process of its own: .*No such file"):
        WorkerProcess.load(DEMO_FOLDER, "demo", limits=WorkerOptions(command=("/no/such/program",)))


def test_closing_ends_a_decode_that_is_on_its_way(start: Start, tmp_path: Path) -> None:
    worker = start("stop")
    errors: list[SttError] = []

    def decode() -> None:
        with pytest.raises(SttError) as refusal:
            worker.decode([asking(HELLO)], beam=1)
        errors.append(refusal.value)

    thread = threading.Thread(target=decode)
    thread.start()
    until(lambda: _state(born(tmp_path)[0]) == "T")
    worker.close()
    thread.join(5)
    assert [error.kind for error in errors] == ["closed"]
    with pytest.raises(SttError, match="is being closed"):
        worker.decode([asking(HELLO)], beam=1)


def _state(pid: int) -> str:
    """Linux: R, S, T (stopped) …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


PARENT = f"""
import sys
from pathlib import Path
from app.asr.worker import WorkerOptions, WorkerProcess
worker = WorkerProcess.load(Path({str(DEMO_FOLDER)!r}), "demo", limits=WorkerOptions(command=tuple(sys.argv[1:])))
print("loaded", flush=True)
sys.stdin.read()
"""


def test_it_ends_with_its_parent_even_when_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "plan").write_text("well")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *command(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"loaded\n"
        [pid] = born(tmp_path)
        assert is_there(pid)
        parent.kill()
    until(lambda: not is_there(pid) or _state(pid) == "Z")
