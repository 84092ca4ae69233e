"""The wav file of a call."""

import wave
from pathlib import Path

import numpy as np

from app.audio import g711
from app.simulator.recording import write_stereo
from tests.simulator.far_side import silence, tone


def test_the_caller_is_on_the_left_and_the_bot_on_the_right(tmp_path: Path) -> None:
    caller, bot = tone(50) + silence(50), silence(50) + tone(50)
    write_stereo(tmp_path / "call.wav", caller, bot)

    with wave.open(str(tmp_path / "call.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 8000)
        left, right = np.frombuffer(file.readframes(800), "<i2").reshape(-1, 2).T
    assert left.tobytes() == g711.decode(caller)
    assert right.tobytes() == g711.decode(bot)
