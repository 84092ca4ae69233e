"""The sample calls as a recogniser gets them: 16-bit PCM at 8 kHz, with the text that was spoken."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from app.audio import g711

CALLS = Path(__file__).parent.parent / "data" / "calls"
RATE = 8000


@dataclass(frozen=True, slots=True)
class SampleCall:
    """`text` is empty where nobody speaks."""

    name: str
    language: str
    text: str
    pcm: bytes


@functools.cache
def sample_calls() -> list[SampleCall]:
    samples = json.loads((CALLS / "samples.json").read_text(encoding="utf-8"))
    return [
        SampleCall(one["file"], one["lang"], one["text"], g711.decode((CALLS / one["file"]).read_bytes()))
        for one in samples
    ]


def spoken(text: str) -> SampleCall:
    return next(call for call in sample_calls() if call.text == text)


def nobody() -> list[SampleCall]:
    return [call for call in sample_calls() if not call.text]
