"""A program: downloads one model from the model hub and says how far it is. `hub.py` runs it.

It is a process of its own because a thread that waits for a hub that hangs cannot be ended, and because
huggingface_hub reads HF_ENDPOINT, HF_HOME and its other variables when it is imported.

    python hub_download.py REPOSITORY CACHE    (CACHE empty: huggingface_hub's own folder)

Each line on standard output is one JSON object: {"total": bytes}, {"done": bytes} as they arrive, then
{"folder": path} or {"error": kind, "detail": text}. It ends at once when its standard input is closed, so it never
outlives the server.
"""

import errno
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What faster_whisper itself would download.
PATTERNS = ["config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*"]

LISTING_TIMEOUT_S = 10.0
REPORT_EVERY_S = 0.25
ABANDONED_AFTER_S = 600.0


def main(repository: str, cache: str) -> int:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # a library that prints must not end up between our lines

    def say(**fields: Any) -> None:
        out.write(json.dumps(fields) + "\n")

    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        from huggingface_hub import HfApi, constants, snapshot_download

        listing = HfApi().model_info(repository, files_metadata=True, timeout=LISTING_TIMEOUT_S)
        say(total=sum(file.size or 0 for file in listing.siblings or () if _wanted(file.rfilename)))
        folder = Path(cache or constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
        _sweep(folder, older_than_s=ABANDONED_AFTER_S)
        finished = threading.Event()
        reporter = threading.Thread(target=_report, args=(say, finished))
        reporter.start()
        try:
            where = snapshot_download(
                repository, cache_dir=cache or None, allow_patterns=PATTERNS, tqdm_class=_byte_counter()
            )
        finally:
            finished.set()
            reporter.join()
        _sweep(folder, older_than_s=0)
        say(folder=where)
        return 0
    except Exception as error:  # the edge of the process: the parent logs what it is told
        say(error=kind_of(error), detail=" ".join(f"{type(error).__name__}: {error}".split())[:200])
        return 1


def kind_of(error: BaseException) -> str:
    """By name, not by class: huggingface_hub has changed its HTTP library more than once."""
    for cause in _causes(error):
        names = {kind.__name__ for kind in type(cause).__mro__}
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            return "disk"
        if "OfflineModeIsEnabled" in names:
            return "offline"
        if names & {"RepositoryNotFoundError", "RevisionNotFoundError", "RemoteEntryNotFoundError"}:
            return "missing"
        if names & {"TransportError", "TimeoutException", "HfHubHTTPError"}:
            return "unreachable"
    return "broken"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _wanted(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in PATTERNS)


# ---------------------------------------------------------------- progress


_bars: list[Any] = []


def _byte_counter() -> type:
    from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]

    class ByteCounter(tqdm):  # type: ignore[misc, unused-ignore]
        """A progress bar that draws nothing; those that count bytes are read by `_report`."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = False
            kwargs["file"] = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
            super().__init__(*args, **kwargs)
            if kwargs.get("unit") == "B":
                _bars.append(self)

    return ByteCounter


def _report(say: Any, finished: threading.Event) -> None:
    """Only changes are told: the parent takes silence for a stall."""
    told = 0
    last = False
    while not last:
        last = finished.wait(REPORT_EVERY_S)
        done = int(max((bar.n for bar in _bars), default=0))
        if done != told:
            told = done
            say(done=done)


# ---------------------------------------------------------------- tidiness


def _sweep(folder: Path, *, older_than_s: float) -> None:
    """Delete what killed downloads have left behind: huggingface_hub begins anew each time, under a new name.

    One that was written to a moment ago may belong to another process; after success none can, since a file is
    downloaded under a lock and is then complete.
    """
    blobs = folder / "blobs"
    if not blobs.is_dir():
        return
    mark = blobs / ".now"
    mark.touch()
    now = mark.stat().st_mtime  # the clock of the disk that the others were written to
    mark.unlink()
    for part in blobs.glob("*.incomplete"):
        if now - part.stat().st_mtime >= older_than_s:
            part.unlink(missing_ok=True)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
