"""How Malgil logs: one line an event, as JSON or for a terminal, with the call it belongs to.

Event strings begin with a mark: `>` sent, `<` received, `-` lifecycle, `x` dropped or failed. Caller words
appear at DEBUG only; numbers and secrets are masked everywhere, in tracebacks too.
"""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

Event = MutableMapping[str, Any]

_SECRET_NAME = r"(?:api[_-]?key|token|secret|password|authorization|x-twilio-signature|xi-api-key)"
_SECRET = re.compile(rf"(?i)({_SECRET_NAME}[\"']?\s*[=:]\s*[\"']?)(?:bearer\s+|basic\s+)?[^\s\"',&}}]{{4,}}")
_SECRET_KEY = re.compile(rf"(?i)(?:.*[_-])?{_SECRET_NAME}")
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_NUMBER = re.compile(r"(?<!\w)(\+\d{2})\d{4,9}(\d{4})(?!\w)")

NOISY = (
    *("uvicorn.error", "websockets", "httpx", "httpcore", "httpx2", "httpcore2", "aiohttp", "openai", "google", "grpc"),
    *("faster_whisper", "huggingface_hub", "filelock", "alembic"),
)
"""Libraries whose INFO is of no use here, or holds what must not be logged: paths, URLs."""


def mask(text: str) -> str:
    """Hide what must never be in a log: secrets after their names, logins in URLs, phone numbers."""
    text = _SECRET.sub(r"\1***", text)
    text = _URL_LOGIN.sub("***", text)
    return _NUMBER.sub(r"\1*****\2", text)


def _masked(value: Any, key: str = "") -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return "***" if _SECRET_KEY.fullmatch(key) else mask(value)
        case Mapping():
            return {name: _masked(inner, str(name)) for name, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_masked(inner, key) for inner in value]
        case _:
            return mask(repr(value))


def _mask_event(_logger: Any, _method: str, event: Event) -> Event:
    """The last step before a line is written: whatever its values are, tracebacks included."""
    return {key: _masked(value, key) for key, value in event.items()}


def no_false_alarm(record: logging.LogRecord) -> bool:
    """uvicorn takes a handshake that we answered with a status, such as 503, for one that we forgot."""
    return record.getMessage() != "ASGI callable returned without completing handshake."


def configure_logging(level: str, console: bool) -> None:
    """Set up the process's logging, the libraries' included. Called once, by the command line."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
        if console
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _mask_event, renderer],
        )
    )
    logging.getLogger("uvicorn.error").addFilter(no_false_alarm)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
