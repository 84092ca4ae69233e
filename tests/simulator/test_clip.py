"""Where an utterance's speech begins and ends."""

import json
from pathlib import Path

import pytest

from app.simulator.clip import Clip
from tests.simulator.far_side import silence, tone

CALLS = Path(__file__).parent.parent / "data" / "calls"


def test_silence_around_the_speech_is_cut_off() -> None:
    clip = Clip.of(silence(300) + tone(200) + silence(500), "x")

    assert (clip.end - clip.onset) / 8 == pytest.approx(200, abs=10)
    assert len(clip.mulaw) / 8 == pytest.approx(260, abs=10)
    assert clip.text == "x"


def test_silence_within_the_speech_stays() -> None:
    clip = Clip.of(tone(100) + silence(400) + tone(100))

    assert (clip.end - clip.onset) / 8 == pytest.approx(600, abs=10)


@pytest.mark.parametrize("mulaw", [b"", silence(100), bytes([0x7E, 0xFE]) * 400, silence(100) + tone(10)])
def test_a_clip_needs_speech(mulaw: bytes) -> None:
    with pytest.raises(ValueError, match="no speech"):
        Clip.of(mulaw)


def test_speech_in_the_sample_calls_is_found_where_it_is() -> None:
    samples = [row for row in json.loads((CALLS / "samples.json").read_text(encoding="utf-8")) if row["text"]]
    errors = []
    for sample in samples:
        clip = Clip.of((CALLS / sample["file"]).read_bytes())
        begin, end = sample["speech_ms"]
        errors.append(abs((clip.end - clip.onset) / 8 - (end - begin)))

    # The texts' edges are soft, the lines are noisy, and in one the noise is as loud as the speech.
    assert sorted(errors)[len(errors) // 2] <= 60
    assert sorted(errors)[len(errors) * 9 // 10] <= 150
