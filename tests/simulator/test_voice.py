"""The caller's voice: espeak, and wav files of every kind."""

import wave
from pathlib import Path

import numpy as np
import pytest

from app.audio import g711
from app.simulator.voice import UnusableAudio, read_wav, speak


def write_wav(path: Path, rate: int, width: int, channels: int) -> None:
    """Half a second of a loud tone between two quarters of silence, the same on all channels."""
    wave_form = 0.5 * np.sin(2 * np.pi * 300 * np.arange(rate // 2) / rate)
    samples = np.concatenate([np.zeros(rate // 4), wave_form, np.zeros(rate // 4)])
    whole = (samples * (2**31 - 1)).astype("<i4")
    data = whole.repeat(channels).view(np.uint8).reshape(-1, 4)[:, 4 - width :].copy()
    if width == 1:
        data ^= 0x80
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data.tobytes())


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_pcm_wav_becomes_telephone_speech(tmp_path: Path, rate: int, width: int, channels: int) -> None:
    write_wav(tmp_path / "a.wav", rate, width, channels)
    clip = read_wav(tmp_path / "a.wav")

    assert clip.text == "a.wav"
    assert (clip.end - clip.onset) / 8 == pytest.approx(500, abs=25)
    pcm = np.frombuffer(g711.decode(clip.mulaw), "<i2")
    assert np.abs(pcm).max() == pytest.approx(16384, rel=0.05)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no wav at all", b"ID3\x04\x00"])
def test_a_file_that_is_no_wav_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.wav"
    path.write_bytes(content)

    with pytest.raises(UnusableAudio, match=r"broken\.wav"):
        read_wav(path)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnusableAudio, match=r"missing\.wav"):
        read_wav(tmp_path / "missing.wav")


def test_a_silent_wav_is_refused(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "silent.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))

    with pytest.raises(UnusableAudio, match="no speech"):
        read_wav(tmp_path / "silent.wav")


async def test_texts_are_spoken_in_order() -> None:
    short, long = await speak(["네.", "What are your opening hours?"], "ko")

    assert (short.text, long.text) == ("네.", "What are your opening hours?")
    assert 100 < (short.end - short.onset) / 8 < 700
    assert (long.end - long.onset) / 8 > 900


async def test_a_text_without_words_is_refused() -> None:
    with pytest.raises(UnusableAudio, match="no speech"):
        await speak(["..."], "ko")
