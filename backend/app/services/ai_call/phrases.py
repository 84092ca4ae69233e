"""The bot's own sentences, as audio that is there before it is needed.

Every phrase has a canned clip that ships with the package (`prompts/`, written by `tools/render_prompts.py`), so
that there is something to say even if no voice ever answers. At the start the phrases are rendered in the chosen
voice and take the canned ones' places; `get` never waits for either.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from importlib.resources import files
from typing import get_args

import structlog

from app.audio import g711
from app.audio.types import SAMPLE_BYTES, AudioFrame
from app.errors import TtsError
from app.services.ai_call.dialogue import LANGUAGES, Dialogue
from app.services.ai_call.ports import TextToSpeech
from app.services.ai_call.types import Phrase

log = structlog.get_logger(__name__)

PHRASES: tuple[Phrase, ...] = get_args(Phrase)
RATE = 8000
FRAME_MS = 100

Texts = Mapping[str, Mapping[Phrase, str]]
"""By language, by phrase."""


@dataclass(frozen=True, slots=True)
class Clip:
    """`text` is what is heard in `frames`, which a canned clip may have from an older dialogue."""

    text: str
    frames: tuple[AudioFrame, ...]


class PhraseBook:
    """`on_fault(component, kind)` counts a phrase that could not be rendered. Bounds are for one phrase."""

    def __init__(
        self,
        *,
        on_fault: Callable[[str, str], None] = lambda component, kind: None,
        render_s: float = 10.0,
        longest_s: float = 30.0,
    ) -> None:
        self._on_fault = on_fault
        self._render_s = render_s
        self._longest_bytes = int(longest_s * RATE) * SAMPLE_BYTES
        self._clips = canned_clips()
        self._rendered_clips: set[tuple[Phrase, str]] = set()

    def get(self, phrase: Phrase, language: str) -> Clip:
        """At once. In a language that the bot has no words for, the first of LANGUAGES stands in."""
        return self._clips.get((phrase, language)) or self._clips[phrase, LANGUAGES[0]]

    @property
    def complete(self) -> bool:
        """No canned clip is left."""
        return self._rendered_clips >= self._clips.keys()

    async def render(self, tts: TextToSpeech, texts: Texts) -> None:
        """Speak in this voice whatever it has not spoken yet; where that fails the clip that is there stays. Never
        raises for the voice's sake. Takes seconds where the voice is far away: run it beside the calls, not before
        them."""
        for phrase in PHRASES:
            for language, words in texts.items():
                if (phrase, language) in self._rendered_clips:
                    continue
                try:
                    self._clips[phrase, language] = await self._rendered(tts, words[phrase])
                    self._rendered_clips.add((phrase, language))
                except TtsError as error:
                    log.warning(
                        "x phrase not rendered, the one before stays",
                        phrase=phrase,
                        language=language,
                        provider=error.provider,
                        kind=error.kind,
                        error=str(error),
                    )
                    self._on_fault("tts", error.kind)
                    if not error.retryable:
                        return
        if self.complete:
            log.info("- phrases rendered", provider=tts.name)

    async def _rendered(self, tts: TextToSpeech, text: str) -> Clip:
        pcm = bytearray()
        try:
            async with asyncio.timeout(self._render_s), aclosing(tts.speak(text, RATE)) as frames:
                async for frame in frames:
                    pcm += frame.pcm
                    if len(pcm) > self._longest_bytes:
                        raise TtsError("a phrase without end", provider=tts.name, kind="format", retryable=False)
        except TimeoutError as error:
            raise TtsError("a phrase took too long", provider=tts.name, kind="timeout", retryable=True) from error
        if not pcm:
            raise TtsError("a phrase without sound", provider=tts.name, kind="silent", retryable=True)
        return _clip(text, bytes(pcm))


def texts_of(dialogue: Dialogue) -> Texts:
    return {
        language: {phrase: getattr(dialogue.words(language), phrase) for phrase in PHRASES} for language in LANGUAGES
    }


def canned_clips() -> dict[tuple[Phrase, str], Clip]:
    folder = files("app.services.ai_call") / "prompts"
    index: dict[str, dict[Phrase, str]] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    return {
        (phrase, language): _clip(text, g711.decode((folder / f"{language}_{phrase}.ulaw").read_bytes()))
        for language, words in index.items()
        for phrase, text in words.items()
    }


def _clip(text: str, pcm: bytes) -> Clip:
    step = RATE * FRAME_MS // 1000 * SAMPLE_BYTES
    return Clip(text, tuple(AudioFrame(pcm[start : start + step], RATE) for start in range(0, len(pcm), step)))
