import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.audio.chunker import Chunker


@given(pieces=st.lists(st.binary(max_size=70), max_size=30), size=st.integers(1, 40))
def test_how_the_stream_was_cut_cannot_be_seen(pieces: list[bytes], size: int) -> None:
    chunker = Chunker(size)
    frames = [frame for piece in pieces for frame in chunker.push(piece)]
    rest = chunker.flush(b"\xff")

    stream = b"".join(pieces)
    whole = len(stream) // size
    assert frames == [stream[at * size : (at + 1) * size] for at in range(whole)]
    left = stream[whole * size :]
    assert rest == (left.ljust(size, b"\xff") if left else None)


def test_twilio_frames_become_silero_frames() -> None:
    chunker = Chunker(512)
    counts = [len(chunker.push(bytes(320))) for _ in range(8)]
    assert counts == [0, 1, 0, 1, 1, 0, 1, 1]
    assert chunker.flush(b"\x00") is None


def test_flush_pads_with_a_pattern_and_starts_afresh() -> None:
    chunker = Chunker(8)
    assert chunker.push(b"abc") == []
    assert chunker.flush(b"12") == b"abc12121"
    assert chunker.flush(b"12") is None
    assert chunker.push(b"01234567") == [b"01234567"]


def test_a_frame_has_at_least_one_byte() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Chunker(0)
