"""Which model serves when: real models (the demo one, under several names) and a real hub on loopback."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import faster_whisper.utils
import pytest
from structlog.testing import capture_logs

from app.asr import device
from app.asr.hub import HubLimits
from app.asr.models import DEMO_FOLDER, DEMO_NOTE, REPOSITORIES, ModelOptions, ModelShelf, ModelStatus
from app.asr.recogniser import Request
from app.asr.worker import WorkerOptions
from app.errors import ConfigError, InvalidState, SttError
from tests.asr import scripted_child
from tests.asr.sample_calls import RATE, spoken
from tests.emulators.model_hub import COMMIT, REPOSITORY, ModelHub

NOW = 1_800_000_000.0
HOUR = 3600.0


@pytest.fixture
async def model_hub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ModelHub]:
    """Holds what passes for `small`: the demo model."""
    async with ModelHub(DEMO_FOLDER) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield served
        assert not served.violations


def shelf(folder: Path, name: str = "auto", *, now: float = NOW, development: bool = True, **more: Any) -> ModelShelf:
    options = ModelOptions(
        name=name,
        device="cpu",
        development=development,
        data=folder / "data",
        cache=folder / "cache",
        **{"limits": HubLimits(listing_s=30.0, stall_s=30.0), **more},
    )
    return ModelShelf(options, clock=lambda: now)


def cache_small(folder: Path) -> None:
    """As huggingface_hub leaves a whole model."""
    repository = folder / "cache" / f"models--{REPOSITORY.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(DEMO_FOLDER, repository / "snapshots" / COMMIT)


async def hears(shelf: ModelShelf) -> str:
    async with shelf.borrow() as engine:
        return (await engine.decode(Request(spoken("안녕하세요.").pcm, RATE, "ko"))).text


def test_repositories_are_those_of_faster_whisper() -> None:
    assert {name: faster_whisper.utils._MODELS[name] for name in REPOSITORIES} == REPOSITORIES


# ---------------------------------------------------------------- models that are at hand


async def test_the_demo_model_serves_when_named_and_says_what_it_is(tmp_path: Path) -> None:
    async with shelf(tmp_path, "demo", development=False) as one:
        assert one.loaded
        assert not one.trouble
        assert one.status == ModelStatus("demo", True, "cpu", "int8", note=DEMO_NOTE)
        assert await hears(one) == "안녕하세요."
        await one.fetch()
        assert one.status.name == "demo"
    assert not one.loaded


async def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "my-whisper"
    shutil.copytree(DEMO_FOLDER, mine)
    async with shelf(tmp_path, str(mine), development=False) as one:
        assert (one.status.name, one.status.demo, one.status.note) == ("my-whisper", False, "")


async def test_a_name_that_is_nothing_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"MODEL_NAME: neither a folder nor one of auto, demo, tiny"):
        await shelf(tmp_path, "smal").open()


@pytest.mark.parametrize(("name", "development"), [("auto", True), ("auto", False), ("small", True), ("small", False)])
async def test_a_cached_model_is_taken_without_asking_the_hub(
    model_hub: ModelHub, tmp_path: Path, name: str, development: bool
) -> None:
    cache_small(tmp_path)
    async with shelf(tmp_path, name, development=development) as one:
        assert one.status == ModelStatus("small", False, "cpu", "int8")
        assert await hears(one) == "안녕하세요."
    assert not model_hub.requests


async def test_a_cached_model_that_is_broken_gives_way_to_the_demo_model_in_development(tmp_path: Path) -> None:
    cache_small(tmp_path)
    next((tmp_path / "cache").rglob("model.bin")).write_bytes(b"broken")
    async with shelf(tmp_path) as one:
        assert one.status.demo
        assert "MODEL_NAME: small cannot be used from" in one.status.note
    with pytest.raises(ConfigError, match="MODEL_NAME: small cannot be used from"):
        await shelf(tmp_path, development=False).open()


async def test_the_window_of_the_encoder_is_shown_and_used(tmp_path: Path) -> None:
    request = Request(spoken("안녕하세요.").pcm, RATE, "ko")
    async with shelf(tmp_path, "demo") as one:
        assert one.status.encoder_window == "auto"
        assert (await one.engine.decode(request)).window_s == 5
    async with shelf(tmp_path, "demo", encoder_window="full") as one:
        assert one.status.encoder_window == "full"
        assert (await one.engine.decode(request)).window_s == 30


async def test_nothing_is_served_before_it_is_open(tmp_path: Path) -> None:
    one = shelf(tmp_path)
    assert not one.loaded
    assert one.trouble == "no model is loaded"
    with pytest.raises(InvalidState):
        _ = one.status
    await one.aclose()


# ---------------------------------------------------------------- development: at once, then better


async def test_auto_serves_at_once_and_gives_the_right_model_to_new_calls(model_hub: ModelHub, tmp_path: Path) -> None:
    model_hub.faults.hold_after = 1_000_000
    with capture_logs() as logs:
        async with shelf(tmp_path) as one, asyncio.TaskGroup() as group:
            assert (one.status.name, one.status.fetching, one.status.progress) == ("demo", "small", 0.0)
            assert one.status.note.startswith(DEMO_NOTE)
            assert not model_hub.requests
            async with one.borrow() as old:
                fetching = group.create_task(one.fetch())
                await model_hub.faults.stuck.wait()
                assert await hears(one) == "안녕하세요."
                model_hub.faults.released.set()
                await fetching
                assert one.status == ModelStatus("small", False, "cpu", "int8")
                assert one.engine is not old
                async with one.borrow() as new:
                    assert new is one.engine
                decoded = await old.decode(Request(spoken("감사합니다.").pcm, RATE, "ko"))
                assert decoded.text == "감사합니다."
            assert not old.idle  # given back by its last call, it is closed
            assert one.engine.idle
    events = [log["event"] for log in logs if log["event"].startswith("- model download")]
    assert (events[0], events[-1]) == ("- model download started", "- model download finished")
    percents = [log["percent"] for log in logs if log["event"] == "- model download"]
    assert (percents[0], percents[-1], percents) == (0, 100, sorted(set(percents)))


async def test_progress_is_seen_while_it_is_made(model_hub: ModelHub, tmp_path: Path) -> None:
    model_hub.faults.hold_after = 1_000_000
    seen: list[float | None] = []
    async with shelf(tmp_path) as one, asyncio.TaskGroup() as group:
        fetching = group.create_task(one.fetch())
        await model_hub.faults.stuck.wait()
        async with asyncio.timeout(20):
            while not one.status.progress:  # noqa: ASYNC110 - it is made in another process
                await asyncio.sleep(0.02)
        seen.append(one.status.progress)
        model_hub.faults.released.set()
        await fetching
    assert seen[0] is not None
    assert 0 < seen[0] < 1


async def test_a_hub_that_cannot_be_reached_is_remembered_for_a_day(
    model_hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_hub.faults.status = 503
    async with shelf(tmp_path) as one:
        await one.fetch()
        assert (one.status.name, one.status.fetching, one.status.progress) == ("demo", None, None)
        assert "small was not fetched: the model hub cannot be reached" in one.status.note
    asked = len(model_hub.requests)
    model_hub.faults.status = 0

    async with shelf(tmp_path, now=NOW + 23 * HOUR) as one:
        assert one.status.fetching is None
        assert "less than a day ago the model hub cannot be reached" in one.status.note
        assert f"to try again now, delete {tmp_path / 'data' / 'model-hub.json'}" in one.status.note
        await one.fetch()
        assert one.status.name == "demo"
    assert len(model_hub.requests) == asked

    async with shelf(tmp_path, now=NOW + 25 * HOUR) as one:
        assert one.status.fetching == "small"
        await one.fetch()
        assert one.status.name == "small"
    assert not (tmp_path / "data" / "model-hub.json").exists()


async def test_a_hub_that_hangs_holds_nothing(model_hub: ModelHub, tmp_path: Path) -> None:
    model_hub.faults.hang = True
    async with shelf(tmp_path, limits=HubLimits(listing_s=0.3)) as one:
        assert await hears(one) == "안녕하세요."
        await one.fetch()
        assert await hears(one) == "안녕하세요."
        assert "the model hub does not answer" in one.status.note
    assert json.loads((tmp_path / "data" / "model-hub.json").read_text())["at"] == NOW


async def test_stopping_in_the_middle_of_a_download_is_no_failure_to_remember(
    model_hub: ModelHub, tmp_path: Path
) -> None:
    model_hub.faults.hold_after = 1_000_000
    async with shelf(tmp_path) as one, asyncio.TaskGroup() as group:
        fetching = group.create_task(one.fetch())
        await model_hub.faults.stuck.wait()
        fetching.cancel()
    model_hub.faults.hold_after = 0
    async with shelf(tmp_path) as one:
        assert one.status.fetching == "small"
        await one.fetch()
        assert one.status.name == "small"


async def test_a_fetched_model_that_cannot_be_loaded_leaves_the_demo_model_serving(
    model_hub: ModelHub, tmp_path: Path
) -> None:
    model_hub.folder = tmp_path / "broken"
    shutil.copytree(DEMO_FOLDER, model_hub.folder)
    (model_hub.folder / "model.bin").write_bytes(b"broken")
    async with shelf(tmp_path) as one:
        await one.fetch()
        assert one.status.demo
        assert "MODEL_NAME: small cannot be used" in one.status.note
        assert await hears(one) == "안녕하세요."


@pytest.mark.parametrize(
    "memory", ["", "{}", '{"model": "small"}', '{"model": "small", "at": "x", "reason": ""}', "[]"]
)
async def test_a_memory_that_cannot_be_read_is_no_memory(tmp_path: Path, memory: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "model-hub.json").write_text(memory)
    async with shelf(tmp_path) as one:
        assert one.status.fetching == "small"


async def test_a_folder_that_cannot_be_written_to_costs_only_the_memory(model_hub: ModelHub, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder should be")
    model_hub.faults.unknown = True
    async with shelf(tmp_path) as one:
        await one.fetch()
        assert "the model hub does not have it" in one.status.note


# ---------------------------------------------------------------- fetched before serving


@pytest.mark.parametrize(("name", "development"), [("auto", False), ("small", False), ("small", True)])
async def test_what_must_be_there_is_fetched_before_serving(
    model_hub: ModelHub, tmp_path: Path, name: str, development: bool
) -> None:
    async with shelf(tmp_path, name, development=development) as one:
        assert one.status == ModelStatus("small", False, "cpu", "int8")
        assert await hears(one) == "안녕하세요."


@pytest.mark.parametrize(("name", "development"), [("auto", False), ("small", True)])
async def test_what_must_be_there_and_cannot_be_fetched_stops_the_start(
    model_hub: ModelHub, tmp_path: Path, name: str, development: bool
) -> None:
    model_hub.faults.unknown = True
    with pytest.raises(
        ConfigError, match=r"MODEL_NAME: small is not .* could not be fetched: .* check the network and HF_ENDPOINT"
    ):
        await shelf(tmp_path, name, development=development).open()


# ---------------------------------------------------------------- a process of its own, on a GPU


@pytest.fixture
def _a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # what CTranslate2 sees is the machine's, so the machine is what is played here
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 1)
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda kind: {"float32", "int8", "int8_float16"})
    monkeypatch.setattr(device, "find_cublas", lambda: True)


def on_a_gpu(folder: Path, *plan: str) -> ModelShelf:
    """Its children decode on the CPU, and do what the plan says (tests/asr/scripted_child.py)."""
    (folder / "plan").write_text("\n".join([*plan, "well"]))
    command = (sys.executable, "-P", scripted_child.__file__, str(folder))
    return ModelShelf(
        ModelOptions(name="demo", device="cuda", data=folder, worker=WorkerOptions(command=command, backoff_s=0.01)),
        clock=lambda: NOW,
    )


@pytest.mark.usefixtures("_a_gpu")
async def test_a_model_on_a_gpu_is_started_again_and_says_how_often(tmp_path: Path) -> None:
    async with on_a_gpu(tmp_path, "well oom") as one:
        status = ModelStatus("demo", True, "cuda", "int8_float16", "full", note=DEMO_NOTE)
        assert (one.status, one.trouble) == (status, "")
        assert [await hears(one), await hears(one)] == ["안녕하세요."] * 2
        assert (one.status, one.trouble) == (replace(status, restarts=1), "")
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.usefixtures("_a_gpu")
async def test_a_model_that_cannot_start_again_is_trouble(tmp_path: Path) -> None:
    async with on_a_gpu(tmp_path, "oom", "unloaded", "unloaded", "unloaded") as one:
        with pytest.raises(SttError):
            await hears(one)
        assert one.trouble.startswith("the recogniser cannot decode: its process is being started again (MODEL_NAME")
        async with asyncio.timeout(20):
            while one.trouble:  # noqa: ASYNC110 - it is another process that ends it
                await asyncio.sleep(0.02)
        assert await hears(one) == "안녕하세요."


@pytest.mark.usefixtures("_a_gpu")
async def test_a_model_that_its_process_cannot_load_stops_the_start(tmp_path: Path) -> None:
    shutil.copytree(DEMO_FOLDER, tmp_path / "mine")
    (tmp_path / "mine" / "model.bin").write_bytes(b"broken")
    one = ModelShelf(ModelOptions(name=str(tmp_path / "mine"), device="cuda", data=tmp_path), clock=lambda: NOW)
    with pytest.raises(ConfigError, match=r"MODEL_NAME: mine cannot be used .* on DEVICE=cuda"):
        await one.open()
    assert not one.loaded
