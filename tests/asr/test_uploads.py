"""Files from outside: their decoder, and what it cannot be made to do."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from app.asr import upload_decoder, uploads
from app.asr.duplex import Body
from app.asr.schemas import Refused
from app.asr.uploads import RATE, UploadLimits, Uploads, decode_file, demuxer_for, file_of, read_upload
from app.audio.types import SAMPLE_BYTES
from tests.asr.files import KINDS, UNFIT_KINDS, encoded, silence
from tests.servers import until

TONE = (9000 * np.sin(np.arange(8000) * 2 * np.pi * 440 / 8000)).astype("<i2").tobytes()
LIMITS = UploadLimits()


async def refusal(data: bytes, limits: UploadLimits = LIMITS) -> tuple[int, str]:
    with pytest.raises(Refused) as refused:
        await decode_file(data, limits)
    return refused.value.status, refused.value.kind


# ---------------------------------------------------------------- files that are what they are


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_of_file_becomes_pcm(kind: str) -> None:
    pcm = np.frombuffer(await decode_file(encoded(kind, TONE), LIMITS), "<i2")
    assert len(pcm) == pytest.approx(RATE, abs=RATE * 0.06)
    spectrum = np.abs(np.fft.rfft(pcm[:RATE] * np.hanning(min(len(pcm), RATE)), RATE))
    assert int(spectrum.argmax()) == pytest.approx(440, abs=3)
    assert 5000 < np.abs(pcm).max() < 12_000


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 11_025, 48_000])
async def test_any_rate_and_two_channels(rate: int, channels: int) -> None:
    pcm = await decode_file(encoded("flac", TONE, file_rate=rate, channels=channels), LIMITS)
    assert len(pcm) / SAMPLE_BYTES == pytest.approx(RATE, abs=RATE * 0.01)


@pytest.mark.parametrize(("rate", "channels"), [(96_000, 1), (16_000, 6)])
async def test_more_than_a_telephone_ever_needs_is_refused(rate: int, channels: int) -> None:
    assert await refusal(encoded("flac", TONE, file_rate=rate, channels=channels)) == (422, "audio_format")


async def test_no_file_and_a_file_without_sound_are_silence() -> None:
    assert await decode_file(b"", LIMITS) == b""
    assert await decode_file(encoded("wav", b""), LIMITS) == b""


async def test_a_file_that_is_cut_short_gives_what_there_is_of_it() -> None:
    whole = encoded("mp3", TONE * 4)
    half = await decode_file(whole[: len(whole) // 2], LIMITS)
    assert len(half) / SAMPLE_BYTES == pytest.approx(2 * RATE, abs=RATE * 0.2)


async def test_cover_art_is_no_sound_and_no_harm() -> None:
    picture = b"APIC" + (40).to_bytes(4, "big") + bytes(2) + b"\0image/jpeg\0\3\0" + b"\xff\xd8\xff\xe0" + bytes(23)
    tag = b"ID3\3\0\0" + bytes([0, 0, len(picture) >> 7, len(picture) & 127]) + picture
    assert len(await decode_file(tag + encoded("mp3", TONE), LIMITS)) > RATE


# ---------------------------------------------------------------- files that are not


@pytest.mark.parametrize(
    ("head", "demuxer"),
    [
        (b"RIFF\0\0\0\0WAVE", "wav"),
        (b"RIFF\0\0\0\0AVI ", None),
        (b"RIFF", None),
        (b"fLaC", "flac"),
        (b"OggS", "ogg"),
        (b"\x1a\x45\xdf\xa3", "matroska"),
        (b"ID3\4", "mp3"),
        (b"\xff\xfb\x90", "mp3"),
        (b"\xff\xf3\x48", "mp3"),
        (b"\xff\xf1\x50", None),  # AAC
        (b"\xff\xfb\xf0", None),  # no such bit rate
        (b"\xff\xfb\x9c", None),  # no such rate
        (b"\xff\xeb\x90", None),  # no such version
        (b"\xff\xfb", None),
        (b"\0\0\0\x20ftypM4A ", None),
        (b"#EXTM3U", None),
        (b"ffconcat version 1.0", None),
        (b"<?xml", None),
        (b"", None),
    ],
)
def test_a_file_is_what_its_first_bytes_say(head: bytes, demuxer: str | None) -> None:
    assert demuxer_for(head) == demuxer


@pytest.mark.parametrize("head", [b"fLaC", b"OggS\0\2", b"\x1a\x45\xdf\xa3", b"ID3\4\0\0\0\0\0\0", b"\xff\xfb\x90\x00"])
@pytest.mark.parametrize("rest", [b"", b"\0" * 5000, bytes(range(256)) * 40, b"not a bit of it " * 500])
async def test_a_right_beginning_and_nonsense_after_it_is_no_audio(head: bytes, rest: bytes) -> None:
    assert await refusal(head + rest) == (422, "undecodable")


async def test_a_video_without_sound_and_an_odd_coding_are_no_audio() -> None:
    adpcm = bytearray(encoded("wav", TONE))
    adpcm[20:22] = (0x11).to_bytes(2, "little")
    assert await refusal(bytes(adpcm)) == (422, "undecodable")


@pytest.mark.parametrize("kind", UNFIT_KINDS)
async def test_a_codec_that_nobody_asked_for_is_not_run(kind: str) -> None:
    assert await refusal(encoded(kind, TONE * 2, file_rate=48_000)) == (422, "undecodable")


async def test_a_playlist_makes_nobody_open_anything(tmp_path: Path) -> None:
    """As itself, and dressed up as each kind that is understood."""
    asked: list[bytes] = []

    async def asks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(100))
        writer.close()

    secret = tmp_path / "secret.wav"
    secret.write_bytes(encoded("wav", TONE))
    async with await asyncio.start_server(asks, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/secret.wav"
        hls = f"#EXTM3U\n#EXTINF:1,\n{url}\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n".encode()
        concat = f"ffconcat version 1.0\nfile '{secret}'\nfile '{url}'\n".encode()
        for playlist in (hls, concat):
            assert await refusal(playlist) == (415, "unsupported_file")
            for head in (b"ID3\4\0\0\0\0\0\0", b"OggS", b"fLaC", b"\x1a\x45\xdf\xa3"):
                assert await refusal(head + b"\n" + playlist) == (422, "undecodable")
            polyglot = b"RIFF" + len(playlist).to_bytes(4, "little") + b"WAVE" + playlist
            assert await refusal(polyglot) == (422, "undecodable")
        assert asked == []


async def test_a_silent_hour_is_refused_as_soon_as_it_is_too_long() -> None:
    hour = encoded("flac", silence(3600))
    assert len(hour) < 1_000_000
    assert await refusal(hour) == (422, "audio_too_long")
    assert len(await decode_file(encoded("flac", silence(2)), UploadLimits(audio_s=2))) == 2 * RATE * SAMPLE_BYTES
    assert await refusal(encoded("flac", silence(3)), UploadLimits(audio_s=2)) == (422, "audio_too_long")


@pytest.mark.parametrize("size", [0, 0xFFFF_FFFF, 0x7FFF_FFF0])
async def test_the_sizes_in_a_wav_header_are_hints(size: int) -> None:
    file = bytearray(encoded("wav", TONE))
    at = file.index(b"data") + 4
    file[at : at + 4] = size.to_bytes(4, "little")
    file[4:8] = size.to_bytes(4, "little")
    pcm = await decode_file(bytes(file), LIMITS)
    assert len(pcm) <= 2 * RATE * SAMPLE_BYTES


# ---------------------------------------------------------------- the decoder's process


@pytest.fixture
def decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the decoder."""
    program = tmp_path / "decoder.py"
    monkeypatch.setattr(uploads, "_DECODER", program)
    return program


@pytest.fixture
def hanging(decoder: Path) -> Path:
    """Where a decoder that hangs notes which process it is."""
    note = decoder.with_suffix(".pid")
    decoder.write_text(f"import os, time\nopen({str(note)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    return note


def is_gone(note: Path) -> bool:
    try:
        os.kill(int(note.read_text()), 0)
    except ProcessLookupError:
        return True
    return False


async def test_a_decoder_that_hangs_is_ended(hanging: Path) -> None:
    assert await refusal(TONE_FILE, UploadLimits(decode_s=1.0)) == (422, "decode_timeout")
    assert is_gone(hanging)


async def test_an_upload_that_is_given_up_ends_its_decoder(hanging: Path) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await decode_file(TONE_FILE, LIMITS)
    assert is_gone(hanging)


STARTS_ANOTHER = """
import os, sys, time
sys.stdin.buffer.read()
if os.fork() == 0:
    {escapes}
    open({note!r}, "w").write(str(os.getpid()))
    time.sleep(60)
{goes}
"""


@pytest.mark.parametrize("goes", ["os._exit(0)", "time.sleep(60)"])
def test_what_a_decoder_has_started_ends_with_it(decoder: Path, goes: str) -> None:
    note = decoder.with_suffix(".pid")
    decoder.write_text(STARTS_ANOTHER.format(escapes="", note=str(note), goes=goes))
    assert asyncio.run(refusal(TONE_FILE, UploadLimits(decode_s=1.0))) == (422, "decode_timeout")
    asyncio.run(until(lambda: is_gone(note)))


def test_who_escapes_a_decoder_s_end_does_not_hold_its_upload(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def bounded() -> tuple[int, str]:
        async with asyncio.timeout(10):
            return await refusal(TONE_FILE, UploadLimits(decode_s=1.0))

    monkeypatch.setattr(uploads, "DEATH_S", 0.2)
    note = decoder.with_suffix(".pid")
    decoder.write_text(STARTS_ANOTHER.format(escapes="os.setsid()", note=str(note), goes="time.sleep(60)"))
    assert asyncio.run(bounded()) == (422, "decode_timeout")
    os.kill(int(note.read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", "decode_timeout"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "undecodable"),
        ("raise SystemExit(1)", "undecodable"),
        ("import sys; sys.stdin.read(1)\nwhile True: sys.stdout.buffer.write(bytes(1 << 20))", "decode_timeout"),
    ],
)
def test_a_decoder_that_goes_mad_fails_its_file_only(decoder: Path, program: str, kind: str) -> None:
    decoder.write_text(program)
    assert asyncio.run(refusal(encoded("wav", TONE * 60), UploadLimits(decode_s=1.0))) == (422, kind)


def test_a_decoder_that_says_more_than_it_may_is_not_listened_to(decoder: Path) -> None:
    decoder.write_text("import sys\nwhile True: sys.stdout.buffer.write(bytes(1 << 20))")
    assert asyncio.run(refusal(TONE_FILE, UploadLimits(audio_s=2))) == (422, "undecodable")


def test_the_decoder_sees_nothing_of_our_environment(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASR_API_KEY", "secret")
    decoder.write_text("import os, sys; sys.stdout.write(repr(os.environ.get('ASR_API_KEY')))")
    assert asyncio.run(decode_file(TONE_FILE, LIMITS)) == b"None"


PROBE = f"""
import os, resource, runpy, socket, sys
decoder = runpy.run_path({str(Path(upload_decoder.__file__))!r})
tried = []
def probe(av, data, *rest):
    if data is decoder["NOTHING"]:
        return 0
    os.close(0)
    for name, act in {{
        "file": lambda: open("/etc/hostname"),
        "socket": lambda: socket.socket(),
        "process": lambda: __import__("subprocess").run(["true"]),
        "memory": lambda: bytearray(2 << 30),
    }}.items():
        try:
            act()
            tried.append(f"{{name}} works")
        except (OSError, MemoryError) as error:
            tried.append(name)
    return 0
decoder["main"].__globals__["_decode"] = probe
decoder["main"]("wav", 16000, 600)
print(",".join(tried), resource.getrlimit(resource.RLIMIT_NPROC))
"""


def test_once_it_has_its_file_the_decoder_can_open_nothing() -> None:
    done = subprocess.run([sys.executable, "-I", "-c", PROBE], input=b"", capture_output=True, timeout=30)
    assert done.stdout.decode().strip() == "file,socket,process,memory (0, 0)", done.stderr


BUSY = f"""
import runpy
decoder = runpy.run_path({str(Path(upload_decoder.__file__))!r})
decoder["main"].__globals__.update(CPU_S=1, _decode=lambda *given: exec("while True: pass"))
decoder["main"]("wav", 16000, 600)
"""


def test_a_decoder_that_is_out_of_processor_time_can_be_told_from_one_that_broke() -> None:
    done = subprocess.run([sys.executable, "-I", "-c", BUSY], input=b"", capture_output=True, timeout=30)
    assert done.returncode == -signal.SIGXCPU
    assert LIMITS.decode_s > upload_decoder.CPU_S


TONE_FILE = encoded("wav", TONE)


# ---------------------------------------------------------------- taking it in


class Client:
    """What an ASGI server would hand over."""

    def __init__(self, *pieces: bytes, pause_s: float = 0.0) -> None:
        self._pieces = [*pieces]
        self._pause_s = pause_s
        self.asked = 0

    async def __call__(self) -> dict[str, object]:
        self.asked += 1
        await asyncio.sleep(self._pause_s)
        piece = self._pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}


async def test_a_body_is_refused_as_soon_as_it_is_too_large() -> None:
    client = Client(*[bytes(1000)] * 100)
    with pytest.raises(Refused) as refused:
        await read_upload(Body(client), UploadLimits(body_bytes=5000))
    assert (refused.value.status, client.asked) == (413, 6)
    assert await read_upload(Body(Client(bytes(5000))), UploadLimits(body_bytes=5000)) == bytes(5000)


@pytest.mark.parametrize("pause_s", [0.02, 60])
async def test_a_body_that_trickles_or_stalls_is_refused(pause_s: float) -> None:
    with pytest.raises(Refused) as refused:
        await read_upload(Body(Client(*[b"x"] * 1000, pause_s=pause_s)), UploadLimits(slow_s=0.1))
    assert (refused.value.status, refused.value.kind) == (408, "too_slow")


async def test_a_body_that_keeps_the_pace_may_take_its_time() -> None:
    data = await read_upload(Body(Client(*[bytes(1000)] * 20, pause_s=0.02)), UploadLimits(slow_s=0.1))
    assert len(data) == 20_000


async def test_a_body_that_keeps_the_pace_does_not_take_for_ever() -> None:
    limits = UploadLimits(slow_s=0.1, upload_s=0.5)
    with pytest.raises(Refused, match=r"0\.5 s at most") as refused:
        await read_upload(Body(Client(*[bytes(1000)] * 1000, pause_s=0.02)), limits)
    assert (refused.value.status, refused.value.kind) == (408, "too_slow")


async def test_two_work_four_wait_and_the_seventh_is_told_to_come_back() -> None:
    many = Uploads(LIMITS)
    async with many.admitted(), many.admitted(), many.admitted(), many.admitted(), many.admitted():
        async with many.admitted() as turns:
            with pytest.raises(Refused) as refused:
                async with many.admitted():
                    pass
            assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "2"})
            async with turns, turns:
                assert turns.locked()
        async with many.admitted():
            pass


# ---------------------------------------------------------------- forms


async def form(*fields: tuple[str, str | None, bytes]) -> tuple[str, bytes]:
    """(name, file name or None, value) of each."""
    writer = aiohttp.MultipartWriter("form-data")
    for name, filename, value in fields:
        part = writer.append(value)
        more: dict[str, Any] = {"filename": filename} if filename else {}
        part.set_content_disposition("form-data", name=name, **more)
    return writer.content_type, bytes(await writer.as_bytes())


async def test_the_file_of_a_form_and_a_bare_body() -> None:
    fields = (("language", None, b"ko"), ("file", "../../etc/passwd", TONE_FILE))
    assert await file_of(*await form(*fields)) == TONE_FILE
    assert await file_of("audio/wav", TONE_FILE) == TONE_FILE
    assert await file_of("", TONE_FILE) == TONE_FILE


async def test_forms_that_are_none() -> None:
    content_type, body = await form(("file", "a.wav", TONE_FILE))
    boundary = content_type.partition("boundary=")[2].encode()
    broken = [
        (content_type, b""),
        (content_type, b"garbage" * 100),
        (content_type, body[: len(body) // 2]),
        ("multipart/form-data", body),
        ("multipart/form-data; boundary=" + "x" * 5000, body),
        (content_type, b"--" + boundary + b"\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"),
        (content_type, b"--" + boundary + b"\r\n" + b"A: b\r\n" * 1000 + b"\r\n"),
        await form(("sound", "a.wav", TONE_FILE)),
        await form(("file", None, TONE_FILE)),
        await form(("file", "a.wav", TONE_FILE), ("file", "b.wav", TONE_FILE)),
        await form(*[("field", None, b"x")] * 30, ("file", "a.wav", TONE_FILE)),
        await form(("field", None, b"x" * 100_000), ("file", "a.wav", TONE_FILE)),
    ]
    for content_type, body in broken:
        with pytest.raises(Refused) as refused:
            await file_of(content_type, body)
        assert (refused.value.status, refused.value.kind) == (400, "broken_form"), body[:100]
