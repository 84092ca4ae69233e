"""What is believed of a decode: silence, noise, ring-back and music must never become words. Pure.

Whisper was made to write something. Over a cough it may write a sentence, over noise the same word until its budget is
spent. Each rule here knows one of these; the first that holds is the reason. What is dropped was never said as far as
the conversation is concerned, so every rule spares what callers do say: 네, 네, 네, 네, 네. 여보세요? 여보세요?
010-0000-0000.
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from app.asr.inventions import bare, is_invention
from app.asr.numerals import count_digits, is_number

LOG_PROB_THRESHOLD = -1.0
"""With a no-speech probability above the threshold, words less likely than this are dropped (OpenAI's rule)."""

SURELY_NO_SPEECH = 0.9
SHORT_SPEECH_MS = 1000

MAX_COMPRESSION_RATIO = 2.4
"""Text that compresses better repeats itself."""

REPEATS = 3
LONGEST_GROUP = 4
SAID_AGAIN = 4
SAID_AGAIN_WORDS = 2
"""A caller says a word or two so many times on end, and no more."""
SHORT_SAID_AGAIN = 6
SHORT_WORD_MS = 300
"""One short word, no longer than 여보세요, also comes as often as this: 네, 네, 네, 네, 네."""
MOST_DIGITS = 12
"""That repeat on end: 010-0000-0000 and 010-1010-1010 are telephone numbers."""

WORD_MS = 150
DIGIT_MS = 100
SYLLABLE_MS = 75
LETTER_MS = 40
"""The least speech that holds a word, a digit, a Korean syllable, a letter of others: nobody is faster."""

TOKENS_PER_S = 9
FASTEST_TOKENS_PER_S = 15
SPARE_TOKENS = 8
"""Ordinary Korean and English are below nine tokens a second. The fastest Korean is about nine syllables, each one or
two tokens. So more than nine makes a short window suspect, and only more than fifteen is not speech."""

MAX_TOKENS = 220
"""Whisper's text context, less the prompt. Long speech may fill it at an ordinary rate: that alone is no fault."""

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
    return min(MAX_TOKENS, _tokens_at(speech_ms, per_s))


def _tokens_at(speech_ms: float, per_s: int) -> int:
    return int(speech_ms * per_s / 1000) + SPARE_TOKENS


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
    if heard.tokens >= _tokens_at(heard.speech_ms, FASTEST_TOKENS_PER_S):
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
    words = _words(heard.text)
    repeated = [(group, times) for group, times in _repeats(words) if times >= REPEATS]
    if not all(_is_said(group, times, heard.speech_ms) for group, times in repeated):
        return True
    written = [(run[1], len(run[0]) // len(run[1])) for run in _LETTERS_REPEATED.finditer("".join(words))]
    if not all(_is_written(unit, times, heard.speech_ms) for unit, times in written):
        return True
    once = " ".join(word for word, _ in groupby(words))  # a word that comes again has been judged
    return compression_ratio(once) > MAX_COMPRESSION_RATIO


_LETTERS_REPEATED = re.compile(r"(.{1,8}?)\1{5,}")
"""Loops that are one word, whatever the spaces."""


def _is_said(group: Sequence[str], times: int, speech_ms: float) -> bool:
    """Whether a caller may say these words so many times on end."""
    if speech_ms < times * sum(map(_least_ms, group)):
        return False
    if all(map(is_number, group)):
        return times <= SAID_AGAIN or times * sum(map(count_digits, group)) <= MOST_DIGITS
    if len(group) == 1 and _least_ms(group[0]) <= SHORT_WORD_MS:
        return times <= SHORT_SAID_AGAIN
    return len(group) <= SAID_AGAIN_WORDS and times <= SAID_AGAIN


def _is_written(unit: str, times: int, speech_ms: float) -> bool:
    """The same of letters without spaces. There digits need no time each: 1,000,000 is 백만."""
    if is_number(unit):
        return times * count_digits(unit) <= MOST_DIGITS
    return _is_said([unit], times, speech_ms)


def _least_ms(word: str) -> float:
    """The least speech that holds it."""
    syllables = sum("가" <= letter <= "힣" for letter in word)
    if is_number(word):
        return max(DIGIT_MS, SYLLABLE_MS * syllables)
    return max(WORD_MS, SYLLABLE_MS * syllables + LETTER_MS * (len(word) - syllables))


def compression_ratio(text: str) -> float:
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def longest_repeat(text: str) -> tuple[int, int]:
    """Of a group of one to four words that comes several times on end: its words, and how many times. (1, 1): none."""
    sizes = [(len(group), times) for group, times in _repeats(_words(text))]
    return max(sizes, key=lambda size: size[1], default=(1, 1))


def _repeats(words: Sequence[str]) -> Iterator[tuple[Sequence[str], int]]:
    """Each group of words that comes twice or more on end, and how many times."""
    for size in range(1, LONGEST_GROUP + 1):
        run = 0
        for at in range(size, len(words) + 1):
            if at < len(words) and words[at] == words[at - size]:
                run += 1
                continue
            if run >= size:
                yield words[at - run - size : at - run], run // size + 1
            run = 0


def _words(text: str) -> list[str]:
    return [word for part in text.split() if (word := bare(part))]
