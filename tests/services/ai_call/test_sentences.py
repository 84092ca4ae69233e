import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.services.ai_call.sentences import MAX_CHARS, SentenceSplitter, speakable

BITS = [*"가다요네까 \n\t.,!?…。\"')*_a1Z、", "Dr. ", "3.5", "e.g. ", "http://a.b/?c. ", "😀", "1. "]
TEXT = st.lists(st.sampled_from(BITS), max_size=300).map("".join) | st.text(max_size=300)


def pieces(*deltas: str) -> list[str]:
    splitter = SentenceSplitter()
    found = [piece for delta in deltas for piece in splitter.feed(delta)]
    return found + splitter.finish()


def said(text: str) -> list[str]:
    return [piece.strip() for piece in pieces(text) if piece.strip()]


@given(TEXT)
def test_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


@given(TEXT, st.data())
def test_deltas_do_not_matter(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    deltas = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert pieces(*deltas) == pieces(text)
    assert pieces(*text) == pieces(text)


@given(TEXT)
def test_no_piece_is_long(text: str) -> None:
    # A run of marks that ends a sentence stays whole, so the bound is on what stands before it.
    assert all(len(piece.strip().rstrip(".!?…。\"')*_")) <= MAX_CHARS + 1 for piece in pieces(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("네, 알겠습니다. 예약해 드릴게요.", ["네, 알겠습니다.", "예약해 드릴게요."]),
        ("안녕하세요, 말길입니다. 무엇을 도와드릴까요?", ["안녕하세요,", "말길입니다.", "무엇을 도와드릴까요?"]),
        ("영업시간은 3시 30분. 그때 오세요!", ["영업시간은 3시 30분.", "그때 오세요!"]),
        ("값은 1,000원이고 3.5배입니다. 네.", ["값은 1,000원이고 3.5배입니다.", "네."]),
        ("010-1234-5678. 맞나요?", ["010-1234-5678.", "맞나요?"]),
        ("2026. 11. 21. 토요일에 뵙겠습니다.", ["2026. 11. 21.", "토요일에 뵙겠습니다."]),
        ("예약했습니다.감사합니다.", ["예약했습니다.", "감사합니다."]),
        ("음… 잠시만요... 찾았어요!", ["음…", "잠시만요...", "찾았어요!"]),
        ("1. 예약\n2. 취소\n", ["1. 예약", "2. 취소"]),
        ("정말요?! 좋아요.", ["정말요?!", "좋아요."]),
        ('"네." 라고 했어요.', ['"네."', "라고 했어요."]),
        ("**네.** 그럼요.", ["**네.**", "그럼요."]),
        ("Dr. Kim and Mr. Lee, e.g. at 9 a.m. on Main St. are in.",
         ["Dr. Kim and Mr. Lee,", "e.g. at 9 a.m. on Main St. are in."]),
        ("No. That is No. 5. Yes.", ["No.", "That is No. 5.", "Yes."]),
        ("Write to a.b@example.com. Or see https://example.com/a?b=1. Bye!",
         ["Write to a.b@example.com.", "Or see https://example.com/a?b=1.", "Bye!"]),
        ("Sure, I can. Certainly, I can.", ["Sure, I can.", "Certainly, I can."]),
        ("One, two, three, four.", ["One, two,", "three, four."]),
        ("はい。そうです。", ["はい。", "そうです。"]),
    ],
)  # fmt: skip
def test_pieces_end_where_sentences_do(text: str, expected: list[str]) -> None:
    assert said(text) == expected


def test_a_piece_is_given_as_soon_as_its_end_is_certain() -> None:
    splitter = SentenceSplitter()
    assert splitter.feed("알겠습니다.") == []
    assert splitter.feed(" ") == ["알겠습니다."]
    assert splitter.feed("3.") == []
    assert splitter.feed("5배예요!") == []
    assert splitter.finish() == [" 3.5배예요!"]


def test_a_comma_ends_only_a_first_piece_that_is_worth_saying() -> None:
    assert said("네, 그래서, 물론 됩니다, 오세요.") == ["네, 그래서,", "물론 됩니다, 오세요."]
    whole = SentenceSplitter(first_comma=None)
    assert [*whole.feed("안녕하세요, 말길입니다. "), *whole.finish()] == ["안녕하세요, 말길입니다.", " "]


def test_text_without_marks_is_cut_between_words() -> None:
    text = "오늘은 날씨가 좋고 바람도 시원해서 밖에 나가기 좋은 날이라고 합니다 " * 8
    found = said(text)
    assert len(found) > 2
    assert " ".join(found) == text.strip()
    assert all(len(piece) <= MAX_CHARS for piece in found)


def test_long_text_is_cut_behind_a_late_comma() -> None:
    assert said("a " + "word " * 18 + "here, " + "more " * 10)[0].endswith("here,")
    assert [len(piece) for piece in pieces("가" * 300)] == [MAX_CHARS, MAX_CHARS, 60]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**안녕**하세요 😀!", "안녕하세요!"),
        ("# 제목\n- 하나\n- 둘", "제목 하나 둘"),
        ("`코드` 와 ~~취소~~ __강조__ snake_case", "코드 와 취소 강조 snake_case"),
        ("자세한 것은 https://example.com/a?b=1. 보세요", "자세한 것은. 보세요"),
        ("[우리 집](https://example.com/) www.example.com에서", "우리 집 에서"),
        ("👍🏽👨‍👩‍👧", ""),
        (" ... ", ""),
        ("영하 5℃, 3+4", "영하 5℃, 3+4"),
        ("1️⃣ 번", "1 번"),
        ("a | b", "a b"),
    ],
)
def test_only_words_are_spoken(text: str, expected: str) -> None:
    assert speakable(text) == expected


@given(TEXT)
def test_what_is_spoken_is_tidy(text: str) -> None:
    spoken = speakable(text)
    assert spoken == spoken.strip()
    assert "\n" not in spoken
    assert not spoken or any(char.isalnum() for char in spoken)
