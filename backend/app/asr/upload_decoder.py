"""A program: one audio file of unknown origin on standard input, its sound as 16-bit mono PCM on standard output.

It is a process of its own because what decodes media formats is C that has had holes. It may use a gigabyte and CPU_S
of processor time, and once its input is read it can open nothing: no file, no socket, whatever a file tells it to. It
still is our user's, and what it has read it can use. `uploads.py` runs it, without our environment, and tells it by
what the file is to be taken for:

    python upload_decoder.py DEMUXER RATE MAX_SECONDS < file > pcm

Exit codes: 0, or one of those below. It knows nothing of ours, so that it starts fast.
"""

import io
import struct
import sys
from typing import Any, BinaryIO

try:
    import resource
except ImportError:  # Windows has none; there the time on the wall is the only bound
    resource = None  # type: ignore[assignment]

NOT_AUDIO = 65
TOO_LONG = 66
BAD_FORMAT = 67

MEMORY_BYTES = 1 << 30
CPU_S = 20  # below what uploads.py allows by the clock
MAX_RATE = 48_000
MAX_CHANNELS = 2
CODECS = (
    "pcm_u8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s32le,pcm_f32le,pcm_f64le,pcm_alaw,pcm_mulaw,"
    "flac,mp3,mp3float,vorbis,opus,libopus"
)

NOTHING = (
    b"RIFF\xff\xff\xff\xffWAVEfmt "
    + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
    + b"data\x40\0\0\0"
    + bytes(64)
)
"""A recording of nothing."""


class Unfit(Exception):
    """Carries an exit code."""


def main(demuxer: str, rate: int, max_s: int) -> int:
    _limit_use()
    import av

    _decode(av, NOTHING, "wav", rate, max_s, io.BytesIO())  # PyAV imports its parts as it goes, so let it go once
    data = sys.stdin.buffer.read()
    _open_nothing_more()
    try:
        return _decode(av, data, demuxer, rate, max_s, sys.stdout.buffer)
    except Unfit as unfit:
        return int(unfit.args[0])
    except (av.FFmpegError, ValueError, MemoryError):
        return NOT_AUDIO


def _limit_use() -> None:
    if resource is None:
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))  # were both the same, it would be SIGKILL at once
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _open_nothing_more() -> None:
    """What is open stays so. A limit of three would let who closes standard input open something else in its place.
    Root starts processes whatever the second limit is."""
    if resource is None:
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _decode(av: Any, data: bytes, demuxer: str, rate: int, max_s: int, out: BinaryIO) -> int:
    """A packet that cannot be decoded is left out: files are cut short. If none can be, there is no audio."""
    options = {"protocol_whitelist": "pipe", "codec_whitelist": CODECS}
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
    left = max_s * rate
    decoded = spoilt = 0
    with av.open(io.BytesIO(data), format=demuxer, container_options=options, metadata_errors="replace") as container:
        if not container.streams.audio:
            raise Unfit(NOT_AUDIO)
        stream = container.streams.audio[0]
        stream.thread_count = 1
        _check(stream.codec_context)
        for frames in _frames(av, container, stream):
            if frames is None:
                spoilt += 1
                continue
            for frame in (one for given in frames for one in resampler.resample(_checked(given))):
                decoded += 1
                left -= _write(frame, out)
                if left < 0:
                    raise Unfit(TOO_LONG)
        if decoded:
            for frame in resampler.resample(None):
                _write(frame, out)
    return NOT_AUDIO if spoilt and not decoded else 0


def _frames(av: Any, container: Any, stream: Any) -> Any:
    """The frames of one packet after the other; None for one that is spoilt."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            yield None  # nothing more can be read
            return
        if packet is None:
            return
        try:
            yield packet.decode()
        except av.FFmpegError:
            yield None


def _checked(frame: Any) -> Any:
    """A stream may change its format on the way."""
    if not 0 < frame.sample_rate <= MAX_RATE or frame.layout.nb_channels > MAX_CHANNELS:
        raise Unfit(BAD_FORMAT)
    frame.pts = None  # times that lie would make the resampler put silence in
    return frame


def _check(codec: Any) -> None:
    if codec.name not in CODECS.split(","):  # `codec_whitelist` binds who probes the file, not who decodes it
        raise Unfit(NOT_AUDIO)
    if not 0 < codec.sample_rate <= MAX_RATE or not 0 < codec.channels <= MAX_CHANNELS:
        raise Unfit(BAD_FORMAT)


def _write(frame: Any, out: BinaryIO) -> int:
    """Samples written."""
    out.write(bytes(frame.planes[0])[: frame.samples * 2])
    return int(frame.samples)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
