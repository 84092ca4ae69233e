"""The process: signals, the drain, the port."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from app.audio import g711
from app.errors import ConfigError
from app.serving import SEND_BUFFER, listen
from app.simulator.twiml import Stream
from app.simulator.webhooks import Webhooks
from tests.asr.sample_calls import spoken
from tests.e2e.by_hand import Call, dialled, new_call_sid, ring
from tests.servers import DEVELOPMENT, PARTIES, Process, free_port, process

HELLO = g711.encode(spoken("안녕하세요.").pcm) + bytes([g711.SILENCE]) * 8 * 700


@asynccontextmanager
async def served(**environment: str) -> AsyncIterator[tuple[Process, Call]]:
    """A server process with one call on it, in the middle of its greeting."""
    with process("serve", **DEVELOPMENT, PORT=str(free_port()), **environment) as server:
        await server.serving()
        call_sid = new_call_sid()
        async with dialled(await ring(server.url, call_sid), call_sid) as call:
            await call.begin()
            await call.until(lambda: call.count("media") > 0)
            yield server, call


async def ready(server: Process, status: tuple[int, str]) -> None:
    """Until /ready says so: at once."""
    async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(1):
        while True:
            answer = await http.get(f"{server.url}/ready")
            if (answer.status_code, answer.json()["status"]) == status:
                return
            await asyncio.sleep(0.01)


async def test_the_first_signal_drains_and_the_live_call_goes_on() -> None:
    async with served() as (server, call):
        await ready(server, (200, "ready"))
        server.signal(signal.SIGTERM)
        await ready(server, (503, "draining"))
        async with Webhooks(PARTIES, new_call_sid(), server.url) as webhooks:
            assert '<Reject reason="busy"' in await webhooks.fetch_twiml(f"{server.url}/twilio/voice", "ringing")
        with pytest.raises(InvalidStatus) as refusal:
            async with dialled(Stream(f"{server.url.replace('http', 'ws')}/twilio/stream"), new_call_sid()):
                pass
        assert refusal.value.response.status_code == 503
        await call.say(HELLO)  # over the greeting
        await call.until(lambda: call.count("clear") > 0)
        heard = call.count("media")
        await call.until(lambda: call.count("media") > heard)
        await asyncio.sleep(0.5)  # several ticks of the server, in which it must not leave
        assert server.popen.poll() is None
        await call.stop()
        assert await call.closed() == 1000
        assert await server.exit_code() == 0
        assert "Traceback" not in server.output


async def test_without_a_call_the_first_signal_is_enough() -> None:
    with process("serve", **DEVELOPMENT, PORT=str(free_port())) as server:
        await server.serving()
        server.signal(signal.SIGTERM)
        assert await server.exit_code(2) == 0
        assert server.url.rpartition(":")[2] in server.output
        assert "54 phrases" in server.output


async def test_after_the_drain_the_bot_takes_leave() -> None:
    async with served(DRAIN_S="0") as (server, call):
        server.signal(signal.SIGTERM)
        await call.until(lambda: call.count("clear") > 0)  # the greeting gives way to the goodbye
        await call.until(lambda: call.count("mark") >= 2)
        assert await call.closed() == 1012
        assert await server.exit_code() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_second_signal_does_not_wait(number: signal.Signals) -> None:
    async with served() as (server, call):
        server.signal(number)
        await ready(server, (503, "draining"))
        server.signal(number)
        assert await call.closed() == 1012
        assert await server.exit_code(5) in (0, 130, -number)
        assert "Traceback" not in server.output


def test_a_port_in_use_is_named_and_a_way_out_is_told() -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"PORT: .*127\.0\.0\.1 port {port} .*set another PORT"):
            listen("127.0.0.1", port)


async def test_a_port_in_use_ends_the_process_with_78() -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        with process("serve", **DEVELOPMENT, PORT=str(taken.getsockname()[1])) as server:
            assert await server.exit_code() == 78
            assert server.output.splitlines()[-1].startswith("malgil: PORT: cannot listen on 127.0.0.1 port")


def test_accepted_connections_give_up_a_peer_that_is_silent_or_does_not_read() -> None:
    with listen("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * SEND_BUFFER
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 8_000
