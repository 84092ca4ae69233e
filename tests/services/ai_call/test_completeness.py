import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.services.ai_call.completeness import Completeness, EndpointWaits, completeness

COMPLETE = """
네 | 네. | 네! | 네네 | 네 네 네 | 예 | 예, 예. | 넵 | 응 | 어 네 | 음 아니요. | 아 네 | 아니요 | 아니오 | 아뇨
맞아요 | 네 맞아요 | 네 맞습니다 | 여보세요 | 여보세요? | 그래 | 좋아요 | 괜찮습니다 | 감사합니다 | 네 감사합니다
알겠습니다 네 | 안녕하세요. | 안녕히 계세요 | 예약하고 싶어요 | 예약하려고요 | 예약을 취소해 주세요
예약 변경 부탁드립니다 | 예약하고싶어요 | 예 약 하 고 싶 어 요 | 두 명이요 | 두명이요 | 네 명이에요 | 3명이요
2시에요 | 내일 저녁 일곱 시요 | 서울에서요 | 창가 자리로요 | 이걸로 할게요 | 카드로요 | 몇 시까지 영업하나요
주차 되나요? | 얼마예요 | 거기 어디예요 | 영업하죠 | 비싸네요 | 할인되죠? | 예약 가능할까요 | 내일 됩니까
어떻게 가면 됩니까 | 언제 가면 될까 | 몇 시에 열까 | 제가 갈게 | 확인해 줘 | 기다려 주십시오 | 내일 갈래 | 같이 가자
취소하자 | 내일 만나자 | 저는 내일 간다 | 방금 전화했다 | 아무도 없다 | 자리가 있다 | 그건 싫다 | 자리가 없네
괜찮네요 | 그렇죠 | 그럼요 | 얼마야? | 정말? | 내일? | 토요일은요? | 몇 층? | 김민수입니다 | 제 이름은 이지은이에요
영업시간이 어떻게 되나요 | 다시 한번 말씀해 주세요 | 잘 안 들려요 | 상담원 연결해 주세요 | OK 좋아요
VIP룸으로 해 주세요 | 공일공 일이삼사 오육칠팔이요 | 010-1234-5678 | 010 1234 5678. | 공일공 일이삼사 오육칠팔
공일공에 일이삼사에 오육칠팔 | 제 번호는 010-1234-5678 | 0212345678 | 02-1234-5678. | yes | Yes. | Yeah. | Uh, yes.
Um, no. | No. | No, thank you. | Yes please | Okay | OK thanks. | Thanks! | Thank you so much. | Hello? | hello
Hi. | Goodbye. | Sure. | That's right. | Of course. | Uh-huh. | mm-hmm | Oh, great. | All right. | Sounds good.
Yes, I do. | Yes, it is. | Never mind. | I would like to make a reservation. | Can I speak to an agent?
What are your opening hours? | Table for four people, please. | Is there parking? | I'd like a table at seven p.m.
My name is John Smith. | Please call me back tomorrow! | Where are you located? | I have a question. Yes.
I think so. | I want that one. | What is it? | Tomorrow? | Really? | Let me know. | I'd like to pick it up.
I don't know why. | It hurts as well. | We will be there at 7 a.m. | How much is that one? | “I want to cancel.”
"""

CONTINUING = """
저는 | 저는. | 저는... | 제가 | 제 이름은 | 예약을 | 예약하고 | 예약하려고 | 예약하려고 하는데 | 예약하고 싶은데
싶은데. | 근데 | 그리고 | 그래서 | 그런데 | 그러니까 | 하지만 | 네 근데 | 네, 그리고 | 내일 시간이 되면
시간이 없어서 | 몸이 안 좋아서 | 길이 막히니까 | 비싸지만 | 감사합니다만 | 갔다가 | 전화하면서 | 서울에서 | 강남역에
두 시에 | 2시에 | 두 시부터 | 세 시까지 | 친구하고 | 친구가 | 친구랑 | 선생님한테 | 의사에게 | 부산으로 | 테헤란로
이쪽으로 | 이름이 | 전화번호가 | 메뉴를 | 음식은 | 주문할 | 가능한지 모르지만 | 취소해도 | 주말에는 | 오전에는
있는 | name은 | VIP룸은 | A동에 | 3을 | 음 | 음… | 어 | 어어 | 그 | 저 | 저기 | 흠 | 네 음 | 아니 그게 | 뭐
뭐더라 | 어디 보자 | 혹시 | 약간 | 있잖아요 | 근데요 | 그게요 | 으음 | 네, | 여보세요, | 안녕하세요, | 예약하고,
저는, 음, | 제 이름은- | 예약을 — | 공일공 | 공 일 공 | 공일공 다시 | 공일공에 | 일이삼사 | 공일공 일이삼사
공일공 일이삼사 오육 | 제 번호는 공일공 | 제번호는공일공 | 삼십 | 이천이십육 | 이천이십육 년 | 2026년 | 칠월 | 3월
2 | 2. | 010 | 010- | 010-1234 | 010 1234. | 번호는 010 1234 567 | 두 | 방 두 | 하나 | 둘 | 하나 둘 | 삼
백이십삼 다시 | 02-123 | 02 1234 | 서초대로 74 | 백이십 | I would like to | I would like to. | I'd like a | I'd like
My name is | my name is. | And | and then | Yes, and | But | Because | I want | I need the | So | so um | Um | uh
Umm. | Hmm | Well, | Can I | Could you | Let me see | I'm | It's | I was wondering if | It is for | I live near
The number is | You know | I mean | I'd like to book a table for | We are | five five five | My number is 555
My number is 555. | 555-123 | five five five one two three | zero one zero | twenty | twenty-one | My address is 221
double | one | J O | J. O. H. | He came with | I'd like to come in | Yes, | I want to cancel, | I want to-
hello, my name is | or | the red one and | Thanks for the... | 전화를 걸면서
"""

UNKNOWN = """
| . | ? | … | ㅋㅋ | はい。 | 내일 | 토요일. | 서울 강남구 | 예약 | 예약 좀 | 커피 하나 | 두 명 | 네 시 | 오후 세 시
3시 | 가게 | 회의 | 수요일 | 광고 | 접수 | 휴가 | 작가 | 평가 | 여름휴가 | 아이 | 나이 | 고양이 | 떡볶이 | 부서
순서 | 계약서 | 냉장고 | 최고 | 교통사고 | 라면 | 냉면 | 화면 | 가을 | 마을 | 바다 | 캐나다 | 노래 | 아래 | 동네
피자 | 남자 | 담당자 | 내과 | 치과 | 정형외과 | 결과 | 함께 | 어저께 | 사랑 | 바로 | 많이 | 같이 | 가운데 | 이사
오이 | 필요 | 아까 | 빨래 | 두 군데 | 문의 | 주의 | 예약하고 싶은데요 | 예약하려고 하는데요 | 시간이 없어서요
제가요 | 저는요 | 토요일은요 | 처음이거든요 | 글쎄요 | 저기요 | 네... | 감사합니다… | 회의실에서? | 2? | 방 네
무슨 일 | 네 ok 그 name Kim | 제 이름은 John. | Tomorrow. | Tomorrow morning | John Smith
I want to cancel my booking | Seven p.m. | Come on in. | I want to cancel... | table for two | see you at 7.
I'd like a table for two. | Where from? | Room service | maybe | that one | is it | Please | (555) 323-4567
five five five three two three four five six seven | My number is 1 555-323-4567.
"""


def phrases(text: str) -> list[str]:
    return [phrase.strip() for line in text.strip("\n").splitlines() for phrase in line.split("|")]


EXPECTED = [
    (phrase, expected)
    for text, expected in (
        (COMPLETE, Completeness.COMPLETE),
        (CONTINUING, Completeness.CONTINUING),
        (UNKNOWN, Completeness.UNKNOWN),
    )
    for phrase in phrases(text)
]


@pytest.mark.parametrize(("text", "expected"), EXPECTED)
def test_the_end_of_the_text_tells(text: str, expected: Completeness) -> None:
    assert completeness(text) is expected


@given(st.sampled_from(EXPECTED))
def test_it_makes_no_difference_how_the_text_is_written(case: tuple[str, Completeness]) -> None:
    text, expected = case
    assert completeness(unicodedata.normalize("NFD", text)) is expected
    assert completeness(f"  {text}\n") is expected
    assert completeness(f"“{text}”") is expected
    assert completeness(text.upper()) is expected


WHOLE = [text.rstrip(" .?!”") for text in phrases(COMPLETE)]
KOREAN = [text for text in WHOLE if "가" <= text[-1] <= "힣" and f"{text}?" not in phrases(COMPLETE)]
ENGLISH = [text for text in WHOLE if "a" <= text[-1].lower() <= "z"]
STOPS = ["", ".", "..", "…", ",", " -"]
ATTACHED = phrases(
    "고 | 는데 | 지만 | 면 | 니까 | 니까요 | 만 | 다만 | 는 | 를 | 에 | 에서 | 으로 | 까지 | 부터"
    "| 하고 | 한테 | 께 | 며 | 거든요 | 는데요"
)
BEHIND = phrases(
    "그리고 | 그래서 | 근데 | 그런데 | 저는 | 제가 | 혹시 | 음 | 어 | 그 | 그게 | 내일은 | 두 | 시부터 | 공일공"
)
AFTER_ENGLISH = phrases(
    "and | but | so | because | or | to | the | a | my | um | uh | for | with"
    "| if | I'd | and then | let me | we are three"
)


@given(
    st.sampled_from(KOREAN),
    st.sampled_from(ATTACHED) | st.sampled_from(BEHIND).map(" {}".format),
    st.sampled_from(STOPS),
)
def test_no_korean_sentence_is_whole_before_a_connective(sentence: str, more: str, stop: str) -> None:
    assert completeness(sentence) is Completeness.COMPLETE
    assert completeness(f"{sentence}{more}{stop}") is not Completeness.COMPLETE


@given(
    st.sampled_from(ENGLISH),
    st.sampled_from(AFTER_ENGLISH),
    st.sampled_from(STOPS),
    st.sampled_from([" ", ", ", ". "]),
)
def test_no_english_sentence_is_whole_before_a_conjunction(sentence: str, more: str, stop: str, joint: str) -> None:
    assert completeness(f"{sentence}{joint}{more}{stop}") is Completeness.CONTINUING


@pytest.mark.parametrize("text", phrases(COMPLETE))
@pytest.mark.parametrize("mark", [",", " —", "-", ", ,"])
def test_a_comma_or_a_dash_is_never_the_end(text: str, mark: str) -> None:
    assert completeness(text + mark) is Completeness.CONTINUING


@given(st.text(max_size=40) | st.text(alphabet="가고는데요니다네 .,?…-'1a공일", max_size=20))
def test_every_text_has_an_answer(text: str) -> None:
    assert completeness(text) in Completeness
    if not any(char.isalnum() for char in unicodedata.normalize("NFC", text)):
        assert completeness(text) is Completeness.UNKNOWN


@pytest.mark.parametrize("loop", ["네 ", "네", "일", "토요일 네 ", "yes ", "one ", "2 ", "그리고 "])
def test_a_recogniser_that_loops_is_read_to_its_end(loop: str) -> None:
    assert completeness(loop * 3000 + "예약하고") is Completeness.CONTINUING
    assert completeness(loop * 3000 + "예약하고 싶어요") is Completeness.COMPLETE
    assert completeness("토요일 " + "네 " * 3000) in Completeness


def test_the_digits_of_a_telephone_number_are_waited_for() -> None:
    said = [completeness("01012345678"[:count]) for count in range(1, 12)]
    assert said == [Completeness.CONTINUING] * 10 + [Completeness.COMPLETE]
    assert completeness("010123456789") is Completeness.CONTINUING
    assert completeness("087 1234 5678") is Completeness.CONTINUING  # no such area
    assert completeness("415 323 4567") is Completeness.UNKNOWN
    assert completeness("4153 2345 67") is Completeness.CONTINUING  # not how that number is read


# ---------------------------------------------------------------- the waits


@pytest.mark.parametrize(
    ("text", "wait_ms"), [("예약하고 싶어요", 200), ("내일", 350), ("내일은", 900), ("", 350), (" … ", 350), (",", 350)]
)
def test_the_waits_by_default(text: str, wait_ms: int) -> None:
    assert EndpointWaits().wait_ms(text) == wait_ms


@pytest.mark.parametrize(
    ("middle_ms", "waits"),
    [(100, (100, 100, 900)), (200, (200, 200, 900)), (1000, (200, 1000, 1000)), (3000, (200, 1200, 1200))],
)
def test_the_middle_wait_takes_the_others_along(middle_ms: int, waits: tuple[int, int, int]) -> None:
    by_class = EndpointWaits(unknown_ms=middle_ms)
    assert tuple(by_class.wait_ms(text) for text in ("네", "내일", "내일은")) == waits


MS = st.integers(0, 5000)


@given(st.builds(EndpointWaits, MS, MS, MS, MS))
def test_the_less_finished_a_sentence_the_longer_its_wait(waits: EndpointWaits) -> None:
    complete, unknown, continuing = (waits.wait_ms(text) for text in ("네", "내일", "내일은"))
    assert complete <= unknown <= continuing <= waits.most_ms
