"""What an end-to-end test looks at beside the call: the log."""

import logging
from collections.abc import Iterator

import pytest

from app.log import no_false_alarm

GRAVE = ("Traceback", "KeyError", "Unexpected ASGI", 'Cannot call "send"', "never retrieved", "never awaited")


@pytest.fixture
def quiet_log() -> Iterator[None]:
    """At the end of the test the log of the whole process holds no error and no stack."""
    found: list[str] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if record.levelno >= logging.ERROR or record.exc_info or any(word in text for word in GRAVE):
                found.append(f"{record.name}: {text} {record.exc_info or ''}")

    watch = Watch()
    watch.addFilter(no_false_alarm)
    logging.getLogger().addHandler(watch)
    yield
    logging.getLogger().removeHandler(watch)
    assert not found
