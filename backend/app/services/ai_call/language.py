"""Which of the bot's two languages a text is written in. By script alone: no model, no word lists."""

import re

_HANGUL = re.compile(r"[\uac00-\ud7a3\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\ud7b0-\ud7ff]")
"""Syllables, and the single letters that a decomposed text is made of."""
_LATIN = re.compile(r"[A-Za-z]")


def language_of(text: str, default: str) -> str:
    """`ko` where there is any Hangul (Koreans mix Latin words in), else `en` where there are Latin letters, else
    `default`."""
    if _HANGUL.search(text):
        return "ko"
    return "en" if _LATIN.search(text) else default
