"""What the demo model knows, read from the one list that also ships with it, and its tokens."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SHIPPED = Path(__file__).parents[2] / "backend" / "app" / "asr" / "demo_model"
"""The folder of the model that ships with the package."""

LANGUAGES = ("en", "ko")
"""In the order of their tokens, which is Whisper's order."""

END_OF_TEXT = "<|endoftext|>"
START = "<|startoftranscript|>"
PREVIOUS = "<|startofprev|>"
TRANSCRIBE = "<|transcribe|>"
NO_SPEECH = "<|nospeech|>"
NO_TIMESTAMPS = "<|notimestamps|>"
EMPTY = ""
"""CTranslate2 takes a model for multilingual only when its vocabulary has the empty token (as Whisper's has).
It is the last of the text tokens, so its id plus one is their number."""

TIMESTAMPS = [f"<|{tick * 0.02:.2f}|>" for tick in range(1501)]
"""0.00 to 30.00 s in steps of 20 ms, as in Whisper."""

TEXT_TOKENS = 560
"""Enough for whole words of 54 phrases; Whisper's own 50,257 would only slow training and decoding."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """A sentence as Whisper would write it, punctuation included, and the code of its language."""

    text: str
    language: str


def load_phrases(folder: Path = SHIPPED) -> tuple[Phrase, ...]:
    rows = json.loads((folder / "phrases.json").read_text(encoding="utf-8"))
    return tuple(Phrase(row["text"], row["language"]) for row in rows)


def build_tokenizer(phrases: Sequence[Phrase]) -> Tokenizer:
    """A byte-level BPE in Whisper's layout: text tokens, then special tokens, then timestamps."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_TOKENS,
        min_frequency=1,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(phrase.text for phrase in phrases), trainer)
    document = json.loads(tokenizer.to_str())
    vocabulary = document["model"]["vocab"]
    vocabulary[EMPTY] = len(vocabulary)
    tokenizer = Tokenizer.from_str(json.dumps(document, ensure_ascii=False))
    languages = [f"<|{language}|>" for language in LANGUAGES]
    tasks = ["<|translate|>", TRANSCRIBE, "<|startoflm|>", PREVIOUS, NO_SPEECH, NO_TIMESTAMPS]
    tokenizer.add_special_tokens([END_OF_TEXT, START, *languages, *tasks, *TIMESTAMPS])
    return tokenizer


def _corpus(texts: Iterable[str]) -> list[str]:
    """Whisper's text begins with a space. " -" and " '" must be tokens: faster-whisper asks for their ids."""
    texts = list(texts)
    words = [f" {word}" for text in texts for word in text.rstrip(".?").split()]
    return [f" {text}" for text in texts] * 5 + [" -", " '"] * 40 + words * 2


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that must exist; KeyError where it does not."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return found
