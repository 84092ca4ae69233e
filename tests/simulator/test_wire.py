"""Twilio's messages, to the letter; and every way of ours to be wrong."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.simulator.wire import Audio, Clear, Mark, Violation, Wire

SID = "MZ" + "1" * 32


@pytest.fixture
def wire() -> Wire:
    return new_wire([])


def new_wire(violations: list[Violation]) -> Wire:
    return Wire(
        account_sid="AC" + "2" * 32,
        call_sid="CA" + "3" * 32,
        stream_sid=SID,
        parameters={"token": "한글"},
        violations=violations,
    )


def test_messages_are_twilios_to_the_letter(wire: Wire) -> None:
    assert json.loads(wire.connected()) == {"event": "connected", "protocol": "Call", "version": "1.0.0"}
    assert json.loads(wire.start()) == {
        "event": "start",
        "sequenceNumber": "1",
        "streamSid": SID,
        "start": {
            "accountSid": "AC" + "2" * 32,
            "streamSid": SID,
            "callSid": "CA" + "3" * 32,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": {"token": "한글"},
        },
    }
    assert json.loads(wire.media(b"\xff\x00", 0)) == {
        "event": "media",
        "sequenceNumber": "2",
        "streamSid": SID,
        "media": {"track": "inbound", "chunk": "1", "timestamp": "0", "payload": "/wA="},
    }
    assert json.loads(wire.dtmf("#")) == {
        "event": "dtmf",
        "sequenceNumber": "3",
        "streamSid": SID,
        "dtmf": {"track": "inbound_track", "digit": "#"},
    }
    assert json.loads(wire.mark('a "name"')) == {
        "event": "mark",
        "sequenceNumber": "4",
        "streamSid": SID,
        "mark": {"name": 'a "name"'},
    }
    assert json.loads(wire.media(b"", 20))["media"]["chunk"] == "2"
    assert json.loads(wire.stop()) == {
        "event": "stop",
        "sequenceNumber": "6",
        "streamSid": SID,
        "stop": {"accountSid": "AC" + "2" * 32, "callSid": "CA" + "3" * 32},
    }


def media(payload: Any) -> str:
    return json.dumps({"event": "media", "streamSid": SID, "media": {"payload": payload}})


def encoded(audio: bytes) -> str:
    return media(base64.b64encode(audio).decode())


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        (encoded(b"\x80" * 160), Audio(b"\x80" * 160)),
        (encoded(b"\x80"), Audio(b"\x80")),
        (encoded(b"\x80" * 20_000), Audio(b"\x80" * 20_000)),
        (encoded(b"\xff\xfb\xff\xfe"), Audio(b"\xff\xfb\xff\xfe")),  # a quiet line, not MP3
        (json.dumps({"event": "mark", "streamSid": SID, "mark": {"name": ""}}), Mark("")),
        (json.dumps({"streamSid": SID, "event": "clear"}), Clear()),
    ],
)
def test_what_the_protocol_allows_is_taken(message: str, meaning: object) -> None:
    violations: list[Violation] = []

    assert new_wire(violations).receive(message) == meaning
    assert violations == []


BREACHES: list[tuple[str, int, str | bytes]] = [
    ("binary", 31950, b"{}"),
    ("json", 31951, ""),
    ("json", 31951, "{"),
    ("json", 31951, "[]"),
    ("json", 31951, "[" * 900_000),
    ("event", 31951, "{}"),
    ("event", 31951, json.dumps({"event": "start", "streamSid": SID})),
    ("event", 31951, json.dumps({"event": ["media"], "streamSid": SID})),
    ("fields", 31951, json.dumps({"event": "clear"})),
    ("fields", 31951, json.dumps({"event": "clear", "streamSid": SID, "sequenceNumber": "1"})),
    ("fields", 31951, json.dumps({"event": "mark", "streamSid": SID})),
    ("fields", 31951, json.dumps({"event": "mark", "streamSid": SID, "mark": {}})),
    ("fields", 31951, json.dumps({"event": "mark", "streamSid": SID, "mark": {"name": 1}})),
    ("fields", 31951, json.dumps({"event": "mark", "streamSid": SID, "mark": "x"})),
    ("fields", 31951, json.dumps({"event": "media", "streamSid": SID, "media": {"payload": "", "track": "x"}})),
    ("fields", 31951, media(None)),
    ("stream_sid", 31951, json.dumps({"event": "clear", "streamSid": "MZ" + "0" * 32})),
    ("payload", 31951, media("")),
    ("payload", 31951, media("/w")),
    ("payload", 31951, media("/w==\n")),
    ("payload", 31951, media("!!!!")),
    ("payload", 31951, media("한")),
    ("header", 0, encoded(b"RIFF\x00\x00\x00\x00WAVE")),
    ("header", 0, encoded(b"ID3\x04\x00")),
    ("header", 0, encoded(b"\xff\xfb\x90\x64")),
]


@pytest.mark.parametrize(("kind", "code", "message"), BREACHES)
def test_each_breach_is_noted_and_ignored(kind: str, code: int, message: str | bytes) -> None:
    violations: list[Violation] = []

    assert new_wire(violations).receive(message) is None
    assert [(breach.kind, breach.code) for breach in violations] == [(kind, code)]


def test_breaches_are_all_noted_and_harm_nothing_that_follows() -> None:
    violations: list[Violation] = []
    wire = new_wire(violations)
    for _, _, message in BREACHES:
        wire.receive(message)

    assert [breach.kind for breach in violations] == [kind for kind, _, _ in BREACHES]
    assert wire.receive(encoded(b"\x80")) == Audio(b"\x80")


def test_a_header_is_looked_for_only_where_a_piece_begins(wire: Wire) -> None:
    header = b"\xff\xfb\x90\x64"

    assert wire.receive(encoded(b"\x80")) is not None
    assert wire.receive(encoded(header)) == Audio(header)
    wire.receive(json.dumps({"event": "mark", "streamSid": SID, "mark": {"name": "x"}}))
    assert wire.receive(encoded(header)) is None


def test_nothing_may_come_after_the_end() -> None:
    violations: list[Violation] = []
    wire = new_wire(violations)
    wire.over()

    assert wire.receive(encoded(b"\x80")) is None
    assert [breach.kind for breach in violations] == ["after_stop"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["media", "mark", "clear", SID]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["event", "streamSid", "media", "mark", "payload", "name"]), inner)
    ),
    max_leaves=8,
)


@given(st.one_of(json_values.map(json.dumps), st.text(max_size=40), st.binary(max_size=8)))
def test_every_message_is_either_understood_or_one_breach(message: str | bytes) -> None:
    violations: list[Violation] = []
    meaning = new_wire(violations).receive(message)

    assert (meaning is None) == (len(violations) == 1)


@given(st.lists(st.binary(min_size=0, max_size=400), max_size=20))
def test_one_sequence_counts_over_all_messages(frames: list[bytes]) -> None:
    wire = new_wire([])
    messages = [json.loads(wire.start())]
    for number, frame in enumerate(frames):
        messages += [json.loads(wire.media(frame, number * 20)), json.loads(wire.mark("m"))]

    assert [message["sequenceNumber"] for message in messages] == [str(at + 1) for at in range(len(messages))]
    chunks = [message["media"] for message in messages if message["event"] == "media"]
    assert [media["chunk"] for media in chunks] == [str(at + 1) for at in range(len(frames))]
    assert [base64.b64decode(media["payload"]) for media in chunks] == frames
