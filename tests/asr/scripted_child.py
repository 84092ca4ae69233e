"""A program: the real child process with the real demo model, which does as it was told on its way.

    python scripted_child.py FOLDER

Each child takes the next line of FOLDER/plan (the last one again when there are no more): words that its decodes obey
in turn, `well` when there are no more. Its process id goes to FOLDER/pids.

    well      decode                                oom, cuda   what CTranslate2 raises when CUDA fails
    silly     an error that is nobody's fault       die         SIGKILL in the middle of the decode
    stop      SIGSTOP, likewise                     crowd       out of memory if it is more than one utterance
    unloaded  (first) the model cannot be loaded    dead        (first) dies while it loads
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from app.asr.recogniser import Decoded, Request
from app.asr.worker_child import Load, Loaded, load_recogniser, serve
from app.errors import ConfigError


class Scripted:
    def __init__(self, model: Loaded, words: list[str]) -> None:
        self._model = model
        self._words = words
        self.max_batch = model.max_batch

    def warm_up(self) -> float:
        return self._model.warm_up()

    def decode(self, requests: Sequence[Request], *, beam: int) -> list[Decoded]:
        word = self._words.pop(0) if self._words else "well"
        if word == "oom" or (word == "crowd" and len(requests) > 1):
            raise RuntimeError("CUDA failed with error out of memory")
        if word == "cuda":
            raise RuntimeError("CUDA failed with error an illegal memory access was encountered")
        if word == "silly":
            raise ValueError("nobody knows this language")
        if word in ("die", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if word == "die" else signal.SIGSTOP)
        return self._model.decode(requests, beam=beam)


def load_scripted(load: Load) -> Loaded:
    folder = Path(sys.argv[1])
    with (folder / "pids").open("a") as pids:
        pids.write(f"{os.getpid()}\n")
    born = len((folder / "pids").read_text().split())
    plan = (folder / "plan").read_text().splitlines()
    words = plan[min(born, len(plan)) - 1].split()
    if words[:1] == ["unloaded"]:
        raise ConfigError("MODEL_NAME: the script says that it cannot be loaded")
    if words[:1] == ["dead"]:
        os.kill(os.getpid(), signal.SIGKILL)
    # wherever the plan's machine would decode, this one has a CPU
    return Scripted(load_recogniser(Load(load.folder, load.name, "cpu", "int8", load.workers, load.options)), words)


if __name__ == "__main__":
    serve(load_scripted)
