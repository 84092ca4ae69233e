"""Downloads from a hub on loopback, through the real huggingface_hub in its own process."""

import asyncio
import errno
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.asr import hub, hub_download
from app.asr.hub import HubLimits
from app.asr.models import DEMO_FOLDER
from app.errors import SttError
from tests.emulators.model_hub import REPOSITORY, ModelHub

LIMITS = HubLimits(listing_s=30.0, stall_s=30.0)


@pytest.fixture
async def model_hub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ModelHub]:
    async with ModelHub(DEMO_FOLDER) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield served
        assert not served.violations


class Seen:
    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.steps.append((done, total))


def remainders(cache: Path) -> list[Path]:
    return list(cache.rglob("*.incomplete"))


async def test_brings_a_whole_model_and_says_how_far_it_is(model_hub: ModelHub, tmp_path: Path) -> None:
    assert hub.find_cached(REPOSITORY, tmp_path) is None
    seen = Seen()
    folder = await hub.download(REPOSITORY, tmp_path, seen, LIMITS)
    assert (folder / "model.bin").read_bytes() == (DEMO_FOLDER / "model.bin").read_bytes()
    assert hub.find_cached(REPOSITORY, tmp_path) == folder
    total = sum((DEMO_FOLDER / name).stat().st_size for name in os.listdir(folder))
    assert seen.steps[0] == (0, total)
    assert seen.steps[-1] == (total, total)


async def test_a_file_that_is_cut_is_asked_for_again(model_hub: ModelHub, tmp_path: Path) -> None:
    model_hub.faults.cut_after, model_hub.faults.cuts_left = 500_000, 1
    folder = await hub.download(REPOSITORY, tmp_path, Seen(), LIMITS)
    assert (folder / "model.bin").read_bytes() == (DEMO_FOLDER / "model.bin").read_bytes()
    assert model_hub.faults.cuts_left == 0


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("closed", "unreachable", "cannot be reached"),
        ("503", "unreachable", "cannot be reached"),
        ("unknown", "missing", "does not have it"),
        ("offline", "offline", "HF_HUB_OFFLINE is set"),
    ],
)
async def test_says_why_it_cannot(
    model_hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, kind: str, words: str
) -> None:
    match fault:
        case "closed":
            monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        case "503":
            model_hub.faults.status = 503
        case "unknown":
            model_hub.faults.unknown = True
        case "offline":
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SttError, match=words) as failed:
        await hub.download(REPOSITORY, tmp_path, Seen(), LIMITS)
    assert failed.value.kind == kind


async def test_a_hub_that_never_answers_is_given_up(model_hub: ModelHub, tmp_path: Path) -> None:
    model_hub.faults.hang = True
    with pytest.raises(SttError, match=r"does not answer \(nothing came for 0.3 s\)") as failed:
        await hub.download(REPOSITORY, tmp_path, Seen(), HubLimits(listing_s=0.3))
    assert failed.value.kind == "stalled"


async def test_a_download_that_stalls_is_given_up(model_hub: ModelHub, tmp_path: Path) -> None:
    model_hub.faults.hold_after = 1_000_000
    with pytest.raises(SttError, match="does not answer"):
        await hub.download(REPOSITORY, tmp_path, Seen(), HubLimits(listing_s=30.0, stall_s=1.0))
    assert hub.find_cached(REPOSITORY, tmp_path) is None


async def test_a_killed_download_leaves_nothing_behind_that_harms_the_next(model_hub: ModelHub, tmp_path: Path) -> None:
    model_hub.faults.hold_after = 1_000_000
    async with asyncio.TaskGroup() as group:
        download = group.create_task(hub.download(REPOSITORY, tmp_path, Seen(), LIMITS))
        await model_hub.faults.stuck.wait()
        download.cancel()
    assert hub.find_cached(REPOSITORY, tmp_path) is None
    assert remainders(tmp_path)
    model_hub.faults.hold_after = 0
    folder = await hub.download(REPOSITORY, tmp_path, Seen(), LIMITS)
    assert hub.find_cached(REPOSITORY, tmp_path) == folder
    assert not remainders(tmp_path)


async def test_the_download_ends_with_its_server(model_hub: ModelHub, tmp_path: Path) -> None:
    model_hub.faults.hang = True
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", hub_download.__file__, REPOSITORY, str(tmp_path), stdin=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.close()
    async with asyncio.timeout(10):
        assert await process.wait() == 1


def test_an_old_remainder_is_swept_away_and_a_young_one_is_left(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    old, young = blobs / "a.1.incomplete", blobs / "b.2.incomplete"
    for part in (old, young):
        part.write_bytes(b"half")
    now = young.stat().st_mtime
    os.utime(old, (now - 3600, now - 3600))
    hub_download._sweep(tmp_path, older_than_s=600)
    assert sorted(blobs.iterdir()) == [young]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (ValueError("surprise"), "broken"),
    ],
)
def test_errors_have_kinds(error: Exception, kind: str) -> None:
    assert hub_download.kind_of(error) == kind
    outer = RuntimeError("outer")
    outer.__cause__ = error
    assert hub_download.kind_of(outer) == kind
