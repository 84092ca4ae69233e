"""Audio files, made on the spot with PyAV."""

import io
from typing import Any

import av
import numpy as np

from app.audio.types import SAMPLE_BYTES

KINDS = {
    "wav": ("wav", "pcm_s16le"),
    "wav24": ("wav", "pcm_s24le"),
    "alaw": ("wav", "pcm_alaw"),
    "flac": ("flac", "flac"),
    "mp3": ("mp3", "libmp3lame"),
    "ogg": ("ogg", "libopus"),
    "vorbis": ("ogg", "vorbis"),
    "webm": ("webm", "libopus"),
}
UNFIT_KINDS = {
    **{codec: ("matroska", codec) for codec in ("aac", "ac3", "alac", "mp2")},
    **{codec: ("wav", codec) for codec in ("adpcm_ima_wav", "adpcm_ms")},
}
"""Their containers are understood, and FFmpeg could decode them."""


def encoded(kind: str, pcm: bytes, rate: int = 8000, *, file_rate: int = 0, channels: int = 1) -> bytes:
    """16-bit mono PCM as a file of one of KINDS or UNFIT_KINDS."""
    container, codec = (KINDS | UNFIT_KINDS)[kind]
    if codec == "vorbis":
        channels = 2  # all that FFmpeg's own encoder can
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    file_rate = file_rate or (16_000 if codec in ("libopus", "libmp3lame") else rate)
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=file_rate, layout=layout)
        stream.codec_context.options = {"strict": "experimental"}
        size = stream.codec_context.frame_size or 4096
        resampler = av.AudioResampler(stream.codec_context.format, layout, file_rate, size)
        samples = np.frombuffer(pcm, "<i2")[None]
        for at in range(0, samples.shape[1], rate):
            frame = av.AudioFrame.from_ndarray(samples[:, at : at + rate], "s16", "mono")
            frame.rate = rate
            for piece in resampler.resample(frame):
                file.mux(stream.encode(piece))
        for piece in resampler.resample(None):
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    return out.getvalue()


def silence(seconds: float, rate: int = 8000) -> bytes:
    return bytes(int(seconds * rate) * SAMPLE_BYTES)
