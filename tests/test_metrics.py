"""What is counted: closed sets of labels, nothing of a caller, and no counter shared between two applications."""

import re

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from app.metrics import TURN_BUCKETS, Metrics
from tests.conversation import VIRTUAL, Conversation
from tests.fakes import CALL, ScriptedLlm, llm_error


def samples(metrics: Metrics) -> dict[str, float]:
    """As Prometheus would read them."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in families
        for sample in family.samples
    }


def test_two_applications_share_no_counter() -> None:
    one, other = Metrics(), Metrics()
    one.live_calls.inc()
    assert samples(one)["malgil_live_calls[]"] == 1
    assert samples(other)["malgil_live_calls[]"] == 0
    assert isinstance(one.registry, CollectorRegistry)


def test_the_exposition_is_what_prometheus_reads() -> None:
    metrics = Metrics()
    metrics.calls_ended.labels("caller").inc()
    metrics.provider_faults.labels("llm", "timeout").inc(2)
    metrics.turn_seconds.labels("first_audio").observe(0.4)
    read = samples(metrics)
    assert read["malgil_calls_ended_total[('reason', 'caller')]"] == 1
    assert read["malgil_provider_faults_total[('component', 'llm'), ('kind', 'timeout')]"] == 2
    assert read["malgil_turn_seconds_bucket[('le', '0.5'), ('until', 'first_audio')]"] == 1
    assert read["malgil_turn_seconds_bucket[('le', '0.3'), ('until', 'first_audio')]"] == 0


def test_every_name_is_ours_and_has_a_help() -> None:
    families = list(text_string_to_metric_families(Metrics().exposition().decode()))
    assert len(families) >= 8
    for family in families:
        assert re.fullmatch(r"malgil_[a-z_]+", family.name)
        assert family.documentation.endswith(".")


def test_the_buckets_tell_a_good_turn_from_a_slow_one() -> None:
    assert sorted(TURN_BUCKETS) == list(TURN_BUCKETS)
    assert {0.5, 1.0, 2.0} <= set(TURN_BUCKETS)


@VIRTUAL
async def test_a_call_leaves_its_latencies_and_nothing_of_the_caller() -> None:
    call = Conversation(llm=ScriptedLlm("네, 말씀하세요.", [llm_error("timeout")]))
    call.says("영업시간이 어떻게 되나요?", at=3.0, for_s=1.0)
    call.says("예약이요.", at=8.0, for_s=0.8)
    call.hangs_up(at=14.0)
    await call.held()
    read = samples(call.metrics)
    assert read["malgil_turn_seconds_count[('until', 'final')]"] == 2
    assert read["malgil_turn_seconds_sum[('until', 'final')]"] == pytest.approx(2 * 0.46)
    assert read["malgil_turn_seconds_count[('until', 'first_token')]"] == 1
    text = call.metrics.exposition().decode()
    for private in (CALL.caller, CALL.call_sid, "영업시간", "예약"):
        assert private not in text
