"""From samples to batches: features, decoder input and labels."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tools.demo_model.corpus import Sample
from tools.demo_model.network import MEL_BANDS
from tools.demo_model.phrases import (
    EMPTY,
    END_OF_TEXT,
    LANGUAGES,
    NO_SPEECH,
    NO_TIMESTAMPS,
    PREVIOUS,
    START,
    TIMESTAMPS,
    TRANSCRIBE,
    token_id,
)

IGNORED = -100
"""The label of a position whose next token is nothing to learn."""

BATCH = 32
LONG_BATCH = 10
WINDOW = 3000
"""Frames in Whisper's 30 s."""

VALIDATION = 400


@dataclass(frozen=True, slots=True)
class Lesson:
    """A sample and the ids of its text; none for non-speech."""

    sample: Sample
    text: list[int]

    @property
    def frames(self) -> int:
        return int(self.sample.mel.shape[1])


class Teacher:
    """Turns samples into batches of features, decoder input and labels."""

    def __init__(self, tokenizer: Tokenizer, samples: Sequence[Sample]) -> None:
        self._random = random.Random(0)
        self.end, self.start, self.previous, self.transcribe, self.no_speech, self.no_timestamps = (
            token_id(tokenizer, token) for token in (END_OF_TEXT, START, PREVIOUS, TRANSCRIBE, NO_SPEECH, NO_TIMESTAMPS)
        )
        self.languages = {language: token_id(tokenizer, f"<|{language}|>") for language in LANGUAGES}
        self.text_tokens = token_id(tokenizer, EMPTY) + 1
        self.vocabulary = tokenizer.get_vocab_size()
        lessons = [Lesson(sample, tokenizer.encode(f" {sample.text}").ids if sample.text else []) for sample in samples]
        self._prompts = [lesson.text for lesson in lessons if lesson.text]
        self._random.shuffle(lessons)
        reserve = min(VALIDATION, len(lessons) // 10)
        self.validation = sorted(lessons[:reserve], key=lambda lesson: lesson.frames)
        rest = sorted(lessons[reserve:], key=lambda lesson: lesson.frames + self._random.random() * 20)
        self._batches = [rest[at : at + BATCH] for at in range(0, len(rest) - BATCH + 1, BATCH)]
        if not self._batches:
            raise ValueError(f"{len(lessons)} samples are too few for a batch of {BATCH}")
        self._order: list[int] = []

    def next_batch(self, long_share: float) -> tuple[list[Lesson], int | None]:
        """Lessons of about the same length, and the frames to pad them to (None: about their own)."""
        if not self._order:
            self._order = list(range(len(self._batches)))
            self._random.shuffle(self._order)
        batch = self._batches[self._order.pop()]
        if self._random.random() >= long_share:
            return batch, None
        frames = WINDOW if self._random.random() < 0.7 else self._random.randint(600, WINDOW - 100)
        return self._random.sample(batch, LONG_BATCH), frames

    def features(self, batch: Sequence[Lesson], frames: int | None, *, disturb: bool) -> Tensor:
        longest = max(lesson.frames for lesson in batch)
        if frames is None:
            frames = longest + (self._random.randint(0, 120) if disturb and self._random.random() < 0.3 else 0)
        frames = max(frames, longest)
        features = np.zeros((len(batch), MEL_BANDS, frames + frames % 2), np.float32)
        for row, lesson in zip(features, batch, strict=True):
            mel = lesson.sample.mel.astype(np.float32)
            row[:, : lesson.frames] = self._disturbed(mel) if disturb else mel
        return torch.from_numpy(features)

    def _disturbed(self, mel: Any) -> Any:
        """Sometimes a few bands blanked, sometimes all a little louder or softer."""
        if self._random.random() < 0.4:
            band = self._random.randint(0, 70)
            mel[band : band + self._random.randint(1, 8)] = mel.mean()
        if self._random.random() < 0.3:
            mel = mel + self._random.uniform(-0.15, 0.15)
        return mel

    def tokens(self, batch: Sequence[Lesson]) -> tuple[Tensor, Tensor]:
        """Decoder input and labels; the label of a position is the token that follows it."""
        rows = [self._sequence(lesson) for lesson in batch]
        length = max(len(given) for given, _ in rows)
        given = torch.full((len(rows), length), self.end)
        labels = torch.full((len(rows), length), IGNORED)
        for row, (tokens, follow) in enumerate(rows):
            given[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, : len(follow)] = torch.tensor(follow)
        return given, labels

    def _sequence(self, lesson: Lesson) -> tuple[list[int], list[int]]:
        """Whisper's prompt and answer: at times with previous text, at times with timestamps."""
        given: list[int] = []
        if self._random.random() < 0.2:
            given = [self.previous, *self._random.choice(self._prompts)]
        language = self.languages[lesson.sample.language]
        labels = [IGNORED] * len(given) + [language if lesson.text else self.no_speech, IGNORED]
        given += [self.start, language, self.transcribe]
        if self._random.random() < 0.35:
            body = self._timed(lesson)
        else:
            body = [*lesson.text, self.end]
            given.append(self.no_timestamps)
            labels.append(IGNORED)
        return given + body[:-1], labels + body

    def _timed(self, lesson: Lesson) -> list[int]:
        zero = self.no_timestamps + 1
        if not lesson.text:
            return [zero, self.end]
        last = len(TIMESTAMPS) - 1
        start, end = (min(last, round(second / 0.02)) for second in (lesson.sample.start, lesson.sample.end))
        return [zero + start, *lesson.text, zero + end, self.end]
