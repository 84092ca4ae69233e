"""The arithmetic of the recognition bench, and one short call through each of two real adapters."""

import asyncio
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from app.asr.engine import DecodeEngine
from app.asr.models import DEMO_FOLDER
from app.asr.recogniser import Recogniser
from app.audio import g711
from app.audio.vad import load_silero
from bench import stt, stt_arrivals, stt_calls, stt_gpu, stt_sizes, stt_windows
from bench.figures import Spread
from bench.stt_arrivals import RATES, arrivals, serve
from bench.stt_calls import Final, Outcome, Row, Truth, judge, measure, same_words, ways
from bench.stt_meter import Meter, Use, load_remark
from bench.stt_speech import LEAD_MS, RATE, Recorded, Said, recorded_calls, sample, samples, utterance, utterances
from bench.stt_table import aligned, ratio_of, times

QUIET = Use(seconds=10, cores=2, own=0.3, others=0.1)
CALL = Recorded("ko", b"", (Said("두 명이요.", 500, 1500), Said("네.", 4000, 4400)))


# ---------------------------------------------------------------- the end of speech


def hum(ms: int, level: int) -> np.ndarray:
    return np.random.default_rng(ms).normal(0, level, ms * RATE // 1000)


def test_speech_ends_with_its_last_sound_whatever_the_label_holds_behind_it() -> None:
    mulaw = g711.encode(np.concatenate([hum(300, 30), hum(500, 4000), hum(700, 30)]).astype("<i2").tobytes())
    (exact,) = sample(mulaw, "ko", "아", [300, 800]).said
    (faded,) = sample(mulaw, "ko", "아", [200, 1100]).said
    assert (exact.begins_ms, exact.ends_ms) == (faded.begins_ms, faded.ends_ms) == (300, 800)


def test_what_is_loud_behind_the_label_is_noise() -> None:
    mulaw = g711.encode(np.concatenate([hum(300, 30), hum(500, 4000), hum(300, 900)]).astype("<i2").tobytes())
    (said,) = sample(mulaw, "ko", "아", [300, 800]).said
    assert said.ends_ms == 800


def test_every_sample_ends_where_it_falls_silent() -> None:
    for name, one in samples().items():
        (said,) = one.said
        pcm = np.frombuffer(one.pcm, "<i2").astype(float)
        end = round(said.ends_ms * RATE / 1000)
        assert 200 < said.ends_ms - said.begins_ms < 3000, name
        assert np.abs(pcm[end - 160 : end]).mean() > np.abs(pcm[: RATE // 20]).mean(), name  # a sound, to its end


def test_a_call_knows_where_its_phrases_are() -> None:
    calls = recorded_calls(3, seed=1)
    assert sum(len(call.said) for call in calls) == len(samples()) == 54
    assert {len(call.said) for call in calls} == {1, 2, 3}
    for call in calls:
        assert all(later.begins_ms - earlier.ends_ms > 2000 for earlier, later in pairwise(call.said))
        assert call.ms - call.said[-1].ends_ms > 1900  # the slowest answer comes after 1.5 s
    first = calls[0].said[0]
    alone = next(one for one in samples().values() if one.said[0].text == first.text)
    assert first.ends_ms == LEAD_MS + alone.said[0].ends_ms
    assert alone.pcm in calls[0].pcm
    assert recorded_calls(3, seed=1, most=2) == calls[:2]
    assert recorded_calls(3, seed=2)[0].said != calls[0].said


# ---------------------------------------------------------------- from finals to figures


@pytest.mark.parametrize(
    ("finals", "outcomes"),
    [
        ([Final(1900, "두 명이요"), Final(4900, "네!")], [Outcome(400, True, False), Outcome(500, True, False)]),
        ([Final(1200, "두"), Final(1800, "명이요.")], [Outcome(300, True, True), Outcome(None, False, False)]),
        ([Final(1200, "두 명이요."), Final(4700, "넷.")], [Outcome(None, True, True), Outcome(300, False, False)]),
        ([Final(1900, ""), Final(3999, "두 명이요.")], [Outcome(2499, True, False), Outcome(None, False, False)]),
    ],
    ids=["whole", "in pieces", "too early", "late"],
)
def test_each_final_belongs_to_the_phrase_before_it(finals: list[Final], outcomes: list[Outcome]) -> None:
    assert judge(CALL, finals) == outcomes


def test_words_are_compared_by_their_letters() -> None:
    assert same_words("네, 맞아요.", "네 맞아요")
    assert same_words("Hello there.", "hello, there")
    assert not same_words("네.", "아니요.")


def test_an_answer_is_due_by_the_speech_and_not_by_the_request() -> None:
    first, second = recorded_calls(2, seed=1)[:2]
    truth = Truth([first, second])
    truth.began(0, 100.0)
    truth.began(1, 200.0)
    end_ms = second.said[0].ends_ms

    def part(from_ms: float, until_ms: float) -> bytes:
        return second.pcm[round(from_ms) * 16 : round(until_ms) * 16]

    assert truth.speech_ended_at(part(600, end_ms + 500)) == pytest.approx(200 + end_ms / 1000)
    assert truth.speech_ended_at(part(600, end_ms - 200)) == pytest.approx(200 + (end_ms - 200) / 1000, abs=1e-3)
    with pytest.raises(LookupError):
        truth.speech_ended_at(b"\x01\x02" * 8000)


def a_row(name: str, delays: Sequence[float], others: float = 0.1, right: int | None = 2) -> Row:
    return Row(name, "soon", 1, 2, Spread.of(delays), right, 0, Use(10, 2, 0.3, others), 1.0)


def test_ratios_are_to_the_legacy_rows() -> None:
    rows = [
        a_row("legacy, Google", [500, 600]),
        a_row("legacy, OpenAI", [1500, 1600]),
        a_row("local", [250, 300], others=1.0, right=None),
    ]
    head, *lines = [line.split("  ") for line in stt_calls.table(rows).splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert "p95 × OpenAI" in [cell.strip() for cell in head]
    assert cells[0][:9] == ["legacy, Google", "soon", "500", "600", "1.00×", "1.00×", "0.33×", "0.38×", "2/2"]
    assert cells[2][:10] == ["! local", "soon", "250", "300", "0.50×", "0.50×", "0.17×", "0.19×", "2/2", "-"]


def test_a_ratio_needs_both() -> None:
    assert (ratio_of(3, 2), ratio_of(None, 2), ratio_of(3, None), ratio_of(3, 0)) == (1.5, None, None, None)
    assert (times(3, 2), times(44, 2), times(None, 2)) == ("1.50×", "22×", "-")


def test_columns_are_aligned() -> None:
    assert aligned([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc   d"
    assert aligned([["a", "bb"], ["ccc", "d"]], texts=2) == "a    bb\nccc  d"


# ---------------------------------------------------------------- arrivals


@pytest.mark.parametrize("rate", RATES)
def test_arrivals_are_poisson_and_seeded(rate: float) -> None:
    found = arrivals(rate, 200, seed=1)
    gaps = np.diff([0, *(one.at_s for one in found)])
    assert len(found) == pytest.approx(200 * rate, rel=0.15)
    assert gaps.min() >= 0
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.2)  # as of nothing but an exponential
    assert [one.at_s for one in arrivals(rate, 200, seed=1)] == [one.at_s for one in found]
    assert {stt_windows.windows_for(one.request.seconds)[0] for one in found} == {5}


async def test_arrivals_are_served_in_batches_and_one_by_one() -> None:
    recogniser = Recogniser.load(DEMO_FOLDER, "demo")
    loads = {}
    for batch in (1, 8):
        recogniser.max_batch = batch
        engine = DecodeEngine(recogniser)
        engine.start()
        try:
            loads[batch] = await serve(engine, arrivals(2000, 0.015, seed=1))
        finally:
            await engine.aclose()
    assert loads[1].arrived == loads[8].arrived == loads[8].wait.count > 20
    assert (loads[1].refused, loads[8].refused) == (0, 0)
    assert loads[1].batch == 1 < loads[8].batch
    assert loads[8].wait.p95 is not None
    assert loads[8].per_s > 0
    _, alone, batched = stt_arrivals.table([stt_arrivals.Row(2000, loads)]).splitlines()
    assert "one by one" in alone
    assert "up to 8" in batched
    assert "×" in batched


def test_speech_for_decoding_has_its_length() -> None:
    assert [len(utterance(seconds)) for seconds in (1, 3, 6)] == [16_000, 48_000, 96_000]
    lengths = [len(pcm) / 16_000 for pcm, _ in zip(utterances(1, 0.5, 1.5), range(50), strict=False)]
    assert 0.5 <= min(lengths) < 0.7
    assert 1.3 < max(lengths) <= 1.5


# ---------------------------------------------------------------- windows and sizes


def test_windows_hold_the_speech_and_the_margin() -> None:
    assert [stt_windows.windows_for(seconds) for seconds in (1, 3, 6)] == [[5, 8, 12, 30], [8, 12, 30], [12, 30]]


def test_the_demo_model_is_cheaper_in_a_short_window() -> None:
    rows = stt_windows.measure("demo", DEMO_FOLDER)
    assert [(row.speech_s, row.chosen_s) for row in rows] == [(1, 5), (3, 8), (6, 12)]
    assert all(not any(row.redecoded.values()) for row in rows)
    assert all(row.gain is not None and row.gain > 1 for row in rows)
    lines = stt_windows.table(rows).splitlines()
    assert [line.count("/") for line in lines] == [0, 4, 3, 2]


def test_the_callers_of_a_machine() -> None:
    assert stt_sizes.callers(cpu_ms=100, cores=2) == pytest.approx(0.6 * 2 * 8 / 0.12)
    assert stt_sizes.callers(cpu_ms=100, cores=2, partials=11) == pytest.approx(0.6 * 2 * 8 / 1.22)
    assert [stt_sizes.partial_every_ms(ms) for ms in (90, 250, 400, 501)] == [250, 250, 400, None]
    assert [stt_sizes.partials_of(ms) for ms in (250, 400, None)] == [11, 7, 0]


def test_a_size_is_measured_in_a_process_of_its_own() -> None:
    found = stt_sizes.measure(DEMO_FOLDER, "demo")
    assert 2 < found.file_mb < 10
    assert found.memory_mb > 0
    assert found.full.cpu_ms > found.short.cpu_ms > 0
    assert "demo" in stt_sizes.table([found], cores=2)


def test_a_size_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"model\.bin"):
        stt_sizes.measure(tmp_path, "none")


# ---------------------------------------------------------------- the GPU


@pytest.mark.parametrize("true", [0, 1, 5, 16, 23, 100, 3000, 10_000])
async def test_the_most_that_is_held_is_found(true: int) -> None:
    asked: list[int] = []

    async def held(number: int) -> bool:
        asked.append(number)
        return number <= true

    found = await stt_gpu.most(held, first=16, limit=4096, steps=3)
    assert found <= min(true, 4096)
    assert found >= 0.85 * min(true, 4096) or true > 4096
    assert len(asked) == len(set(asked)) <= 13
    assert max(asked) <= 4096


def test_without_a_gpu_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stt_gpu, "gpu_trouble", lambda: "libcublas.so.12 is missing")
    assert "libcublas.so.12 is missing" in stt_gpu.report(tmp_path, 1).table


# ---------------------------------------------------------------- the machine


def test_the_meter_tells_its_own_work_from_that_of_others() -> None:
    meter = Meter()
    sum(number * number for number in range(1_000_000))
    use = meter.use()
    assert use.own > 0
    assert use.others >= 0


def test_a_busy_machine_is_told() -> None:
    assert load_remark(1.0, 2) == ""
    assert "load average is 1.1 on 2 cores" in load_remark(1.1, 2)
    assert not QUIET.disturbed
    assert str(Use(10, 2, 0.3, 0.5)).startswith("! ")


# ---------------------------------------------------------------- through real adapters


@pytest.mark.parametrize("name", ["legacy, Google", "local, demo model"])
async def test_one_short_call(name: str, tmp_path: Path) -> None:
    way = next(one for one in ways(tmp_path, 1) if one.name == name)
    one = samples()["ko_02.ulaw"]
    call = Recorded(one.language, one.pcm + bytes(16_000), one.said)
    row = await measure(way, [call], await asyncio.to_thread(load_silero), seed=1)
    assert list(row.faults) == []
    assert (row.phrases, row.delay.count, row.right, row.cut) == (1, 1, 1, 0)
    assert row.delay.p50 is not None
    assert row.delay.p50 > (500 if name.startswith("legacy") else 200)
    assert any("legacy" in line for line in stt_calls.table([row]).splitlines()) == name.startswith("legacy")


def test_the_command_runs_the_parts_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stt_gpu, "gpu_trouble", lambda: "no GPU")
    monkeypatch.setattr(stt, "configure_logging", lambda level, console: None)  # it is the process's
    out = tmp_path / "new" / "out.json"
    assert stt.main(["gpu", "--json", str(out)]) == 0
    assert "not measured: no GPU" in capsys.readouterr().out
    written = json.loads(out.read_text(encoding="utf-8"))
    assert list(written["parts"]) == ["gpu"]
    assert written["seed"] == 1
    with pytest.raises(SystemExit):
        stt.main(["nothing"])
