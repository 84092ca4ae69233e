"""The bot's own words, one file a language: `ko.toml` and `en.toml` beside this module, or in another folder.

    greeting, nudge, repeat, apology, goodbye   spoken in a call
    decline, cut_off                    spoken by the carrier, when there is no call (any more)
    system_prompt                       for the language model
    unknown, [[answers]]                what the scripted model says

A file is checked whole when it is loaded: a call never finds a word missing.
"""

import re
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from app.errors import ConfigError

LANGUAGES = ("ko", "en")
"""The first one stands in where the language of a call is not known yet."""

_TEXTS = ("greeting", "nudge", "repeat", "apology", "goodbye", "decline", "cut_off", "system_prompt", "unknown")
_ANSWER_KEYS = frozenset({"heard", "say", "small_talk", "repeat"})
_NOT_A_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the scripted model says to any of `heard`. `small_talk` gives way to a real question in the same
    breath; `repeat` adds what the bot said last."""

    heard: tuple[str, ...]
    say: str
    small_talk: bool = False
    repeat: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    greeting: str
    nudge: str
    repeat: str
    apology: str
    goodbye: str
    decline: str
    cut_off: str
    system_prompt: str
    unknown: str
    answers: tuple[Answer, ...]


class Dialogue:
    def __init__(self, words: Mapping[str, Words]) -> None:
        """Needs an entry for each of LANGUAGES."""
        self._words = dict(words)

    @classmethod
    def load(cls, folder: Path | None = None) -> "Dialogue":
        """Raises ConfigError with one line that names the file and the key."""
        root: Traversable = folder or files("app.services.ai_call") / "dialogue"
        return cls({language: _words(root / f"{language}.toml") for language in LANGUAGES})

    def words(self, language: str) -> Words:
        return self._words.get(language, self._words[LANGUAGES[0]])


def normalised(text: str) -> list[str]:
    """The words of a text as they are compared: composed, without case, punctuation and symbols."""
    return _NOT_A_WORD.sub(" ", unicodedata.normalize("NFC", text).casefold()).split()


def _words(file: Traversable) -> Words:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: the dialogue cannot be read ({type(error).__name__})") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: not TOML in UTF-8: {error}") from error
    _refuse_unknown(table, {*_TEXTS, "answers"}, f"{file}: ")
    texts = {key: _text(table, key, f"{file}: ") for key in _TEXTS}
    return Words(**texts, answers=_answers(table.get("answers"), str(file)))


def _answers(tables: Any, file: str) -> tuple[Answer, ...]:
    if not isinstance(tables, list) or not tables:
        raise ConfigError(f"{file}: answers: must be one or more [[answers]] tables")
    answers: list[Answer] = []
    owners: dict[str, int] = {}
    for number, table in enumerate(tables, 1):
        where = f"{file}: answers {number}: "
        answer = _answer(table, where)
        for phrase in answer.heard:
            key = "".join(normalised(phrase))
            if not key:
                raise ConfigError(f"{where}heard: {phrase!r} holds no word")
            if key in owners:
                raise ConfigError(f"{where}heard: {phrase!r} is already heard by answers {owners[key]}")
            owners[key] = number
        answers.append(answer)
    return tuple(answers)


def _answer(table: Any, where: str) -> Answer:
    if not isinstance(table, dict):
        raise ConfigError(f"{where}must be a table")
    _refuse_unknown(table, _ANSWER_KEYS, where)
    heard = table.get("heard")
    if not isinstance(heard, list) or not heard or not all(isinstance(phrase, str) for phrase in heard):
        raise ConfigError(f"{where}heard: must be a list of one or more texts")
    return Answer(
        heard=tuple(heard),
        say=_text(table, "say", where),
        small_talk=_flag(table, "small_talk", where),
        repeat=_flag(table, "repeat", where),
    )


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}{key}: must be a text that is not empty")
    return unicodedata.normalize("NFC", value.strip())


def _flag(table: Mapping[str, Any], key: str, where: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{where}{key}: must be true or false")
    return value


def _refuse_unknown(table: Mapping[str, Any], known: set[str] | frozenset[str], where: str) -> None:
    unknown = sorted(table.keys() - known)
    if unknown:
        raise ConfigError(f"{where}{unknown[0]}: no such key; known are {', '.join(sorted(known))}")
