"""What our two programs have in common: the listening socket, uvicorn's settings, the event loop."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.errors import ConfigError

USER_TIMEOUT_MS = 8_000
"""The kernel gives up a peer that acknowledges nothing for so long."""
SEND_BUFFER = 64 * 1024
"""Small, so that a peer that stopped reading is noticed after seconds of audio, not after a minute."""
MAX_MESSAGE = 64 * 1024
BACKLOG = 2048


def listen(host: str, port: int, setting: str = "PORT") -> socket.socket:
    """The listening socket; accepted connections inherit its options. Raises ConfigError, which names the `setting`
    that the port is from, when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)  # at once, so that of two servers that start together one sees the other
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{setting}: cannot listen on {host} port {port} ({error.strerror}); "
            f"stop what runs there, or set another {setting}"
        ) from error
    return listener


def uvicorn_config(app: FastAPI, grace_s: int) -> uvicorn.Config:
    """`grace_s`: for requests that are half-way when the server leaves."""
    return uvicorn.Config(
        app,
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE,
        ws_per_message_deflate=False,
        lifespan="off",
        timeout_graceful_shutdown=grace_s,
        log_config=None,
        access_log=False,
        server_header=False,
    )


def run(program: Coroutine[Any, Any, None]) -> None:
    """Run it to its end. Until uvicorn has its own handlers, SIGTERM ends the process at once, while a model is fetched
    as well: the first process of a container would not hear it without a handler. The children of ours end when their
    standard input does."""
    signal.signal(signal.SIGTERM, _exit)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(program)


def _exit(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows has none
        return None
    return uvloop.new_event_loop
