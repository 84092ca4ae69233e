"""Where the speech of a stretch of audio lies: what a recogniser should hear of it, with the cues that it needs.

Detectors work at 8 kHz. Audio of another rate is brought there for the detector only; the recogniser gets it as it
came, cut at the same moments.
"""

import functools
import math
from collections import deque
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from app.audio.chunker import Chunker
from app.audio.endpoint import Endpointer, SpeechPaused, SpeechResumed, SpeechStarted, SpeechStopped
from app.audio.types import SAMPLE_BYTES, AudioFrame
from app.audio.vad import RATE, SpeechDetector

PREROLL_MS = 300
"""Heard before the onset that a detector names: it hears one 40 to 170 ms late."""
LATE_MS = 200
"""A detector hears an end so much later; so much silence is put behind audio that stops."""

Heard = AudioFrame | SpeechStarted | SpeechPaused | SpeechResumed | SpeechStopped

_HALF_WIDTH = 8  # samples of 8 kHz on either side: 1 ms of delay, where soxr's filters hold back 60 to 115
_CUTOFF = 0.9


class SpeechFinder:
    """One stream. `push` gives SpeechStarted, the frames from before the onset on, and the cues between them, until
    SpeechStopped; of silence it gives nothing."""

    def __init__(self, detector: SpeechDetector, endpointer: Endpointer, rate: int) -> None:
        self._detector = detector
        self._endpointer = endpointer
        self._rate = rate
        self._to_8k = Downsampler(rate) if rate != RATE else None
        self._windows = Chunker(detector.frame_bytes)
        self._pcm = bytearray()  # of the given rate, not yet judged
        self._judged = 0  # windows
        self._preroll: deque[AudioFrame] = deque(maxlen=1 + (PREROLL_MS + LATE_MS) // detector.frame_ms)
        self._speaking = False

    def push(self, pcm: bytes) -> Iterator[Heard]:
        """16-bit mono PCM. Lazy: the audio is judged as the answer is consumed, and all of it must be."""
        self._pcm += pcm
        for window in self._windows.push(self._to_8k.push(pcm) if self._to_8k else pcm):
            yield from self._judge(window)

    def finish(self) -> Iterator[Heard]:
        """The audio is over: silence is put behind it, so that speech up to its last sample is heard and ended."""
        frame_ms = self._detector.frame_ms
        yield from self.push(bytes(self._bytes_at(-(-LATE_MS // frame_ms) + 1)))
        while self._speaking:
            yield from self._judge(None)

    def _judge(self, window: bytes | None) -> Iterator[Heard]:
        """None: silence behind the end, whatever the detector would say."""
        frame_ms = self._detector.frame_ms
        size = self._bytes_at(self._judged + 1) - self._bytes_at(self._judged)
        pcm = bytes(self._pcm[:size]) if window is not None else bytes(size)
        frame = AudioFrame(pcm, self._rate, self._judged * frame_ms)
        del self._pcm[:size]
        self._judged += 1
        probability = self._detector.probability(window) if window is not None else 0.0
        if self._speaking:
            yield frame
        else:
            self._preroll.append(frame)
        for event in self._endpointer.process(probability, frame_ms):
            yield event
            if isinstance(event, SpeechStarted):
                self._speaking = True
                yield from (one for one in self._preroll if one.at_ms >= event.at_ms - PREROLL_MS)
                self._preroll.clear()
            elif isinstance(event, SpeechStopped):
                self._speaking = False

    def _bytes_at(self, window: int) -> int:
        """Where a window begins, in bytes of the given rate."""
        return window * self._detector.frame_ms * self._rate // 1000 * SAMPLE_BYTES


class Downsampler:
    """16-bit PCM of a higher rate in, of 8 kHz out, with a millisecond of delay: good enough to find speech in."""

    def __init__(self, rate: int) -> None:
        self._kernel = _kernel(rate)
        self._phases, taps = self._kernel.shape
        self._step = rate // math.gcd(rate, RATE)  # an output lies step / phases inputs after the one before
        self._input = np.zeros(taps // 2 - 1, np.float32)
        self._phase = 0

    def push(self, pcm: bytes) -> bytes:
        self._input = np.concatenate([self._input, np.frombuffer(pcm, "<i2").astype(np.float32)])
        windows = len(self._input) - self._kernel.shape[1] + 1
        # outputs whose window, which begins at position // phases, is complete
        count = max(0, -(-(windows * self._phases - self._phase) // self._step))
        positions = self._phase + np.arange(count + 1) * self._step
        begins, phases = positions // self._phases, positions % self._phases
        done = min(int(begins[-1]), len(self._input))
        if not count:
            return b""
        view = np.lib.stride_tricks.sliding_window_view(self._input, self._kernel.shape[1])
        output = np.einsum("ij,ij->i", view[begins[:-1]], self._kernel[phases[:-1]])
        self._input = self._input[done:]
        self._phase = int(positions[-1]) - done * self._phases
        out: bytes = output.clip(-32768, 32767).round().astype("<i2").tobytes()
        return out


@functools.cache
def _kernel(rate: int) -> npt.NDArray[np.float32]:
    """A row for each fraction of an input sample that an output can lie at: a sinc under a Kaiser window."""
    divisor = math.gcd(rate, RATE)
    phases, ratio = RATE // divisor, max(1.0, rate / RATE)
    half = math.ceil(_HALF_WIDTH * ratio)
    fractions = np.arange(phases)[:, None] / phases
    distance = (np.arange(1 - half, half + 1)[None, :] - fractions) / ratio  # in samples of 8 kHz
    inside = np.clip(1 - (distance / _HALF_WIDTH) ** 2, 0, None)
    taps = np.sinc(distance * _CUTOFF) * np.i0(5.0 * np.sqrt(inside)) * (inside > 0)
    kernel: npt.NDArray[np.float32] = (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)
    kernel.flags.writeable = False
    return kernel
