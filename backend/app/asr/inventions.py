"""What Whisper says where nobody speaks: the ends of the videos that it learnt from. Pure.

These sentences are hardly ever said on a telephone, but might be. So a match alone drops nothing: it takes audio that
is too short for them, or a decoder that is not sure. They come in company too: then every sentence must be one. 네 and
감사합니다 are what callers say all day; thanks alone are dropped only where the speech is too short to hold them.
"""

import re
import unicodedata

SURE_LOGPROB = -0.5
SHORT_SPEECH_MS = 1500
THANKS_MS = 300
"""Both for each sentence."""

INVENTED = frozenset(
    (
        "시청해주셔서감사합니다",
        "끝까지시청해주셔서감사합니다",
        "오늘도시청해주셔서감사합니다",
        "지금까지시청해주셔서감사합니다",
        "끝까지봐주셔서감사합니다",
        "구독과좋아요",
        "구독좋아요",
        "구독과좋아요부탁드립니다",
        "구독좋아요부탁드립니다",
        "좋아요와구독부탁드립니다",
        "구독부탁드립니다",
        "구독과좋아요알림설정부탁드립니다",
        "구독좋아요알림설정부탁드립니다",
        "영상편지",
        "다음영상에서만나요",
        "다음영상에서뵙겠습니다",
        "자막제공",
        "thankyouforwatching",
        "thankyousomuchforwatching",
        "thankyouverymuchforwatching",
        "thankyouallforwatching",
        "thanksforwatching",
        "pleasesubscribe",
        "pleaselikeandsubscribe",
        "pleasesubscribetomychannel",
        "dontforgettosubscribe",
        "dontforgettolikeandsubscribe",
        "seeyouinthenextvideo",
        "subtitlesbytheamaraorgcommunity",
    )
)
"""As `bare` leaves them."""

THANKS = frozenset(("감사합니다", "고맙습니다", "thankyou"))

_WITH_A_NAME = re.compile(r"mbc뉴스.{0,12}입니다|한글자막by.{0,20}")
_SENTENCE_END = re.compile(r"[.?!。…]+(?:\s+|$)")


def is_invention(text: str, *, speech_ms: float, avg_logprob: float) -> bool:
    sentences = [words for sentence in _SENTENCE_END.split(text) if (words := bare(sentence))]
    if not sentences or not all(words in THANKS or _is_of_a_video(words) for words in sentences):
        return False
    if THANKS.issuperset(sentences):
        return speech_ms < THANKS_MS * len(sentences)
    return speech_ms < SHORT_SPEECH_MS * len(sentences) or avg_logprob < SURE_LOGPROB


def _is_of_a_video(words: str) -> bool:
    return words in INVENTED or _WITH_A_NAME.fullmatch(words) is not None


def bare(text: str) -> str:
    """Letters and digits alone, in small letters."""
    return "".join(letter for letter in unicodedata.normalize("NFKC", text).casefold() if letter.isalnum())
