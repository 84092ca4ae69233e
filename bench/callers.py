"""The callers, as a process that the bench starts: a Plan on standard input, a Row on standard output, both JSON.

They are the software phones of `malgil simulate`: frames leave on time, whatever became of the one before; audio is
played at 8,000 bytes a second; marks are echoed. This process also reads the server's meters, so that they and the
calls share one clock.
"""

import asyncio
import dataclasses
import functools
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx

from app.simulator.clip import Clip
from app.simulator.options import PhoneOptions
from app.simulator.phone import Phone
from app.simulator.report import CallReport, Turn
from app.simulator.script import BotFinished, BotSpeaking, Say, Step
from bench import machine
from bench.ears import EarName, Ears
from bench.figures import LATE_MS, Latencies, Reading, Row, Spoken, Spread, Usage, percentile
from bench.task import END_SILENCE_MS, FRAME_MS, RATE

SAMPLES = Path(__file__).parents[1] / "tests" / "data" / "calls"
CLIPS = 12
BARGE_IN_MS = 800
SPACING_S = 0.06
"""Between two calls that begin; each also begins a little later within its 20 ms than the one before."""
SETTLE_S = 0.5
WARM_UP_S = 4.5
"""A greeting, an utterance, and the beginning of its answer."""
PROBE_S = 0.005
RECORDED_S = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """One server, and what to do to it. `url` is a server with webhooks, `stream_url` a bare media stream."""

    server: str
    url: str
    stream_url: str
    ears: EarName
    pid: int
    server_core: int
    caller_core: int
    calls: int
    window_s: float

    @property
    def phone(self) -> PhoneOptions:
        return PhoneOptions(url=self.url, stream_url=self.stream_url)


@dataclasses.dataclass(slots=True)
class Heard:
    """One call, and when it hung up by the loop's clock."""

    report: CallReport
    hung_up_s: float

    @property
    def began_s(self) -> float:
        """When its media began: it has sent audio ever since. To a frame or so."""
        return self.hung_up_s - len(self.report.caller) / RATE


async def run(plan: Plan) -> Row:
    clips = one_utterance_clips()
    warm_up = dataclasses.replace(plan.phone, hang_up_at_s=WARM_UP_S)
    await Phone(warm_up, script(clips, 0)).call()
    rss_kb = machine.rss_kb(plan.pid)
    gc.collect()
    gc.freeze()
    gc.disable()
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        phones, calls = [], []
        for number in range(plan.calls):
            phones.append(Phone(plan.phone, script(clips, number)))
            calls.append(group.create_task(phones[-1].call()))
            await asyncio.sleep(SPACING_S + FRAME_MS / 1000 / plan.calls)
        await asyncio.sleep(SETTLE_S)
        first = _read(plan)
        late = await _lateness(plan.window_s)
        second = _read(plan)
        rss_kb = machine.rss_kb(plan.pid) - rss_kb
        hung_up_s = loop.time()
        for phone in phones:
            phone.hang_up()
    heard = [Heard(call.result(), hung_up_s) for call in calls]
    in_server = await _recorded(plan, heard)
    return _row(plan, heard, first, second, late, in_server, rss_kb)


def one_utterance_clips() -> list[Clip]:
    """Phrases of the sample calls that either detector hears as one utterance: no pause in them ends a turn."""
    every = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))
    ears = (Ears("silero"), Ears("loudness"))
    clips: list[Clip] = []
    silence = b"\xff" * RATE
    for sample in every:
        if not sample["text"] or len(clips) == CLIPS:
            continue
        clip = Clip.of((SAMPLES / sample["file"]).read_bytes(), sample["text"])
        call = silence + clip.mulaw + silence
        if all(len(found.begins) == len(found.ends) == 1 for found in (ear.decisions(call) for ear in ears)):
            clips.append(clip)
    return clips


def script(clips: Sequence[Clip], number: int) -> list[Step]:
    """Hear the greeting; then, without end: speak and hear the answer out; speak and interrupt the answer."""
    clip = functools.partial(lambda at: clips[(number + at) % len(clips)])
    steps: list[Step] = []
    for turn in range(0, 2 * CLIPS, 2):
        steps += [BotFinished(), Say(clip(turn)), BotSpeaking(BARGE_IN_MS), Say(clip(turn + 1))]
    return steps


def _read(plan: Plan) -> Reading:
    return Reading(asyncio.get_running_loop().time(), machine.cpu_s(plan.pid), machine.core_busy_s(plan.server_core))


async def _lateness(for_s: float) -> list[float]:
    """How late this process wakes, in ms: so late are its frames, and what it hears."""
    loop = asyncio.get_running_loop()
    until = loop.time() + for_s
    late = []
    while (due := loop.time() + PROBE_S) < until:
        await asyncio.sleep(PROBE_S)
        late.append((loop.time() - due) * 1000)
    return late


async def _recorded(plan: Plan, heard: Sequence[Heard]) -> list[float]:
    """From the decision that the turn is over to the first audio on the wire, by the server's clock and records."""
    if not plan.url:
        return []
    await asyncio.sleep(RECORDED_S)
    waits = []
    async with httpx.AsyncClient(base_url=plan.url, trust_env=False, verify=False) as http:
        for call in heard:
            answer = await http.get(f"/api/calls/{call.report.call_sid}")
            if answer.status_code != 200:
                continue
            for exchange in answer.json()["exchanges"]:
                latency = exchange["latency"]
                if latency["speech_end_ms"] is not None and latency["first_audio_ms"] is not None:
                    waits.append(latency["first_audio_ms"] - latency["speech_end_ms"] - DECIDED_AFTER_MS)
    return waits


DECIDED_AFTER_MS = -(-END_SILENCE_MS // 32) * 32
"""The endpointer's silence, in whole windows of Silero."""


def _row(
    plan: Plan,
    heard: Sequence[Heard],
    first: Reading,
    second: Reading,
    late: Sequence[float],
    in_server: Sequence[float],
    rss_kb: int,
) -> Row:
    ears, latencies = Ears(plan.ears), Latencies()
    for call in heard:
        latencies.add_call(
            [_spoken(turn) for turn in call.report.turns],
            ears.decisions(call.report.caller),
            (first.at_s - call.began_s) * 1000,
            (second.at_s - call.began_s) * 1000,
        )
    usage = Usage.between(first, second, plan.calls)
    audible = sum(len(call.report.bot) - call.report.bot.count(0xFF) for call in heard)
    return Row(
        server=plan.server,
        calls=plan.calls,
        **dataclasses.asdict(usage),
        heard=Spread.of(latencies.heard),
        beyond=Spread.of(latencies.beyond),
        in_server=Spread.of(in_server),
        clear_heard=Spread.of(latencies.clear_heard),
        clear_onset=Spread.of(latencies.clear_onset),
        clear_beyond=Spread.of(latencies.clear_beyond),
        underruns=sum(call.report.underruns for call in heard),
        unanswered=latencies.unanswered,
        faults=_faults([call.report for call in heard], latencies.unexplained),
        rss_kb_per_call=rss_kb / plan.calls,
        bot_share=audible / max(1, sum(len(call.report.bot) for call in heard)),
        late_p99_ms=percentile(late, 99) or 0.0,
        late_max_ms=max(late, default=0.0),
        late_share=sum(ms > LATE_MS for ms in late) / max(1, len(late)),
    )


def _spoken(turn: Turn) -> Spoken:
    return Spoken(
        turn.onset_ms,
        turn.end_ms,
        None if turn.answer_ms is None else turn.end_ms + turn.answer_ms,
        None if turn.clear_ms is None else turn.onset_ms + turn.clear_ms,
    )


def _faults(reports: Sequence[CallReport], unexplained: int) -> list[str]:
    faults = {f"refused: {report.refusal.why}" for report in reports if report.refusal}
    faults |= {str(violation) for report in reports for violation in report.violations}
    faults |= {f"ended by the server, code {report.close_code}" for report in reports if report.ended_by == "bot"}
    if unexplained:
        faults.add(f"{unexplained} answers or clears came before their cause, by our reckoning")
    return sorted(faults)


def main() -> None:
    plan = Plan(**json.load(sys.stdin))
    machine.pin(plan.caller_core)
    row = asyncio.run(run(plan))  # not uvloop, whose clock counts whole milliseconds
    json.dump(dataclasses.asdict(row), sys.stdout)


if __name__ == "__main__":
    main()
