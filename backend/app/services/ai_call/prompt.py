"""What the model is told: who it is, what was said so far, and the caller's words now. Pure."""

import unicodedata
from collections.abc import Mapping, Sequence

from app.services.ai_call.language import language_of
from app.services.ai_call.types import Exchange, Message

MAX_USER_CHARS = 2_000
"""Of one turn. The end is kept: the question usually stands there."""
INTERRUPTED = " …"
"""Behind what the caller heard of an answer that was talked over."""


class PromptBuilder:
    """One call's. `language` is the call's, `auto` for that of the words; `context_turns` exchanges are recalled."""

    def __init__(self, system_prompts: Mapping[str, str], context_turns: int, language: str = "auto") -> None:
        self._system_prompts = dict(system_prompts)
        self._context_turns = context_turns
        self._language = language

    def build(self, exchanges: Sequence[Exchange], user: str) -> list[Message]:
        """A system message, then user and assistant in turn, the user last. Words that were never answered stand
        in one message with those that followed them."""
        recalled = exchanges[-self._context_turns :] if self._context_turns else []
        messages = [Message("system", self._system_prompt(exchanges, user))]
        for exchange in recalled:
            _add(messages, Message("user", _clean(exchange.user)))
            _add(messages, Message("assistant", _heard(exchange)))
        _add(messages, Message("user", _clean(user)))
        return messages

    def _system_prompt(self, exchanges: Sequence[Exchange], user: str) -> str:
        fallback = next(iter(self._system_prompts))
        language = self._language
        if language not in self._system_prompts:
            said = (user, *(exchange.user for exchange in reversed(exchanges)))
            language = next((found for text in said if (found := language_of(text, ""))), fallback)
        return self._system_prompts.get(language, self._system_prompts[fallback])


def _add(messages: list[Message], message: Message) -> None:
    if not message.content:
        return
    if messages[-1].role == message.role:
        message = Message(message.role, f"{messages.pop().content}\n{message.content}")
    messages.append(message)


def _heard(exchange: Exchange) -> str:
    bot = _printable(exchange.bot)
    return bot + INTERRUPTED if bot and exchange.interrupted else bot


def _clean(user: str) -> str:
    return _printable(user)[-MAX_USER_CHARS:].strip()


def _printable(text: str) -> str:
    """One line, composed, without control, format, private or broken characters."""
    spaced = "".join(" " if unicodedata.category(char) == "Cc" else char for char in text)
    kept = "".join(char for char in spaced if not unicodedata.category(char).startswith("C"))
    return " ".join(unicodedata.normalize("NFC", kept).split())
