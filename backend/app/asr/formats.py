"""The audio of a streamed body: what its type or its WAV header says, and every such byte as 16-bit mono PCM.

audio/L16 is little-endian here unless the type says `;endianness=big-endian`. RFC 2586 means big-endian, but what
recorders, browsers and sox call raw 16-bit audio is little.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from app.asr.schemas import Refused
from app.audio import g711
from app.audio.types import SAMPLE_BYTES

RATES = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
MAX_CHANNELS = 2
MULAW_TYPES = frozenset({"audio/x-mulaw", "audio/basic", "audio/pcmu"})
WAV_TYPES = frozenset({"audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"})
TYPES_HINT = "send audio/L16;rate=16000, audio/x-mulaw;rate=8000 or audio/wav"

MAX_HEADER = 64 * 1024
"""A WAV file's chunks before its samples: more than that and it is no recording."""
_PCM, _MULAW, _EXTENSIBLE = 1, 7, 0xFFFE
_ENDLESS = 0x7FFF_FFFF
"""Writers that cannot seek leave 0, -1 or about this in the size of the samples."""

Encoding = Literal["little", "big", "mulaw"]


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """`encoding`: the byte order of 16-bit samples, or mu-law."""

    encoding: Encoding
    rate: int
    channels: int = 1

    def __post_init__(self) -> None:
        if self.rate not in RATES:
            raise _unsupported(f"a rate of {self.rate} (understood: {', '.join(map(str, RATES))})")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise _unsupported(f"sound of {self.channels} channels (one or two are understood)")

    @property
    def block_bytes(self) -> int:
        """One sample of each channel."""
        return self.channels * (1 if self.encoding == "mulaw" else SAMPLE_BYTES)


def format_of_type(content_type: str) -> AudioFormat | None:
    """None for WAV, which says it in its header. Raises Refused (415)."""
    name, _, rest = content_type.partition(";")
    parameters: dict[str, str] = {}
    for part in rest.split(";"):
        key, _, value = part.partition("=")
        parameters[key.strip().lower()] = value.strip().strip('"').lower()
    name = name.strip().lower()
    if name in WAV_TYPES:
        return None
    channels = _number(parameters, "channels", 1)
    if name in MULAW_TYPES:
        return AudioFormat("mulaw", _number(parameters, "rate", 8000), channels)
    if name != "audio/l16":
        raise _unsupported(f"the type {name!r}" if name else "a body without a Content-Type")
    if "rate" not in parameters:
        raise Refused(415, "unsupported_audio", "audio/L16 needs a rate: audio/L16;rate=16000")
    big = parameters.get("endianness") == "big-endian"
    return AudioFormat("big" if big else "little", _number(parameters, "rate", 0), channels)


class WavHeader:
    """Takes a WAV file's bytes until its samples begin. All sizes in it are hints: nothing is allocated by them."""

    def __init__(self) -> None:
        self._data = b""
        self._at = 12
        self._format: AudioFormat | None = None

    def push(self, data: bytes) -> tuple[AudioFormat, int | None, bytes] | None:
        """The format, how many bytes of samples there are (None: to the end of the body) and the first of them; None
        while the header goes on. Raises Refused."""
        self._data += data
        if len(self._data) >= 12 and (self._data[:4] != b"RIFF" or self._data[8:12] != b"WAVE"):
            raise _broken("it does not begin with RIFF and WAVE")
        while len(self._data) >= self._at + 8:
            name, size = struct.unpack_from("<4sI", self._data, self._at)
            if name == b"data":
                if self._format is None:
                    raise _broken("there is no fmt chunk before the samples")
                return self._format, size if 0 < size < _ENDLESS else None, self._data[self._at + 8 :]
            end = self._at + 8 + size + size % 2
            if end > MAX_HEADER:
                raise _broken("no samples in its first 64 KiB")
            if len(self._data) < end:
                break
            if name == b"fmt ":
                self._format = _format_chunk(self._data[self._at + 8 : end])
            self._at = end
        return None

    def end(self) -> None:
        """The body is over before the samples began. Raises Refused, unless it was empty."""
        if self._data:
            raise _broken("it ends within its header")


def _format_chunk(chunk: bytes) -> AudioFormat:
    if len(chunk) < 16:
        raise _broken("its fmt chunk is too short")
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE and len(chunk) >= 26:
        (tag,) = struct.unpack_from("<H", chunk, 24)
    if (tag, bits) == (_PCM, 16):
        return AudioFormat("little", rate, channels)
    if (tag, bits) == (_MULAW, 8):
        return AudioFormat("mulaw", rate, channels)
    raise _unsupported(f"a WAV file of coding {tag} with {bits} bits; 16-bit PCM and mu-law can be streamed")


class ToPcm:
    """Bytes as they come in, 16-bit little-endian mono out; what does not fill a sample waits for the next bytes."""

    def __init__(self, form: AudioFormat, size: int | None = None) -> None:
        """`size`: so many bytes are audio, what follows is not."""
        self._form = form
        self._left = size
        self._rest = b""

    def push(self, data: bytes) -> bytes:
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        data = self._rest + data
        whole = len(data) - len(data) % self._form.block_bytes
        self._rest = data[whole:]
        return self._mono(data[:whole])

    def _mono(self, data: bytes) -> bytes:
        pcm = g711.decode(data) if self._form.encoding == "mulaw" else data
        if self._form.channels == 1 and self._form.encoding != "big":
            return pcm
        samples = np.frombuffer(pcm, ">i2" if self._form.encoding == "big" else "<i2")
        channels = samples.reshape(-1, self._form.channels)
        mono: bytes = channels.mean(axis=1).round().astype("<i2").tobytes()
        return mono


def _number(parameters: Mapping[str, str], name: str, default: int) -> int:
    value = parameters.get(name, "")
    if not value:
        return default
    if not (value.isascii() and value.isdigit() and len(value) <= 9):
        raise _unsupported(f"{name}={value[:20]!r}")
    return int(value)


def _unsupported(what: str) -> Refused:
    return Refused(415, "unsupported_audio", f"{what} cannot be streamed here; {TYPES_HINT}")


def _broken(why: str) -> Refused:
    return Refused(400, "broken_wav", f"this is no WAV file that can be streamed: {why}")
