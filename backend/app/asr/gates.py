"""What is believed of a decode: silence, noise, ring-back and music must never become words. Pure.

Whisper was made to write something. Over a cough it may write a sentence, over noise the same word until its budget is
spent. Each rule here knows one of these; the first that holds is the reason. What is dropped was never said as far as
the conversation is concerned, so every rule spares what callers do say: 네, 네, 네. 여보세요? 여보세요? 여보세요?
"""

import re
import zlib
from dataclasses import dataclass
from typing import Literal

from app.asr.inventions import bare, is_invention

LOG_PROB_THRESHOLD = -1.0
"""With a no-speech probability above the threshold, words less likely than this are dropped (OpenAI's rule)."""

SURELY_NO_SPEECH = 0.9
SHORT_SPEECH_MS = 1000

MAX_COMPRESSION_RATIO = 2.4
"""Text that compresses better repeats itself."""

REPEATS = 3
SAID_AGAIN = 4
"""A caller says a word or two so many times on end, and no more."""
SAID_AGAIN_WORDS = 2
WORD_MS = 150

TOKENS_PER_S = 9
FASTEST_TOKENS_PER_S = 15
SPARE_TOKENS = 8
"""Ordinary Korean and English are below nine tokens a second. The fastest Korean is about nine syllables, each one or
two tokens. So more than nine makes a short window suspect, and only more than fifteen is not speech."""

MAX_TOKENS = 220
"""Whisper's text context, less the prompt."""

Reason = Literal["", "no_words", "no_speech", "too_many_words", "loop", "invention"]
"""Why nothing is believed; empty where it is."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What a decode came to. `tokens` without the end of text. `avg_logprob`: of a token, natural. `speech_ms`: how
    long somebody spoke, as far as known; else the length of the audio, which is more."""

    text: str
    tokens: int
    avg_logprob: float
    no_speech_prob: float
    speech_ms: float


def token_budget(speech_ms: float, per_s: int) -> int:
    """Tokens at which a decode is cut. A loop then costs no more time than the fastest speaker."""
    return min(MAX_TOKENS, int(speech_ms * per_s / 1000) + SPARE_TOKENS)


def looks_wrong(heard: Hypothesis) -> bool:
    """Whether a decode in a short window deserves a second look over 30 s. Too often costs time, too seldom words."""
    return (
        heard.tokens >= token_budget(heard.speech_ms, TOKENS_PER_S)
        or heard.avg_logprob < LOG_PROB_THRESHOLD
        or compression_ratio(heard.text) > MAX_COMPRESSION_RATIO
        or longest_repeat(heard.text)[1] >= REPEATS
    )


def why_not(heard: Hypothesis, no_speech_threshold: float) -> Reason:
    """Empty: believed. Text without any is believed too."""
    if not heard.text:
        return ""
    if not bare(heard.text):
        return "no_words"
    if _no_speech(heard, no_speech_threshold):
        return "no_speech"
    if heard.tokens >= token_budget(heard.speech_ms, FASTEST_TOKENS_PER_S):
        return "too_many_words"
    if _is_loop(heard):
        return "loop"
    if is_invention(heard.text, speech_ms=heard.speech_ms, avg_logprob=heard.avg_logprob):
        return "invention"
    return ""


def _no_speech(heard: Hypothesis, threshold: float) -> bool:
    if heard.no_speech_prob > threshold and heard.avg_logprob < LOG_PROB_THRESHOLD:
        return True
    return heard.no_speech_prob > SURELY_NO_SPEECH and heard.speech_ms < SHORT_SPEECH_MS


def _is_loop(heard: Hypothesis) -> bool:
    if compression_ratio(heard.text) > MAX_COMPRESSION_RATIO or _LETTERS_REPEATED.search(bare(heard.text)):
        return True
    words, times = longest_repeat(heard.text)
    if times < REPEATS:
        return False
    said = words <= SAID_AGAIN_WORDS and times <= SAID_AGAIN and heard.speech_ms >= WORD_MS * words * times
    return not said


_LETTERS_REPEATED = re.compile(r"([^\d]{1,8}?)\1{5,}")
"""Loops that are one word. Digits repeat in telephone numbers."""


def compression_ratio(text: str) -> float:
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def longest_repeat(text: str) -> tuple[int, int]:
    """Of a group of one to four words that comes several times on end: its words, and how many times. (1, 1): none."""
    words = [word for part in text.split() if (word := bare(part))]
    longest = (1, 1)
    for size in range(1, 5):
        run = 0
        for at in range(size, len(words)):
            run = run + 1 if words[at] == words[at - size] else 0
            times = run // size + 1
            if times > longest[1]:
                longest = (size, times)
    return longest
