"""Where the time of a 20 ms frame goes: each piece of the path by itself, in one process, without a socket.

Minima of several rounds, with many calls in turn so that no call's data stays in the cache of its own accord. What the
pieces do not explain of the whole is the socket, the loop and the kernel, and caches that are colder than here.
"""

import asyncio
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass

from app.audio import g711
from app.audio.endpoint import Endpointer, EndpointOptions
from app.audio.types import AudioFrame
from app.audio.vad import SileroModel, load_silero
from app.log import configure_logging
from app.services.ai_call.listening import Listener
from app.services.ai_call.succession import Candidate, Succession
from app.telephony.media_stream import MediaStream
from app.telephony.twilio_line import LineOptions, TwilioLine
from bench.run import OURS, measure
from bench.stubs import InstantStt
from bench.task import FRAME_BYTES, FRAME_MS, SENTENCE_MULAW

CALLS = 50
ROUNDS = 15
FRAMES = 40
WHOLE_SECONDS = 8.0

_STREAM = "MZ" + "0" * 32
_MULAW = SENTENCE_MULAW[:FRAME_BYTES]


@dataclass(frozen=True, slots=True)
class Piece:
    """`us` for one run of it; `share` runs for each inbound frame."""

    name: str
    us: float
    share: float = 1.0

    @property
    def us_per_frame(self) -> float:
        return self.us * self.share


def report() -> str:
    """Measures the whole at 50 calls, then the pieces. Half a minute."""
    configure_logging("WARNING", console=True)
    whole = measure(OURS, CALLS, WHOLE_SECONDS)
    inbound, outbound = _inbound(), asyncio.run(_outbound(whole.bot_share))
    total = whole.cpu_us_per_frame
    parts = [*inbound, *outbound]
    rest = total - sum(part.us_per_frame for part in parts)
    lines = [f"{'piece':<44}{'µs each':>9}{'µs/frame':>10}{'of the whole':>14}"]
    for part in [*parts, Piece("socket, loop, kernel, turns (by difference)", rest)]:
        lines.append(f"{part.name:<44}{part.us:>9.2f}{part.us_per_frame:>10.2f}{part.us_per_frame / total:>13.1%}")
    lines.append(f"{f'the whole, at {CALLS} calls':<44}{'':>9}{total:>10.2f}{1:>13.1%}")
    if whole.disturbed:
        lines.append(f"Others took {whole.foreign_share:.0%} of the server's core while the whole was measured.")
    return "\n".join(lines)


def timed(work: Callable[[], object], runs: int) -> float:
    """Microseconds of CPU for one of the `runs` that `work` makes; the least of all rounds."""
    least = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        least = min(least, time.process_time() - began)
    return least / runs * 1e6


def _inbound() -> list[Piece]:
    model = load_silero()
    windows = FRAME_MS / model.frame_ms
    pcm = g711.decode(_MULAW)
    window = (pcm * 2)[: model.detector().frame_bytes]
    return [
        Piece("codec: one media message in", _codec_us()),
        Piece("mu-law to PCM, as an AudioFrame", _over_calls(lambda: AudioFrame(g711.decode(_MULAW), 8_000, 0))),
        Piece("ears: windows of 32 ms, pre-roll, hand-over", _ears_us(pcm)),
        Piece("VAD: one window of Silero", _vad_us(model, window), windows),
        Piece("endpointer: one window", _endpointer_us(model.frame_ms), windows),
    ]


def _over_calls(work: Callable[[], object]) -> float:
    def rounds() -> None:
        for _ in range(FRAMES * CALLS):
            work()

    return timed(rounds, FRAMES * CALLS)


def _codec_us() -> float:
    clock = 0.0
    streams = [_open_stream() for _ in range(CALLS)]
    payload = b64encode(_MULAW).decode()
    number = 1

    def rounds() -> None:
        nonlocal clock, number
        for _ in range(FRAMES):
            clock += 0.02
            number += 1
            for stream in streams:
                stream.receive(
                    f'{{"event":"media","sequenceNumber":"{number}","streamSid":"{_STREAM}","media":{{"track":"inbound",'
                    f'"chunk":"{number}","timestamp":"{number}","payload":"{payload}"}}}}',
                    clock,
                )

    return timed(rounds, FRAMES * CALLS)


def _open_stream() -> MediaStream:
    stream = MediaStream()
    stream.receive('{"event":"connected","protocol":"Call","version":"1.0.0"}', 0.0)
    stream.receive(
        f'{{"event":"start","sequenceNumber":"1","streamSid":"{_STREAM}","start":{{"accountSid":"AC0","streamSid":'
        f'"{_STREAM}","callSid":"CA0","tracks":["inbound"],"mediaFormat":{{"encoding":"audio/x-mulaw",'
        '"sampleRate":8000,"channels":1},"customParameters":{}}}',
        0.0,
    )
    return stream


class _DeafDetector:
    """In Silero's place, at no cost."""

    frame_ms = SileroModel.frame_ms
    frame_bytes = 512

    def probability(self, pcm: bytes) -> float:
        return 0.0

    def reset(self) -> None:
        pass


def _ears_us(pcm: bytes) -> float:
    listeners = [
        Listener(
            Succession([Candidate("instant", InstantStt())], lambda: 0.0),
            _DeafDetector(),
            Endpointer(EndpointOptions()),
            lambda event: None,
            rate=8_000,
            language="ko",
        )
        for _ in range(CALLS)
    ]

    def rounds() -> None:
        for at in range(FRAMES):
            for listener in listeners:
                listener.hear(AudioFrame(pcm, 8_000, at))

    endpointer = _endpointer_us(SileroModel.frame_ms) * FRAME_MS / SileroModel.frame_ms
    return timed(rounds, FRAMES * CALLS) - endpointer


def _vad_us(model: SileroModel, window: bytes) -> float:
    detectors = [model.detector() for _ in range(CALLS)]

    def rounds() -> None:
        for detector in detectors:
            detector.probability(window)

    return timed(rounds, CALLS)


def _endpointer_us(frame_ms: int) -> float:
    endpointer = Endpointer(EndpointOptions())
    return _over_calls(lambda: endpointer.process(0.0, frame_ms))


class _NoSocket:
    async def receive(self) -> None:
        raise NotImplementedError

    async def send_text(self, data: str) -> None:
        pass

    async def close(self, code: int = 1000) -> None:
        pass


async def _outbound(bot_share: float) -> list[Piece]:
    """The line without its socket: PCM in, paced messages out. `bot_share`: how much of the time the bot talks."""
    frame = AudioFrame(g711.decode(SENTENCE_MULAW), 8_000)
    frames = len(SENTENCE_MULAW) // FRAME_BYTES
    least = float("inf")
    for _ in range(ROUNDS):
        line = TwilioLine(_NoSocket(), _open_stream(), LineOptions(lead_ms=10_000))
        began = time.process_time()
        await line.play(1, frame)
        await line._send_due(0.0)
        least = min(least, time.process_time() - began)
    return [Piece("line: one frame queued and sent", least / frames * 1e6, bot_share)]
