"""How much the encoder is given to look at: a window of fixed length over the audio, the rest of it silence.

Whisper was trained on windows of 30 s, and pays for all of one however short the audio is. CTranslate2 takes shorter
ones, at a fifth of the cost and less. Two things must hold (measured by others on real models): silence enough after
the speech, else the decoder does not find the end; and a second look over 30 s where the short one went wrong.
"""

from typing import Any, Literal

WINDOWS_S = (5, 8, 12, 30)
"""Few and fixed, so that requests share a batch, and none meets the trap of `is_trap`."""

FULL_S = 30
MARGIN_S = 2.5
FRAMES_PER_S = 100
FRAMES_PER_POSITION = 2
"""The encoder halves the number of frames."""


def choose_window(audio_s: float, *, full: bool) -> int:
    """Seconds: the smallest window with the margin after the audio; with `full`, or for long audio, all 30."""
    if full:
        return FULL_S
    return next((window_s for window_s in WINDOWS_S if window_s >= audio_s + MARGIN_S), FULL_S)


def is_trap(frames: int, n_mels: int) -> bool:
    """Whether CTranslate2 would take the encoder's output for features and encode it again: garbage, without an error.

    It tells the two by their second dimension alone, which is n_mels for features.
    """
    return frames // FRAMES_PER_POSITION == n_mels


def find_trap(n_mels: int) -> int | None:
    """The window, in seconds, that must not be used with such a model; for Whisper's 80 and 128 there is none."""
    return next((window_s for window_s in WINDOWS_S if is_trap(window_s * FRAMES_PER_S, n_mels)), None)


def fill(features: Any, window_s: int) -> Any:
    """Log-mel features [n_mels, frames], the last frame of silence, made as long as the window.

    A short window goes on with silence: it gives what features of audio padded with zeros would be, for a fraction of
    the time. Zero as a feature is another thing, the level of loud noise. That is nevertheless what faster_whisper
    fills its 30 s with, so here the full window has it too: then it hears what faster_whisper is known to hear, and
    the demo model, which was trained so, understands half as much over 25 s of silence.
    """
    import numpy as np

    frames = window_s * FRAMES_PER_S
    padding = ((0, 0), (0, max(0, frames - features.shape[1])))
    mode: Literal["constant", "edge"] = "constant" if window_s == FULL_S else "edge"
    return np.pad(features[:, :frames], padding, mode=mode)
