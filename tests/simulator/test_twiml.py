"""TwiML as Twilio reads it."""

import pytest

from app.simulator.twiml import Redirect, Stream, TwimlError, Verb, parse
from app.simulator.wire import Violation

BASE = "https://malgil.example/twilio/voice"


def connect(stream: str) -> str:
    return f"<Response><Connect>{stream}</Connect></Response>"


def test_a_document_is_its_verbs_in_order() -> None:
    document = """<?xml version="1.0" encoding="UTF-8"?>
        <Response>
          <Say language="ko-KR">잠시만요</Say>
          <Connect>
            <Stream url="wss://malgil.example/twilio/stream"><Parameter name="token" value="a&amp;b"/></Stream>
          </Connect>
          <Redirect>/after</Redirect>
        </Response>"""
    violations: list[Violation] = []

    assert parse(document, BASE, violations) == [
        Verb("Say", "잠시만요"),
        Stream("wss://malgil.example/twilio/stream", {"token": "a&b"}),
        Redirect("https://malgil.example/after"),
    ]
    assert violations == []


@pytest.mark.parametrize(
    ("verbs", "instructions"),
    [
        ("", []),
        ("<Hangup/>", [Verb("Hangup")]),
        ('<Reject reason="busy"/>', [Verb("Reject", "busy")]),
        ("<Reject/>", [Verb("Reject", "rejected")]),
        ('<Pause length="2"/>', [Verb("Pause")]),
        ('<Redirect method="GET">https://b.example/x</Redirect>', [Redirect("https://b.example/x", "GET")]),
    ],
)
def test_other_verbs(verbs: str, instructions: list[object]) -> None:
    assert parse(f"<Response>{verbs}</Response>", BASE, []) == instructions


@pytest.mark.parametrize(
    ("written", "dialled", "kinds"),
    [
        ("wss://b.example/s", "wss://b.example/s", []),
        ("wss://b.example:8443/s/", "wss://b.example:8443/s/", []),
        ("/twilio/stream", "wss://malgil.example/twilio/stream", []),
        ("wss://b.example/s?token=x", "wss://b.example/s", ["query"]),
        ("ws://127.0.0.1:8000/s", "ws://127.0.0.1:8000/s", []),
        ("ws://b.example/s", "ws://b.example/s", ["stream_url"]),
        (" wss://b.example/s ", "wss://b.example/s", ["stream_url"]),
    ],
)
def test_the_streams_url_is_dialled_as_twilio_would(written: str, dialled: str, kinds: list[str]) -> None:
    violations: list[Violation] = []

    assert parse(connect(f'<Stream url="{written}"/>'), BASE, violations) == [Stream(dialled)]
    assert [violation.kind for violation in violations] == kinds


@pytest.mark.parametrize(
    ("stream", "kind"),
    [
        ('<Stream url="wss://b.example/s" track="both_tracks"/>', "track"),
        (f'<Stream url="wss://b.example/s"><Parameter name="n" value="{"v" * 499}"/></Stream>', "parameter"),
    ],
)
def test_what_twilio_reports_is_a_violation(stream: str, kind: str) -> None:
    violations: list[Violation] = []
    parse(connect(stream), BASE, violations)

    assert [violation.kind for violation in violations] == [kind]


@pytest.mark.parametrize(
    "document",
    [
        "",
        "not xml",
        "<Response>",
        "<Answer/>",
        '<!DOCTYPE r [<!ENTITY a "b">]><Response/>',
        f"<Response><Say>{'a' * 64_000}</Say></Response>",
        "<Response><Sing/></Response>",
        "<Response><Connect/></Response>",
        connect("<Room>x</Room>"),
        connect("<Stream/>"),
        connect('<Stream url="https://b.example/s"/>'),
        connect('<Stream url="wss:///s"/>'),
        connect('<Stream url="wss://b.example/s"><Parameter name="n"/></Stream>'),
        connect('<Stream url="wss://b.example/s"/><Stream url="wss://b.example/s"/>'),
    ],
)
def test_what_twilio_could_not_run_is_refused(document: str) -> None:
    with pytest.raises(TwimlError):
        parse(document, BASE, [])
