"""What Whisper says where nobody speaks: the ends of the videos that it learnt from. Pure.

These sentences are hardly ever said on a telephone, but might be. So a match alone drops nothing: it takes audio that
is too short for them, or a decoder that is not sure. 네 and 감사합니다 are what callers say all day; the second is
dropped only where the speech is too short to hold it.
"""

import re
import unicodedata

SURE_LOGPROB = -0.5
SHORT_SPEECH_MS = 1500
THANKS_MS = 300

INVENTED = frozenset(
    (
        "시청해주셔서감사합니다",
        "구독과좋아요",
        "구독과좋아요부탁드립니다",
        "영상편지",
        "다음영상에서만나요",
        "자막제공",
        "thankyouforwatching",
        "thanksforwatching",
        "pleasesubscribe",
        "subtitlesbytheamaraorgcommunity",
    )
)
"""As `bare` leaves them."""

_WITH_A_NAME = re.compile(r"mbc뉴스.{0,12}입니다|한글자막by.{0,20}")
_THANKS = "감사합니다"


def is_invention(text: str, *, speech_ms: float, avg_logprob: float) -> bool:
    words = bare(text)
    if words == _THANKS:
        return speech_ms < THANKS_MS
    if words not in INVENTED and not _WITH_A_NAME.fullmatch(words):
        return False
    return speech_ms < SHORT_SPEECH_MS or avg_logprob < SURE_LOGPROB


def bare(text: str) -> str:
    """Letters and digits alone, in small letters."""
    return "".join(letter for letter in unicodedata.normalize("NFKC", text).casefold() if letter.isalnum())
