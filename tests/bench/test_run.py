"""Real servers and callers, in processes of their own, for a second or two."""

import asyncio
import dataclasses
from pathlib import Path

import pytest

from bench import __main__ as command
from bench.callers import one_utterance_clips
from bench.ears import Ears
from bench.floor import Ear
from bench.run import FLOOR, OURS, Server, measure
from bench.table import remarks, table

LOUD, SILENT = bytes([0x9F]) * 160, b"\xff" * 160


@pytest.mark.parametrize("server", [OURS, FLOOR], ids=lambda server: server.name)
async def test_one_call_is_measured(server: Server) -> None:
    row = await asyncio.to_thread(measure, server, 1, 5.0)
    assert not row.faults
    assert row.calls == 1
    assert row.cpu_us_per_frame > 0
    assert row.beyond.count >= 1
    assert row.beyond.p50 is not None
    assert row.heard.p50 is not None
    assert row.heard.p50 > 340  # the silence that ends a turn is in it
    assert 0 < row.beyond.p50 < row.heard.p50 - 339  # and a millisecond for what floats lose
    assert 0 < row.bot_share < 1
    lines = table([row, dataclasses.replace(row, server="floor", late_share=0.5)])
    assert server.name in lines
    assert any("VOID" in remark for remark in remarks([dataclasses.replace(row, late_share=0.5)]))


def test_the_floor_hears_speech_after_100_ms_and_its_end_after_360() -> None:
    ear = Ear()
    heard = [ear.hear(frame) for frame in [*[SILENT] * 3, *[LOUD] * 6, *[SILENT] * 20]]
    assert [at for at, event in enumerate(heard) if event == "started"] == [3 + 4]
    assert [at for at, event in enumerate(heard) if event == "stopped"] == [3 + 6 + 17]


def test_both_ears_find_the_end_of_an_utterance_near_where_it_is() -> None:
    clip, second = one_utterance_clips()[0], b"\xff" * 8_000
    end_ms = 1000 + clip.end / 8
    for name in ("silero", "loudness"):
        found = Ears(name).decisions(second + clip.mulaw + second)
        assert len(found.begins) == len(found.ends) == 1
        assert abs(found.ends[0].of_ms - end_ms) < 250
        assert 350 <= found.ends[0].heard_ms - found.ends[0].of_ms <= 360


def test_the_command_line_takes_counts_and_a_path(tmp_path: Path) -> None:
    options = command._parser().parse_args(["--calls", "1,3", "--json", str(tmp_path / "rows.json")])
    assert options.calls == (1, 3)
    assert options.json == tmp_path / "rows.json"
    with pytest.raises(SystemExit):
        command._parser().parse_args(["--calls", "0"])
