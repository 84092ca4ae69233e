"""A recogniser is given a sentence that everybody understands, before callers depend on it.

The sentence is a clip that ships with the package (`prompts/*_preflight.ulaw`). It passes when the words come back,
spelled however the recogniser likes.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.resources import files

from app.audio import g711
from app.audio.types import SAMPLE_BYTES, AudioFrame
from app.errors import SttError
from app.services.ai_call.ports import SpeechToText, SttStream

RATE = 8000
FRAME_MS = 20
TEXTS = {"ko": "영업시간이 어떻게 되나요?", "en": "What are your opening hours?"}
ALIKE = 0.5
"""How much of the letters must come back. Audio in a wrong format gives words, too, but not these."""


@dataclass(frozen=True, slots=True)
class PreflightOptions:
    """`silence_s` follows the clip, for recognisers that find the end themselves."""

    open_s: float = 5.0
    answer_s: float = 10.0
    silence_s: float = 3.0


async def preflight(stt: SpeechToText, language: str, options: PreflightOptions | None = None) -> str:
    """The words that were heard. Raises SttError."""
    options = options or PreflightOptions()
    text = TEXTS.get(language, TEXTS["ko"])
    audio = g711.decode((files("app.services.ai_call") / "prompts" / f"{_code(language)}_preflight.ulaw").read_bytes())
    try:
        async with asyncio.timeout(options.open_s + options.answer_s):
            async with stt.open(RATE, language) as stream:
                heard = await _words(stt, stream, audio, options)
    except TimeoutError as error:
        raise _failed(stt, "no words came back for a clear sentence", "timeout") from error
    if SequenceMatcher(None, _letters(text), _letters(heard)).ratio() < ALIKE:
        raise _failed(stt, "what came back is not what was said in a clear sentence", "wrong_words")
    return heard


async def _words(stt: SpeechToText, stream: SttStream, audio: bytes, options: PreflightOptions) -> str:
    heard: list[str] = []
    try:
        async with asyncio.TaskGroup() as group:
            speaking = group.create_task(_speak(stt, stream, audio, options))
            async for transcript in stream:
                if transcript.final:
                    heard.append(transcript.text)
                if transcript.final and (transcript.text or stt.hears == "speech"):
                    break
            speaking.cancel()
    except* SttError as errors:
        raise errors.exceptions[0] from errors
    return " ".join(heard)


async def _speak(stt: SpeechToText, stream: SttStream, audio: bytes, options: PreflightOptions) -> None:
    if stt.hears == "speech":
        for frame in _frames(audio):
            await stream.send(frame)
        speech_ms = len(audio) * 1000 // (SAMPLE_BYTES * RATE)
        await stream.pause(speech_ms)
        await stream.flush(speech_ms)
        return
    silence = bytes(round(options.silence_s * RATE) * SAMPLE_BYTES)
    for frame in _frames(audio + silence):
        await stream.send(frame)
        await asyncio.sleep(FRAME_MS / 1000)  # as from a line: vendors refuse what comes much faster


def _frames(audio: bytes) -> Iterator[AudioFrame]:
    size = RATE * SAMPLE_BYTES * FRAME_MS // 1000
    for number, at in enumerate(range(0, len(audio), size)):
        yield AudioFrame(audio[at : at + size], RATE, number * FRAME_MS)


def _code(language: str) -> str:
    return language if language in TEXTS else "ko"


def _letters(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def _failed(stt: SpeechToText, message: str, kind: str) -> SttError:
    return SttError(f"{stt.name}: {message}", provider=stt.name, kind=kind, retryable=True)
