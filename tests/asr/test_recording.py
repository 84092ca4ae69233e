"""Whole recordings: cut into utterances, decoded behind those who speak right now."""

import asyncio
import struct
import threading
from collections import Counter
from collections.abc import Sequence

import pytest

from app.asr import recording
from app.asr.engine import DecodeEngine, EngineOptions, Kind
from app.asr.recogniser import Decoded, Request
from app.asr.recording import MAX_UTTERANCE_MS, Utterances, transcribe
from app.asr.schemas import Segment
from app.asr.speech import SpeechFinder
from app.audio.endpoint import Endpointer, EndpointOptions
from app.errors import SttError
from tests.servers import until

RATE = 8000
LOUD, QUIET = b"\1\0", b"\0\0"


class Loudness:
    """Hears speech in all that is not zero."""

    frame_ms, frame_bytes = 32, 512

    def probability(self, pcm: bytes) -> float:
        return float(any(pcm))

    def reset(self) -> None: ...


class Decoder:
    """Says how much it heard; works when it is let."""

    workers = max_batch = 1

    def __init__(self) -> None:
        self.heard: list[Request] = []
        self.gate = threading.Event()
        self.gate.set()

    def batch_key(self, request: Request) -> None:
        return None

    def decode(self, requests: Sequence[Request], *, beam: int) -> list[Decoded]:
        assert self.gate.wait(10)
        self.heard += requests
        return [
            Decoded("" if one.pcm.count(LOUD) < 3000 else "말", "ko" if one.rate == RATE else "en") for one in requests
        ]


def finder() -> SpeechFinder:
    return SpeechFinder(Loudness(), Endpointer(EndpointOptions(max_utterance_ms=MAX_UTTERANCE_MS)), RATE)


def sound(*parts: tuple[bytes, float]) -> bytes:
    return b"".join(sample * int(RATE * seconds) for sample, seconds in parts)


async def test_utterances_that_go_over_the_edge_of_a_slice_are_whole() -> None:
    decoder = Decoder()
    engine = DecodeEngine(decoder)
    engine.start()
    pcm = sound((QUIET, 9), (LOUD, 2), (QUIET, 12), (LOUD, 1), (QUIET, 1), (LOUD, 0.3), (QUIET, 1))
    segments, language = await transcribe(engine, finder(), pcm, RATE, "auto")
    await engine.aclose()
    assert segments == [Segment("말", 8992, 11_008), Segment("말", 22_976, 24_000)]
    assert language == "ko"
    assert [one.pcm.count(LOUD) for one in decoder.heard] == [16_000, 8000, 2400]
    assert [one.speech_ms for one in decoder.heard] == [2016, 1024, 320]


async def test_a_recording_of_nobody_asks_nothing_of_the_engine() -> None:
    decoder = Decoder()
    engine = DecodeEngine(decoder)
    engine.start()
    assert await transcribe(engine, finder(), sound((QUIET, 25)), RATE, "ko") == ([], "ko")
    assert await transcribe(engine, finder(), b"", RATE, "auto") == ([], "auto")
    await engine.aclose()
    assert not decoder.heard


def test_who_never_pauses_is_bounded() -> None:
    found = Utterances(finder()).push(sound((QUIET, 1), (LOUD, 200), (QUIET, 1)), True)
    assert [one.speech_ms > 9000 for one in found] == [True, True]
    assert sum(one.pcm.count(LOUD) for one in found) == 200 * RATE


def numbers(count: int) -> bytes:
    """Half a second each, of its own loudness."""
    return b"".join(struct.pack("<hh", 2000 + number, -2000 - number) * (RATE // 4) for number in range(count))


async def test_a_long_utterance_is_heard_in_pieces_and_told_as_one() -> None:
    """A minute without a pause long enough to end it: every word once and in order, and no decode over a window."""

    class Numbers(Decoder):
        def decode(self, requests: Sequence[Request], *, beam: int) -> list[Decoded]:
            self.heard += requests
            return [Decoded(self.words(one.pcm), "ko") for one in requests]

        def words(self, pcm: bytes) -> str:
            heard = Counter(abs(sample) - 2000 for (sample,) in struct.iter_unpack("<h", pcm))
            return " ".join(f"w{number}" for number, count in heard.items() if number >= 0 and count >= RATE // 12)

    decoder = Numbers()
    engine = DecodeEngine(decoder)
    engine.start()
    pcm = sound((QUIET, 1)) + numbers(80) + sound((QUIET, 0.2)) + numbers(120)[80 * RATE :] + sound((QUIET, 1))
    [segment], _ = await transcribe(engine, finder(), pcm, RATE, "ko")
    await engine.aclose()
    assert segment.text.split() == [f"w{number}" for number in range(120)]
    assert segment.end_ms - segment.start_ms > 60_000
    assert [one.seconds <= 15 for one in decoder.heard] == [True] * len(decoder.heard)
    assert 5 <= len(decoder.heard) <= 9
    assert {one.speech_ms for one in decoder.heard} == {None}


async def test_who_speaks_right_now_goes_first() -> None:
    decoder = Decoder()
    decoder.gate.clear()
    engine = DecodeEngine(decoder)
    engine.start()
    live = Request(LOUD * 5000, RATE, "ko")
    first = engine.submit(live, Kind.FINAL)
    async with asyncio.TaskGroup() as group:
        group.create_task(transcribe(engine, finder(), sound((LOUD, 1), (QUIET, 1)), RATE, "ko"))
        await until(lambda: engine.queue_depth == 1)
        second = engine.submit(live, Kind.FINAL)
        decoder.gate.set()
    await asyncio.wait([first.future, second.future])
    await engine.aclose()
    assert [one.pcm == live.pcm for one in decoder.heard] == [True, True, False]


@pytest.mark.parametrize("room", [True, False])
async def test_a_full_queue_is_waited_for_but_not_for_ever(room: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "BUSY_S", 10.0 if room else 0.3)
    decoder = Decoder()
    decoder.gate.clear()
    engine = DecodeEngine(decoder, EngineOptions(max_queued=1))
    engine.start()
    blocking = [engine.submit(Request(LOUD * 5000, RATE, "ko"), Kind.FINAL)]
    await until(lambda: engine.queue_depth == 0)
    blocking.append(engine.submit(Request(LOUD * 5000, RATE, "ko"), Kind.FINAL))
    if room:
        asyncio.get_running_loop().call_later(0.2, decoder.gate.set)
        segments, _ = await transcribe(engine, finder(), sound((LOUD, 1), (QUIET, 1)), RATE, "ko")
        assert len(segments) == 1
    else:
        with pytest.raises(SttError) as failed:
            await transcribe(engine, finder(), sound((LOUD, 1), (QUIET, 1)), RATE, "ko")
        assert failed.value.kind == "busy"
        decoder.gate.set()
    await asyncio.wait([job.future for job in blocking])
    await engine.aclose()
