"""G.711 mu-law and 16-bit linear PCM, by table.

The decoder is ITU-T G.711's expansion. Of the encoders that the standard allows this is the one of Python's
former `audioop` (14-bit magnitude, bias 33), so recordings compare byte for byte with tools built on that.
Both tables are computed at first use, in 3 ms. A call runs through here a hundred times a second.
"""

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

SILENCE = 0xFF
"""Zero in mu-law. A zero byte is the loudest negative sample instead: padding with it clicks."""

_BIAS = 33
_LARGEST = 8159
_SEGMENT_ENDS = np.array([0x3F, 0x7F, 0xFF, 0x1FF, 0x3FF, 0x7FF, 0xFFF, 0x1FFF])


def decode(mulaw: bytes) -> bytes:
    """One mu-law byte in, one little-endian 16-bit sample out."""
    return decode_table().take(np.frombuffer(mulaw, np.uint8)).tobytes()


def encode(pcm: bytes) -> bytes:
    """One little-endian 16-bit sample in, one mu-law byte out. Raises ValueError on half a sample.

    `encode(decode(b)) == b` for every byte but 0x7F, the negative zero, which becomes 0xFF.
    """
    return encode_table().take(np.frombuffer(pcm, "<u2")).tobytes()


@functools.cache
def decode_table() -> npt.NDArray[np.int16]:
    """The sample of each of the 256 codes."""
    inverted = ~np.arange(256) & 0xFF
    magnitude = (((inverted & 0x0F) << 3) + 4 * _BIAS) << ((inverted & 0x70) >> 4)
    samples = np.where(inverted & 0x80, 4 * _BIAS - magnitude, magnitude - 4 * _BIAS)
    return _frozen(samples.astype("<i2"))


@functools.cache
def encode_table() -> npt.NDArray[np.uint8]:
    """The code of each of the 65,536 samples, indexed by the sample's bits read as an unsigned number."""
    samples = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.int32) >> 2
    mask = np.where(samples < 0, 0x7F, 0xFF)
    magnitude = np.minimum(np.abs(samples), _LARGEST) + _BIAS
    segment = np.searchsorted(_SEGMENT_ENDS, magnitude)
    beyond = segment == len(_SEGMENT_ENDS)
    code = np.where(beyond, 0x7F, (segment << 4) | ((magnitude >> (segment + 1)) & 0x0F))
    return _frozen((code ^ mask).astype(np.uint8))


def _frozen(table: npt.NDArray[Any]) -> npt.NDArray[Any]:
    table.flags.writeable = False
    return table
