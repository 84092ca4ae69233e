"""A program: one recogniser in a process of its own. `worker.py` runs it.

After CUDA has run out of memory, or has failed in any other way, the process that used it cannot use it again: each
further call fails until the process ends. So the model lives here, where it can be killed and started anew, while
the calls live on in the server.

    python -m app.asr.worker_child

Frames come on standard input and go on standard output: two 32-bit lengths (big-endian), a JSON object, bytes.

    in    the Load, then any number of {"id", "beam", "requests": [{…, "pcm": bytes}]} with the audio of all of them
    out   {"ready": {"max_batch", "decode_ms"}} or {"failed": why}, then {"id", "decoded": […]} in any order,
          or {"id", "error": what, "fatal": whether this process is of no more use}

It ends at once when its standard input is closed, so it never outlives the server, however that ends.
"""

import dataclasses
import json
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from app.asr.device import find_cublas
from app.asr.recogniser import Decoded, Recogniser, RecogniserOptions, Request
from app.errors import ConfigError

LENGTHS = struct.Struct(">II")
POISON = ("cuda", "cublas", "out of memory", "bad_alloc")
"""In the words of an error after which the process is of no use."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to load: the arguments of `Recogniser.load`."""

    folder: str
    name: str
    device: str
    compute_type: str
    workers: int
    options: RecogniserOptions

    @classmethod
    def from_wire(cls, header: Mapping[str, Any]) -> "Load":
        return cls(**{**header, "options": RecogniserOptions(**header["options"])})


class Loaded(Protocol):
    """The part of a Recogniser that is used here."""

    max_batch: int

    def warm_up(self) -> float: ...

    def decode(self, requests: Sequence[Request], *, beam: int) -> list[Decoded]: ...


# ---------------------------------------------------------------- frames


def write_frame(stream: IO[bytes], header: Mapping[str, Any], body: bytes = b"") -> None:
    words = json.dumps(header).encode()
    stream.write(LENGTHS.pack(len(words), len(body)) + words)
    stream.write(body)
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """None at the end, also where it comes in the middle of a frame."""
    lengths = stream.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    header_bytes, body_bytes = LENGTHS.unpack(lengths)
    header, body = stream.read(header_bytes), stream.read(body_bytes)
    if len(header) < header_bytes or len(body) < body_bytes:
        return None
    return json.loads(header), body


def to_wire(requests: Iterable[Request]) -> tuple[list[dict[str, Any]], bytes]:
    told, audio = [], bytearray()
    for request in requests:
        fields = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
        told.append({**fields, "pcm": len(request.pcm)})
        audio += request.pcm
    return told, bytes(audio)


def from_wire(told: Iterable[Mapping[str, Any]], audio: bytes) -> list[Request]:
    requests, at = [], 0
    for one in told:
        requests.append(Request(**{**one, "pcm": audio[at : at + one["pcm"]]}))
        at += one["pcm"]
    return requests


# ---------------------------------------------------------------- the process


def load_recogniser(load: Load) -> Loaded:
    if load.device == "cuda":
        find_cublas()  # the parent found it for itself; a process has its own libraries
    return Recogniser.load(
        Path(load.folder), load.name, load.device, load.compute_type, workers=load.workers, options=load.options
    )


def serve(loads: Callable[[Load], Loaded] = load_recogniser) -> None:
    """Until standard input ends. This thread only reads: so it notices the parent's end in the middle of a decode."""
    # Ctrl-C and a service manager reach every process of the group: the server, which still has calls, decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not end up between our frames
    first = read_frame(sys.stdin.buffer)
    if first is not None:
        load = Load.from_wire(first[0])
        child = _Child(out)
        with ThreadPoolExecutor(load.workers) as pool:
            pool.submit(child.load, loads, load)
            while (frame := read_frame(sys.stdin.buffer)) is not None:
                pool.submit(child.decode, *frame)
            os._exit(0)  # whatever is being decoded is for nobody


class _Child:
    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._writing = threading.Lock()
        self._model: Loaded | None = None

    def load(self, loads: Callable[[Load], Loaded], load: Load) -> None:
        try:
            model = loads(load)
            decode_ms = model.warm_up()
        except ConfigError as error:
            self._say({"failed": str(error)})
        except Exception as error:  # the edge of the process: the parent tells what it is told
            self._say({"failed": _words(error)})
        else:
            self._model = model
            self._say({"ready": {"max_batch": model.max_batch, "decode_ms": decode_ms}})

    def decode(self, header: Mapping[str, Any], audio: bytes) -> None:
        assert self._model is not None  # nothing is asked before `ready`
        try:
            decoded = self._model.decode(from_wire(header["requests"], audio), beam=header["beam"])
            told = [{field.name: getattr(one, field.name) for field in dataclasses.fields(one)} for one in decoded]
        except Exception as error:  # the edge of the process
            words = _words(error)
            fatal = isinstance(error, MemoryError) or any(word in words.lower() for word in POISON)
            self._say({"id": header["id"], "error": words, "fatal": fatal})
        else:
            self._say({"id": header["id"], "decoded": told})

    def _say(self, header: Mapping[str, Any]) -> None:
        with self._writing:
            write_frame(self._out, header)


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


if __name__ == "__main__":
    serve()
