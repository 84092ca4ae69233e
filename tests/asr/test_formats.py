"""What a streamed body may be, and what becomes of its bytes."""

import struct

import faster_whisper.tokenizer
import numpy as np
import pytest

from app.asr.formats import MAX_HEADER, AudioFormat, ToPcm, WavHeader, format_of_type
from app.asr.schemas import LANGUAGES, Refused
from app.audio import g711

SAMPLES = np.array([0, 1, -1, 1000, -1000, 32767, -32768], "<i2")


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (len(body) % 2)


def fmt(tag: int = 1, channels: int = 1, rate: int = 16_000, bits: int = 16, more: bytes = b"") -> bytes:
    block = channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits) + more)


def wav(*chunks: bytes) -> bytes:
    return b"RIFF\xff\xff\xff\xffWAVE" + b"".join(chunks)


def parsed(data: bytes, step: int = 1 << 20) -> tuple[AudioFormat, int | None, bytes]:
    """The format, the size, and all of the samples that were given."""
    header = WavHeader()
    for at in range(0, len(data), step):
        if found := header.push(data[at : at + step]):
            form, size, first = found
            return form, size, first + data[at + step :]
    raise AssertionError("no samples")


@pytest.mark.parametrize(
    ("content_type", "form"),
    [
        ("audio/L16;rate=16000", AudioFormat("little", 16_000)),
        ("audio/l16; RATE=8000; channels=2", AudioFormat("little", 8000, 2)),
        ('Audio/L16;rate="44100";endianness=big-endian', AudioFormat("big", 44_100)),
        ("audio/L16;rate=48000;endianness=little-endian", AudioFormat("little", 48_000)),
        ("audio/x-mulaw;rate=8000", AudioFormat("mulaw", 8000)),
        ("audio/basic", AudioFormat("mulaw", 8000)),
        ("audio/PCMU", AudioFormat("mulaw", 8000)),
        ("audio/wav", None),
        ("audio/x-wav;codecs=1", None),
    ],
)
def test_types_that_are_understood(content_type: str, form: AudioFormat | None) -> None:
    assert format_of_type(content_type) == form


@pytest.mark.parametrize(
    "content_type",
    [
        *("", "audio/L16", "audio/L16;rate=", "audio/L16;rate=0", "audio/L16;rate=-8000", "audio/L16;rate=8001"),
        *("audio/L16;rate=99999999999999999999", "audio/L16;rate=²", "audio/L16;rate=16000;channels=3"),
        *("audio/L16;rate=16000;channels=0", "audio/mpeg", "application/x-www-form-urlencoded", "audio/L24;rate=8000"),
    ],
)
def test_types_that_are_not_are_refused_with_what_to_send(content_type: str) -> None:
    with pytest.raises(Refused, match=r"audio/L16;rate=16000") as refused:
        format_of_type(content_type)
    assert refused.value.status == 415


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("form", "data", "pcm"),
    [
        (AudioFormat("little", 8000), SAMPLES.tobytes(), SAMPLES),
        (AudioFormat("big", 8000), SAMPLES.astype(">i2").tobytes(), SAMPLES),
        (AudioFormat("mulaw", 8000), bytes(range(256)), np.frombuffer(g711.decode(bytes(range(256))), "<i2")),
        (AudioFormat("little", 8000, 2), np.repeat(SAMPLES, 2).tobytes(), SAMPLES),
        (AudioFormat("little", 8000, 2), np.array([100, 300, -32768, -32768], "<i2").tobytes(), [200, -32768]),
    ],
)
def test_how_a_body_was_cut_cannot_be_seen_in_its_pcm(
    form: AudioFormat, data: bytes, pcm: np.ndarray, step: int
) -> None:
    converter = ToPcm(form)
    got = b"".join(converter.push(data[at : at + step]) for at in range(0, len(data), step))
    assert np.frombuffer(got, "<i2").tolist() == list(pcm)


def test_half_a_sample_at_the_end_is_left_out() -> None:
    assert ToPcm(AudioFormat("little", 8000)).push(b"\1\0\2") == b"\1\0"


# ---------------------------------------------------------------- WAV


@pytest.mark.parametrize("step", [1, 5, 1 << 20])
def test_a_wav_header_is_found_however_it_is_cut(step: int) -> None:
    data = wav(chunk(b"JUNK", b"x" * 27), fmt(), chunk(b"LIST", b"INFO"), chunk(b"data", SAMPLES.tobytes()))
    assert parsed(data, step) == (AudioFormat("little", 16_000), SAMPLES.nbytes, SAMPLES.tobytes())


@pytest.mark.parametrize("size", [0, 0xFFFF_FFFF, 0x7FFF_FFFF])
def test_a_size_that_the_writer_did_not_know_means_to_the_end(size: int) -> None:
    assert parsed(wav(fmt(), chunk(b"data", SAMPLES.tobytes(), size)))[1] is None


def test_what_follows_the_samples_is_no_sound() -> None:
    _, size, rest = parsed(wav(fmt(), chunk(b"data", SAMPLES.tobytes()), chunk(b"LIST", b"loud noise")))
    converter = ToPcm(AudioFormat("little", 16_000), size)
    assert converter.push(rest[:9]) + converter.push(rest[9:]) + converter.push(b"more") == SAMPLES.tobytes()


@pytest.mark.parametrize(
    ("header", "form"),
    [
        (fmt(7, 1, 8000, 8), AudioFormat("mulaw", 8000)),
        (fmt(1, 2, 48_000), AudioFormat("little", 48_000, 2)),
        (fmt(0xFFFE, more=struct.pack("<HHIH", 22, 16, 4, 1) + bytes(14)), AudioFormat("little", 16_000)),
    ],
)
def test_kinds_of_wav(header: bytes, form: AudioFormat) -> None:
    assert parsed(wav(header, chunk(b"data", b"\0\0")))[0] == form


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"RIFX" + bytes(60), 400),
        (b"#EXTM3U\nhttp://127.0.0.1/secret\n", 400),
        (wav(chunk(b"data", b"\0\0")), 400),
        (wav(chunk(b"fmt ", b"short")), 400),
        (wav(chunk(b"JUNK", b"", MAX_HEADER)), 400),
        (wav(chunk(b"JUNK", b"", 0xFFFF_FFFF)), 400),
        (wav(fmt(1, 1, 16_000, 24)), 415),
        (wav(fmt(3, 1, 16_000, 32)), 415),
        (wav(fmt(1, 6)), 415),
        (wav(fmt(1, 0)), 415),
        (wav(fmt(rate=0)), 415),
        (wav(fmt(rate=0x7FFF_FFFF)), 415),
    ],
)
def test_headers_that_are_refused(data: bytes, status: int) -> None:
    with pytest.raises(Refused) as refused:
        WavHeader().push(data)
    assert refused.value.status == status


def test_a_body_that_ends_in_its_header_is_broken_and_an_empty_one_is_not() -> None:
    for data in (b"RI", wav(), wav(fmt())):
        header = WavHeader()
        assert header.push(data) is None
        with pytest.raises(Refused, match="ends within its header"):
            header.end()
    WavHeader().end()


# ---------------------------------------------------------------- languages


def test_languages_are_those_of_whisper() -> None:
    assert set(faster_whisper.tokenizer._LANGUAGE_CODES) == LANGUAGES
