import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.audio.endpoint import (
    Endpointer,
    EndpointEvent,
    EndpointOptions,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
    SpeechStopped,
)

FRAME_MS = 32
PROBABILITY = {"#": 0.9, "~": 0.4, ".": 0.1}  # speech, between the thresholds, silence


def hear(endpointer: Endpointer, frames: str) -> list[EndpointEvent]:
    return [event for frame in frames for event in endpointer.process(PROBABILITY[frame], FRAME_MS)]


def events(frames: str, options: EndpointOptions | None = None) -> list[EndpointEvent]:
    """The pauses' speech_ms aside."""
    return [
        SpeechPaused(event.at_ms) if isinstance(event, SpeechPaused) else event
        for event in hear(Endpointer(options or EndpointOptions()), frames)
    ]


def test_a_sentence() -> None:
    assert events("....." + "#" * 10 + "." * 11) == [
        SpeechStarted(5 * 32),
        SpeechPaused(15 * 32),
        SpeechStopped(at_ms=15 * 32, speech_ms=10 * 32, silence_ms=11 * 32),
    ]


@pytest.mark.parametrize(
    ("frames", "onset"),
    [
        ("##", None),  # a click
        ("##.##.##.", None),  # a few of them
        ("~~~~~~~~", None),  # never sure
        ("###", 0),
        ("..###", 64),
        ("##.###", 96),
        ("#~~", 0),  # sure once, then likely enough
        ("~~###", 64),
    ],
)
def test_three_frames_in_one_piece_are_speech(frames: str, onset: int | None) -> None:
    assert events(frames) == ([] if onset is None else [SpeechStarted(onset)])


def test_the_start_is_told_with_the_third_frame() -> None:
    endpointer = Endpointer(EndpointOptions())
    assert hear(endpointer, "##") == []
    assert not endpointer.speaking
    assert hear(endpointer, "#") == [SpeechStarted(0)]
    assert endpointer.speaking
    assert endpointer.media_ms == 96


def test_doubt_does_not_end_speech() -> None:
    assert events("###" + "~" * 50) == [SpeechStarted(0)]


def test_the_first_silent_frame_is_a_pause() -> None:
    endpointer = Endpointer(EndpointOptions())
    assert hear(endpointer, "###.") == [SpeechStarted(0), SpeechPaused(96, 96)]
    assert endpointer.paused
    assert endpointer.speaking


@pytest.mark.parametrize("blip", ["#", "#.#", "~~~~", "#..#.#"])
def test_a_short_noise_does_not_restart_the_wait(blip: str) -> None:
    frames = "###.." + blip
    assert events(frames.ljust(3 + 11, ".")) == [
        SpeechStarted(0),
        SpeechPaused(96),
        SpeechStopped(at_ms=96, speech_ms=96, silence_ms=352),
    ]


def test_two_frames_resume_the_same_utterance() -> None:
    assert events("###....##." + "." * 10) == [
        SpeechStarted(0),
        SpeechPaused(96),
        SpeechResumed(7 * 32),
        SpeechPaused(9 * 32),
        SpeechStopped(at_ms=9 * 32, speech_ms=5 * 32, silence_ms=352),
    ]


def test_a_word_that_begins_as_the_wait_ends_is_not_cut_off() -> None:
    assert events("###" + "." * 10 + "##") == [SpeechStarted(0), SpeechPaused(96), SpeechResumed(13 * 32)]


def test_a_noise_as_the_wait_ends_delays_the_end_by_its_own_length() -> None:
    assert events("###" + "." * 10 + "#.")[-1] == SpeechStopped(96, speech_ms=96, silence_ms=12 * 32)


@pytest.mark.parametrize(("wait_ms", "frames"), [(200, 7), (350, 11), (800, 25)])
def test_the_wait_of_a_pause_can_be_set(wait_ms: int, frames: int) -> None:
    endpointer = Endpointer(EndpointOptions())
    hear(endpointer, "###..")
    endpointer.wait(wait_ms)
    stopped = hear(endpointer, "." * 30)
    assert stopped == [SpeechStopped(at_ms=96, speech_ms=96, silence_ms=frames * 32)]


def test_a_wait_that_is_already_over_ends_with_the_next_frame() -> None:
    endpointer = Endpointer(EndpointOptions())
    hear(endpointer, "###" + "." * 9)
    endpointer.wait(200)
    assert hear(endpointer, ".") == [SpeechStopped(at_ms=96, speech_ms=96, silence_ms=320)]


def test_a_wait_holds_for_one_pause_only() -> None:
    endpointer = Endpointer(EndpointOptions())
    hear(endpointer, "###.")
    endpointer.wait(800)
    hear(endpointer, "##.")
    assert hear(endpointer, "." * 10) == [SpeechStopped(at_ms=6 * 32, speech_ms=5 * 32, silence_ms=352)]


def test_a_wait_that_comes_too_late_changes_nothing() -> None:
    endpointer = Endpointer(EndpointOptions())
    hear(endpointer, "###.##")
    endpointer.wait(0)
    assert hear(endpointer, "." * 10) == [SpeechPaused(6 * 32, 160)]


def test_endless_speech_is_cut_and_goes_on_at_the_cut() -> None:
    options = EndpointOptions(max_utterance_ms=320)
    assert events(".." + "#" * 13, options) == [
        SpeechStarted(64),
        SpeechStopped(at_ms=384, speech_ms=320, silence_ms=0, forced=True),
        SpeechStarted(384),
    ]


def test_a_pause_at_the_limit_is_where_the_cut_is_made() -> None:
    options = EndpointOptions(max_utterance_ms=320)
    assert events("#" * 8 + ".#" + "##", options) == [
        SpeechStarted(0),
        SpeechPaused(256),
        SpeechStopped(at_ms=256, speech_ms=256, silence_ms=64, forced=True),
        SpeechStarted(288),
    ]


def test_the_default_limit_is_thirty_seconds() -> None:
    stopped = events("#" * 1000)[1]
    assert stopped == SpeechStopped(at_ms=30_016, speech_ms=30_016, silence_ms=0, forced=True)


def test_no_wait_at_all_ends_with_the_first_silent_frame() -> None:
    assert events("###.", EndpointOptions(silence_ms=0)) == [
        SpeechStarted(0),
        SpeechPaused(96),
        SpeechStopped(at_ms=96, speech_ms=96, silence_ms=32),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"start_threshold": 0.3},
        {"start_threshold": 1.1},
        {"stop_threshold": -0.1},
        {"silence_ms": -1},
        {"min_speech_ms": -1},
        {"resume_ms": -1},
        {"max_utterance_ms": 96},
    ],
)
def test_senseless_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        EndpointOptions(**wrong)  # type: ignore[arg-type]


FOLLOWERS: dict[type[EndpointEvent] | None, set[type[EndpointEvent]]] = {
    None: {SpeechStarted},
    SpeechStarted: {SpeechPaused, SpeechStopped},
    SpeechPaused: {SpeechResumed, SpeechStopped},
    SpeechResumed: {SpeechPaused, SpeechStopped},
    SpeechStopped: {SpeechStarted},
}


@given(
    frames=st.lists(
        st.tuples(
            st.floats(0, 1) | st.sampled_from([0.0, 0.35, 0.5, 1.0]),
            st.sampled_from([10, 20, 30, 32]),
            st.none() | st.integers(0, 1000),
        ),
        max_size=200,
    ),
    options=st.builds(
        EndpointOptions,
        min_speech_ms=st.sampled_from([0, 32, 96]),
        resume_ms=st.sampled_from([0, 64]),
        silence_ms=st.sampled_from([0, 60, 350]),
        max_utterance_ms=st.sampled_from([97, 500, 30_000]),
    ),
)
def test_whatever_is_heard_the_events_make_sense(
    frames: list[tuple[float, int, int | None]], options: EndpointOptions
) -> None:
    endpointer = Endpointer(options)
    told: list[EndpointEvent] = []
    heard_ms = 0
    onset_ms = 0
    for probability, frame_ms, wait_ms in frames:
        if wait_ms is not None:
            endpointer.wait(wait_ms)
        heard_ms += frame_ms
        new = endpointer.process(probability, frame_ms)
        assert endpointer.media_ms == heard_ms
        for event in new:
            assert 0 <= event.at_ms <= heard_ms
            if isinstance(event, SpeechStarted):
                onset_ms = event.at_ms
            if isinstance(event, SpeechStopped):
                assert event.at_ms + event.silence_ms == heard_ms
                assert 0 < event.speech_ms <= event.at_ms - onset_ms
        told += new
        if endpointer.speaking:  # an utterance never grows past its limit and the frame that reached it
            assert heard_ms - onset_ms < options.max_utterance_ms + frame_ms
        assert endpointer.speaking == bool(told and not isinstance(told[-1], SpeechStopped))
        assert endpointer.paused == bool(told and isinstance(told[-1], SpeechPaused))

    kinds: list[type[EndpointEvent] | None] = [None, *map(type, told)]
    assert all(after in FOLLOWERS[before] for before, after in itertools.pairwise(kinds))
    times = [event.at_ms for event in told]
    assert times == sorted(times)


def test_each_pause_tells_how_much_was_said_until_then() -> None:
    heard = hear(Endpointer(EndpointOptions()), "#" * 10 + "." * 5 + "##" + "." * 11)
    assert [event.speech_ms for event in heard if isinstance(event, SpeechPaused | SpeechStopped)] == [320, 384, 384]
