import json
from collections.abc import Sequence
from importlib.resources import files
from itertools import product

import pytest

from app.services.ai_call.dialogue import LANGUAGES, Dialogue
from app.services.ai_call.scripted_llm import ScriptedLlm
from app.services.ai_call.types import Message

DIALOGUE = Dialogue.load()
KO, EN = DIALOGUE.words("ko"), DIALOGUE.words("en")
PHRASES = [
    (entry["text"], entry["language"])
    for entry in json.loads((files("app.asr") / "demo_model" / "phrases.json").read_text(encoding="utf-8"))
]
HOURS = "평일은 오전 열 시부터"
PARKING = "건물 지하에 주차장이 있습니다"


async def answer_to(user: str, *before: Message) -> str:
    return "".join(await pieces_of([*before, Message("user", user)]))


async def pieces_of(messages: Sequence[Message]) -> list[str]:
    return [text async for text in ScriptedLlm(DIALOGUE).reply(messages)]


def test_there_are_54_phrases() -> None:
    assert len(PHRASES) == 54


@pytest.mark.parametrize(("phrase", "language"), PHRASES)
async def test_every_phrase_of_the_demo_model_has_an_answer(phrase: str, language: str) -> None:
    answer = await answer_to(phrase)
    words = DIALOGUE.words(language)
    assert answer != words.unknown
    assert any(answer.startswith(known.say) and phrase in known.heard for known in words.answers)


@pytest.mark.parametrize("language", LANGUAGES)
async def test_every_phrase_of_the_dialogue_is_reachable(language: str) -> None:
    for answer in DIALOGUE.words(language).answers:
        for phrase in answer.heard:
            assert await answer_to(phrase) == answer.say


@pytest.mark.parametrize(
    "heard",
    [
        "영업시간이 어떻게 되나요?",
        "영업 시간이 어떻게 되나요",
        "영업시간이  어떻게\n되나요.",
        "안녕하세요. 영업시간이 어떻게 되나요?",
        "영업시간이 어떻게 되나요? 감사합니다.",
        "음 저기 영업시간이 어떻게 되나요?",
        "영업시간이 어떻게 되나요? 영업시간이 어떻게 되나요?",
    ],
)
async def test_a_question_is_found_in_what_surrounds_it(heard: str) -> None:
    answer = await answer_to(heard)
    assert HOURS in answer
    assert answer == await answer_to("영업시간이 어떻게 되나요?")


async def test_two_questions_get_two_answers_in_order() -> None:
    answer = await answer_to("영업시간이 어떻게 되나요?\n주차장 있어요?")
    assert 0 < answer.index(HOURS) < answer.index(PARKING)


async def test_of_many_questions_the_last_ones_are_answered() -> None:
    answer = await answer_to("가격이 얼마예요? 영업시간이 어떻게 되나요? 주차장 있어요?")
    assert HOURS in answer
    assert PARKING in answer
    assert "만 이천 원" not in answer


async def test_small_talk_is_answered_when_it_is_all_there_is() -> None:
    assert await answer_to("네. 감사합니다.") == await answer_to("감사합니다.")
    assert await answer_to("hello, THANK YOU") == await answer_to("Thank you.")


@pytest.mark.parametrize(
    "heard", ["네 그 번호가 뭐예요", "피자 배달되나요?", "네일 예약", "안녕하세요 김치찌개 있나요"]
)
async def test_a_known_word_in_an_unknown_question_is_no_answer(heard: str) -> None:
    assert await answer_to(heard) == KO.unknown


@pytest.mark.parametrize(
    ("heard", "system", "expected"),
    [
        ("모르는 말", EN.system_prompt, KO.unknown),
        ("something else", KO.system_prompt, EN.unknown),
        ("12345", EN.system_prompt, EN.unknown),
        ("12345", KO.system_prompt, KO.unknown),
        ("", KO.system_prompt, KO.unknown),
    ],
)
async def test_not_understanding_is_said_in_the_language_of_the_words(heard: str, system: str, expected: str) -> None:
    assert await answer_to(heard, Message("system", system)) == expected


async def test_asked_again_it_says_again_what_was_heard_last() -> None:
    said = Message("assistant", "두 시간까지는 무료예요. …")
    once = await answer_to("다시 한번 말씀해 주세요.", Message("user", "주차장 있어요?"), said)
    assert once == "네, 다시 말씀드릴게요. 두 시간까지는 무료예요."
    assert await answer_to("잘 안 들려요.", Message("assistant", once)) == once


async def test_the_last_words_of_the_caller_are_answered() -> None:
    messages = [Message("user", "주차장 있어요?"), Message("assistant", "네."), Message("user", "감사합니다.")]
    assert "".join(await pieces_of(messages)) == await answer_to("감사합니다.")
    assert await pieces_of([]) == KO.unknown.replace(" ", "\0 ").split("\0")


async def test_it_writes_word_by_word_as_a_model_does() -> None:
    pieces = await pieces_of([Message("user", "주차장 있어요?")])
    assert pieces[:3] == ["네,", " 건물", " 지하에"]


@pytest.mark.parametrize("language", LANGUAGES)
async def test_any_two_phrases_in_a_breath_are_understood(language: str) -> None:
    """The caller paused between two sentences and the turn machine joined them."""
    known = [phrase for phrase, spoken in PHRASES if spoken == language]
    for first, second in product(known, known):
        assert await answer_to(f"{first} {second}") != DIALOGUE.words(language).unknown


async def test_it_is_always_well() -> None:
    await ScriptedLlm(DIALOGUE).check()
