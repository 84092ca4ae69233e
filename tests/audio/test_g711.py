import hashlib

import numpy as np
import pytest

from app.audio import g711

ALL_CODES = bytes(range(256))
ALL_SAMPLES = np.arange(-32768, 32768).astype("<i2").tobytes()


def test_every_code_decodes_as_the_standard_says() -> None:
    digest = hashlib.sha256(g711.decode(ALL_CODES)).hexdigest()
    assert digest == "3dab54339e520bb2c924826e3b72a917a2b612e9fd12fc867500f1d983a75827"


def test_every_sample_encodes_as_audioop_did() -> None:
    digest = hashlib.sha256(g711.encode(ALL_SAMPLES)).hexdigest()
    assert digest == "81d633c9e6972a18c74a58720b96cb8ca0bdd096d4060b646dd708c3b846019a"


@pytest.mark.parametrize(
    ("code", "sample"),
    [(0xFF, 0), (0x7F, 0), (0x00, -32124), (0x80, 32124), (0xFE, 8), (0x7E, -8)],
)
def test_landmarks(code: int, sample: int) -> None:
    assert int.from_bytes(g711.decode(bytes([code])), "little", signed=True) == sample


def test_a_round_trip_changes_only_the_negative_zero() -> None:
    changed = {
        before: after
        for before, after in zip(ALL_CODES, g711.encode(g711.decode(ALL_CODES)), strict=True)
        if before != after
    }
    assert changed == {0x7F: 0xFF}


def test_silence_is_zero() -> None:
    assert g711.decode(bytes([g711.SILENCE]) * 3) == bytes(6)
    assert g711.encode(bytes(6)) == bytes([g711.SILENCE]) * 3


def test_nothing_in_nothing_out() -> None:
    assert g711.decode(b"") == b""
    assert g711.encode(b"") == b""


def test_half_a_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        g711.encode(b"\x00\x00\x00")


def test_the_shared_tables_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        g711.decode_table()[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        g711.encode_table()[0] = 1
