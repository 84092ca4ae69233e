"""LLM_PROVIDER=scripted: answers by the dialogue files alone, so that a bot converses where there is no model."""

from collections.abc import AsyncGenerator, Iterator, Sequence

from app.services.ai_call.dialogue import LANGUAGES, Answer, Dialogue, normalised
from app.services.ai_call.language import language_of
from app.services.ai_call.types import Message

MAX_ANSWERS = 2
"""A breath with more questions than this gets an answer to the last ones."""


class ScriptedLlm:
    name = "scripted"

    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue
        self._known = {
            "".join(normalised(phrase)): answer
            for language in LANGUAGES
            for answer in dialogue.words(language).answers
            for phrase in answer.heard
        }
        self._longest_phrase = max(map(len, self._known))

    async def check(self) -> None:
        """Always well: it needs nothing but itself."""

    async def reply(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        """The answer word by word, each with the space before it."""
        for number, word in enumerate(self._answer(messages).split()):
            yield f" {word}" if number else word

    def _answer(self, messages: Sequence[Message]) -> str:
        user = next((message.content for message in reversed(messages) if message.role == "user"), "")
        said = next((message.content for message in reversed(messages) if message.role == "assistant"), "")
        answers = self._find(normalised(user))
        if answers:
            return " ".join(dict.fromkeys(_spoken(answer, said) for answer in answers))
        system = next((message.content for message in messages if message.role == "system"), "")
        language = language_of(user, language_of(system, LANGUAGES[0]))
        return self._dialogue.words(language).unknown

    def _find(self, words: list[str]) -> list[Answer]:
        """The answers to the phrases in these words, wherever they were spaced. Small talk counts only when
        nothing but small talk was said."""
        found, missed = self._split(words)
        real = [answer for answer in found if not answer.small_talk]
        if real:
            return real[-MAX_ANSWERS:]
        return [] if missed else found[-1:]

    def _split(self, words: list[str]) -> tuple[list[Answer], int]:
        """The words as phrases, so that as few words as possible are left over, and how many these are."""
        best: list[tuple[int, list[Answer]]] = [(0, [])]  # of what follows each word, the last word first
        for at in reversed(range(len(words))):
            missed, answers = best[-1]
            choices = [(missed + 1, answers)]
            for length, answer in self._phrases_at(words[at:]):
                missed, answers = best[-length]
                choices.append((missed, [answer, *answers]))
            best.append(min(choices, key=lambda choice: (choice[0], len(choice[1]))))
        missed, answers = best[-1]
        return answers, missed

    def _phrases_at(self, words: list[str]) -> Iterator[tuple[int, Answer]]:
        """The phrases that begin here, each with the number of words it takes."""
        start = ""
        for length, word in enumerate(words, 1):
            start += word
            if len(start) > self._longest_phrase:
                return
            if start in self._known:
                yield length, self._known[start]


def _spoken(answer: Answer, said: str) -> str:
    if not answer.repeat:
        return answer.say
    return f"{answer.say} {said.removeprefix(answer.say).strip(' …')}".strip()
