"""What is believed and what is not, as tables; then the same through the Recogniser, from a scripted Whisper."""

from dataclasses import replace

import pytest

from app.asr.gates import (
    FASTEST_TOKENS_PER_S,
    MAX_TOKENS,
    TOKENS_PER_S,
    Hypothesis,
    Reason,
    compression_ratio,
    longest_repeat,
    looks_wrong,
    token_budget,
    why_not,
)
from app.asr.inventions import INVENTED, bare, is_invention
from app.asr.recogniser import Recogniser, RecogniserOptions, Request
from tests.asr.scripted_whisper import Says, ScriptedWhisper

RATE = 8000
NE = "네. "
THANKS = "감사합니다."
WATCHED = "시청해 주셔서 감사합니다."


def hypothesis(
    text: str, speech_ms: float = 2000, *, tokens: int = 0, logprob: float = -0.2, no_speech: float = 0.0
) -> Hypothesis:
    return Hypothesis(text, tokens or len(text.split()) * 3, logprob, no_speech, speech_ms)


# ---------------------------------------------------------------- what callers say


@pytest.mark.parametrize(
    ("text", "speech_ms"),
    [
        ("네.", 200),
        ("네, 네, 네.", 450),
        ("네, 네, 네, 네, 네.", 1100),
        ("네네네네네네.", 900),
        ("No, no, no, no, no.", 1100),
        ("No, no, no, no, no, no.", 1000),
        ("Hello? Hello? Hello? Hello? Hello?", 2500),
        ("여보세요? 여보세요? 여보세요? 여보세요? 여보세요?", 4000),
        ("아니요 아니요 아니요", 900),
        ("여보세요? 여보세요? 여보세요?", 1500),
        ("Hello? Hello? Hello?", 1200),
        ("안 들려요. 안 들려요. 안 들려요.", 2000),
        ("감사합니다.", 700),
        ("네, 감사합니다.", 250),
        ("Thank you.", 400),
        ("010-0000-0000이에요.", 2500),
        ("공 공 공 공", 800),
        ("0 1 0 8 8 8 8 8 1 2 3", 3500),
        ("0, 1, 0, 2, 2, 2, 2, 2, 3, 3, 4", 3500),
        ("0 0 0 0 0", 2000),
        ("일오팔팔 팔팔팔팔", 1800),
        ("공일공 공공공공 공공공공", 2500),
        ("010 1010 1010 10", 2500),
        ("공 일 공 이 이 이 이 이 삼 삼 사", 3500),
        ("one two eight eight eight eight eight eight eight eight", 3500),
        ("1 2 1 2 1 2 1 2", 2000),
        ("010-0000-0000 010-0000-0000 010-0000-0000", 8000),
        ("1,000,000,000원", 500),
        ("시청해 주셔서 감사합니다.", 1600),
        ("시청 앞으로 와 주셔서 감사합니다.", 1400),
        ("구독을 취소하고 싶어요.", 1000),
        ("MBC 뉴스 봤어요?", 1000),
        ("내일 오후 세 시에 예약해 주세요.", 1700),
        ("", 500),
    ],
)
def test_what_callers_say_is_believed(text: str, speech_ms: float) -> None:
    assert why_not(hypothesis(text, speech_ms, tokens=len(bare(text)) or 1), 0.6) == ""


# ---------------------------------------------------------------- silence and noise


@pytest.mark.parametrize(
    ("no_speech", "logprob", "speech_ms", "reason"),
    [
        (0.61, -1.01, 2000, "no_speech"),
        (0.60, -1.01, 2000, ""),
        (0.61, -1.00, 2000, ""),
        (0.91, -0.10, 999, "no_speech"),
        (0.91, -0.10, 1000, ""),
        (0.90, -0.10, 999, ""),
        (0.00, -3.00, 2000, ""),
    ],
)
def test_the_no_speech_rules(no_speech: float, logprob: float, speech_ms: float, reason: Reason) -> None:
    heard = hypothesis("여보세요?", speech_ms, logprob=logprob, no_speech=no_speech)
    assert why_not(heard, 0.6) == reason


def test_the_threshold_is_a_setting() -> None:
    heard = hypothesis("여보세요?", logprob=-1.5, no_speech=0.5)
    assert (why_not(heard, 0.6), why_not(heard, 0.4)) == ("", "no_speech")


@pytest.mark.parametrize("text", [".", "...", "♪", "- -", "?!"])
def test_signs_are_no_words(text: str) -> None:
    assert why_not(hypothesis(text), 0.6) == "no_words"


# ---------------------------------------------------------------- loops


@pytest.mark.parametrize(
    ("text", "repeat"),
    [
        ("", (1, 1)),
        ("네", (1, 1)),
        ("네, 네. 네!", (1, 3)),
        ("네 아니요 네 아니요", (2, 2)),
        ("그래서 제가 그래서 제가 그래서 제가", (2, 3)),
        ("I said no. I said no. I said no.", (3, 3)),
        ("예약 취소 하고 싶어요 예약 취소 하고 싶어요", (4, 2)),
        ("하나 둘 셋 둘 셋 둘 셋 넷", (2, 3)),
    ],
)
def test_the_longest_repeat(text: str, repeat: tuple[int, int]) -> None:
    assert longest_repeat(text) == repeat


@pytest.mark.parametrize(
    ("text", "speech_ms"),
    [
        (NE * 7, 5000),  # six times is said
        (NE * 3, 449),
        (NE * 6, 899),
        ("No. " * 30, 20_000),
        ("여보세요? " * 5, 1499),
        ("representative " * 5, 10_000),  # of long words, four times
        ("네 그리고 " * 5, 10_000),
        ("0 " * 13, 10_000),
        ("0 " * 6, 599),
        ("공" * 13, 10_000),
        ("in 5 minutes " * 3, 5000),
        ("0 0 0 0 0 " + "그래서 제가 지금 " * 3, 10_000),
        ("Oh, " * 8, 10_000),
        ("그래서 제가 지금 " * 3, 5000),
        ("안 들려요 " * 3, 899),
        ("안 들려요 " * 5, 5000),
        ("하하하하하하하", 5000),  # a syllable six times might be a word
        ("감사합니다" * 6, 10_000),
    ],
)
def test_a_loop_is_not_believed(text: str, speech_ms: float) -> None:
    assert why_not(hypothesis(text, speech_ms, tokens=len(text.split())), 0.6) == "loop"


def test_text_that_compresses_too_well_is_a_loop() -> None:
    text = "그러니까 제가 말씀드린 것은 그러니까 제가 말씀을 드린 것은, " * 6
    assert compression_ratio(text) > 2.4
    assert why_not(hypothesis(text, 30_000), 0.6) == "loop"


@pytest.mark.parametrize(
    ("speech_ms", "per_s", "budget"),
    [(0, 9, 8), (1000, 9, 17), (1000, 15, 23), (2500, 9, 30), (30_000, 15, MAX_TOKENS), (60_000, 9, MAX_TOKENS)],
)
def test_the_budget_follows_the_speech(speech_ms: float, per_s: int, budget: int) -> None:
    assert token_budget(speech_ms, per_s) == budget


def test_more_words_than_anyone_can_say_are_not_believed() -> None:
    assert why_not(hypothesis("말", 1000, tokens=22), 0.6) == ""
    assert why_not(hypothesis("말", 1000, tokens=23), 0.6) == "too_many_words"


def test_long_speech_that_fills_the_context_is_believed_unless_it_is_too_fast() -> None:
    """28 s of ordinary Korean is eight tokens a second: more than Whisper's text context holds."""
    assert why_not(hypothesis("말", 28_000, tokens=MAX_TOKENS), 0.6) == ""
    assert why_not(hypothesis("말", 15_000, tokens=MAX_TOKENS), 0.6) == ""
    assert why_not(hypothesis("말", 14_000, tokens=MAX_TOKENS), 0.6) == "too_many_words"


# ---------------------------------------------------------------- known inventions


@pytest.mark.parametrize(
    "text",
    [
        "시청해주셔서 감사합니다.",
        "시청해 주셔서 감사합니다!",
        "구독과 좋아요",
        "구독과 좋아요 부탁드립니다.",
        "영상편지",
        "다음 영상에서 만나요.",
        "MBC 뉴스 홍길동입니다.",
        "자막 제공",
        "한글자막 by 홍길동",
        "Thank you for watching!",
        "thanks for watching",
        "Please subscribe.",
        "Subtitles by the Amara.org community",
        "끝까지 시청해주셔서 감사합니다.",
        "구독, 좋아요 부탁드립니다.",
        "Thank you so much for watching!",
    ],
)
def test_inventions_are_dropped_where_the_speech_is_short_or_the_decoder_unsure(text: str) -> None:
    assert is_invention(text, speech_ms=1499, avg_logprob=-0.1)
    assert is_invention(text, speech_ms=5000, avg_logprob=-0.51)
    assert not is_invention(text, speech_ms=1500, avg_logprob=-0.5)


@pytest.mark.parametrize(
    "text",
    [
        "구독과 좋아요 부탁드립니다. 시청해주셔서 감사합니다.",
        "시청해 주셔서 감사합니다. 다음 영상에서 만나요!",
        "Thank you for watching. Please subscribe.",
        "감사합니다. 시청해주셔서 감사합니다.",
        "Subtitles by the Amara.org community. Thank you.",
    ],
)
def test_inventions_are_dropped_in_company(text: str) -> None:
    assert is_invention(text, speech_ms=2999, avg_logprob=-0.1)
    assert is_invention(text, speech_ms=8000, avg_logprob=-0.51)
    assert not is_invention(text, speech_ms=3000, avg_logprob=-0.5)
    assert not is_invention(f"예약했어요. {text}", speech_ms=500, avg_logprob=-3.0)


@pytest.mark.parametrize(
    ("text", "speech_ms", "dropped"),
    [
        ("감사합니다.", 299, True),
        ("감사합니다.", 300, False),
        ("고맙습니다.", 299, True),
        ("고맙습니다.", 300, False),
        ("Thank you.", 299, True),  # over clicks the most frequent of all
        ("Thank you.", 300, False),
        ("Thank you. Thank you.", 599, True),
        ("감사합니다. 고맙습니다.", 600, False),
        ("네.", 100, False),
        ("네. 감사합니다.", 250, False),
        ("예약 취소해 주세요. 감사합니다.", 250, False),
        ("...", 100, False),
    ],
)
def test_ordinary_words_are_spared(text: str, speech_ms: float, dropped: bool) -> None:
    assert is_invention(text, speech_ms=speech_ms, avg_logprob=-3.0) is dropped


def test_the_list_is_written_as_it_is_compared() -> None:
    assert {bare(words) for words in INVENTED} == INVENTED


# ---------------------------------------------------------------- a second look


def test_what_makes_a_short_window_suspect() -> None:
    good = hypothesis("내일 오후 세 시에 예약해 주세요.", 1700, tokens=16)
    assert not looks_wrong(good)
    assert looks_wrong(replace(good, tokens=token_budget(1700, TOKENS_PER_S)))
    assert looks_wrong(replace(good, avg_logprob=-1.01))
    assert looks_wrong(replace(good, text="네, 네, 네."))
    assert looks_wrong(replace(good, text="그러니까 제가 말씀드린 것은 그러니까 제가 말씀을 드린 것은, " * 6))


# ---------------------------------------------------------------- through the Recogniser


def audio(ms: int) -> bytes:
    return bytes(2 * RATE * ms // 1000)


def decode(speech_ms: int, *says: Says, threshold: float = 0.6) -> tuple[str, Reason, int, bool]:
    whisper = ScriptedWhisper([[one] for one in says])
    recogniser = Recogniser(whisper, name="scripted", options=RecogniserOptions(threshold))
    request = Request(audio(speech_ms + 500), RATE, "ko", speech_ms)
    decoded = recogniser.decode([request], beam=2)[0]
    assert len(whisper.asked) == 1 + decoded.redecoded
    return decoded.text, decoded.dropped, decoded.window_s, decoded.redecoded


@pytest.mark.parametrize(
    ("speech_ms", "says", "reason"),
    [
        (200, Says(THANKS, -0.3, 0.2), "invention"),
        (900, Says(WATCHED, -0.25, 0.3), "invention"),
        (1400, Says("구독과 좋아요 부탁드립니다.", -0.4, 0.5), "invention"),
        (3000, Says("MBC 뉴스 홍길동입니다.", -0.7, 0.5), "invention"),
        (3000, Says("Thanks for watching!", -0.9, 0.5), "invention"),
        (800, Says("네.", -0.3, 0.95), "no_speech"),
        (2500, Says("그게 뭐예요?", -1.4, 0.7), "no_speech"),
        (500, Says(NE * 4, -0.1, 0.1), "loop"),
        (4000, Says("오늘은 여러분 " * 12, -0.05, 0.1, ends=False), "too_many_words"),
        (400, Says("오늘은 날씨가 아주 맑고 바람도 없어서 좋은 하루가 되겠습니다.", -0.3, 0.1), "too_many_words"),
        (700, Says("...", -0.2, 0.4), "no_words"),
    ],
)
def test_inventions_and_loops_are_dropped(speech_ms: int, says: Says, reason: Reason) -> None:
    text, dropped, _, _ = decode(speech_ms, says)
    assert (text, dropped) == ("", reason)


@pytest.mark.parametrize(
    ("speech_ms", "says"),
    [
        (350, Says("네.", -0.4, 0.5)),
        (600, Says(THANKS, -0.2, 0.1)),
        (900, Says("네, 네, 네.", -0.2, 0.1)),
        (2200, Says(WATCHED, -0.2, 0.0)),
    ],
)
def test_what_was_said_comes_through(speech_ms: int, says: Says) -> None:
    text, dropped, _, _ = decode(speech_ms, says)
    assert (text, dropped) == (says.text, "")


def test_a_short_window_that_goes_wrong_is_looked_at_again() -> None:
    wrong = Says("오늘은 여러분 " * 12, -0.1, ends=False)
    right = Says("예약하고 싶어요.")
    assert decode(1500, wrong, right) == (right.text, "", 30, True)
    assert decode(1500, replace(right, logprob=-1.2), right) == (right.text, "", 30, True)
    assert decode(1500, right) == (right.text, "", 5, False)


def test_the_fastest_speaker_is_believed_at_the_second_look() -> None:
    fast = Says("내일오후세시에네명예약하고싶은데자리가있을까요지금")
    assert TOKENS_PER_S * 1.5 + 8 <= len(fast.text) < FASTEST_TOKENS_PER_S * 1.5 + 8
    assert decode(1500, fast) == (fast.text, "", 30, True)
