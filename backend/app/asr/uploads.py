"""Audio files from outside: taken in within bounds, told apart by their first bytes, decoded in a process of their own
that may do little. docs/asr-service.md lists the bounds.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from app.asr import upload_decoder
from app.asr.duplex import Body
from app.asr.schemas import Refused, busy
from app.audio.types import SAMPLE_BYTES

log = structlog.get_logger(__name__)

RATE = 16_000
"""Of decoded files: what Whisper hears at."""
FORM_FIELDS = 20
FORM_FILE = "file"
KINDS = "WAV, FLAC, MP3, OGG and WebM are understood"

_DECODER = Path(upload_decoder.__file__)
_PIECE = 64 * 1024
DEATH_S = 2.0
"""A decoder that was killed is gone in milliseconds; who has escaped and holds its pipe is not waited for."""
OUT_OF_CPU_TIME = getattr(signal, "SIGXCPU", 0)  # Windows has none


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """`running` uploads are decoded and recognised at a time, `waiting` more are let in. `slow_bytes_s` on average
    over `slow_s`, and over after `upload_s`. `decode_s` is for the file's decoder, `work_s` for all that happens after
    the upload."""

    body_bytes: int = 25 * 1024 * 1024
    slow_bytes_s: int = 10_000
    slow_s: float = 10.0
    upload_s: float = 120.0
    audio_s: int = 600
    decode_s: float = 30.0
    work_s: float = 600.0
    running: int = 2
    waiting: int = 4


class Uploads:
    """Who may come in, and whose turn it is."""

    def __init__(self, limits: UploadLimits) -> None:
        self.limits = limits
        self._turns = asyncio.Semaphore(limits.running)
        self._inside = 0

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[asyncio.Semaphore]:
        """Yields what to hold while working. Raises Refused (503) when there are too many."""
        if self._inside >= self.limits.running + self.limits.waiting:
            raise busy("too many uploads at once; try again in a moment")
        self._inside += 1
        try:
            yield self._turns
        finally:
            self._inside -= 1


async def read_upload(body: Body, limits: UploadLimits) -> bytes:
    """The whole body. Raises Refused: 413 as soon as it is too large, 408 when it is too slow; ClientLeft."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    over_at = loop.time() + limits.upload_s
    before, until = 0, loop.time() + limits.slow_s
    while True:
        try:
            async with asyncio.timeout_at(min(until, over_at)):
                piece = await body.read()
        except TimeoutError:
            piece = b""
        if piece is None:
            return bytes(data)
        data += piece
        if len(data) > limits.body_bytes:
            raise Refused(413, "too_large", f"an upload has {limits.body_bytes // 1024 // 1024} MiB at most")
        if loop.time() >= over_at:
            raise Refused(408, "too_slow", f"an upload lasts {limits.upload_s:g} s at most")
        if loop.time() >= until:
            if len(data) - before < limits.slow_bytes_s * limits.slow_s:
                raise Refused(408, "too_slow", f"an upload must bring {limits.slow_bytes_s} bytes a second")
            before, until = len(data), loop.time() + limits.slow_s


async def file_of(content_type: str, data: bytes) -> bytes:
    """The file within a form, or the body itself. Raises Refused (400)."""
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        return data
    if not data:
        raise _no_form("it is empty")
    parser = _FormParser(
        Headers({"content-type": content_type}),
        _pieces(data),
        max_files=1,
        max_fields=FORM_FIELDS,
        max_part_size=_PIECE,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise _no_form(error.message) from error
    file = form.get(FORM_FILE)
    if not isinstance(file, UploadFile):
        await form.close()
        raise _no_form(f"it has no file in a field named {FORM_FILE!r}")
    try:
        return await file.read()
    finally:
        await form.close()


class _FormParser(MultiPartParser):
    spool_max_size = 1 << 30  # the body is in memory already: no part of it goes to a disk


async def _pieces(data: bytes) -> AsyncGenerator[bytes, None]:
    for at in range(0, len(data), _PIECE):
        yield data[at : at + _PIECE]
        await asyncio.sleep(0)


def demuxer_for(data: bytes) -> str | None:
    """By the first bytes alone: neither a name nor a type that was declared says what a file is."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "wav"
    if data[:4] == b"fLaC":
        return "flac"
    if data[:4] == b"OggS":
        return "ogg"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if data[:3] == b"ID3" or _is_mpeg_audio(data[:3]):
        return "mp3"
    return None


def _is_mpeg_audio(head: bytes) -> bool:
    """A frame's header: eleven bits of sync, then a version, a layer, a bit rate and a rate that exist. (ISO 11172-3,
    2.4.1.3)"""
    if len(head) < 3 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    return version != 1 and layer != 0 and head[2] >> 4 not in (0, 15) and head[2] >> 2 & 3 != 3


async def decode_file(data: bytes, limits: UploadLimits) -> bytes:
    """16-bit mono PCM of RATE. Cancelling it ends the decoder. Raises Refused (415, 422)."""
    if not data:
        return b""
    demuxer = demuxer_for(data)
    if demuxer is None:
        raise Refused(415, "unsupported_file", f"this is no audio file that is known here; {KINDS}")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        str(_DECODER),
        demuxer,
        str(RATE),
        str(limits.audio_s),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={},  # it needs none of our secrets
        limit=1 << 20,
        start_new_session=True,  # a group of its own: what it may have started is killed with it
    )
    try:
        async with asyncio.timeout(limits.decode_s):
            pcm = await _exchange(process, data, limits.audio_s * RATE * SAMPLE_BYTES)
            code = await process.wait()
    except TimeoutError as error:
        raise _decode_timeout() from error
    finally:
        await _end(process)
    if code == 0:
        return pcm
    if code == upload_decoder.TOO_LONG:
        raise Refused(422, "audio_too_long", f"a file has {limits.audio_s} s of audio at most")
    if code == upload_decoder.BAD_FORMAT:
        raise Refused(422, "audio_format", "a file has one or two channels of 48 kHz at most")
    if code == -OUT_OF_CPU_TIME:
        raise _decode_timeout()
    log.info("x upload not decoded", demuxer=demuxer, bytes=len(data), exit_code=code)
    raise _undecodable()


async def _exchange(process: asyncio.subprocess.Process, data: bytes, most: int) -> bytes:
    """The decoder reads all before it writes anything. It may die while it does either."""
    assert process.stdin is not None  # both asked for above
    assert process.stdout is not None
    with suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(data)
        await process.stdin.drain()
        process.stdin.close()
        await process.stdin.wait_closed()
    pcm = bytearray()
    while piece := await process.stdout.read(1 << 20):
        pcm += piece
        if len(pcm) > most + RATE * SAMPLE_BYTES:  # it keeps to its bound, unless somebody else runs in it
            raise _undecodable()
    return bytes(pcm)


async def _end(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        elif process.returncode is None:  # Windows
            process.kill()
    try:
        async with asyncio.timeout(DEATH_S):
            while await process.stdout.read(1 << 20):
                pass  # asyncio waits for a pipe that nobody reads as if the process were still there
            await process.wait()
    except TimeoutError:
        log.error("x decoder not ended", pid=process.pid)
        process._transport.close()  # type: ignore[attr-defined]  # nothing public lets go of a pipe that others hold


def _decode_timeout() -> Refused:
    return Refused(422, "decode_timeout", "the file takes too long to decode")


def _undecodable() -> Refused:
    return Refused(422, "undecodable", "the file is broken, or its coding is not understood")


def _no_form(why: str) -> Refused:
    return Refused(400, "broken_form", f"this form cannot be read: {why}; send one file in the field {FORM_FILE!r}")
