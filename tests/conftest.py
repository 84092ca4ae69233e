"""What every test is watched for: a task or a coroutine left behind, a fault that only the log saw, a way out of
this machine. Timing tests run on a virtual clock: `pytestmark = VIRTUAL` from tests.conversation."""

import asyncio
import gc
import inspect
import ipaddress
import logging
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog

FORBIDDEN = (
    "Task exception was never retrieved",
    "Task was destroyed but it is pending",
    "was never awaited",
    "Unexpected ASGI",
    'Cannot call "send"',
    "Future exception was never retrieved",
)
"""What no log may ever hold: each is a bug that nobody was told of."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error:coroutine .* was never awaited:RuntimeWarning")
    config.addinivalue_line("filterwarnings", "error::pytest.PytestUnraisableExceptionWarning")
    _log_plainly()
    _stay_on_this_machine()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.fixturenames.insert(0, "no_task_left")  # the first to be set up is the last to be torn down


@pytest.fixture
async def no_task_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    for _ in range(3):  # those that were just cancelled, and the callbacks of those that are done
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    # not a coroutine: the loop closes a vendor's generator that was let go, whenever the collector finds it
    left = {task for task in left if inspect.iscoroutine(task.get_coro())}
    assert not left, f"tasks left behind: {[task.get_coro() for task in left]}"


@pytest.fixture(autouse=True)
def nothing_forbidden_in_the_log(request: pytest.FixtureRequest) -> Iterator[None]:
    seen: list[str] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage() + (str(record.exc_info[1]) if record.exc_info else "")
            seen.extend(words for words in FORBIDDEN if words in text)

    watch = Watch()
    logging.getLogger().addHandler(watch)
    yield
    if "no_task_left" in request.fixturenames:
        gc.collect()  # an exception that nobody asked for is reported when its task dies
    logging.getLogger().removeHandler(watch)
    assert not seen, f"in the log: {seen}"


@pytest.fixture
def log_lines() -> Iterator[list[Any]]:
    """What product code logs during the test, as dictionaries: `event`, `log_level` and its own keys."""
    with structlog.testing.capture_logs() as lines:
        yield lines


def _log_plainly() -> None:
    """One line an event, through the standard library, so that pytest shows it with the test that failed."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            structlog.stdlib.filter_by_level,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _stay_on_this_machine() -> None:
    """No test talks to anything but this machine: a forgotten address fails at once instead of sometimes."""

    def allowed(address: Any) -> bool:
        if not isinstance(address, tuple):
            return True  # a Unix socket
        try:
            return ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
        except ValueError:
            return str(address[0]) == "localhost"

    def guard(event: str, args: tuple[Any, ...]) -> None:
        if event == "socket.connect" and args[0].family != socket.AF_UNIX and not allowed(args[1]):
            raise OSError(f"tests stay on this machine: {args[1]}")

    sys.addaudithook(guard)
