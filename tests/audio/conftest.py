"""The sample calls: mu-law of held-out voices and of lines on which nobody speaks."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.audio import g711

CALLS = Path(__file__).parent.parent / "data" / "calls"


@dataclass(frozen=True)
class SampleCall:
    name: str
    pcm: bytes
    speech_ms: tuple[int, int] | None


@pytest.fixture(scope="session")
def sample_calls() -> list[SampleCall]:
    """Each is followed by a second of silence, so that an endpoint has room to come."""
    samples = json.loads((CALLS / "samples.json").read_text(encoding="utf-8"))
    calls = []
    for sample in samples:
        mulaw = (CALLS / sample["file"]).read_bytes() + bytes([g711.SILENCE]) * 8000
        speech = tuple(sample["speech_ms"]) if sample["text"] else None
        calls.append(SampleCall(sample["file"], g711.decode(mulaw), speech))
    return calls


@pytest.fixture(scope="session")
def spoken(sample_calls: list[SampleCall]) -> list[SampleCall]:
    return [call for call in sample_calls if call.speech_ms is not None]


@pytest.fixture(scope="session")
def unspoken(sample_calls: list[SampleCall]) -> list[SampleCall]:
    return [call for call in sample_calls if call.speech_ms is None]
