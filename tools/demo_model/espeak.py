"""espeak-ng through ctypes: text in, samples and the starts of the words out.

espeak-ng is GPL-3.0-or-later. This tool loads it; the server never does.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import espeakng_loader
import numpy as np
import numpy.typing as npt

Signal = npt.NDArray[np.float32]

# From espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2
_DO_NOT_EXIT = 0x8000
_POSITION_CHARACTER = 1
_UTF8 = 1
_RATE, _PITCH, _PITCH_RANGE = 1, 3, 4
_LIST_TERMINATED, _WORD = 0, 1


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True, slots=True)
class Reading:
    """What espeak said: samples in -1..1 at `Espeak.rate`, and where each word begins, in seconds."""

    samples: Signal
    word_starts: tuple[float, ...]


class Espeak:
    """The library is one global object, so have one of these in a process, and use it from one thread."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        data = str(espeakng_loader.get_data_path()).encode()
        self.rate: int = self._library.espeak_Initialize(_SYNCHRONOUS, 500, data, _DO_NOT_EXIT)
        if self.rate <= 0:
            raise RuntimeError(f"espeak-ng did not start with the data in {data.decode()}")
        self._pieces: list[npt.NDArray[np.int16]] = []
        self._word_starts: list[float] = []
        self._callback = _Callback(self._take)  # kept: espeak holds no reference
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, voice: str, *, rate: int = 175, pitch: int = 50, swing: int = 50) -> Reading:
        """`rate`: words a minute. `pitch` and `swing`, its range: 0 to 100. ValueError: no such voice."""
        self._pieces.clear()
        self._word_starts.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_PITCH_RANGE, swing)):
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode() + b"\0"
        size = ctypes.c_size_t(len(data))
        self._library.espeak_Synth(data, size, 0, _POSITION_CHARACTER, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        samples = (np.concatenate(self._pieces) / 32768).astype(np.float32)
        return Reading(samples, tuple(self._word_starts))

    def _take(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        index = 0
        while events[index].type != _LIST_TERMINATED:
            if events[index].type == _WORD:
                self._word_starts.append(events[index].audio_position / 1000)
            index += 1
        return 0
