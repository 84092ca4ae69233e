import unicodedata

import pytest

from app.services.ai_call.language import language_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("영업시간이 어떻게 되나요?", "ko"),
        ("What are your opening hours?", "en"),
        ("TV 보고 싶어요", "ko"),
        ("OK, 네", "ko"),
        ("ㅋㅋ", "ko"),
        (unicodedata.normalize("NFD", "네"), "ko"),
    ],
)
@pytest.mark.parametrize("default", ["ko", "en"])
def test_the_script_decides(text: str, language: str, default: str) -> None:
    assert language_of(text, default) == language


@pytest.mark.parametrize("text", ["", " ", "3.5", "010-1234-5678", "?!", "你好", "はい"])
@pytest.mark.parametrize("default", ["ko", "en"])
def test_a_text_of_neither_is_in_the_default_language(text: str, default: str) -> None:
    assert language_of(text, default) == default
