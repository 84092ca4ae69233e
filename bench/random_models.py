"""Whisper models of the true sizes with random weights, so that speech decoding can be timed without a download.

    python -m bench.random_models FOLDER base small

They are what faster_whisper loads: CTranslate2's format, int8, a tokenizer with the true 51,865 tokens. How long a
decode takes depends on the shapes and on the number of tokens, never on what the weights are, so the times are real.
What is heard is not: each decode of each audio yields the same `tokens` words.

The number of tokens is held by the decoder's position encodings. The one at position p is the embedding of the token
that is to follow, eight times as long as any other part of the sum; the layers add noise too small to matter. So the
words come one after the other, with a probability near 1, all different, and then the end of the text: no guard
against loops has a reason to decode again. Two bounds: no more than nine tokens a second and eight to spare, else
there are more words than anybody can say; and no text before it, since that moves the positions.
"""

import argparse
import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs import whisper_spec
from faster_whisper.tokenizer import _LANGUAGE_CODES
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

TEXT_TOKENS = 50_257
POSITIONS, FRAMES = 448, 1500
PROMPT = ("<|ko|>", "<|transcribe|>", "<|notimestamps|>")
"""What follows <|startoftranscript|>. The first is also what it takes for the language of any audio."""

LOUDER = 8.0
"""The position's part of the decoder's sum, over the token's."""

SURE = 24.0
"""The logit of the token that is to follow; those of all others lie at 0 with a deviation of SURE / sqrt(width)."""

WORDS_FROM = 1000  # the first word's token: a Korean syllable like all of them


@dataclass(frozen=True, slots=True)
class Shape:
    width: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    mels: int = 80
    languages: int = 99  # large-v3 knows one more

    @property
    def vocabulary(self) -> int:
        return TEXT_TOKENS + 1 + 1 + self.languages + 6 + FRAMES + 1


SHAPES = {
    "tiny": Shape(384, 4, 4, 6),
    "base": Shape(512, 6, 6, 8),
    "small": Shape(768, 12, 12, 12),
    "medium": Shape(1024, 24, 24, 16),
    "large-v3": Shape(1280, 32, 32, 20, mels=128, languages=100),
    "large-v3-turbo": Shape(1280, 32, 4, 20, mels=128, languages=100),
}


def random_model(folder: Path, name: str, shape: Shape | None = None, *, tokens: int = 12) -> Path:
    """The model's own folder within `folder`, made unless it is there: one second for tiny, half a minute and 8 GB of
    memory for large-v3. `shape` is SHAPES[name] unless given."""
    shape = shape or SHAPES[name]
    whole = folder / f"random-{name}-{shape.width}-{tokens}"
    if whole.is_dir():
        return whole
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder, prefix=".random-"))
    try:
        tokenizer = _tokenizer(shape)
        _model(shape, tokenizer, tokens).save(str(partial))
        tokenizer.save(str(partial / "tokenizer.json"), pretty=False)
        extractor = {"feature_size": shape.mels, "sampling_rate": 16_000, "hop_length": 160, "chunk_length": 30}
        (partial / "preprocessor_config.json").write_text(json.dumps({**extractor, "n_fft": 400}), encoding="utf-8")
        os.replace(partial, whole)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return whole


# ---------------------------------------------------------------- the tokenizer


def _tokenizer(shape: Shape) -> Any:
    """Byte-level like Whisper's, and in its order. It has no merges: text becomes bytes, tokens become syllables."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {letter: at for at, letter in enumerate(sorted(byte_level.alphabet()))}
    syllables = [chr(code) for code in range(0xAC00, 0xD7A4)]
    words = [*syllables, *(f" {one}" for one in syllables), *(one + "요" for one in syllables)]
    words += [f" {one}요" for one in syllables] + [f"{one}다" for one in syllables]
    for word in words[: TEXT_TOKENS - 1 - len(vocabulary)]:
        vocabulary[byte_level.pre_tokenize_str(word)[0][0]] = len(vocabulary)
    vocabulary[""] = len(vocabulary)  # as in Whisper's: by this token CTranslate2 knows a multilingual model
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    languages = [f"<|{code}|>" for code in _LANGUAGE_CODES[: shape.languages]]
    tasks = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")
    names = ["<|endoftext|>", "<|startoftranscript|>", *languages, *(f"<|{task}|>" for task in tasks)]
    names += [f"<|{frame * 0.02:.2f}|>" for frame in range(FRAMES + 1)]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    assert tokenizer.get_vocab_size() == shape.vocabulary
    return tokenizer


# ---------------------------------------------------------------- the weights


def _model(shape: Shape, tokenizer: Any, tokens: int) -> whisper_spec.WhisperSpec:
    spec = whisper_spec.WhisperSpec(shape.encoder_layers, shape.heads, shape.decoder_layers, shape.heads)
    fill = _Fill(shape.width)
    fill.encoder(spec.encoder, shape.mels)
    ids = tokenizer.token_to_id
    follows = [ids(name) for name in PROMPT] + [WORDS_FROM + number for number in range(tokens)]
    follows += [ids("<|endoftext|>")] * (POSITIONS - len(follows))
    fill.decoder(spec.decoder, shape.vocabulary, follows)
    spec.register_vocabulary([tokenizer.id_to_token(at) for at in range(shape.vocabulary)])
    spec.config.suppress_ids = []
    spec.config.suppress_ids_begin = [ids("Ġ"), ids("<|endoftext|>")]
    spec.config.lang_ids = [ids(f"<|{code}|>") for code in _LANGUAGE_CODES[: shape.languages]]
    spec.config.alignment_heads = [(shape.decoder_layers - 1, head) for head in range(shape.heads)]
    spec.validate()
    spec.optimize(quantization="int8")
    return spec


class _Fill:
    def __init__(self, width: int) -> None:
        self._width = width
        self._random = np.random.default_rng(0)

    def encoder(self, spec: Any, mels: int) -> None:
        width = self._width
        self._linear(spec.conv1, (width, mels, 3))
        self._linear(spec.conv2, (width, width, 3))
        spec.position_encodings.encodings = self._uniform((FRAMES, width), 1.0)
        self._norm(spec.layer_norm)
        for layer in spec.layer:
            self._attention(layer.self_attention, (3, 1))
            self._feed_forward(layer.ffn)

    def decoder(self, spec: Any, vocabulary: int, follows: list[int]) -> None:
        embeddings = self._uniform((vocabulary, self._width), 1 / math.sqrt(self._width))
        spec.embeddings.weight = spec.projection.weight = embeddings
        spec.position_encodings.encodings = LOUDER * embeddings[follows]
        self._norm(spec.layer_norm, SURE / math.sqrt(self._width))
        for layer in spec.layer:
            self._attention(layer.self_attention, (3, 1))
            self._attention(layer.attention, (1, 2, 1))
            self._feed_forward(layer.ffn)

    def _attention(self, spec: Any, parts: tuple[int, ...]) -> None:
        """`parts` are the widths of its matrices in widths of the model: queries, keys and values lie side by side."""
        self._norm(spec.layer_norm)
        for part, linear in zip(parts, spec.linear, strict=True):
            self._linear(linear, (part * self._width, self._width))
        self._soften(spec.linear[-1])

    def _feed_forward(self, spec: Any) -> None:
        self._norm(spec.layer_norm)
        self._linear(spec.linear_0, (4 * self._width, self._width))
        self._linear(spec.linear_1, (self._width, 4 * self._width))
        self._soften(spec.linear_1)

    def _linear(self, spec: Any, shape: tuple[int, ...]) -> None:
        spec.weight = self._uniform(shape, 1 / math.sqrt(math.prod(shape[1:])))
        spec.bias = np.zeros(shape[0], np.float32)

    def _soften(self, spec: Any) -> None:
        """What goes back into the sum: a twentieth of a token's length."""
        spec.weight *= np.float32(0.05 / math.sqrt(self._width))

    def _norm(self, spec: Any, gain: float = 1.0) -> None:
        spec.gamma = np.full(self._width, gain, np.float32)
        spec.beta = np.zeros(self._width, np.float32)

    def _uniform(self, shape: tuple[int, ...], deviation: float) -> Any:
        values = self._random.random(shape, np.float32)
        values -= np.float32(0.5)
        values *= np.float32(deviation * math.sqrt(12))
        return values


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make Whisper models with random weights, to time decoding.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", choices=SHAPES)
    parser.add_argument("--tokens", type=int, default=12, help="words of each decode (12)")
    given = parser.parse_args()
    for wanted in given.names:
        print(random_model(given.folder, wanted, tokens=given.tokens))
