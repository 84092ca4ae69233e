"""The process that speaks with espeak-ng: the only place that loads this library, which is GPL-3.0-or-later.

It imports nothing of the server, and the server's side (`espeak_tts`) imports only the framing from here, so
the two programs share a pipe and no memory. On stdin come requests, each a little-endian 32-bit length and as
many bytes of JSON: `{"id", "text", "voice", "speed", "pitch", "rate"}`, or `{"cancel": id}`, which ends that
request and every older one. On stdout go replies, each a HEADER and its body. Requests are answered in order,
each with any number of AUDIO (16-bit mono at the asked rate) and one END or FAILED, also when cancelled.
The process ends when stdin does.

espeak-ng makes 22,050 samples a second, about a thousand times faster than they sound, in pieces of 60 ms
through a callback. In its synchronous mode the call returns with the last piece; its asynchronous mode polls
for the end, which costs 20 ms a sentence.
"""

import ctypes
import json
import os
import queue
import signal
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

HEADER = struct.Struct("<IcI")
"""Request id, kind, length of the body in bytes."""
LENGTH = struct.Struct("<I")
READY, AUDIO, END, FAILED = b"r", b"a", b"e", b"f"

_SYNCHRONOUS = 2
_DO_NOT_EXIT = 0x8000
_UTF8 = 1
_BY_CHARACTER = 1
_SPEED, _VOLUME, _PITCH = 1, 2, 3
_HEADROOM = 80
"""Of 100: at the default volume loud vowels touch full scale, and resampling overshoots."""
_BLOCK_BYTES = 11025
"""A quarter of a second of espeak's samples: the pieces that are resampled and sent."""

_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """The library. It is one global engine, so there is one of these in one thread."""

    def __init__(self) -> None:
        import espeakng_loader

        self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        data = os.fsencode(espeakng_loader.get_data_path())
        self.rate: int = self._lib.espeak_Initialize(_SYNCHRONOUS, 0, data, _DO_NOT_EXIT)
        if self.rate <= 0:
            raise RuntimeError("espeak-ng found no data")
        self._callback = _SynthCallback(self._on_samples)
        self._lib.espeak_SetSynthCallback(self._callback)
        self._lib.espeak_SetParameter(_VOLUME, _HEADROOM, 0)
        self._voice = ""
        self._sink: Callable[[bytes], bool] = lambda _pcm: False

    def speak(self, text: str, voice: str, speed: int, pitch: int, sink: Callable[[bytes], bool]) -> None:
        """Hand the audio to `sink` piece by piece, until it is done or `sink` returns False.

        `speed` is in words a minute (80 to 450), `pitch` 0 to 99. Raises ValueError for an unknown voice.
        """
        if voice != self._voice:
            if self._lib.espeak_SetVoiceByName(voice.encode()):
                raise ValueError(f"espeak-ng has no voice {voice!r}")
            self._voice = voice
        self._lib.espeak_SetParameter(_SPEED, speed, 0)
        self._lib.espeak_SetParameter(_PITCH, pitch, 0)
        self._sink = sink
        encoded = text.replace("\0", " ").encode("utf-8", "replace")
        self._lib.espeak_Synth(encoded, len(encoded) + 1, 0, _BY_CHARACTER, 0, _UTF8, None, None)

    def _on_samples(self, samples: int | None, count: int, _events: int | None) -> int:
        """Called from inside espeak_Synth. Zero goes on, one stops."""
        if not samples or count <= 0:
            return 0
        return 0 if self._sink(ctypes.string_at(samples, count * 2)) else 1


class Worker:
    def __init__(self, source: int, target: int) -> None:
        self._source = source
        self._target = target
        self._requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._cancelled = 0
        """Every request up to this id is cancelled. Written by the reading thread only."""

    def run(self) -> int:
        try:
            import numpy
            import soxr

            espeak = Espeak()
        except (ImportError, OSError, RuntimeError) as error:
            self._send(0, FAILED, f"{type(error).__name__}: {error}".encode())
            return 1

        def resampler(rate: int) -> Callable[[bytes, bool], bytes]:
            # In floating point: for integers soxr adds dither, and silence would no longer be silent.
            stream = soxr.ResampleStream(espeak.rate, rate, 1, dtype="float32")

            def resample(pcm: bytes, last: bool) -> bytes:
                samples = numpy.frombuffer(pcm, "<i2").astype("float32")
                resampled = stream.resample_chunk(samples, last).clip(-32768, 32767).round()
                return bytes(resampled.astype("<i2").tobytes())

            return resample

        threading.Thread(target=self._read_requests, daemon=True).start()
        self._send(0, READY, b"")
        while True:
            request = self._requests.get()
            try:
                self._answer(request, espeak, resampler(request["rate"]))
            except ValueError as error:
                self._send(request["id"], FAILED, str(error).encode())

    def _answer(self, request: dict[str, Any], espeak: Espeak, resample: Callable[[bytes, bool], bytes]) -> None:
        held = bytearray()

        def sink(pcm: bytes) -> bool:
            held.extend(pcm)
            if len(held) >= _BLOCK_BYTES:
                self._send(request["id"], AUDIO, resample(bytes(held), False))
                held.clear()
            return bool(request["id"] > self._cancelled)

        if request["id"] > self._cancelled:
            espeak.speak(request["text"], request["voice"], request["speed"], request["pitch"], sink)
            self._send(request["id"], AUDIO, resample(bytes(held), True))
        self._send(request["id"], END, b"")

    def _read_requests(self) -> None:
        while True:
            (length,) = LENGTH.unpack(self._read(LENGTH.size))
            message = json.loads(self._read(length))
            if "cancel" in message:
                self._cancelled = max(self._cancelled, message["cancel"])
            else:
                self._requests.put(message)

    def _read(self, count: int) -> bytes:
        """Exactly so many bytes. The end of stdin ends the process, whatever the other thread is doing."""
        parts = bytearray()
        while len(parts) < count:
            part = os.read(self._source, count - len(parts))
            if not part:
                os._exit(0)
            parts += part
        return bytes(parts)

    def _send(self, request_id: int, kind: bytes, body: bytes) -> None:
        message = memoryview(HEADER.pack(request_id, kind, len(body)) + body)
        try:
            while message:
                message = message[os.write(self._target, message) :]
        except BrokenPipeError:
            os._exit(0)


def main() -> int:
    # An interrupt from the keyboard reaches the whole process group; the server decides when we end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Nobody else may write into the replies: what a library prints goes to stderr.
    target = os.dup(1)
    os.dup2(2, 1)
    return Worker(source=0, target=target).run()


if __name__ == "__main__":
    sys.exit(main())
