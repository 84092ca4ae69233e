"""A call as a stereo wav file: the caller on the left, the bot on the right, as both were heard."""

import wave
from pathlib import Path

import numpy as np

from app.audio import g711
from app.simulator.clip import RATE


def write_stereo(path: Path, caller: bytes, bot: bytes) -> None:
    """Two mu-law tracks of one length. Raises OSError."""
    left, right = (np.frombuffer(g711.decode(track), "<i2") for track in (caller, bot))
    with path.open("wb") as out, wave.open(out, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.stack([left, right], axis=1).tobytes())
