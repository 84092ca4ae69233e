"""A vendor's milliseconds, as moments of the call."""

from app.audio.timeline import Timeline
from app.audio.types import AudioFrame


def frames(*at_ms: int) -> Timeline:
    timeline = Timeline()
    for at in at_ms:
        timeline.sent(AudioFrame(bytes(512), 8000, at))  # 32 ms
    return timeline


def test_a_stream_that_begins_late_counts_from_there() -> None:
    timeline = frames(1000, 1032, 1064)
    assert timeline.sent_ms == 96
    assert [timeline.media_ms(at) for at in (0, 32, 96)] == [1000, 1032, 1096]


def test_a_gap_is_skipped_and_a_seam_belongs_to_what_came_before() -> None:
    timeline = frames(0, 32, 500, 532)
    assert [timeline.media_ms(at) for at in (0, 64, 65, 128)] == [0, 64, 501, 564]


def test_audio_that_is_sent_once_more_goes_back() -> None:
    timeline = frames(0, 32, 0, 32)
    assert timeline.media_ms(128) == 64


def test_nothing_sent_means_nothing_known() -> None:
    assert Timeline().media_ms(40) == 40


def test_an_hour_without_a_gap_is_one_entry() -> None:
    timeline = frames(*range(0, 3_200_000, 32))
    assert timeline.media_ms(3_000_000) == 3_000_000
