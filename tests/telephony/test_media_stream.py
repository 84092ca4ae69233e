"""The rows E-01 to E-24 of the fault catalogue that the codec can see, the documented messages, and any text at all."""

import base64
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from app.errors import InvalidState, ProtocolViolation
from app.services.ai_call.types import KeyPressed
from app.telephony.media_stream import (
    MAX_EARLY_MEDIA,
    MAX_MALFORMED,
    MAX_MESSAGE_BYTES,
    NOT_COUNTING,
    FaultKind,
    Marked,
    Media,
    MediaStream,
    Started,
    Stopped,
    StreamState,
)

WIRE = Path(__file__).parents[1] / "wire"
SID = "MZ" + "1" * 32
CALL = "CA" + "2" * 32
ACCOUNT = "AC" + "0" * 32
FORMAT = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}


def start(sequence: Any = "1", sid: Any = SID, **changed: Any) -> str:
    body = {
        "accountSid": ACCOUNT,
        "streamSid": sid,
        "callSid": CALL,
        "tracks": ["inbound"],
        "mediaFormat": FORMAT,
        "customParameters": {"token": "t"},
    }
    body = {name: value for name, value in {**body, **changed}.items() if value is not None}
    return json.dumps({"event": "start", "sequenceNumber": sequence, "streamSid": sid, "start": body})


def media(mulaw: bytes | str = bytes(160), sequence: Any = None, track: Any = "inbound", sid: Any = SID) -> str:
    payload = mulaw if isinstance(mulaw, str) else base64.b64encode(mulaw).decode()
    message = {"event": "media", "streamSid": sid, "media": {"track": track, "chunk": "1", "payload": payload}}
    return json.dumps(message if sequence is None else {**message, "sequenceNumber": sequence})


def message(event: str, **body: Any) -> str:
    return json.dumps({"event": event, "streamSid": SID, **body})


class Peer:
    """Feeds one codec at 50 messages a second."""

    def __init__(self) -> None:
        self.reported: list[str] = []
        self.stream = MediaStream(self.reported.append)
        self.now = 0.0

    def send(self, text: str) -> object:
        self.now += 0.02
        return self.stream.receive(text, self.now)

    def attempt(self, text: str) -> object:
        """The event, or the violation."""
        try:
            return self.send(text)
        except ProtocolViolation as violation:
            return violation

    def refused(self, text: str) -> tuple[str, int]:
        with pytest.raises(ProtocolViolation) as violation:
            self.send(text)
        return violation.value.kind, violation.value.close_code

    @property
    def faults(self) -> dict[str, int]:
        counted = dict(self.stream.faults)
        assert sorted(self.reported) == sorted(self.stream.faults.elements())
        assert set(counted) <= set(get_args(FaultKind))
        return counted


@pytest.fixture
def fresh() -> Peer:
    return Peer()


@pytest.fixture
def peer() -> Peer:
    """A peer whose stream is open."""
    peer = Peer()
    peer.send('{"event":"connected","protocol":"Call","version":"1.0.0"}')
    assert isinstance(peer.send(start()), Started)
    return peer


# ---------------------------------------------------------------- as documented


def test_a_documented_call_from_connected_to_stop(fresh: Peer) -> None:
    lines = (WIRE / "media_stream_from_twilio.jsonl").read_text(encoding="utf-8").splitlines()
    with capture_logs() as logs:
        events = [fresh.send(line) for line in lines]
    parameters = MappingProxyType({"token": "v1.1.n.m", "한글": "값"})
    assert events == [
        None,
        Started(SID, CALL, ACCOUNT, parameters),
        Media(b"\x7f" * 8, 0),
        Media(b"\xff" * 16, 1),
        KeyPressed("1"),
        Marked("my label"),
        Media(b"\x7f", 3),
        Stopped(),
    ]
    assert fresh.faults == {}
    assert fresh.stream.state is StreamState.CLOSED
    assert [(entry["log_level"], entry["was"], entry["now"]) for entry in logs] == [
        ("debug", "CONNECTING", "OPEN"),
        ("debug", "OPEN", "CLOSED"),
    ]


def test_what_we_send_has_the_documented_fields_and_no_other(peer: Peer) -> None:
    lines = (WIRE / "media_stream_to_twilio.jsonl").read_text(encoding="utf-8").splitlines()
    assert [peer.stream.media(b"\x7f" * 8), peer.stream.mark("my label"), peer.stream.clear()] == lines


@given(mulaw=st.binary(max_size=500), name=st.text(st.characters(exclude_categories=["Cs"])))
def test_what_we_send_is_json_whatever_is_in_it(mulaw: bytes, name: str) -> None:
    peer = Peer()
    peer.send(start(sid='quo"te\\'))
    sent = json.loads(peer.stream.media(mulaw))
    assert sent == {
        "event": "media",
        "streamSid": 'quo"te\\',
        "media": {"payload": base64.b64encode(mulaw).decode()},
    }
    assert json.loads(peer.stream.mark(name))["mark"] == {"name": name}


def test_nothing_is_built_unless_open(fresh: Peer) -> None:
    def all_refused() -> bool:
        builders: list[Callable[[], str]] = [
            lambda: fresh.stream.media(b"x"),
            lambda: fresh.stream.mark("x"),
            fresh.stream.clear,
        ]
        for build in builders:
            with pytest.raises(InvalidState, match=fresh.stream.state.name):
                build()
        return True

    assert all_refused()
    fresh.send(start())
    assert fresh.stream.clear()
    fresh.stream.close()
    assert all_refused()


def test_after_the_end_nothing_is_understood(peer: Peer) -> None:
    assert peer.send(message("stop")) == Stopped()
    for text in (media(), start(), "{", "x" * (MAX_MESSAGE_BYTES + 1), message("stop")):
        assert peer.send(text) is None
    assert peer.faults == {}


# ---------------------------------------------------------------- before the start


def test_connected_may_be_missing(fresh: Peer) -> None:
    assert isinstance(fresh.send(start()), Started)  # E-04


def test_early_media_is_dropped_up_to_a_limit(fresh: Peer) -> None:
    for _ in range(MAX_EARLY_MEDIA):
        assert fresh.send(media()) is None  # E-03
    assert fresh.faults == {"media_before_start": 50}
    assert fresh.refused(media()) == ("media_before_start", 4400)


def test_early_media_does_not_count_as_heard(fresh: Peer) -> None:
    fresh.send(media())
    fresh.send(start())
    assert fresh.send(media()) == Media(bytes(160), 0)


@pytest.mark.parametrize(
    "text",
    [
        message("mark", mark={"name": "x"}),
        message("dtmf", dtmf={"digit": "1"}),
        message("stop"),
        message("hello"),
        message(""),
    ],
)
def test_another_first_message_is_refused(fresh: Peer, text: str) -> None:
    assert fresh.refused(text) == ("wrong_first", 4400)
    fresh = Peer()
    fresh.send(media())
    assert fresh.refused(text) == ("wrong_first", 4400)


def test_between_connected_and_start_other_messages_are_dropped(fresh: Peer) -> None:
    fresh.send('{"event":"connected"}')
    for text in (
        '{"event":"connected"}',
        message("mark", mark={"name": "x"}),
        message("dtmf", dtmf={"digit": "1"}),
        message("hello"),
    ):
        assert fresh.send(text) is None
    assert fresh.faults == {"out_of_order": 3, "unknown_event": 1}
    assert fresh.send(message("stop")) == Stopped()


@pytest.mark.parametrize(
    "media_format",
    [
        None,
        [],
        {},
        {**FORMAT, "encoding": "audio/x-alaw"},
        {**FORMAT, "encoding": ["audio/x-mulaw"]},
        {**FORMAT, "sampleRate": 16000},
        {**FORMAT, "sampleRate": None},
        {**FORMAT, "channels": 2},
        {**FORMAT, "channels": True},
        {"encoding": "audio/x-mulaw", "sampleRate": 8000},
    ],
)
def test_another_media_format_is_refused(fresh: Peer, media_format: Any) -> None:
    assert fresh.refused(start(mediaFormat=media_format)) == ("bad_format", 4400)  # E-07
    assert fresh.faults == {"bad_format": 1}


def test_a_media_format_in_strings_means_the_same(fresh: Peer) -> None:
    assert fresh.send(start(mediaFormat={**FORMAT, "sampleRate": "8000", "channels": "1"}))


@pytest.mark.parametrize(
    "changed",
    [
        {"sid": None},
        {"sid": ""},
        {"sid": 7},
        {"sid": "M" * 129},
        {"sid": "MZ\n"},
        {"sid": "가"},
        {"streamSid": "MZother"},
        {"callSid": None},
        {"callSid": []},
        {"accountSid": None},
        {"accountSid": ""},
        {"customParameters": []},
        {"customParameters": {"token": 1}},
    ],
)
def test_a_start_that_lacks_something_is_refused(fresh: Peer, changed: dict[str, Any]) -> None:
    assert fresh.refused(start(**changed)) == ("bad_start", 4400)


@pytest.mark.parametrize("body", ["null", "[]", '"x"', "1"])
def test_a_start_without_an_object_is_refused(fresh: Peer, body: str) -> None:
    assert fresh.refused(f'{{"event":"start","streamSid":"{SID}","start":{body}}}') == ("bad_start", 4400)


def test_a_start_without_parameters_has_none(fresh: Peer) -> None:
    assert fresh.send(start(customParameters=None, tracks=None)) == Started(SID, CALL, ACCOUNT, {})


# ---------------------------------------------------------------- an open stream


@pytest.mark.parametrize("sequence", ["1", "2", 7])
def test_the_same_start_again_is_ignored(peer: Peer, sequence: Any) -> None:
    assert peer.send(start(sequence)) is None  # E-05
    assert peer.faults == {"second_start": 1}
    assert isinstance(peer.send(media()), Media)


@pytest.mark.parametrize(
    "changed", [{"sid": "MZother"}, {"callSid": "CAother"}, {"customParameters": {"token": "other"}}]
)
def test_another_start_is_refused(peer: Peer, changed: dict[str, Any]) -> None:
    assert peer.refused(start(**changed)) == ("second_start", 4400)
    assert peer.faults == {"second_start": 1}


@pytest.mark.parametrize("track", ["outbound", "inbound_track", "", None, 1, ["inbound"]])
def test_another_track_is_not_heard(peer: Peer, track: Any) -> None:
    assert peer.send(media(track=track)) is None  # E-06
    assert peer.faults == {"wrong_track": 1}


def test_a_peer_without_tracks_is_heard(peer: Peer) -> None:
    assert isinstance(peer.send(message("media", media={"payload": "fw=="})), Media)


@pytest.mark.parametrize("sid", ["MZother", "", None, 1, [SID]])
@pytest.mark.parametrize(
    "event",
    [{"event": "media", "media": {"payload": "fw=="}}, {"event": "stop"}, {"event": "mark", "mark": {"name": "x"}}],
)
def test_another_streams_messages_are_dropped(peer: Peer, sid: Any, event: dict[str, Any]) -> None:
    assert peer.send(json.dumps({**event, "streamSid": sid})) is None  # E-17
    assert peer.faults == {"wrong_stream": 1}


@pytest.mark.parametrize(
    "payload",
    ["!!!!", "AAA", "AA", "A", "AA=A", "====", "AAAA\n", "AA AA", "AAA=A", "AAAA=", "====AAAA", "가나다라", "AA-_"],
)
def test_a_payload_that_is_not_base64_is_dropped(peer: Peer, payload: str) -> None:
    assert peer.send(media(payload)) is None  # E-08
    assert peer.faults == {"bad_payload": 1}
    assert peer.send(media()) == Media(bytes(160), 0)


@pytest.mark.parametrize("payload", [None, 1, ["fw=="], {}])
def test_a_payload_that_is_no_text_is_dropped(peer: Peer, payload: Any) -> None:
    assert peer.send(message("media", media={"track": "inbound", "payload": payload})) is None
    assert peer.faults == {"bad_payload": 1}


@pytest.mark.parametrize("size", [1, 7, 159, 160, 161, 7_999, 8_000])
def test_payloads_of_any_size_up_to_a_second(peer: Peer, size: int) -> None:
    audio = random.Random(size).randbytes(size)
    assert peer.send(media(audio)) == Media(audio, 0)  # E-09
    assert peer.send(media(b"x")) == Media(b"x", size // 8)
    assert peer.faults == {}


def test_no_audio_is_no_event(peer: Peer) -> None:
    assert peer.send(media(b"")) is None
    assert peer.faults == {}


@pytest.mark.parametrize("size", [8_001, 8_002, 8_003, 20_000])
def test_more_than_a_second_in_one_message_is_dropped(peer: Peer, size: int) -> None:
    assert peer.send(media(bytes(size))) is None
    assert peer.faults == {"bad_payload": 1}


MALFORMED = [
    "",
    " ",
    "{",
    "null",
    "[]",
    '[{"event":"media"}]',
    '"media"',
    "1",
    "NaN",
    "{}",
    '{"event":1}',
    '{"event":null}',
    '{"event":["media"]}',
    '{"event":{"media":1}}',
    '{"event":"media"}x',
    '{"event":"\\ud800"}',
    '{"event":"\ud800"}',
    '{"event":"media","n":' + "9" * 5_000 + "}",
    '{"event":"media","n":1e999}',
    "[" * 30_000,
    '{"event":' * 6_000,
    "\x00",
    "\ufeff{}",
]


@pytest.mark.parametrize("text", MALFORMED)
def test_what_is_not_a_message_is_dropped(peer: Peer, text: str) -> None:
    assert peer.send(text) is None  # E-12
    assert peer.faults == {"bad_json": 1}
    fresh = Peer()
    assert fresh.send(text) is None
    assert fresh.faults == {"bad_json": 1}


@pytest.mark.parametrize("event", ["media", "mark", "dtmf"])
@pytest.mark.parametrize("body", [None, [], "x", 1])
def test_a_message_of_the_wrong_shape_is_dropped(peer: Peer, event: str, body: Any) -> None:
    assert peer.send(message(event, **{event: body})) is None
    assert peer.send(message(event)) is None
    assert peer.faults == {"bad_json": 2}


@pytest.mark.parametrize("name", [None, 1, ["x"]])
def test_a_mark_without_a_name_is_dropped(peer: Peer, name: Any) -> None:
    assert peer.send(message("mark", mark={"name": name})) is None
    assert peer.faults == {"bad_json": 1}


def test_of_two_equal_keys_the_last_counts(peer: Peer) -> None:
    assert peer.send(f'{{"event":"stop","event":"mark","streamSid":"{SID}","mark":{{"name":"x"}}}}') == Marked("x")


@pytest.mark.parametrize(("text", "kind"), [("{", "bad_json"), (media("!"), "bad_payload")])
def test_too_many_malformed_messages(peer: Peer, text: str, kind: str) -> None:
    for _ in range(MAX_MALFORMED):
        assert peer.send(text) is None
        assert isinstance(peer.send(media()), Media)
    assert peer.refused(text) == (kind, 4400)
    assert peer.faults == {kind: MAX_MALFORMED + 1}


def test_malformed_messages_of_all_kinds_are_one_budget(fresh: Peer) -> None:
    for _ in range(10):
        assert fresh.send("{") is None
    fresh.send(start())
    for _ in range(10):
        assert fresh.send(media("!")) is None
    assert fresh.refused("[]") == ("bad_json", 4400)


def test_a_violation_leaves_the_closing_to_the_owner_of_the_socket(peer: Peer) -> None:
    peer.refused(start(sid="MZother"))
    assert peer.stream.state is StreamState.OPEN
    assert peer.stream.clear()


def test_unknown_events_are_ignored_and_logged_once(peer: Peer) -> None:
    with capture_logs() as logs:
        for name in ("hello", "hello", "x" * 1000):
            assert peer.send(message(name)) is None  # E-13
    assert peer.faults == {"unknown_event": 3}
    assert [entry["name"] for entry in logs] == ["hello"]


def test_connected_again_is_dropped(peer: Peer) -> None:
    assert peer.send('{"event":"connected"}') is None
    assert peer.faults == {"out_of_order": 1}


@pytest.mark.parametrize("digit", "0123456789*#ABCD")
def test_keys(peer: Peer, digit: str) -> None:
    assert peer.send(message("dtmf", dtmf={"track": "inbound_track", "digit": digit})) == KeyPressed(digit)


@pytest.mark.parametrize("digit", ["", "11", "E", "a", "１", " ", None, 1, ["1"]])
def test_what_is_no_key_is_dropped(peer: Peer, digit: Any) -> None:
    assert peer.send(message("dtmf", dtmf={"digit": digit})) is None  # E-22
    assert peer.faults == {"bad_dtmf": 1}


@pytest.mark.parametrize("timestamp", ["999999999", "-5", "x", None, 7, []])
def test_the_peers_timestamps_do_not_matter(peer: Peer, timestamp: Any) -> None:
    body = {"track": "inbound", "timestamp": timestamp, "payload": base64.b64encode(bytes(80)).decode()}
    heard = [peer.send(message("media", media=body)) for _ in range(3)]
    assert heard == [Media(bytes(80), 0), Media(bytes(80), 10), Media(bytes(80), 20)]  # E-15


def test_a_missing_stop_body_stops_all_the_same(peer: Peer) -> None:
    assert peer.send(message("stop", stop=None)) == Stopped()


# ---------------------------------------------------------------- sequence numbers


@pytest.mark.parametrize(
    ("numbers", "heard", "faults"),
    [
        (["2", "3", "4"], 3, {}),
        ([2, 3, 4], 3, {}),
        (["2", 3, "4"], 3, {}),
        (["2", "5", "6"], 3, {"seq_gap": 1}),
        (["2", "5", "9"], 3, {"seq_gap": 2}),
        (["2", "2", "3"], 2, {"seq_repeat": 1}),
        (["2", "3", "2", "4"], 3, {"seq_repeat": 1}),
        (["2", "4", "3", "5"], 3, {"seq_gap": 1, "seq_repeat": 1}),
        (["1", "-7", "2"], 1, {"seq_repeat": 2}),
        ([None, "x", [], 2.5, "", "9" * 6_000], 6, {}),
        ([10**30, "2"], 1, {"seq_repeat": 1}),
    ],
)
def test_gaps_are_counted_and_repeats_dropped(
    peer: Peer, numbers: list[Any], heard: int, faults: dict[str, int]
) -> None:
    if numbers[0] == 10**30:
        numbers[0], faults = str(numbers[0]), {"seq_gap": 1, **faults}
    events = [peer.send(media(sequence=number)) for number in numbers]  # E-14
    assert sum(isinstance(event, Media) for event in events) == heard
    assert peer.faults == faults


def test_all_events_share_one_counter(peer: Peer) -> None:
    peer.send(media(sequence="2"))
    peer.send(message("dtmf", sequenceNumber="3", dtmf={"digit": "1"}))
    peer.send(message("hello", sequenceNumber="4"))
    peer.send(message("mark", sequenceNumber="5", mark={"name": "x"}))
    peer.send(media(sequence="6", track="outbound"))
    peer.send(media(sequence="7"))
    assert peer.faults == {"unknown_event": 1, "wrong_track": 1}


def test_a_key_sent_twice_is_pressed_once_but_marks_and_stop_always_count(peer: Peer) -> None:
    key = message("dtmf", sequenceNumber="2", dtmf={"digit": "1"})
    assert [peer.send(key), peer.send(key)] == [KeyPressed("1"), None]
    assert peer.send(message("mark", sequenceNumber="2", mark={"name": "x"})) == Marked("x")
    assert peer.send(message("stop", sequenceNumber="2")) == Stopped()


@pytest.mark.parametrize("numbers", [["1"] * 60, [str(n % 5) for n in range(60)]])
def test_a_peer_that_does_not_count_is_soon_heard(peer: Peer, numbers: list[str]) -> None:
    events = [peer.send(media(sequence=number)) for number in numbers]
    assert all(isinstance(event, Media) for event in events[20:])
    assert peer.faults["seq_repeat"] >= NOT_COUNTING


def test_repeats_now_and_then_never_make_repeats_heard(peer: Peer) -> None:
    for number in range(2, 2 + 3 * NOT_COUNTING):
        assert isinstance(peer.send(media(sequence=number)), Media)
        assert peer.send(media(sequence=number)) is None


# ---------------------------------------------------------------- too much


@pytest.mark.parametrize("filler", ["x", "가", "😀", "\ud800"])
def test_64_kib_is_the_limit_in_bytes(peer: Peer, filler: str) -> None:
    size = len(filler.encode(errors="surrogatepass"))
    fitting = filler * (MAX_MESSAGE_BYTES // size)
    fitting += " " * (MAX_MESSAGE_BYTES - len(fitting.encode(errors="surrogatepass")))
    assert peer.send(fitting) is None
    assert peer.refused(fitting + " ") == ("too_large", 1009)  # E-10
    assert peer.faults == {"bad_json": 1, "too_large": 1}


@pytest.mark.parametrize("ready", [False, True])
def test_a_binary_message_is_refused(ready: bool) -> None:
    peer = Peer()
    if ready:
        peer.send(start())
    with pytest.raises(ProtocolViolation) as violation:
        peer.stream.binary()  # E-11
    assert (violation.value.kind, violation.value.close_code) == ("binary", 1003)
    assert peer.faults == {"binary": 1}


def flood(peer: Peer, text: str, per_second: float, seconds: float) -> float | None:
    """Send evenly; when it was refused as too fast, in seconds since the flood began."""
    began = peer.now
    for n in range(int(per_second * seconds)):
        peer.now = began + n / per_second - 0.02
        violation = peer.attempt(text)
        if isinstance(violation, ProtocolViolation):
            assert (violation.kind, violation.close_code) == ("too_fast", 4429)
            return n / per_second
    return None


@pytest.mark.parametrize("per_second", [50, 100, 199])
def test_a_peer_somewhat_too_fast_is_tolerated(peer: Peer, per_second: int) -> None:
    assert flood(peer, media(), per_second, 20) is None


@pytest.mark.parametrize("per_second", [210, 500, 5_000])
def test_a_flood_of_messages_is_cut_after_two_seconds(peer: Peer, per_second: int) -> None:
    refused_at = flood(peer, media(), per_second, 20)  # E-24
    assert refused_at is not None
    assert 1.9 <= refused_at <= 3.1


def test_a_flood_of_bytes_is_cut_after_five_seconds(peer: Peer) -> None:
    refused_at = flood(peer, media(bytes(1_600)), 50, 20)
    assert refused_at is not None
    assert 4.9 <= refused_at <= 6.1


def test_a_flood_before_start_is_cut_too(fresh: Peer) -> None:
    fresh.send('{"event":"connected"}')
    refused_at = flood(fresh, message("mark"), 500, 20)
    assert refused_at is not None
    assert refused_at <= 3.1


@pytest.mark.parametrize("stall_s", [0.5, 1.0, 1.5, 5.0, 9.9])
def test_a_stall_and_then_all_at_once_is_no_flood(peer: Peer, stall_s: float) -> None:
    """E-23: what a stalled network held back comes in a burst; nothing of it is lost."""
    heard = 0
    for _ in range(3):
        for _ in range(int(stall_s * 50)):
            heard += isinstance(peer.stream.receive(media(), peer.now), Media)
        for _ in range(100):
            heard += isinstance(peer.send(media()), Media)
        peer.now += stall_s
    assert heard == 3 * (int(stall_s * 50) + 100)
    assert peer.faults == {}


def test_bursts_with_silence_between_are_no_flood(peer: Peer) -> None:
    for _ in range(5):
        assert all(isinstance(peer.stream.receive(media(), peer.now), Media) for _ in range(300))
        peer.now += 6.0
    assert peer.faults == {}


# ---------------------------------------------------------------- anything at all

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["connected", "start", "media", "mark", "dtmf", "stop", "hello"])
bodies = json_values | st.fixed_dictionaries(
    {}, optional={name: json_values for name in ("track", "payload", "name", "digit", "callSid", "mediaFormat")}
)
near_misses = st.builds(
    lambda event, sid, sequence, body: json.dumps(
        {"event": event, "streamSid": sid, "sequenceNumber": sequence, str(event): body}
    ),
    names | json_values,
    st.just(SID) | json_values,
    st.integers(0, 99).map(str) | json_values,
    bodies,
)
sane = st.sampled_from([start(), media(), message("mark", mark={"name": "x"}), '{"event":"connected"}'])


@given(texts=st.lists(st.text() | near_misses | sane, max_size=40), opened=st.booleans())
def test_any_text_is_an_event_a_fault_or_a_violation(texts: list[str], opened: bool) -> None:
    peer = Peer()
    if opened:
        peer.send(start())
    for text in texts:
        event = peer.attempt(text)
        if isinstance(event, ProtocolViolation):
            assert event.kind in get_args(FaultKind)
            assert event.close_code == 4400
            peer.stream.close()
        else:
            assert event is None or isinstance(event, Started | Media | Marked | KeyPressed | Stopped)
    assert sum(peer.faults.values()) <= 2 * len(texts)


@given(cut=st.integers(0, 400), flip=st.integers(0, 255), line=st.integers(0, 7))
def test_a_damaged_message_harms_nothing_after_it(cut: int, flip: int, line: int) -> None:
    lines = (WIRE / "media_stream_from_twilio.jsonl").read_text(encoding="utf-8").splitlines()
    text = lines[line]
    at = cut % len(text)
    peer = Peer()
    peer.send(start())
    event = peer.attempt(text[:at] + chr(flip) + text[at + 1 :])
    if isinstance(event, ProtocolViolation):
        assert event.close_code == 4400
    elif event != Stopped():
        assert isinstance(peer.send(media()), Media)


def test_a_long_call_keeps_nothing(peer: Peer) -> None:
    """The codec's memory does not grow with what is sent to it: only the closed set of fault names."""
    for n in range(3_000):
        peer.send(media(sequence=str(2 * n), track="inbound" if n % 2 else "outbound"))
        peer.send(message(f"event {n}"))
        peer.send(message("mark", mark={"name": str(n)}))
    kept = {name: value for name, value in vars(peer.stream).items() if isinstance(value, dict | list | set)}
    assert list(kept) == ["faults"]
    assert set(kept["faults"]) <= set(get_args(FaultKind))
