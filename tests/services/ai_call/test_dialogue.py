from dataclasses import fields
from pathlib import Path

import pytest

from app.errors import ConfigError
from app.services.ai_call.dialogue import LANGUAGES, Dialogue, Words, normalised
from app.services.ai_call.language import language_of
from app.services.ai_call.sentences import speakable

MINIMAL = """
greeting = "안녕하세요."
nudge = "듣고 계세요?"
repeat = "다시 말씀해 주세요."
apology = "죄송합니다."
goodbye = "안녕히 계세요."
decline = "지금은 받을 수 없습니다."
cut_off = "다시 걸어 주세요."
system_prompt = "짧게 답하세요."
unknown = "잘 모르겠어요."

[[answers]]
heard = ["네.", "예."]
say = "네."
"""


def folder_with(tmp_path: Path, ko: str, en: str = MINIMAL) -> Path:
    for name, text in (("ko", ko), ("en", en)):
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_shipped_words_are_in_their_language_and_can_be_said(language: str) -> None:
    words = Dialogue.load().words(language)
    texts = [getattr(words, field.name) for field in fields(Words) if field.name != "answers"]
    spoken = [text for text in texts if text != words.system_prompt] + [answer.say for answer in words.answers]
    for text in [*texts, *(answer.say for answer in words.answers)]:
        assert language_of(text, "") == language
    for text in spoken:
        assert speakable(text) == text
        assert not any(char.isdecimal() for char in text)
        assert text.endswith((".", "?"))
    for answer in words.answers:
        for phrase in answer.heard:
            assert language_of(phrase, "") == language


def test_a_language_that_is_not_known_yet_is_the_first_one() -> None:
    dialogue = Dialogue.load()
    assert dialogue.words("auto") is dialogue.words("ko")
    assert dialogue.words("en") is not dialogue.words("ko")


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    dialogue = Dialogue.load(folder_with(tmp_path, MINIMAL.replace("짧게", "길게")))
    assert dialogue.words("ko").system_prompt == "길게 답하세요."
    assert dialogue.words("en").system_prompt == "짧게 답하세요."
    assert dialogue.words("ko").answers[0].heard == ("네.", "예.")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('nudge = "듣고 계세요?"', "", "nudge: must be a text"),
        ('nudge = "듣고 계세요?"', 'nudge = "  "', "nudge: must be a text"),
        ('nudge = "듣고 계세요?"', "nudge = 3", "nudge: must be a text"),
        ('nudge = "듣고 계세요?"', 'nudge = "듣고 계세요?"\nnuge = ""', "nuge: no such key"),
        ("[[answers]]", "[other]", "other: no such key"),
        ("[[answers]]", "[answers]", r"answers: must be one or more \[\[answers\]\] tables"),
        ('say = "네."', "", "answers 1: say: must be a text"),
        ('say = "네."', 'say = "네."\nsays = ""', "answers 1: says: no such key"),
        ('say = "네."', 'say = "네."\nrepeat = "yes"', "answers 1: repeat: must be true or false"),
        ('heard = ["네.", "예."]', "", "answers 1: heard: must be a list"),
        ('heard = ["네.", "예."]', "heard = []", "answers 1: heard: must be a list"),
        ('heard = ["네.", "예."]', 'heard = ["네.", 1]', "answers 1: heard: must be a list"),
        ('heard = ["네.", "예."]', 'heard = ["?!"]', r"answers 1: heard: '\?!' holds no word"),
        ('heard = ["네.", "예."]', 'heard = ["네.", "네!"]', "answers 1: heard: '네!' is already heard by answers 1"),
        ('unknown = "', "unknown = ", "line 10"),
    ],
)
def test_a_mistake_is_named_by_file_and_key(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert old in MINIMAL
    with pytest.raises(ConfigError, match=complaint) as caught:
        Dialogue.load(folder_with(tmp_path, MINIMAL.replace(old, new)))
    assert str(tmp_path / "ko.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder_with(tmp_path, MINIMAL)
    (tmp_path / "en.toml").unlink()
    with pytest.raises(ConfigError, match=r"en\.toml: the dialogue cannot be read"):
        Dialogue.load(tmp_path)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    folder_with(tmp_path, MINIMAL)
    (tmp_path / "ko.toml").write_bytes(MINIMAL.encode("cp949"))
    with pytest.raises(ConfigError, match=r"ko\.toml: not TOML in UTF-8"):
        Dialogue.load(tmp_path)


def test_words_are_compared_without_case_marks_and_composition() -> None:
    assert normalised("  Hello,  WORLD! ") == ["hello", "world"]
    assert normalised("\u1102\u1166.") == ["네"]
    assert normalised("I'd") == ["i", "d"]
