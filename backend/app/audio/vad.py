"""Voice activity: how likely it is that a frame of 8 kHz audio holds speech.

The call's audio stays at 8 kHz. Silero has an 8 kHz mode of its own, so nothing is resampled before it (a
streaming resampler would hold back 50 to 100 ms). One model serves the whole process; what a call needs of
its own is a `Memory`, which lives outside the onnxruntime session, so that frames of several calls can share
one run.
"""

import functools
import importlib.util
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from app.audio.types import SAMPLE_BYTES
from app.errors import ConfigError

RATE = 8000

Floats = npt.NDArray[np.float32]


class SpeechDetector(Protocol):
    """Judges one call's audio, frame after frame; frames of two calls must never meet in one detector."""

    @property
    def frame_ms(self) -> int: ...

    @property
    def frame_bytes(self) -> int:
        """Bytes of 16-bit PCM at 8 kHz in one frame."""

    def probability(self, pcm: bytes) -> float:
        """0..1 for exactly one frame. Raises ValueError on any other size."""

    def reset(self) -> None:
        """Forgets the call so far."""


# ---------------------------------------------------------------- Silero

_FRAME_SAMPLES = 256
_FRAME_BYTES = _FRAME_SAMPLES * SAMPLE_BYTES
_CONTEXT = 32  # samples of the frame before, at 8 kHz; without them quiet noise scores up to 0.8
_SCALE = np.float32(1 / 32768)
_PRIMING_FRAMES = 32
_PRIMING_LEVEL = 40  # root mean square, -58 dB: a quiet phone line


@dataclass(slots=True)
class Memory:
    """What Silero remembers of one call.

    `window` is float32 [1, n]: the newest frame behind the samples before it. `state` is float32 [2, 1, 128],
    the hidden and the cell state of the recurrent layer.
    """

    window: Floats
    state: Floats

    def hear(self, pcm: bytes) -> None:
        """Shifts one frame in."""
        if len(pcm) != _FRAME_BYTES:  # the model takes other sizes without a word and answers nonsense
            raise ValueError(f"Silero takes frames of {_FRAME_BYTES} bytes, not {len(pcm)}")
        window = self.window[0]
        window[:-_FRAME_SAMPLES] = window[_FRAME_SAMPLES:]
        np.multiply(np.frombuffer(pcm, "<i2"), _SCALE, out=window[-_FRAME_SAMPLES:])


class SileroModel(ABC):
    """The network, shared by all calls of the process and safe to run from several threads at once.

    A call does not begin with an empty memory but with one that has heard a second of a quiet line: from
    nothing Silero needs a second of audio before it trusts a voice, and misses a short "No." altogether. The
    same second warms onnxruntime up, whose first runs take several times as long.
    """

    name: str
    frame_ms = 32

    def __init__(self, path: Path) -> None:
        self._session = _open_session(path)
        noise = np.random.default_rng(0).normal(0, _PRIMING_LEVEL, (_PRIMING_FRAMES, _FRAME_SAMPLES))
        self._primed = self._empty()
        for frame in noise.astype("<i2"):
            self.probabilities((frame.tobytes(),), (self._primed,))

    @abstractmethod
    def _empty(self) -> Memory: ...

    def fresh(self) -> Memory:
        """A new call's memory."""
        return Memory(self._primed.window.copy(), self._primed.state.copy())

    @abstractmethod
    def probabilities(self, frames: Sequence[bytes], memories: Sequence[Memory]) -> list[float]:
        """The next frame of each of N different calls, in one run where the network allows it.

        Updates the memories in place. A call may share one run with any others, or have one of its own: the
        answers are the same.
        """

    def detector(self) -> "SileroDetector":
        return SileroDetector(self)


class NativeSilero(SileroModel):
    """`silero_vad.onnx`: 288 samples at 8 kHz, any number of calls in one run."""

    name = "silero"
    _rate = np.array(RATE, np.int64)

    def _empty(self) -> Memory:
        return Memory(np.zeros((1, _CONTEXT + _FRAME_SAMPLES), np.float32), np.zeros((2, 1, 128), np.float32))

    def probabilities(self, frames: Sequence[bytes], memories: Sequence[Memory]) -> list[float]:
        for memory, pcm in zip(memories, frames, strict=True):
            memory.hear(pcm)
        if len(memories) == 1:
            memory = memories[0]
            output, memory.state = self._run(memory.window, memory.state)
            return [float(output[0, 0])]
        if not memories:
            return []
        output, state = self._run(
            np.concatenate([memory.window for memory in memories]),
            np.concatenate([memory.state for memory in memories], axis=1),
        )
        for index, memory in enumerate(memories):
            memory.state = state[:, index : index + 1].copy()
        probabilities: list[float] = output[:, 0].tolist()
        return probabilities

    def _run(self, window: Floats, state: Floats) -> tuple[Floats, Floats]:
        output, state = self._session.run(None, {"input": window, "state": state, "sr": self._rate})
        return output, state


class BundledSilero(SileroModel):
    """`silero_vad_v6.onnx` as it comes inside faster-whisper: 16 kHz only, one call a run.

    It judges 2 ms late, because the audio is first brought to 16 kHz. The window holds 8 kHz samples, enough
    of them to compute the network's 64 samples of context anew, so upsampling needs no state of its own.
    """

    name = "silero (inside faster-whisper)"

    def _empty(self) -> Memory:
        samples = _CONTEXT + _FRAME_SAMPLES + 2 * _HALF_WIDTH - 1
        return Memory(np.zeros((1, samples), np.float32), np.zeros((2, 1, 128), np.float32))

    def probabilities(self, frames: Sequence[bytes], memories: Sequence[Memory]) -> list[float]:
        return [self._probability(pcm, memory) for pcm, memory in zip(frames, memories, strict=True)]

    def _probability(self, pcm: bytes, memory: Memory) -> float:
        memory.hear(pcm)
        window, state = double_rate(memory.window[0]), memory.state
        inputs = {"input": window[None], "h": state[:1], "c": state[1:]}
        output, state[:1], state[1:] = self._session.run(None, inputs)
        return float(output[0])


class SileroDetector:
    """One call's view of the shared model."""

    frame_ms = SileroModel.frame_ms
    frame_bytes = _FRAME_BYTES

    def __init__(self, model: SileroModel) -> None:
        self._model = model
        self._memory = model.fresh()

    def probability(self, pcm: bytes) -> float:
        return self._model.probabilities((pcm,), (self._memory,))[0]

    def reset(self) -> None:
        self._memory = self._model.fresh()


def load_silero() -> SileroModel:
    """The model of the silero-vad package, or the one inside faster-whisper where that is not installed.

    Reads from the disk and takes up to 50 ms, after which the model is warm. Raises ConfigError where neither
    is found.
    """
    if (path := _data_file("silero_vad", "data/silero_vad.onnx")) is not None:
        return NativeSilero(path)
    if (path := _data_file("faster_whisper", "assets/silero_vad_v6.onnx")) is not None:
        return BundledSilero(path)
    raise ConfigError("VAD=silero finds no model: install silero-vad or faster-whisper, or set VAD=energy")


def _data_file(package: str, name: str) -> Path | None:
    """A file of an installed package, which is not imported: silero_vad needs torch, its data does not."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, name)
        if path.is_file():
            return path
    return None


def _open_session(path: Path) -> Any:
    # Here and not above: it costs 100 ms and 30 MB, which VAD=energy does not need.
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


_HALF_WIDTH = 16  # samples of 8 kHz on either side of an interpolated one: 2 ms of delay


@functools.cache
def _interpolator() -> Floats:
    """Half-sample delay: a sinc under a Kaiser window, flat within 0.1 dB up to 3.6 kHz."""
    distance = np.arange(2 * _HALF_WIDTH) - (_HALF_WIDTH - 0.5)
    taps = np.sinc(distance) * np.kaiser(2 * _HALF_WIDTH, 5.0)
    kernel: Floats = (taps / taps.sum()).astype(np.float32)
    return kernel


def double_rate(samples: Floats) -> Floats:
    """n samples in, 2 * (n - 31) out: the given ones and between each two the one that belongs there.

    The first and last 16 samples only support their neighbours, so consecutive blocks overlap by 31.
    """
    taps = _interpolator()
    between = np.convolve(samples, taps, "valid")
    doubled = np.empty(2 * len(between), np.float32)
    doubled[0::2] = samples[_HALF_WIDTH - 1 : _HALF_WIDTH - 1 + len(between)]
    doubled[1::2] = between
    return doubled


# ---------------------------------------------------------------- loudness

_QUIETEST_DB = -50.0  # a sine of full scale is 0; speech on a phone line lies between -40 and -10
_BAND_HZ = (250, 3600)
_MARGIN_DB = 9.0
_SLOPE_DB = 2.0
_TONE_SHARE = 0.98
_TONE_RIPPLE_DB = 3.0
_FLOOR_MS = 2000
_SETTLING_MS = 200


class EnergyDetector:
    """Loudness above an adaptive noise floor: no model file, a sixth of Silero's cost, and easier to fool.

    A frame counts as speech where its level between 250 and 3600 Hz is 9 dB (probability 0.5) above the
    quietest frame of the last two seconds, and at least -50 dB. So steady noise of any level is silence
    once it has lasted two seconds, mains hum lies below the band, and the first 200 ms of a call only set the
    floor. A frame with 98 % of its power in two narrow peaks, as loud and as high as the frame before, is
    a tone (dial tone, ring-back, key press) and never speech. Its first frame, or two, still count: with
    frames of 50 ms and more that is an utterance. Music, a television and other voices in the room count as
    speech.
    """

    def __init__(self, frame_ms: int = 30) -> None:
        if not 10 <= frame_ms <= 60:
            raise ValueError(f"a frame has 10 to 60 ms, not {frame_ms}")
        self.frame_ms = frame_ms
        self._frame_samples = RATE * frame_ms // 1000
        self.frame_bytes = self._frame_samples * SAMPLE_BYTES
        # A shorter frame is judged together with the audio before it: 32 ms tell two tones from a voice.
        self._size = max(256, self._frame_samples)
        hz = np.fft.rfftfreq(self._size, 1 / RATE)
        self._band = slice(*np.searchsorted(hz, _BAND_HZ).tolist())
        self._taper = np.hanning(self._size)
        self._full_scale = (32768 * self._taper.sum() / 2) ** 2 * 1.5  # 1.5: a Hann peak spreads over bins
        self.reset()

    def reset(self) -> None:
        self._window = np.zeros(self._size)
        self._levels: deque[float] = deque(maxlen=max(1, _FLOOR_MS // self.frame_ms))
        self._heard_ms = 0
        self._last_level, self._last_peak = 0.0, 0

    def probability(self, pcm: bytes) -> float:
        if len(pcm) != self.frame_bytes:
            raise ValueError(f"this detector takes frames of {self.frame_bytes} bytes, not {len(pcm)}")
        window, new = self._window, self._frame_samples
        window[: self._size - new] = window[new:]
        window[self._size - new :] = np.frombuffer(pcm, "<i2")
        spectrum = np.fft.rfft(window * self._taper)[self._band]
        power = spectrum.real**2 + spectrum.imag**2
        total = float(power.sum())
        level = max(10 * math.log10(total / self._full_scale + 1e-12), _QUIETEST_DB - _MARGIN_DB)
        tone = self._is_tone(power, total, level)
        self._heard_ms += self.frame_ms
        if self._heard_ms * RATE >= self._size * 1000:  # else the window is not full and the level too low
            self._levels.append(level)
        if self._heard_ms <= _SETTLING_MS or level < _QUIETEST_DB or tone:
            return 0.0
        return 1 / (1 + math.exp((_MARGIN_DB + min(self._levels) - level) / _SLOPE_DB))

    def _is_tone(self, power: npt.NDArray[np.float64], total: float, level: float) -> bool:
        """Whether two peaks of five bins hold nearly everything, and stand still. Overwrites `power`."""
        strongest = int(power.argmax())
        still = abs(level - self._last_level) < _TONE_RIPPLE_DB and abs(strongest - self._last_peak) <= 1
        self._last_level, self._last_peak = level, strongest
        if not still:
            return False
        peaks = 0.0
        for _ in range(2):
            top = int(power.argmax())
            peak = power[max(0, top - 2) : top + 3]
            peaks += float(peak.sum())
            peak.fill(0)
        return peaks > _TONE_SHARE * total
