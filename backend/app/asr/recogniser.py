"""One loaded Whisper model and one blocking call: telephone audio in, words out.

The model is the unmodified `faster_whisper.WhisperModel`. What is decided here is how it is asked, and when its
answer is not believed. `decode` belongs in a worker thread (engine.py), never on the event loop.

faster_whisper and soxr are imported inside functions: they take half a second, and whoever only reads types or
runs without a recogniser should not pay for them.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from app.audio.types import SAMPLE_BYTES
from app.errors import ConfigError

WHISPER_RATE = 16_000
NEEDED_FILES = ("config.json", "model.bin", "tokenizer.json")

LOG_PROB_THRESHOLD = -1.0
"""With a no-speech probability above the threshold, words less likely than this are dropped (OpenAI's rule)."""

MAX_COMPRESSION_RATIO = 2.4
"""Text that compresses better is a loop: Whisper repeating itself over noise."""

MAX_TOKENS_PER_SECOND = 15
SPARE_TOKENS = 8
"""Fast Korean is about nine syllables a second, each one or two tokens. A decode that wants more is not hearing
speech; it is cut there, so that a loop costs no more time than the fastest speaker."""

MAX_DECODE_TOKENS = 220  # Whisper's text context, less the prompt

Drop = Literal["", "loop", "too_many_words"]


@dataclass(frozen=True, slots=True)
class Decoded:
    """What was heard. `text` is empty where there was no speech, or where it was not believed (`dropped`).

    `avg_logprob` is the mean log-probability of a token, 0.0 without words.
    """

    text: str
    language: str
    avg_logprob: float = 0.0
    no_speech_prob: float = 0.0
    decode_ms: float = 0.0
    dropped: Drop = ""

    @property
    def confidence(self) -> float | None:
        return math.exp(min(0.0, self.avg_logprob)) if self.text else None


class _Segment(Protocol):
    """The part of faster_whisper's Segment that is judged."""

    text: str
    tokens: list[int]
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class Recogniser:
    """Safe to share between as many threads as it has `workers`; more threads would only wait inside CTranslate2."""

    def __init__(
        self,
        model: Any,
        *,
        name: str,
        device: str = "cpu",
        compute_type: str = "int8",
        workers: int = 1,
        no_speech_threshold: float = 0.6,
    ) -> None:
        self._model = model
        self.name = name
        self.device = device
        self.compute_type = compute_type
        self.workers = workers
        self._no_speech_threshold = no_speech_threshold

    @classmethod
    def load(
        cls,
        folder: Path,
        name: str,
        device: str = "cpu",
        compute_type: str = "int8",
        workers: int = 1,
        no_speech_threshold: float = 0.6,
    ) -> Self:
        """Blocking: milliseconds for the demo model, seconds for a large one. Raises ConfigError.

        `folder` holds a model in CTranslate2's format. A file that is missing is an error: faster_whisper would
        fetch another model's tokenizer instead.
        """
        missing = [file for file in NEEDED_FILES if not (folder / file).is_file()]
        if missing:
            raise ConfigError(
                f"MODEL_NAME: {folder} is not a complete faster-whisper model, {' and '.join(missing)} missing; "
                "name a folder with a converted model, or delete this one so that it is fetched again"
            )
        from faster_whisper import WhisperModel

        try:
            model = WhisperModel(
                str(folder),
                device=device,
                compute_type=compute_type,
                cpu_threads=1,  # two workers with one thread each do 1.6 times what one with two threads does
                num_workers=workers,
                max_queued_batches=-1,  # else CTranslate2 blocks its callers; the bound is the engine's queue
            )
        except Exception as error:  # CTranslate2 and tokenizers raise RuntimeError, ValueError and bare Exception
            raise ConfigError(_load_advice(name, folder, device, compute_type, error)) from error
        return cls(
            model,
            name=name,
            device=device,
            compute_type=compute_type,
            workers=workers,
            no_speech_threshold=no_speech_threshold,
        )

    def warm_up(self) -> float:
        """Decode a second of silence and return its milliseconds. Raises ConfigError.

        The first decode costs two to three times as much as the next, and a missing cuBLAS shows only here: a
        model loads without it.
        """
        try:
            return self.decode(bytes(WHISPER_RATE * SAMPLE_BYTES), WHISPER_RATE, "ko", beam=2).decode_ms
        except Exception as error:
            raise ConfigError(_load_advice(self.name, None, self.device, self.compute_type, error)) from error

    def decode(self, pcm: bytes, rate: int, language: str, *, beam: int) -> Decoded:
        """Blocking. 16-bit mono PCM of any rate, at most 30 s; `language` is a code, or `auto`. `beam` 1 is greedy.

        One-shot resampling is exact and costs 0.1 ms; a streaming resampler would hold back 50 to 100 ms.

        Beam search uses length_penalty 0. With the usual 1, CTranslate2 stops as soon as `beam` hypotheses have
        ended even if the best one has not, and on short utterances two early endings win: the demo model falls
        from 99.5 % to 74.5 %. With 0 it stops when the best one ends. No temperature ladder: it would decode up
        to six times. No previous text: it is what makes Whisper repeat itself.
        """
        started = time.perf_counter()
        seconds = len(pcm) / (SAMPLE_BYTES * rate)
        if not pcm:
            return Decoded("", language)
        budget = token_budget(seconds)
        segments, info = self._model.transcribe(
            _whisper_samples(pcm, rate),
            language=None if language == "auto" else language,
            beam_size=beam,
            length_penalty=0.0,
            temperature=0.0,
            compression_ratio_threshold=MAX_COMPRESSION_RATIO,
            log_prob_threshold=LOG_PROB_THRESHOLD,
            no_speech_threshold=self._no_speech_threshold,
            condition_on_previous_text=False,
            without_timestamps=True,
            # CTranslate2 stops at half of prompt + max_new_tokens, so twice the budget is the budget
            max_new_tokens=2 * budget,
        )
        heard = list(segments)  # this is where it decodes
        text, dropped = believe(heard, budget)
        tokens = sum(len(segment.tokens) for segment in heard)
        return Decoded(
            text=text,
            language=info.language,
            avg_logprob=sum(segment.avg_logprob * len(segment.tokens) for segment in heard) / max(1, tokens),
            no_speech_prob=max((segment.no_speech_prob for segment in heard), default=1.0),
            decode_ms=(time.perf_counter() - started) * 1000,
            dropped=dropped,
        )


def token_budget(seconds: float) -> int:
    return min(MAX_DECODE_TOKENS, int(seconds * MAX_TOKENS_PER_SECOND) + SPARE_TOKENS)


def believe(segments: Iterable[_Segment], budget: int) -> tuple[str, Drop]:
    """The text, or nothing and why."""
    heard = list(segments)
    if any(segment.compression_ratio > MAX_COMPRESSION_RATIO for segment in heard):
        return "", "loop"
    if any(len(segment.tokens) >= budget for segment in heard):
        return "", "too_many_words"
    return " ".join(text for segment in heard if (text := segment.text.strip())), ""


def _whisper_samples(pcm: bytes, rate: int) -> Any:
    import numpy as np
    import soxr

    samples = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
    return samples if rate == WHISPER_RATE else soxr.resample(samples, rate, WHISPER_RATE, quality="HQ")


def _load_advice(name: str, folder: Path | None, device: str, compute_type: str, error: Exception) -> str:
    words = " ".join(str(error).split())
    if "libcublas" in words:
        return (
            "DEVICE: this GPU needs libcublas.so.12 of CUDA 12, which is not installed; "
            "pip install 'malgil[cuda]', or set DEVICE=cpu"
        )
    if "out of memory" in words:
        return (
            f"MODEL_NAME: {name} does not fit into the memory of the GPU with COMPUTE_TYPE={compute_type}; "
            "choose a smaller model, COMPUTE_TYPE=int8_float16, or DEVICE=cpu"
        )
    if "compute type" in words:
        return f"COMPUTE_TYPE: {compute_type} cannot be used on DEVICE={device} ({words}); COMPUTE_TYPE=auto chooses"
    where = f" from {folder}" if folder else ""
    return f"MODEL_NAME: {name} cannot be used{where} on DEVICE={device}: {words[:300]}"
