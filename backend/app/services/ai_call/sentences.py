"""A model's text, cut into pieces that a voice can say, while the model is still writing.

Korean and English. Pure and exact: the pieces joined are the text, character for character, however the text
was divided into deltas. White space leads the piece that follows it. What must not be said (Markdown, emoji,
addresses) is still in a piece; `speakable` takes it out.
"""

import re

MAX_CHARS = 120
"""A piece that found no end is cut here, after about 8 s of English or 20 s of Korean speech."""
FIRST_COMMA_CHARS = 5
"""The first piece may end at a comma after this many characters, so that the voice can start."""

_ENDS = ".!?…。！？"
_WIDE_ENDS = "。！？"
_CLOSERS = "\"'”’»)]」』》*_`"
_COMMAS = ",，、"
_KOREAN_ENDINGS = "다요까죠네"
_ABBREVIATION = re.compile(
    r"approx|apt|ave|blvd|capt|co|corp|dept|dr|etc|ext|ft|inc|jr|ltd|mr|mrs|ms|mt|prof|rd|rev|sr|st|tel|vs"
    r"|(?:[a-z]\.)*[a-z]",  # e.g, a.m, U.S, J
    re.IGNORECASE,
)
_WORD_BEFORE = re.compile(r"[^\s(\[\"'“‘]*$")

_WAIT = -1


class SentenceSplitter:
    """One reply's text. `first_comma=None` cuts at sentence ends only."""

    def __init__(self, first_comma: int | None = FIRST_COMMA_CHARS, max_chars: int = MAX_CHARS) -> None:
        self._first_comma = first_comma
        self._max_chars = max_chars
        self._text = ""
        self._at = 0
        self._start = 0

    def feed(self, delta: str) -> list[str]:
        """The pieces that are certain now: an end counts once the character after it is known."""
        self._text += delta
        return self._take(final=False)

    def finish(self) -> list[str]:
        """The rest. The last piece may be nothing but white space."""
        pieces = self._take(final=True)
        rest, self._text, self._at, self._start = self._text, "", 0, 0
        return [*pieces, rest] if rest else pieces

    def _take(self, final: bool) -> list[str]:
        pieces = []
        while self._at < len(self._text):
            if self._at == self._start and self._text[self._at].isspace():
                self._start = self._at = self._at + 1
                continue
            end = self._end(final)
            if end == _WAIT:
                break
            if not end:
                self._at += 1
                continue
            pieces.append(self._text[:end])
            self._text, self._at, self._start, self._first_comma = self._text[end:], 0, 0, None
        return pieces

    def _end(self, final: bool) -> int:
        """Where the piece ends if the character at `_at` ends it; 0 if it does not; _WAIT for more text."""
        mark = self._text[self._at]
        end = 0
        if mark == "\n":
            return self._at
        if mark in _ENDS:
            end = self._sentence_end(final)
        elif mark in _COMMAS and self._first_comma is not None:
            end = self._comma_end(final)
        if not end and self._at - self._start >= self._max_chars:
            return self._cut()
        return end

    def _sentence_end(self, final: bool) -> int:
        text, after = self._text, self._at + 1
        while after < len(text) and text[after] in _ENDS + _CLOSERS:
            after += 1
        if after == len(text):
            return after if final else _WAIT
        if text[after].isspace():
            return self._unless_abbreviation(after, final) if text[self._at] == "." else after
        if text[self._at] in _WIDE_ENDS:
            return after
        # "했습니다.그래서": models forget the space, but only after a verb is it surely a sentence.
        glued = self._at > 0 and text[self._at - 1] in _KOREAN_ENDINGS and "가" <= text[after] <= "힣"
        return after if glued else 0

    def _unless_abbreviation(self, after: int, final: bool) -> int:
        found = _WORD_BEFORE.search(self._text, self._start, self._at)
        word = found.group() if found else ""
        if _ABBREVIATION.fullmatch(word):
            return 0
        numbered = word.lower() == "no"
        if not numbered and not word[-1:].isdecimal():
            return after
        if self._text[self._start : self._at].isdecimal():  # "1. 예약": the number of a list
            return 0
        if after + 1 == len(self._text):
            return after if final else _WAIT
        return 0 if self._text[after + 1].isdecimal() else after  # "No. 5", "2026. 11. 21"

    def _comma_end(self, final: bool) -> int:
        text, after = self._text, self._at + 1
        if self._first_comma is None or self._at - self._start < self._first_comma or text[self._at - 1].isdecimal():
            return 0
        if after == len(text):
            return 0 if final else _WAIT
        return after if text[after].isspace() else 0

    def _cut(self) -> int:
        """An end for a piece too long: after a comma in its later half, else before a word, else here."""
        piece = self._text[self._start : self._at]
        comma = max(piece.rfind(mark + " ") for mark in _COMMAS)
        if comma >= self._max_chars // 2:
            return self._start + comma + 1
        spaces = [index for index, char in enumerate(piece) if char.isspace()]
        return self._start + spaces[-1] if spaces else self._at


_LINK = re.compile(r"!?\[([^\]\n]*)\]\([^)\s]*\)")
_URL = re.compile(r"(?:https?://|www\.)[^\s<>가-힣]+", re.IGNORECASE)
_URL_TAIL = re.compile(r"[.,!?;:)\]'\"…]*$")
_LINE_MARK = re.compile(r"^[ \t]*(?:[-•·>+]|={3,}|-{3,})[ \t]+", re.MULTILINE)
_MARKS = re.compile(r"[*#`]|~~|(?<!\w)_+|_+(?!\w)")
_EMOJI = re.compile(
    r"[\U0001f000-\U0001faff\U000e0020-\U000e007f\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\ufe0f\u200d\u20e3]"
)


def speakable(text: str) -> str:
    """What of a piece is to be said: without Markdown, emoji and bare addresses; empty if nothing is left."""
    text = _LINK.sub(r"\1", text)
    text = _URL.sub(lambda url: (_URL_TAIL.search(url.group()) or url).group(), text)
    text = _MARKS.sub("", _LINE_MARK.sub("", _EMOJI.sub("", text))).replace("|", " ")
    text = re.sub(r"\s+(?=[.,!?…](?:\s|$))", "", " ".join(text.split()))
    return text if any(char.isalnum() for char in text) else ""
