"""The model hub: what of it is on this machine already, and how the rest gets here."""

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.asr import hub_download
from app.asr.recogniser import NEEDED_FILES
from app.errors import SttError

WORDS = {
    "unreachable": "the model hub cannot be reached",
    "stalled": "the model hub does not answer",
    "offline": "HF_HUB_OFFLINE is set",
    "missing": "the model hub does not have it, or not for everybody",
    "disk": "the model cannot be written to disk",
    "broken": "the download broke off",
}

Progress = Callable[[int, int], None]
"""Bytes done, bytes in all; called on the event loop."""


@dataclass(frozen=True, slots=True)
class HubLimits:
    """Seconds: until the hub has listed the model's files, and without a single further byte."""

    listing_s: float = 20.0
    stall_s: float = 60.0


def find_cached(repository: str, cache: Path | None) -> Path | None:
    """Blocking. The folder of a whole model in huggingface_hub's cache; a download cut short does not count."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(repository, cache_dir=cache, allow_patterns=hub_download.PATTERNS, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None
    return folder if all((folder / name).is_file() for name in NEEDED_FILES) else None


async def download(repository: str, cache: Path | None, progress: Progress, limits: HubLimits) -> Path:
    """Into huggingface_hub's cache, by a process of its own that is killed when the hub stalls or when the caller is
    cancelled. What is whole by then is kept for the next time. Raises SttError, whose kind is one of WORDS."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # else app/asr would be on its path, and our modules could pass for others'
        hub_download.__file__,
        repository,
        str(cache or ""),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None  # asked for above
    total = 0
    bound = limits.listing_s
    try:
        while True:
            said = await _line(process.stdout, bound)
            bound = limits.stall_s
            match said:
                case {"total": int(total)}:
                    progress(0, total)
                case {"done": int(done)}:
                    progress(min(done, total), total)
                case {"folder": str(folder)}:
                    return Path(folder)
                case {"error": str(kind), "detail": str(detail)}:
                    raise hub_error(kind, detail)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()  # `wait` alone would hang on what nobody has read


async def _line(stdout: asyncio.StreamReader, bound: float) -> dict[str, Any]:
    try:
        async with asyncio.timeout(bound):
            line = await stdout.readline()
    except TimeoutError:
        raise hub_error("stalled", f"nothing came for {bound:g} s") from None
    if not line:
        raise hub_error("broken", "the download's process ended")
    said: dict[str, Any] = json.loads(line)
    return said


def hub_error(kind: str, detail: str) -> SttError:
    return SttError(f"{WORDS[kind]} ({detail})", provider="model hub", kind=kind, retryable=kind != "missing")
