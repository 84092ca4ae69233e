"""Long speech in pieces: where to cut the audio, and how to put the words together again. Pure functions.

A cut in a real pause costs nothing. Where nobody pauses the cut goes through words, so both sides keep some audio of
the other one, and may hear the same word twice, or each a part of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.asr.inventions import bare
from app.asr.numerals import count_digits, is_number
from app.audio.types import SAMPLE_BYTES

STEP_MS = 10
PAUSE_MS = 150  # the closure of a Korean stop lasts up to 100 ms
MIN_RANGE_DB = 10.0  # between the quiet and the loud: less is steady noise or music, where nothing is a pause
QUIET_SHARE = 0.25  # of that range: whatever is below is quiet
MAX_DOUBLED_WORDS = 3
MAX_DOUBLED_DIGITS = 1  # the overlap holds no more, and 010 1212 1234 is a number
MIN_DOUBLED_CHARS = 2  # a single syllable that two words share is a coincidence

Levels = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cut:
    """Offsets in bytes: the head is `pcm[:head_end]`, the rest `pcm[rest_start:]`. They share audio where they overlap.

    `in_pause`: no word was cut, and none is in both.
    """

    head_end: int
    rest_start: int
    in_pause: bool


def find_cut(pcm: bytes, rate: int, overlap_ms: int) -> Cut:
    """The middle of the longest pause; where there is none, the quietest place of the second half.

    The first quarter is never cut, so pieces do not become snippets, and the rest is shorter than `pcm`: no overlap is
    longer than an eighth of it. In a pause the overlap stays inside the pause. `pcm` is at least 100 ms long.
    """
    levels = _levels(pcm, rate)
    steps = len(levels)
    overlap = min(overlap_ms // STEP_MS, steps // 8)
    first, last = steps // 4, steps - max(1, overlap)
    begin, end = _longest_pause(levels, first, last)
    in_pause = (end - begin) * STEP_MS >= PAUSE_MS
    if in_pause:
        at = (begin + end) // 2
        overlap = min(overlap, at - begin)
    else:
        at = last - int(levels[steps // 2 : last][::-1].argmin())
    step_bytes = rate * STEP_MS // 1000 * SAMPLE_BYTES
    return Cut((at + overlap) * step_bytes, (at - overlap) * step_bytes, in_pause)


def _levels(pcm: bytes, rate: int) -> Levels:
    """The loudness of each step in dB over the smallest sample, smoothed over three."""
    step = rate * STEP_MS // 1000
    samples = np.frombuffer(pcm, "<i2")
    steps = len(samples) // step
    power = np.square(samples[: steps * step].astype(np.float64)).reshape(steps, step).mean(axis=1)
    padded = np.pad(power, 1, mode="edge")
    levels: Levels = 10 * np.log10((padded[:-2] + padded[1:-1] + padded[2:]) / 3 + 1)
    return levels


def _longest_pause(levels: Levels, first: int, last: int) -> tuple[int, int]:
    """Its steps, begin and end; the later of two that are equal; (first, first) where there is none."""
    floor, loud = (float(level) for level in np.percentile(levels, (5, 80)))  # lost frames are zeros, below any noise
    if loud - floor < MIN_RANGE_DB:
        return first, first
    quiet = levels[first:last] < floor + QUIET_SHARE * (loud - floor)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], quiet, [False]))))
    pauses = [(int(end - begin), int(begin), int(end)) for begin, end in zip(edges[::2], edges[1::2], strict=True)]
    _, begin, end = max(pauses, default=(0, 0, 0))
    return first + begin, first + end


def join(parts: Sequence[tuple[str, bool]]) -> str:
    """The text of pieces in order, each with whether the cut after it was in a pause."""
    text, in_pause = "", True
    for words, next_in_pause in parts:
        apart = in_pause or not words or not text
        text = f"{text} {words}".strip() if apart else _join_overlapping(text, words)
        in_pause = next_in_pause or not words  # what lies on either side of a piece shares no audio
    return text


def _join_overlapping(head: str, rest: str) -> str:
    """Without what both heard of the same audio: whole words, or the end of a word that is the beginning of the next.

    The punctuation of the rest wins: a full stop in front of a cut is a guess.
    """
    before, after = head.split(), rest.split()
    for count in range(min(MAX_DOUBLED_WORDS, len(before), len(after)), 0, -1):
        doubled = [_core(word) for word in after[:count]]
        if doubled == [_core(word) for word in before[-count:]] and not _are_many_digits(doubled):
            return " ".join([*before[:-count], *after])
    shared = _shared(_core(before[-1]), _core(after[0]))
    if shared:
        after[0] = _bare(before.pop())[:-shared] + after[0]
    return " ".join([*before, *after])


def _shared(head: str, rest: str) -> int:
    """How many letters at the end of `head` are the beginning of `rest`."""
    sizes = range(min(len(head), len(rest)), MIN_DOUBLED_CHARS - 1, -1)
    return next((size for size in sizes if head.endswith(rest[:size]) and not is_number(bare(rest[:size]))), 0)


def _are_many_digits(words: Sequence[str]) -> bool:
    numbers = [bare(word) for word in words]
    return all(map(is_number, numbers)) and sum(map(count_digits, numbers)) > MAX_DOUBLED_DIGITS


def _bare(word: str) -> str:
    """Without its punctuation at the end."""
    while word and not word[-1].isalnum():
        word = word[:-1]
    return word


def _core(word: str) -> str:
    """To compare: lower case where that keeps its length, no punctuation at either end."""
    core = _bare(_bare(word)[::-1])[::-1]
    lower = core.lower()
    return lower if len(lower) == len(core) else core
