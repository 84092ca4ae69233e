"""One loaded Whisper model and one blocking call: telephone audio in, words out.

The model is the unmodified `faster_whisper.WhisperModel`; its features and its tokenizer are used, but not its
`transcribe`, which knows windows of 30 s alone and one utterance at a time. What is decided here is how CTranslate2 is
asked; how long a window is stands in windows.py, and what is believed in gates.py. `decode` belongs in a worker thread
(engine.py), never on the event loop.

faster_whisper and soxr are imported inside functions: they take half a second, and whoever only reads types or
runs without a recogniser should not pay for them.
"""

import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from app.asr.gates import FASTEST_TOKENS_PER_S, TOKENS_PER_S, Hypothesis, Reason, looks_wrong, token_budget, why_not
from app.asr.prompts import Prompts, max_length
from app.asr.windows import FULL_S, MARGIN_S, WINDOWS_S, choose_window, fill, find_trap
from app.audio.types import SAMPLE_BYTES
from app.errors import ConfigError

WHISPER_RATE = 16_000
NEEDED_FILES = ("config.json", "model.bin", "tokenizer.json")

TYPICAL_TOKENS = 12
SETTLED = 480
"""Samples of silence after which features are those of silence: more than Whisper's spectra overlap."""


@dataclass(frozen=True, slots=True)
class Request:
    """An utterance to decode: 16-bit mono PCM of any rate, at most 30 s of it. `language` is a code, or `auto`.

    `speech_ms` is what the endpointer took for speech in it; None: not known. `previous` is the text before it, for
    CONDITION_ON_PREV alone: it makes Whisper repeat itself, and requests with it seldom share a batch. `look`:
    `first` is over a short window where that will do, `second` over the full one; `both`, the second at once where
    the first looks wrong, is for those whom nobody waits behind (the engine asks for one after the other).
    """

    pcm: bytes
    rate: int
    language: str
    speech_ms: int | None = None
    previous: str = ""
    look: Literal["first", "second", "both"] = "both"

    @property
    def seconds(self) -> float:
        return len(self.pcm) / (SAMPLE_BYTES * self.rate)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What was heard. `text` is empty where there was no speech, or where it was not believed (`dropped`).

    `avg_logprob` is the mean log-probability of a token. `decode_ms` is the time of the whole batch, since each of it
    had to wait for all. `window_s` is what the encoder looked at. `redecoded`: this is a second look. `suspect`: this
    is a first one, which looks wrong, and deserves a second.
    """

    text: str
    language: str
    avg_logprob: float = 0.0
    no_speech_prob: float = 0.0
    decode_ms: float = 0.0
    dropped: Reason = ""
    window_s: int = 0
    redecoded: bool = False
    suspect: bool = False

    @property
    def confidence(self) -> float | None:
        return math.exp(min(0.0, self.avg_logprob)) if self.text else None


@dataclass(frozen=True, slots=True)
class RecogniserOptions:
    """NO_SPEECH_THRESHOLD and ENCODER_WINDOW. `auto`: short windows on a CPU; on a GPU the encoder is cheap."""

    no_speech_threshold: float = 0.6
    encoder_window: Literal["auto", "full"] = "auto"

    def window_s(self, request: Request, device: str) -> int:
        full = self.encoder_window == "full" or device != "cpu" or request.look == "second"
        return choose_window(request.seconds, full=full)


@dataclass(frozen=True, slots=True)
class _Heard:
    language: str
    hypothesis: Hypothesis


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
        options: RecogniserOptions | None = None,
    ) -> None:
        """Raises ConfigError."""
        self._model = model
        self.name = name
        self.device = device
        self.compute_type = compute_type
        self.workers = workers
        self.max_batch = 8 if device == "cpu" else 16
        self._options = options or RecogniserOptions()
        self._prompts = Prompts(model)
        if (window_s := find_trap(model.model.n_mels)) is not None:
            raise ConfigError(
                f"MODEL_NAME: {name} has {model.model.n_mels} mel bands, with which CTranslate2 cannot be given the "
                f"window of {window_s} s; choose a model with Whisper's 80 or 128"
            )

    @classmethod
    def load(
        cls,
        folder: Path,
        name: str,
        device: str = "cpu",
        compute_type: str = "int8",
        workers: int = 1,
        options: RecogniserOptions | None = None,
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
        return cls(model, name=name, device=device, compute_type=compute_type, workers=workers, options=options)

    def warm_up(self) -> float:
        """Decode silence in each window, and return the milliseconds of a short sentence. Raises ConfigError.

        The first decode costs two to three times as much as the next, and a missing cuBLAS shows only here: a
        model loads without it.
        """
        silences = [_silence(window_s - MARGIN_S) for window_s in WINDOWS_S]
        windows = {self._options.window_s(silence, self.device): silence for silence in reversed(silences)}
        try:
            for window_s, silence in windows.items():
                self._generate([silence], window_s, beam=2, tokens=TYPICAL_TOKENS, to_the_end=True)
            started = time.perf_counter()
            self._generate([silence], window_s, beam=2, tokens=TYPICAL_TOKENS, to_the_end=True)
        except Exception as error:
            raise ConfigError(_load_advice(self.name, None, self.device, self.compute_type, error)) from error
        return (time.perf_counter() - started) * 1000

    # ------------------------------------------------------------ decoding

    def batch_key(self, request: Request) -> Hashable:
        """Requests with equal keys may share a decode: one window, and prompts of one length (CTranslate2 wants it).

        On a CPU each full window is decoded alone: the encoder is most of the work there, and two at once take more
        than twice the time of one.
        """
        window_s = self._options.window_s(request, self.device)
        if window_s == FULL_S and self.device == "cpu":
            return object()
        return window_s, len(self._prompts.previous(request.previous))

    def decode(self, requests: Sequence[Request], *, beam: int) -> list[Decoded]:
        """Blocking. All in one batch, answers in their order. `beam` 1 is greedy."""
        started = time.perf_counter()
        asked = [request for request in requests if request.pcm]
        window_s = max((self._options.window_s(request, self.device) for request in asked), default=0)
        heard = self._hear(asked, window_s, beam) if asked else []
        decoded = []
        for request, first in zip(asked, heard, strict=True):
            suspect = window_s < FULL_S and looks_wrong(first.hypothesis)
            if suspect and request.look == "both":
                decoded.append(self._judge(self._hear([request], FULL_S, beam)[0], FULL_S, redecoded=True))
            else:
                decoded.append(self._judge(first, window_s, redecoded=request.look == "second", suspect=suspect))
        decode_ms = (time.perf_counter() - started) * 1000
        results = iter(decoded)
        return [
            replace(next(results), decode_ms=decode_ms) if request.pcm else Decoded("", request.language)
            for request in requests
        ]

    def _judge(self, heard: _Heard, window_s: int, *, redecoded: bool, suspect: bool = False) -> Decoded:
        hypothesis = heard.hypothesis
        dropped = why_not(hypothesis, self._options.no_speech_threshold)
        return Decoded(
            text="" if dropped else hypothesis.text,
            language=heard.language,
            avg_logprob=hypothesis.avg_logprob,
            no_speech_prob=hypothesis.no_speech_prob,
            dropped=dropped,
            window_s=window_s,
            redecoded=redecoded,
            suspect=suspect,
        )

    def _hear(self, requests: Sequence[Request], window_s: int, beam: int) -> list[_Heard]:
        spoken_ms = [_speech_ms(request) for request in requests]
        per_s = FASTEST_TOKENS_PER_S if window_s == FULL_S else TOKENS_PER_S
        tokens = max(token_budget(speech_ms, per_s) for speech_ms in spoken_ms)
        languages, results = self._generate(requests, window_s, beam=beam, tokens=tokens)
        heard = []
        for language, result, speech_ms in zip(languages, results, spoken_ms, strict=True):
            ids = result.sequences_ids[0]
            hypothesis = Hypothesis(
                text=self._prompts.tokenizer(language).decode(ids).strip(),
                tokens=len(ids),
                avg_logprob=result.scores[0] / (len(ids) + 1),  # the end of text counts
                no_speech_prob=result.no_speech_prob,
                speech_ms=speech_ms,
            )
            heard.append(_Heard(language, hypothesis))
        return heard

    def _generate(
        self, requests: Sequence[Request], window_s: int, *, beam: int, tokens: int, to_the_end: bool = False
    ) -> tuple[list[str], list[Any]]:
        """Languages and CTranslate2's results. Features in, if the languages are known: one job for CTranslate2. Else
        the encoder's output, from which the language is told at the cost of a token.

        Beam search uses length_penalty 0. With the usual 1, CTranslate2 stops as soon as `beam` hypotheses have
        ended even if the best one has not, and on short utterances two early endings win: the demo model falls
        from 99.5 % to 74.5 %. With 0 it stops when the best one ends. No temperature ladder: it would decode up
        to six times. `to_the_end` decodes as many tokens as there may be, whatever it hears.
        """
        import ctranslate2
        import numpy as np

        whisper = self._model.model
        features = np.stack([self._features(request, window_s) for request in requests])
        seen = ctranslate2.StorageView.from_array(features)
        languages = [self._prompts.known(request.language) for request in requests]
        if "auto" in languages:
            seen = whisper.encode(seen)
            found = [best[0][0] for best in whisper.detect_language(seen)]
            pairs = zip(languages, found, strict=True)
            languages = [token[2:-2] if language == "auto" else language for language, token in pairs]
        asked = zip(languages, requests, strict=True)
        prompts = [self._prompts.build(language, request.previous) for language, request in asked]
        tokenizer = self._prompts.tokenizer(languages[0])
        never = self._prompts.suppressed(languages[0])
        results = whisper.generate(
            seen,
            prompts,
            beam_size=beam,
            length_penalty=0.0,
            max_length=max_length(tokens, len(prompts[0])),
            suppress_blank=not to_the_end,
            suppress_tokens=[*never, tokenizer.eot] if to_the_end else never,
            return_scores=True,
            return_no_speech_prob=True,
        )
        return languages, results

    def _features(self, request: Request, window_s: int) -> Any:
        """Of the audio and silence after it. One-shot resampling is exact and costs 0.1 ms; a streaming resampler
        would hold back 50 to 100 ms."""
        import numpy as np
        import soxr

        samples = np.frombuffer(request.pcm, "<i2").astype(np.float32) / 32768
        if request.rate != WHISPER_RATE:
            samples = soxr.resample(samples, request.rate, WHISPER_RATE, quality="HQ")
        hop = self._model.feature_extractor.hop_length
        samples = np.pad(samples, (0, SETTLED + -len(samples) % hop))
        return fill(self._model.feature_extractor(samples, padding=0), window_s)


def _speech_ms(request: Request) -> float:
    return request.seconds * 1000 if request.speech_ms is None else request.speech_ms


def _silence(seconds: float) -> Request:
    return Request(bytes(int(seconds * WHISPER_RATE) * SAMPLE_BYTES), WHISPER_RATE, "ko")


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
