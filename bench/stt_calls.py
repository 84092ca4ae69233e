"""Part calls: from the end of a caller's speech to the words, for each way to recognise it.

The same recorded calls go in real time, a frame of 20 ms whenever it is over, through the real Listener with Silero
and the real adapter. One way after the other, all calls of it at once. The vendors are emulated over real sockets. They
hear with the demo model, so that the words show whether the audio arrived whole, and answer not before a stated time
after the last speech frame as recorded: an emulator that answers at once would prove nothing.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from app.asr.models import ModelOptions, ModelShelf
from app.audio.endpoint import Endpointer, EndpointOptions
from app.audio.types import SAMPLE_BYTES, AudioFrame
from app.audio.vad import SileroModel, load_silero
from app.services.ai_call.audio_processor import LegacyStt
from app.services.ai_call.google_client import GoogleOptions
from app.services.ai_call.listening import Listener
from app.services.ai_call.local_stt import LocalStt
from app.services.ai_call.ports import SpeechToText
from app.services.ai_call.rtzr_stt_realtime import RtzrStt
from app.services.ai_call.rtzr_stt_service import RtzrOptions, RtzrSttService
from app.services.ai_call.stt_service import GoogleBatch, OpenAiBatch, OpenAiOptions, STTService
from app.services.ai_call.succession import Candidate, Succession
from app.services.ai_call.types import Event, Heard, RecogniserLost
from bench.figures import Spread, percentile
from bench.random_models import random_model
from bench.stt_meter import Meter, Use
from bench.stt_speech import RATE, Recorded, recorded_calls
from bench.stt_table import Report, aligned, number, times
from tests.emulators.google_speech import GoogleSpeechEmulator
from tests.emulators.openai_audio import OpenAiAudioEmulator
from tests.emulators.rtzr import RtzrEmulator, demo_model

FRAME_MS = 20
FRAME_BYTES = RATE * FRAME_MS // 1000 * SAMPLE_BYTES
PHRASES = 3  # a call
BEGIN_WITHIN_S = 2.0
"""Calls begin at random moments of it, so that their phrases do not end together."""
BASE_CALLS = 6
LATE_MS = 10.0
GOOGLE_S, OPENAI_S, RTZR_S = 0.4, 1.5, 0.05
EPD_S = RtzrOptions("", "").epd_s

Words = Callable[[bytes, int], str]


# ---------------------------------------------------------------- what is measured


@dataclass(frozen=True, slots=True)
class Final:
    """`at_ms` since the call began."""

    at_ms: float
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one phrase. `delay_ms`: from its end to the last of its words, None where none came after its end. `cut`:
    final words came before its end."""

    delay_ms: float | None
    right: bool
    cut: bool


def judge(call: Recorded, finals: Sequence[Final]) -> list[Outcome]:
    """What came after a phrase began, and before the next did, is of that phrase. An empty final holds no words."""
    begins = [said.begins_ms for said in call.said]
    outcomes = []
    for said, until_ms in zip(call.said, [*begins[1:], float("inf")], strict=True):
        heard = [final for final in finals if final.text and said.begins_ms <= final.at_ms < until_ms]
        delay_ms = heard[-1].at_ms - said.ends_ms if heard else -1.0
        outcomes.append(
            Outcome(
                delay_ms if delay_ms >= 0 else None,
                same_words(" ".join(final.text for final in heard), said.text),
                any(final.at_ms < said.ends_ms for final in heard),
            )
        )
    return outcomes


def same_words(one: str, other: str) -> bool:
    """But for spaces, punctuation and capitals."""
    return _letters(one) == _letters(other)


def _letters(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


@dataclass(frozen=True, slots=True)
class Row:
    """`right` is None where the model knows no words. `late_p99_ms`: by how much this bench's own frames were late."""

    name: str
    answers: str
    calls: int
    phrases: int
    delay: Spread
    right: int | None
    cut: int
    use: Use
    late_p99_ms: float
    faults: Sequence[str] = ()


# ---------------------------------------------------------------- one way, all calls


class Truth:
    """Which calls are running, and so when the speech in a piece of their audio ended."""

    def __init__(self, calls: Sequence[Recorded]) -> None:
        self._calls = calls
        self._began_at: dict[int, float] = {}

    def began(self, place: int, at: float) -> None:
        """The call at that place, at a moment of the loop's clock."""
        self._began_at[place] = at

    def speech_ended_at(self, pcm: bytes) -> float:
        """A moment of the loop's clock: the end of the last phrase that is over in it; where none is, the end of the
        audio. LookupError for audio of no call."""
        for place, began_at in self._began_at.items():
            if (at := self._calls[place].pcm.find(pcm)) >= 0:
                from_ms, until_ms = (at * 1000 / (SAMPLE_BYTES * RATE) for at in (at, at + len(pcm)))
                over = [said.ends_ms for said in self._calls[place].said if from_ms < said.ends_ms <= until_ms]
                return began_at + max(over, default=until_ms) / 1000
        raise LookupError("a vendor was sent audio that is of no call")


@dataclass(frozen=True, slots=True)
class Way:
    """To recognise speech. `answers`: when the vendor does, in words. What `open` gives is the recogniser, and where
    its emulator notes what we did wrong."""

    name: str
    answers: str
    open: Callable[[Truth], AbstractAsyncContextManager[tuple[SpeechToText, list[str]]]]
    knows_words: bool = True
    most_calls: int | None = None
    """With more at once it is the machine that would be measured."""


@dataclass(slots=True)
class _Run:
    candidate: Candidate
    silero: SileroModel
    truth: Truth
    late_ms: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    async def call(self, place: int, call: Recorded, began_at: float) -> list[Final]:
        """Of the call, when it is over. `began_at`, a moment of the loop's clock, is not past."""
        loop = asyncio.get_running_loop()
        finals = []

        def post(event: Event) -> None:
            match event:
                case Heard(transcript) if transcript.final:
                    finals.append(Final((loop.time() - began_at) * 1000, transcript.text))
                case RecogniserLost(kind):
                    self.faults.append(f"the recogniser was lost: {kind}")

        listener = Listener(
            Succession([self.candidate], loop.time, on_fault=lambda _, kind: self.faults.append(f"it failed: {kind}")),
            self.silero.detector(),
            Endpointer(EndpointOptions()),
            post,
            rate=RATE,
            language=call.language,
            on_drop=lambda ms: self.faults.append(f"{ms:.0f} ms of audio were given up"),
        )
        self.truth.began(place, began_at)
        async with asyncio.TaskGroup() as group:
            ears = group.create_task(listener.run())
            for number_, at in enumerate(range(0, len(call.pcm) - FRAME_BYTES + 1, FRAME_BYTES)):
                due = began_at + (number_ + 1) * FRAME_MS / 1000
                await asyncio.sleep(due - loop.time())
                self.late_ms.append((loop.time() - due) * 1000)
                listener.hear(AudioFrame(call.pcm[at : at + FRAME_BYTES], RATE, number_ * FRAME_MS))
            ears.cancel()
        return finals


async def measure(way: Way, calls: Sequence[Recorded], silero: SileroModel, seed: int) -> Row:
    truth = Truth(calls)
    within_s = BEGIN_WITHIN_S if len(calls) > 1 else 0.0
    begins_s = np.random.default_rng(seed).uniform(0, within_s, len(calls))
    async with way.open(truth) as (stt, violations):
        run, meter = _Run(Candidate(way.name, stt), silero, truth), Meter()
        async with asyncio.TaskGroup() as group:
            now = asyncio.get_running_loop().time()
            heard = [
                group.create_task(run.call(place, call, now + begin_s))
                for place, (call, begin_s) in enumerate(zip(calls, begins_s, strict=True))
            ]
        use = meter.use()
    outcomes = [one for call, task in zip(calls, heard, strict=True) for one in judge(call, task.result())]
    return Row(
        way.name,
        way.answers,
        len(calls),
        len(outcomes),
        Spread.of([one.delay_ms for one in outcomes if one.delay_ms is not None]),
        sum(one.right for one in outcomes) if way.knows_words else None,
        sum(one.cut for one in outcomes),
        use,
        percentile(run.late_ms, 99) or 0.0,
        [*sorted(set(run.faults)), *violations],
    )


# ---------------------------------------------------------------- the ways


def ways(models: Path, calls: int) -> list[Way]:
    """`models` is the folder of random models, `calls` how many there will be at once."""
    half_s = "0.5 s of silence, then "
    return [
        Way("legacy, Google", f"{half_s}{GOOGLE_S:g} s after the speech", functools.partial(_google, False)),
        Way("legacy, Google *", f"{half_s}{GOOGLE_S:g} s after the request", functools.partial(_google, True)),
        Way("legacy, OpenAI", f"{half_s}{OPENAI_S:g} s after the speech", _openai),
        Way("rtzr", f"{EPD_S:g} s epd_time + {RTZR_S:g} s", functools.partial(_rtzr, calls)),
        Way("local, demo model", "in this process", functools.partial(_local, lambda: "demo")),
        Way(
            "local, base size",
            "in this process",
            functools.partial(_local, functools.partial(_base, models)),
            knows_words=False,
            most_calls=BASE_CALLS,
        ),
    ]


@functools.cache
def _vendor() -> Words:
    return demo_model()


@asynccontextmanager
async def _google(from_request: bool, truth: Truth) -> AsyncIterator[tuple[SpeechToText, list[str]]]:
    since = None if from_request else truth.speech_ended_at
    emulator = GoogleSpeechEmulator(recognise=_vendor(), delay_s=GOOGLE_S, speech_ended_at=since)
    async with emulator, _legacy(GoogleBatch(GoogleOptions("", endpoint=emulator.url))) as stt:
        yield stt, emulator.violations


@asynccontextmanager
async def _openai(truth: Truth) -> AsyncIterator[tuple[SpeechToText, list[str]]]:
    emulator = OpenAiAudioEmulator(recognise=_vendor(), delay_s=OPENAI_S, speech_ended_at=truth.speech_ended_at)
    async with emulator, _legacy(OpenAiBatch(OpenAiOptions(emulator.api_key, emulator.url))) as stt:
        yield stt, emulator.violations


@asynccontextmanager
async def _legacy(batch: GoogleBatch | OpenAiBatch) -> AsyncIterator[SpeechToText]:
    """Checked first, as the server does before it serves: the vendor's client is loaded and has connected."""
    stt = LegacyStt(STTService(batch))
    try:
        await stt.check()
        yield stt
    finally:
        await stt.aclose()


@asynccontextmanager
async def _rtzr(calls: int, _: Truth) -> AsyncIterator[tuple[SpeechToText, list[str]]]:
    async with RtzrEmulator(recognise=_vendor(), delay_s=RTZR_S, max_streams=calls) as emulator:
        service = RtzrSttService(RtzrOptions(emulator.client_id, emulator.client_secret, emulator.url))
        try:
            await service.check()
            yield RtzrStt(service), emulator.violations
        finally:
            await service.aclose()


@asynccontextmanager
async def _local(model: Callable[[], str], _: Truth) -> AsyncIterator[tuple[SpeechToText, list[str]]]:
    async with ModelShelf(ModelOptions(await asyncio.to_thread(model), device="cpu"), lambda: 0.0) as shelf:
        yield LocalStt(shelf), []


def _base(models: Path) -> str:
    return str(random_model(models, "base"))


# ---------------------------------------------------------------- the table


def report(models: Path, seed: int, most: int | None = None) -> Report:
    calls = recorded_calls(PHRASES, seed, most)
    silero = load_silero()
    rows = [asyncio.run(measure(way, calls[: way.most_calls], silero, seed)) for way in ways(models, len(calls))]
    return Report(table(rows), remarks(rows, calls), [asdict(row) for row in rows], faults(rows))


def table(rows: Sequence[Row]) -> str:
    """The ratios are to the legacy rows that count from the last speech frame, which flatters the legacy way."""
    empty = Spread.of([])
    bases = [next((row.delay for row in rows if row.name == f"legacy, {name}"), empty) for name in _LEGACY]
    heads = ["", "answers", "p50 ms", "p95 ms"]
    heads += [f"{at} × {name}" for name in _LEGACY for at in ("p50", "p95")]
    lines = [[*heads, "heard", "right", "cut", "calls", "cores", "others", "late p99"]]
    for row in rows:
        ratios = [cell for base in bases for cell in (times(row.delay.p50, base.p50), times(row.delay.p95, base.p95))]
        lines.append(
            [
                ("! " if row.use.disturbed or row.late_p99_ms > LATE_MS else "") + row.name,
                row.answers,
                number(row.delay.p50),
                number(row.delay.p95),
                *ratios,
                f"{row.delay.count}/{row.phrases}",
                "-" if row.right is None else f"{row.right}/{row.phrases}",
                str(row.cut),
                str(row.calls),
                f"{row.use.own:.2f}",
                f"{row.use.others:.2f}",
                f"{row.late_p99_ms:.1f}",
            ]
        )
    return aligned(lines, texts=2)


_LEGACY = ("Google", "OpenAI")


def remarks(rows: Sequence[Row], calls: Sequence[Recorded]) -> list[str]:
    phrases = sum(len(call.said) for call in calls)
    return [
        f"{phrases} phrases in {len(calls)} calls at once; base, with fewer: {BASE_CALLS}, else it is the machine that "
        "is measured; ms from the last sound of a phrase, as recorded, to its final words",
        "after the speech: an emulator answers at its delay after the last speech frame, or at once if that is over; "
        "a batch request leaves half a second after it, so Google's 0.4 s cost nothing here",
        "* counts the same delay from the request, as a vendor that begins when it is asked would",
        "base size: random weights, true cost and no words; nonsense is no whole sentence, so its endpoint comes at "
        "350 ms and never at 200; the vendors hear with the demo model, over real sockets",
        "cut: final words before the end of the phrase. cores, others: used by this bench, and by anybody else. "
        f"late: of this bench's own frames. !: others were at work, or frames over {LATE_MS:.0f} ms late",
    ]


def faults(rows: Sequence[Row]) -> list[str]:
    return [f"{row.name}: {fault}" for row in rows for fault in row.faults]
