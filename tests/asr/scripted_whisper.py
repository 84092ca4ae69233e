"""A Whisper that hears what it is told to hear, with the probabilities that it is told to have.

It stands where CTranslate2's model stands, behind the real Recogniser: what Whisper invents over noise cannot be had
from the demo model, which invents nothing. Features are real; a token is a Korean syllable, an English word or a sign,
about as many as Whisper would need.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ctranslate2
from faster_whisper.feature_extractor import FeatureExtractor
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = (
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|ko|>", "<|translate|>", "<|transcribe|>"),
    *("<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
)
TOKEN = Regex(r"[가-힣]| ?[A-Za-z]+|.")


@dataclass(frozen=True, slots=True)
class Says:
    """`logprob` is the mean of a token. `ends`: whether it finds the end, or goes on as long as it may."""

    text: str
    logprob: float = -0.2
    no_speech: float = 0.0
    ends: bool = True


@dataclass(frozen=True, slots=True)
class Asked:
    """One call of `generate`. `encoded`: it was given the encoder's output."""

    window_s: float
    prompts: Sequence[Sequence[int]]
    encoded: bool
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Result:
    sequences_ids: list[list[int]]
    scores: list[float]
    no_speech_prob: float


@dataclass
class ScriptedWhisper:
    """As a `faster_whisper.WhisperModel`. `script` has what each batch is answered, the last one for ever; in a batch,
    the last answer is for all that follow."""

    script: list[list[Says]]
    language: str = "ko"
    n_mels: int = 80
    is_multilingual: bool = True
    asked: list[Asked] = field(default_factory=list)
    encoded: list[int] = field(default_factory=list)
    """Frames of what was encoded apart."""

    def __post_init__(self) -> None:
        self.model = self
        self.feature_extractor = FeatureExtractor()
        self.hf_tokenizer = self._build_tokenizer()

    def _build_tokenizer(self) -> Tokenizer:
        split = pre_tokenizers.Split(TOKEN, "isolated")
        texts = [says.text for answers in self.script for says in answers]
        words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)} | {"?"})
        tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="?"))
        tokenizer.pre_tokenizer = split
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens(list(SPECIAL))
        return tokenizer

    # ------------------------------------------------------------ as ctranslate2.models.Whisper

    def encode(self, features: ctranslate2.StorageView) -> ctranslate2.StorageView:
        self.encoded.append(features.shape[2])
        return features

    def detect_language(self, encoded: ctranslate2.StorageView) -> list[list[tuple[str, float]]]:
        return [[(f"<|{self.language}|>", 0.9)]] * encoded.shape[0]

    def generate(
        self, features: ctranslate2.StorageView, prompts: Sequence[Sequence[int]], **settings: Any
    ) -> list[_Result]:
        assert features.shape[0] == len(prompts)
        assert len({len(prompt) for prompt in prompts}) == 1, "CTranslate2 refuses prompts of several lengths"
        encoded = bool(self.encoded) and len(self.encoded) > sum(asked.encoded for asked in self.asked)
        self.asked.append(Asked(features.shape[2] / 100, prompts, encoded, settings))
        answers = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        answers = [*answers, *[answers[-1]] * (len(prompts) - len(answers))]
        length = settings["max_length"]
        most = min(length // 2, length - len(prompts[0]) + 1)
        return [self._say(says, most) for says in answers[: len(prompts)]]

    def _say(self, says: Says, most: int) -> _Result:
        ids = self.hf_tokenizer.encode(says.text).ids
        if not says.ends:
            ids *= 1 + most
        ids = ids[:most]
        return _Result([ids], [says.logprob * (len(ids) + 1)], says.no_speech)
