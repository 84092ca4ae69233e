"""The tokens that Whisper is asked with. The tokenizer is the model's own, in faster_whisper's hands."""

from typing import Any

MAX_PREVIOUS_TOKENS = 223
"""Half of Whisper's text context, less the token that opens it."""


class Prompts:
    """For one `faster_whisper.WhisperModel`. Safe to share between threads."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._tokenizers: dict[str, Any] = {}

    def known(self, language: str) -> str:
        """`auto` for a language that the model has not learnt: then it says what it took it for."""
        if not self._model.model.is_multilingual:
            return "en"
        return language if self._model.hf_tokenizer.token_to_id(f"<|{language}|>") is not None else "auto"

    def tokenizer(self, language: str) -> Any:
        if (found := self._tokenizers.get(language)) is None:
            from faster_whisper.tokenizer import Tokenizer

            multilingual = self._model.model.is_multilingual
            found = Tokenizer(self._model.hf_tokenizer, multilingual, task="transcribe", language=language)
            self._tokenizers[language] = found
        return found

    def build(self, language: str, previous: str) -> list[int]:
        """Without timestamps. In a batch all must be of one length: so must `previous`, in tokens."""
        tokenizer = self.tokenizer(language)
        before = self.previous(previous)
        opening = [tokenizer.sot_prev, *before] if before else []
        return [*opening, *tokenizer.sot_sequence, tokenizer.no_timestamps]

    def previous(self, text: str) -> list[int]:
        """Of a long text, its end."""
        if not text:
            return []
        tokens: list[int] = self.tokenizer("en").encode(" " + text.strip())
        return tokens[-MAX_PREVIOUS_TOKENS:]

    def suppressed(self, language: str) -> list[int]:
        """Tokens that are never speech: faster_whisper's own choice."""
        from faster_whisper.transcribe import get_suppressed_tokens

        return list(get_suppressed_tokens(self.tokenizer(language), [-1]))


def max_length(tokens: int, prompt: int) -> int:
    """What CTranslate2 must be given to stop after so many tokens.

    It stops at half of this; and at all of it less the prompt, whose last token does not count.
    """
    return max(2 * tokens, tokens + prompt - 1)
