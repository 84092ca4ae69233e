"""Whether a caller who has just fallen silent has said a whole sentence, judged by the words alone.

Korean puts the answer at the end of its last word: a final ending (요, 니다, 까, 죠), or a connective (고, 는데,
면) or a particle (은, 을, 에서) after which something must follow. English shows it less: a full stop that the
recogniser heard, or a last word such as "and" or "the". Numbers are read in groups with rests between them, so a
number at the end is never the end, except that of a whole telephone number.

The text is a guess of a recogniser about speech that may go on. It closes whatever it was given with a full stop,
so a stop proves nothing in Korean, and nothing after "and the". A comma, a dash or an ellipsis is never put
behind a finished sentence. The costs are unequal: to call a whole sentence CONTINUING costs half a second, to call
half a sentence COMPLETE cuts the caller short. Where a syllable can be either (가게, 회의, 광고), it is UNKNOWN.

Pure. Both languages are read without being told which: the last word shows it.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Completeness(Enum):
    COMPLETE = "complete"
    UNKNOWN = "unknown"
    CONTINUING = "continuing"
    """Plainly unfinished."""


COMPLETE, UNKNOWN, CONTINUING = Completeness.COMPLETE, Completeness.UNKNOWN, Completeness.CONTINUING


@dataclass(frozen=True, slots=True)
class EndpointWaits:
    """How much silence ends an utterance, in ms, by what was said before it.

    `unknown_ms` is FINAL_FLUSH_SILENCE_MS; the other two give way to it, so that a whole sentence never waits
    longer and an unfinished one never shorter than a sentence of which nothing is known. `most_ms` bounds all.

    This is the one seam at which a model that judges the end of a turn by its sound may later vote: it would
    choose between the same three waits.
    """

    complete_ms: int = 200
    unknown_ms: int = 350
    continuing_ms: int = 900  # people who read a number out rest for up to 900 ms between its groups
    most_ms: int = 1200

    def wait_ms(self, text: str) -> int:
        """`text`: the words so far. Where there are none, nothing is known."""
        match completeness(text):
            case Completeness.COMPLETE:
                wait = min(self.complete_ms, self.unknown_ms)
            case Completeness.CONTINUING:
                wait = max(self.continuing_ms, self.unknown_ms)
            case Completeness.UNKNOWN:
                wait = self.unknown_ms
        return min(wait, self.most_ms)


def completeness(text: str) -> Completeness:
    text = _TIME_OF_DAY.sub("pm", unicodedata.normalize("NFC", text)[-_TAIL_CHARS:].casefold().replace("’", "'"))
    words = _WORD.findall(text)
    if not words:
        return UNKNOWN
    mark = _mark(text)
    if mark in (",", "-"):
        return CONTINUING
    sentence = _WORD.findall(_SENTENCE_END.split(text.rstrip(_MARKS))[-1])
    judged = _judge(words, sentence, mark)
    if mark == "?":  # a question may end in anything: 회의실에서? Where from?
        return UNKNOWN if judged is CONTINUING else COMPLETE
    if mark == "…" and judged is COMPLETE:
        return UNKNOWN
    return judged


# ---------------------------------------------------------------- words and marks


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_WORD = re.compile(r"[^\W_]+(?:(?:['@-]|(?<=[0-9a-z])\.(?=[0-9a-z]))[^\W_]+)*")
_TAIL_CHARS = 300
"""Nothing before them bears on how a text ends, and a recogniser that loops writes long ones."""
_TIME_OF_DAY = re.compile(r"\b[ap]\.\s?m\b(?:\.(?!\W*$))?")
_SENTENCE_END = re.compile(r"(?<=[.?!。？！…])\s+")
_MARKS = " \t\r\n.?!。？！…,，、-–—~'\"”’»)]」』"
_HANGUL = re.compile(r"[가-힣]")


def _mark(text: str) -> str:
    """What the text ends in: "," "-" "…" "?" "." or nothing. Three dots, or two, are an ellipsis."""
    tail = text[len(text.rstrip(_MARKS)) :].rstrip(" \t\r\n~'\"”’»)]」』")
    if not tail:
        return ""
    if tail[-1] in ",，、":
        return ","
    if tail[-1] in "-–—":
        return "-"
    if tail.endswith(("…", "..")):
        return "…"
    return "?" if "?" in tail or "？" in tail else "."


def _judge(words: Sequence[str], sentence: Sequence[str], mark: str) -> Completeness:
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if _only_answers(sentence):
        return COMPLETE
    if _is_number(last, before):
        return _number(words)
    if "가" <= last[-1] <= "힣":
        return _korean(last, words[:-1])
    if "a" <= last[-1] <= "z":
        return _english(sentence, before, mark)
    return UNKNOWN


# ---------------------------------------------------------------- short answers

_FILLER = re.compile(r"[음흠으]+|[어그]+|저|저기|뭐|막|약간|이제|u+[hm]+|e+r+m*|a+h+|h*m+|well|so|like")
_ANSWERS = re.compile(
    r"(?:네+|넵|넹|예+|응+|그래|맞아|좋아|싫어|몰라|아니|아니오|아뇨|안녕|오케이|여보세요"
    r"|yes|yeah|yep|yup|no|nope|okay|ok|sure|right|correct|exactly|fine|great|perfect|good|cool|agreed"
    r"|thanks|thank you|so much|very much|a lot|hello|hi|bye|goodbye|bye-bye|uh-huh|mm-hmm|uh huh|mm hmm"
    r"|of course|all right|alright|that's right|that's all|that's it|that is all|that is right|not really|never mind"
    r"|go ahead|sounds good|got it|i see|i do|i am|i will|i did|it is|you too|absolutely|definitely|certainly)"
)
_SHORT = re.compile(rf"(?:{_ANSWERS.pattern})(?: (?:{_ANSWERS.pattern}|please))*")


def _only_answers(sentence: Sequence[str]) -> bool:
    """Nothing but 네, 아니요, yes, thank you and the like, whatever hesitation went before them."""
    first = next((at for at, word in enumerate(sentence) if not _opens(word)), len(sentence))
    return _SHORT.fullmatch(" ".join(sentence[first:])) is not None or " ".join(sentence) in ("uh huh", "mm hmm")


def _opens(word: str) -> bool:
    return word in ("아", "oh") or _FILLER.fullmatch(word) is not None


# ---------------------------------------------------------------- numbers

_KOREAN_DIGITS = {**dict(zip("공일이삼사오육칠팔구", "0123456789", strict=True)), "영": "0", "륙": "6"}
_ENGLISH_DIGITS = {
    **{"zero": "0", "oh": "0", "o": "0", "one": "1", "two": "2", "three": "3"},
    **{"four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"},
}
_SINO = re.compile(rf"[{''.join(_KOREAN_DIGITS)}십백천만억]+")
_SPOKEN_IN_A_ROW = re.compile(rf"(?:[{''.join(_KOREAN_DIGITS)}십백천만억]){{3,}}$")  # 제번호는공일공, without spaces
_NOT_NUMBERS = _set("이사 오이 사이 구이 이이")
_COUNTED = re.compile(  # 열둘, 스물세: as people count, not as they read a number out
    r"(?:열|스물|서른|마흔|쉰|예순|일흔|여든|아흔)?(?:하나|둘|셋|넷|다섯|여섯|일곱|여덟|아홉)|열|스물"
)
_BEFORE_A_COUNTER = _set("한 두 세 스무 열한 열두 열세 열네 스물한 스물두 스물세 스물네 서너 두세")
_YEAR_OR_MONTH = re.compile(rf"(?:\d+|[{''.join(_KOREAN_DIGITS)}십백천만유시]+)[년월]")
_ENGLISH_NUMBER = re.compile(
    r"(?:(?:twen|thir|for|fif|six|seven|eigh|nine)ty-?)?(?:zero|one|two|three|four|five|six|seven|eight|nine)"
    r"|oh|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty"
    r"|hundred|thousand|million|double|triple"
)
_ONE = _set("this that the which other another no any every each some")  # "that one" is no number
_AT_AN_HOUR = _set("at for by until till around about of")  # "a table for two", "at seven"
_TELEPHONE = re.compile(r"02\d{8}|0(?:1[016-9]|3[1-3]|4[1-4]|5[1-5]|6[1-4]|70)\d{8}")
"""A whole number of Korea: ten digits in Seoul, eleven elsewhere."""
_NORTH_AMERICAN = re.compile(r"1?[2-9]\d\d[2-9]\d{6}")  # may as well be the beginning of something longer
_NORTH_AMERICAN_GROUPS = re.compile(r"1?(?:334|37)|10|11|1+")


def _is_number(last: str, before: str) -> bool:
    after_number = bool(before) and _is_number(before, "")
    if last in ("년", "월", "다시"):  # 다시: the dash in a spoken address
        return after_number
    if last == "one" and before in _ONE:
        return False
    if last[-1].isdecimal() or last in _BEFORE_A_COUNTER:
        return True
    if _YEAR_OR_MONTH.fullmatch(last) or _ENGLISH_NUMBER.fullmatch(last):
        return True
    if _COUNTED.fullmatch(last):  # but 커피 하나 is an order
        return after_number or not before
    if _SINO.fullmatch(last):
        return after_number or (last not in _NOT_NUMBERS and (not before or len(last) > 1))
    return _SPOKEN_IN_A_ROW.search(last) is not None


def _number(words: Sequence[str]) -> Completeness:
    """More digits are to be expected, unless they are a whole telephone number or a single one after "at" or "for"."""
    groups = _groups_at_the_end(words)
    digits = "".join(groups)
    if _TELEPHONE.fullmatch(digits):
        return COMPLETE
    if _NORTH_AMERICAN.fullmatch(digits) and _NORTH_AMERICAN_GROUPS.fullmatch("".join(str(len(one)) for one in groups)):
        return UNKNOWN
    small = len(words[-1]) <= 2 or not words[-1].isdecimal()
    return UNKNOWN if small and len(words) > 2 and words[-2] in _AT_AN_HOUR else CONTINUING


def _groups_at_the_end(words: Sequence[str]) -> list[str]:
    """The digits of the number that the text ends in, grouped as it is written."""
    groups: list[str] = []
    for word in reversed(words):
        word = _ENGLISH_DIGITS.get(word, word)
        spoken = "".join(_KOREAN_DIGITS.get(char, char) for char in word.removesuffix("에"))
        if word != "다시" and not spoken.replace("-", "").isdecimal():
            break
        groups[:0] = [group for group in spoken.split("-") if group.isdecimal()]
    return groups


# ---------------------------------------------------------------- Korean

_VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
_FINALS = " ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"

_YES = _set("네 예 응")
_GOING_ON = _set(
    "그리고 그래서 그런데 근데 그러면 그럼 그러니까 그니까 그래도 하지만 그렇지만 또 또는 혹은 및 왜냐하면 왜냐면 "
    "만약 혹시 일단 우선 즉 안 못 이 제 내 우리 저희 그게 이게 저게 뭐냐 뭐더라 뭐지 뭐랄까 "
    "그리고요 그래서요 그런데요 근데요 그게요 있잖아요 있죠"
)
_UNCLEAR = tuple(  # nouns and adverbs that end like a particle or an ending
    _set(
        "휴가 추가 들어가 돌아가 올라가 내려가 놀러가 같이 많이 없이 깊이 높이 길이 종이 어린이 굳이 젊은이 고양이 "
        "호랑이 볶이 놀이 걸이 잡이 풀이 먹이 가을 마을 노을 바로 서로 새로 따로 별로 도로 피로 진로 안과 결과 "
        "성과 학과 일과 통과 인과 나와 려와 녀와 져와 라와 어와 함께 어저께 그저께 사랑 자랑 노랑 광고 신고 창고 "
        "사고 참고 최고 냉장고 재고 경고 권고 예고 충고 원고 금고 해고 공고 보고 중고 라면 냉면 짜장면 자장면 쫄면 "
        "온면 화면 장면 측면 정면 전면 표면 도면 대면 당면 국면 가운데 군데 교과서 역할 분할 필요 중요 주요 수요 "
        "소요 개요 월요 화요 목요 금요 토요 일요 빨래 몰래 아까 판다"
    )
)
_UNCLEAR_ALONE = _set("화가 요가 주가 대가 고가 시가 유가 처가 외가 허가 가 와 과 서 고 면 할")
_PREFACE = re.compile(r".*(?:[고구면는은]|제가|거든|(?<!에)서|저기|글쎄|니까)요")
"""Polite, and as often the first half of a request (몸이 안 좋아서요, …) as the whole of it."""
_OF_AIM = re.compile(r".*[려라다자냐][고구]요")  # 예약하려고요
_FINAL = re.compile(r".*(?:요|죠|니다|시오|줘|거야|어때|[할갈줄볼올걸을]게)")
_LETS = re.compile(r"가자|먹자|만나자|그러자|말자|.*하자")
_FOLLOWED = re.compile(
    r".*(?:[고며면는를로랑할될]|지만|다만|니까|니깐|느라|도록|거나|든지|든가|다가|더니|길래|마자|위해|통해|대해|관해|하러|으러"
    r"|[해와줘봐가어아여려워라]도|까지|부터|한테|에|에게|에서|께|처럼|마다|보다)"
)
"""Connectives, particles, and forms that describe the noun to come."""


def _korean(last: str, before: Sequence[str]) -> Completeness:
    if last in _GOING_ON or _FILLER.fullmatch(last) or (last == "보자" and before[-1:] == ["어디"]):
        return CONTINUING
    if last in _YES and before:  # 알겠습니다 네; but 방 네 개
        said = next((word for word in reversed(before) if word not in _YES), "네")
        return COMPLETE if "가" <= said[-1] <= "힣" and _korean(said, ()) is COMPLETE else UNKNOWN
    if last in _UNCLEAR_ALONE or last.endswith(_UNCLEAR):
        return UNKNOWN
    if last.endswith("요") and _is_preface(last):
        return UNKNOWN
    if _is_final(last):
        return COMPLETE
    return CONTINUING if _is_followed(last) else UNKNOWN


def _is_preface(last: str) -> bool:
    if last.endswith("데요"):
        return _final_of(last[:-2]) == "ㄴ"
    return _PREFACE.fullmatch(last) is not None and _OF_AIM.fullmatch(last) is None


def _is_final(last: str) -> bool:
    before = _final_of(last[:-1])
    match last[-1]:
        case "다" if not last.endswith("니다"):
            return bool(before)  # 했다, 좋다; not 바다, 마다
        case "까":  # 할까, 됩니까; not 하니까
            return before == "ㄹ" or (last.endswith("니까") and _final_of(last[:-2]) == "ㅂ")
        case "래":
            return before == "ㄹ"  # 할래; not 노래
        case "네":
            return before in ("ㅆ", "ㅎ", "ㅄ", "ㅌ")  # 있네; not 동네
        case "자":
            return _LETS.fullmatch(last) is not None
    return _FINAL.fullmatch(last) is not None


def _is_followed(last: str) -> bool:
    """Particles of two forms (은/는, 이/가) are told from nouns by the syllable before: 친구가, but 작가."""
    before = _final_of(last[:-1])
    hangul = "가" <= last[-2:-1] <= "힣"
    match last[-1]:
        case "은" | "을" | "이" | "과":
            return bool(before) or not hangul
        case "가" | "와":
            return not before
        case "데":
            return before == "ㄴ"  # 는데, 인데
        case "서":
            return last.endswith("면서") or (
                hangul and not before and _vowel_of(last[:-1]) in "ㅏㅐㅓㅔㅕㅘㅙㅝ"
            )  # 해서, 에서; not 부서, 순서
    return _FOLLOWED.fullmatch(last) is not None


def _final_of(text: str) -> str:
    """The consonant under the last syllable; empty where there is none, and where the last letter is not Hangul."""
    return _FINALS[(ord(text[-1]) - 0xAC00) % len(_FINALS)].strip() if "가" <= text[-1:] <= "힣" else ""


def _vowel_of(text: str) -> str:
    return _VOWELS[(ord(text[-1]) - 0xAC00) // len(_FINALS) % len(_VOWELS)]


# ---------------------------------------------------------------- English

_OPEN = _set(
    "and but or because if while although though unless until since whether than as to the a an my your our their "
    "of for with at from about into between near under per i we they he she is are was were am "
    "i'd i'm i'll i've it's we're we'd we'll they're that's there's let's you're what's he's she's"
)
_OPEN_WITHOUT_A_STOP = _set("in on by around through")  # "come on in."
_OPEN_PAIRS = re.compile(
    r"(?:can|could|may) i|(?:can|could|would|do) you|i (?:would|want|need|have|mean)|let me|let's see|me see|and then"
    r"|you know|(?:kind|sort) of"
)
_SUBJECTS = _set("it he she they that this there i we you here")  # "yes it is"
_THINKS = _set("think hope guess believe suppose do")  # "I think so"


def _english(sentence: Sequence[str], before: str, mark: str) -> Completeness:
    last = sentence[-1]
    if _is_open(sentence, before, mark):
        return CONTINUING
    if last in _OPEN_WITHOUT_A_STOP or any(_HANGUL.search(word) for word in sentence):
        return UNKNOWN
    return COMPLETE if mark == "." and len(sentence) >= 3 else UNKNOWN


def _is_open(sentence: Sequence[str], before: str, mark: str) -> bool:
    last = sentence[-1]
    if last in ("is", "are", "was", "were", "am"):
        return len(sentence) < 3 or before not in _SUBJECTS
    if last == "so":
        return before not in _THINKS
    if last == "well":  # not "as well"
        return len(sentence) == 1
    if last in _OPEN_WITHOUT_A_STOP:
        return mark != "."
    spelled = len(last) == len(before) == 1
    return spelled or last in _OPEN or bool(_FILLER.fullmatch(last) or _OPEN_PAIRS.fullmatch(f"{before} {last}"))
