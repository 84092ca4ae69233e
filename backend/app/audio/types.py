"""The two values that everything on the audio path shares."""

from dataclasses import dataclass

SAMPLE_BYTES = 2
"""16-bit linear PCM, little endian, one channel: the only audio format inside Malgil."""


@dataclass(frozen=True, slots=True)
class AudioFrame:
    """A stretch of 16-bit mono PCM.

    `rate` is samples a second. `at_ms` is media time: milliseconds of audio since the stream began, never
    the wall clock.
    """

    pcm: bytes
    rate: int
    at_ms: int = 0

    @property
    def duration_ms(self) -> float:
        return len(self.pcm) * 1000 / (SAMPLE_BYTES * self.rate)


@dataclass(frozen=True, slots=True)
class Transcript:
    """What a recogniser heard.

    A partial (`final=False`) replaces the one before it; a final closes the utterance. Times are media
    milliseconds. `confidence` is 0..1 where the recogniser gives one.
    """

    text: str
    final: bool
    start_ms: int = 0
    end_ms: int = 0
    confidence: float | None = None
