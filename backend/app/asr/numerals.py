"""Digits, as Whisper writes them where a caller dictates a number: 0, 공, zero. Pure.

The same digit comes many times on end in telephone numbers. What looks there for words that repeat must know them.
"""

import re

_NUMBER = re.compile(r"[\d영공일이삼사오육륙칠팔구]+|zero|one|two|three|four|five|six|seven|eight|nine")
"""`oh` is not among them: over music Whisper writes it for ever."""


def is_number(word: str) -> bool:
    """Of a word without punctuation, in small letters: digits and nothing else."""
    return _NUMBER.fullmatch(word) is not None


def count_digits(number: str) -> int:
    """Of what `is_number`: an English word is one."""
    return 1 if number.isascii() and number.isalpha() else len(number)
