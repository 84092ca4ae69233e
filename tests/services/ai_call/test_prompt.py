from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from app.services.ai_call.prompt import MAX_USER_CHARS, PromptBuilder
from app.services.ai_call.types import Exchange, Message

SYSTEM = {"ko": "짧게 답하세요.", "en": "Answer briefly."}


def exchange(turn: int, user: str, bot: str, interrupted: bool = False) -> Exchange:
    return Exchange(turn, user, bot, interrupted)


def spoken(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages[1:]]


def test_a_first_question() -> None:
    assert PromptBuilder(SYSTEM, 6, "ko").build([], "몇 시에 문을 열어요?") == [
        Message("system", "짧게 답하세요."),
        Message("user", "몇 시에 문을 열어요?"),
    ]


def test_the_greeting_and_what_was_said_stand_in_order() -> None:
    said = [exchange(1, "", "안녕하세요."), exchange(2, "주차장 있어요?", "네, 있습니다.")]
    assert spoken(PromptBuilder(SYSTEM, 6, "ko").build(said, "무료예요?")) == [
        ("assistant", "안녕하세요."),
        ("user", "주차장 있어요?"),
        ("assistant", "네, 있습니다."),
        ("user", "무료예요?"),
    ]


def test_an_interrupted_answer_is_marked() -> None:
    said = [exchange(1, "주소가 어디예요?", "시청역 앞입니다.", interrupted=True)]
    assert spoken(PromptBuilder(SYSTEM, 6, "ko").build(said, "주차장은요?"))[1] == (
        "assistant",
        "시청역 앞입니다. …",
    )


def test_words_without_an_answer_stand_with_the_next_ones() -> None:
    said = [
        exchange(1, "안녕하세요.", "네."),
        exchange(2, "택시를", "", interrupted=True),
        exchange(3, "불러", "", interrupted=True),
    ]
    assert spoken(PromptBuilder(SYSTEM, 6, "ko").build(said, "주세요"))[2:] == [("user", "택시를\n불러\n주세요")]


def test_what_the_bot_said_unasked_stands_with_its_answer() -> None:
    said = [exchange(1, "네.", "무엇을 도와드릴까요?"), exchange(2, "", "듣고 계신가요?")]
    assert spoken(PromptBuilder(SYSTEM, 6, "ko").build(said, "네."))[1] == (
        "assistant",
        "무엇을 도와드릴까요?\n듣고 계신가요?",
    )


def test_only_the_last_turns_are_recalled() -> None:
    said = [exchange(turn, f"질문 {turn}", f"답 {turn}") for turn in range(1, 500)]
    messages = spoken(PromptBuilder(SYSTEM, 2, "ko").build(said, "질문"))
    assert [text for _, text in messages] == ["질문 498", "답 498", "질문 499", "답 499", "질문"]
    assert spoken(PromptBuilder(SYSTEM, 0, "ko").build(said, "질문")) == [("user", "질문")]


def test_the_call_decides_the_language_of_the_system_text() -> None:
    assert PromptBuilder(SYSTEM, 6, "en").build([], "네.")[0].content == "Answer briefly."
    assert PromptBuilder(SYSTEM, 6, "ko").build([], "Yes.")[0].content == "짧게 답하세요."


def test_without_a_language_the_words_decide_it() -> None:
    builder = PromptBuilder(SYSTEM, 6)
    korean, english = exchange(1, "네.", "네."), exchange(2, "Yes.", "Good.")
    assert builder.build([korean], "Hello.")[0].content == "Answer briefly."
    assert builder.build([english], "안녕하세요.")[0].content == "짧게 답하세요."
    assert builder.build([korean, english], "42")[0].content == "Answer briefly."
    assert builder.build([], "42")[0].content == "짧게 답하세요."


def test_of_a_long_speech_the_end_is_kept() -> None:
    (_, text), *rest = spoken(PromptBuilder(SYSTEM, 6, "ko").build([], "아" * 5_000 + " 얼마예요?"))
    assert len(text) == MAX_USER_CHARS
    assert text.endswith("아 얼마예요?")
    assert rest == []


def test_control_characters_are_taken_out() -> None:
    said = [exchange(1, "네\x00\r\n그래요\u202e", "좋\u200b아요\x1b[0m")]
    assert spoken(PromptBuilder(SYSTEM, 6, "ko").build(said, "\ud800a\tb")) == [
        ("user", "네 그래요"),
        ("assistant", "좋아요 [0m"),
        ("user", "a b"),
    ]


@given(
    st.lists(st.builds(Exchange, st.just(1), st.text(max_size=8), st.text(max_size=8), st.booleans()), max_size=8),
    st.text(max_size=8),
    st.integers(0, 4),
)
def test_roles_take_turns_whatever_was_said(said: list[Exchange], user: str, turns: int) -> None:
    messages = PromptBuilder(SYSTEM, turns).build(said, user)
    roles = [message.role for message in messages]
    assert roles[0] == "system"
    assert "system" not in roles[1:]
    assert all(one != other for one, other in pairwise(roles))
    assert all(line.isprintable() for message in messages for line in message.content.splitlines())
    "".join(message.content for message in messages).encode("utf-8")
