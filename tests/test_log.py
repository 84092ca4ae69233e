"""How it logs, as a person or a log collector would read it: in processes of their own, since it is set up once a
process."""

import json
import logging
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.log import NOISY, mask, no_false_alarm

SETUP = """
import logging, structlog
from app.log import configure_logging
configure_logging({level!r}, console={console})
log = structlog.get_logger("app.test")
"""


def logged(program: str, level: str = "INFO", *, console: bool = False) -> str:
    code = SETUP.format(level=level, console=console) + program
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "the log goes to stderr"
    return done.stderr


def lines(program: str, level: str = "INFO") -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged(program, level).splitlines()]


def test_a_line_is_json_with_its_call() -> None:
    [line] = lines(
        'with structlog.contextvars.bound_contextvars(call="CA1"):\n    log.info("- turn", first_audio_ms=420)'
    )
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "- turn",
        "level": "info",
        "logger": "app.test",
        "call": "CA1",
        "first_audio_ms": 420,
    }


def test_libraries_log_alike() -> None:
    [line] = lines('logging.getLogger("somebody").warning("lost %s", "it", extra={"why": "network"})')
    assert (line["event"], line["level"], line["logger"], line["why"]) == ("lost it", "warning", "somebody", "network")


def test_korean_is_readable() -> None:
    assert "예약" in logged('log.debug("< heard", words="예약")', "DEBUG")


def test_debug_is_silent_at_info() -> None:
    assert logged('log.debug("< heard", words="예약")') == ""


def test_noisy_libraries_are_heard_from_warning_on() -> None:
    program = "".join(f'logging.getLogger("{name}").info("quiet")\n' for name in NOISY)
    assert logged(program) == ""
    assert len(lines(program.replace("info", "error"))) == len(NOISY)


def test_a_terminal_gets_one_readable_line() -> None:
    text = logged('log.info("- call answered", call="CA1")', console=True)
    assert text.count("\n") == 1
    assert "- call answered" in text
    assert "\x1b" not in text, "no colours into a file"


def test_a_traceback_is_masked_too() -> None:
    program = """
try:
    raise ValueError("call to +821012345678 failed, api_key=sk-very-secret")
except ValueError:
    log.exception("x failed")
    logging.getLogger("somebody").exception("x failed there")
"""
    for line in lines(program):
        assert "ValueError" in line["exception"]
        assert "1012345678" not in line["exception"]
        assert "very-secret" not in line["exception"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("+821012345678", "+82*****5678"),
        ("from +15005550006 to +821012345678", "from +15*****0006 to +82*****5678"),
        ("api_key=sk-12345", "api_key=***"),
        ('"auth_token": "abcdef"', '"auth_token": "***"'),
        ("Authorization: Bearer abc.def-ghi", "Authorization: ***"),
        ("xi-api-key: abcdef", "xi-api-key: ***"),
        ("https://user:password1@example.com/x", "https://***@example.com/x"),
        ("postgresql+asyncpg://malgil:hunter22@db/malgil", "postgresql+asyncpg://***@db/malgil"),
        ("?token=abcdefgh&x=1", "?token=***&x=1"),
    ],
)
def test_what_is_private_is_masked(text: str, masked: str) -> None:
    assert mask(text) == masked


@pytest.mark.parametrize(
    "text",
    ["CA" + "1" * 32, "2025-03-01T12:00:00+00:00", "first_token_ms=4760", "tokens per second", "http://127.0.0.1:8000"],
)
def test_what_is_not_private_stays(text: str) -> None:
    assert mask(text) == text


@given(st.from_regex(r"\A\+[1-9][0-9]{9,14}\Z"))
def test_no_whole_number_is_ever_left(number: str) -> None:
    assert mask(f"call from {number}, again") == f"call from {number[:3]}*****{number[-4:]}, again"


def test_a_handshake_answered_with_a_status_is_no_alarm() -> None:
    def record(text: str) -> logging.LogRecord:
        return logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, text, (), None)

    assert not no_false_alarm(record("ASGI callable returned without completing handshake."))
    assert no_false_alarm(record("Exception in ASGI application"))


def test_values_of_every_kind_are_masked_and_the_line_stays_json() -> None:
    program = """
log.info("x", to=["+821012345678"], call={"auth_token": "abcdefgh"}, api_key="ijklmnop", tokens=3,
         error=ValueError("password=qrstuvwx '+821087654321'"))
"""
    (line,) = logged(program).splitlines()
    event = json.loads(line)
    assert event["to"] == ["+82*****5678"]
    assert (event["call"]["auth_token"], event["api_key"], event["tokens"]) == ("***", "***", 3)
    for private in ("abcdefgh", "ijklmnop", "qrstuvwx", "1012345678", "1087654321"):
        assert private not in line
