"""The caller's voice: text through espeak, or a recording, as a clip."""

import wave
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import soxr

from app.audio import g711
from app.errors import MalgilError
from app.services.ai_call.espeak_tts import EspeakTts, EspeakVoice
from app.simulator.clip import RATE, Clip


class UnusableAudio(MalgilError):
    """A recording or a text that the caller cannot say."""

    code = "audio"


CALLER_VOICES: Mapping[str, EspeakVoice] = MappingProxyType(
    {"ko": EspeakVoice("ko+f3", speed=160, pitch=50), "en": EspeakVoice("en-us+f3", speed=150, pitch=50)}
)
"""With these the demo model recognises each of its phrases."""


async def speak(texts: list[str], language: str) -> list[Clip]:
    """Each text as a clip. `language` is for a text that does not show its own. Raises TtsError, UnusableAudio."""
    voice = EspeakTts(language, CALLER_VOICES)
    try:
        return [await _spoken(voice, text) for text in texts]
    finally:
        await voice.aclose()


async def _spoken(voice: EspeakTts, text: str) -> Clip:
    pcm = b"".join([frame.pcm async for frame in voice.speak(text, RATE)])
    return _clip(g711.encode(pcm), text, repr(text))


def read_wav(path: Path) -> Clip:
    """Any PCM wav: its channels are mixed and its rate is changed. Raises UnusableAudio."""
    try:
        with path.open("rb") as recording, wave.open(recording) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            raw = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise UnusableAudio(f"{path}: {error or 'the file is cut off'}; a PCM wav file is needed") from error
    samples = _samples(raw[: len(raw) // (width * channels) * width * channels], width)
    mono = samples.reshape(-1, channels).mean(axis=1)
    if rate != RATE:
        mono = soxr.resample(mono, rate, RATE)
    pcm = (np.clip(mono, -1, 1) * 32767).astype("<i2").tobytes()
    return _clip(g711.encode(pcm), path.name, str(path))


def _samples(raw: bytes, width: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Samples of 1 (unsigned, as wav has it), 2, 3 or 4 bytes as numbers from -1 to 1."""
    if width == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.float64) - 128) / 128
    padded = np.zeros((len(raw) // width, 4), np.uint8)
    padded[:, 4 - width :] = np.frombuffer(raw, np.uint8).reshape(-1, width)
    return padded.view("<i4").ravel().astype(np.float64) / 2**31


def _clip(mulaw: bytes, text: str, name: str) -> Clip:
    try:
        return Clip.of(mulaw, text)
    except ValueError as error:
        raise UnusableAudio(f"{name}: {error}") from error
