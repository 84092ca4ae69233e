"""The hub's bad days: a model that could not be fetched is not asked for again within a day, also after a restart."""

import json
from collections.abc import Callable
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

REMEMBERED_S = 86_400.0


class HubMemory:
    """One file, for one model: the last that could not be had. `clock` is seconds since the epoch. All blocking."""

    def __init__(self, file: Path, clock: Callable[[], float]) -> None:
        self.file = file
        self._clock = clock

    def recall(self, name: str) -> str | None:
        """Why the model was not to be had less than a day ago."""
        try:
            memory = json.loads(self.file.read_text(encoding="utf-8"))
            age_s = self._clock() - float(memory["at"])
            return str(memory["reason"]) if memory["model"] == name and 0 <= age_s < REMEMBERED_S else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # nothing to remember, or nothing that can be read: then the hub is asked

    def note(self, name: str, reason: str) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            memory = {"model": name, "at": self._clock(), "reason": reason}
            self.file.write_text(json.dumps(memory) + "\n", encoding="utf-8")
        except OSError as error:
            log.warning("x the hub's failure was not noted", file=str(self.file), error=str(error))

    def forget(self) -> None:
        self.file.unlink(missing_ok=True)
