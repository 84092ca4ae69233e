"""An answer that begins before the request is over, over real sockets."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response

from app.asr import duplex
from app.asr.duplex import Answer, Body, ClientLeft, DuplexResponse, RefusedResponse
from app.asr.schemas import Line, Refused, Segment, Transcription
from app.errors import SttError
from tests.asr.served import Speaker, error_of, lines, next_line, served
from tests.servers import until

Talk = Callable[[Body, Answer], Awaitable[None]]


@asynccontextmanager
async def talking(talk: Talk) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    app = FastAPI()

    @app.post("/")
    async def root(_request: Request) -> Response:
        return DuplexResponse(talk)

    async with served(app) as url, aiohttp.ClientSession() as http:
        yield url, http


def said(data: bytes) -> Line:
    return Line(data.decode(), False, 0, 0, None)


async def echo(body: Body, answer: Answer) -> None:
    await answer.start()
    while (data := await body.read()) is not None:
        if data:
            await answer.line(said(data))


async def test_each_piece_is_answered_while_the_next_one_is_not_even_sent() -> None:
    async with talking(echo) as (url, http):
        speaker = Speaker()
        speaker.say(b"one")  # aiohttp sends not even the head of a request before the first bytes of its body
        async with http.post(url, data=speaker) as answer:
            assert (answer.status, answer.content_type) == (200, "application/x-ndjson")
            assert (await next_line(answer))["text"] == "one"
            for word in ("two", "three"):
                speaker.say(word.encode())
                assert (await next_line(answer))["text"] == word
            speaker.end()
            assert await lines(answer) == []


async def test_one_object_may_be_the_whole_answer() -> None:
    async def talk(body: Body, answer: Answer) -> None:
        while await body.read() is not None:
            pass
        await answer.whole(Transcription("네.", [Segment("네.", 0, 10)], "ko", 0.5, 3))

    async with talking(talk) as (url, http), http.post(url, data=b"x") as answer:
        assert answer.content_type == "application/json"
        segments = [{"text": "네.", "start_ms": 0, "end_ms": 10}]
        expected = {"text": "네.", "segments": segments, "language": "ko", "duration_s": 0.5, "took_ms": 3}
        assert await answer.json() == expected


async def test_a_failure_after_the_answer_began_is_its_last_line() -> None:
    async def talk(body: Body, answer: Answer) -> None:
        await answer.start()
        await answer.line(said(b"so far"))
        raise SttError("it broke", provider="local", kind="decode", retryable=True)

    async with talking(talk) as (url, http), http.post(url, data=b"x") as answer:
        assert [*map(json.dumps, await lines(answer))][1:] == ['{"error": {"code": "decode", "message": "it broke"}}']


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (Refused(415, "odd", "odd"), 415, None),
        (ExceptionGroup("", [ExceptionGroup("", [Refused(413, "odd", "odd")])]), 413, None),
        (SttError("odd", provider="local", kind="odd", retryable=True), 503, "2"),
        (SttError("odd", provider="local", kind="odd", retryable=False), 503, None),
    ],
)
async def test_a_failure_before_it_is_a_status(error: Exception, status: int, retry: str | None) -> None:
    async def talk(body: Body, answer: Answer) -> None:
        raise error

    async with talking(talk) as (url, http), http.post(url, data=b"x") as answer:
        assert await error_of(answer) == (status, "odd")
        assert answer.headers.get("Retry-After") == retry


async def test_a_refusal_reaches_a_client_in_the_middle_of_a_large_body(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(body: Body, answer: Answer) -> None:
        await body.read()
        raise Refused(413, "too_large", "no more")

    async with talking(talk) as (url, http):
        for _ in range(5):
            async with http.post(url, data=bytes(20_000_000)) as answer:
                assert await error_of(answer) == (413, "too_large")
        # one who never stops is cut off all the same
        monkeypatch.setattr(duplex, "LINGER_S", 0.1)
        endless = Speaker()
        endless.say(b"x")
        async with http.post(url, data=endless) as answer:
            assert await error_of(answer) == (413, "too_large")
            assert answer.headers["Connection"] == "close"


async def test_a_client_that_waits_to_be_told_to_go_on_is_told() -> None:
    async def talk(body: Body, answer: Answer) -> None:
        reading = asyncio.TaskGroup()
        async with reading as group:
            first = group.create_task(body.read())
            await asyncio.sleep(0)
            await answer.start()
        await answer.line(said(first.result() or b""))

    async with talking(talk) as (url, _http):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        async with asyncio.timeout(5):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            writer.write(b"ok")
            await reader.readuntil(b'"text":"ok"')
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("rest", ["more to come", "all sent"])
async def test_a_client_that_leaves_is_noticed(rest: str) -> None:
    ends: list[str] = []

    async def talk(body: Body, answer: Answer) -> None:
        try:
            await answer.start()
            while await body.read() is not None:
                await answer.line(said(b""))
            await body.left()
        except ClientLeft:
            ends.append("left")
            raise

    async with talking(talk) as (url, http):
        speaker = Speaker()
        speaker.say(b"x")
        if rest == "all sent":
            speaker.end()
        async with http.post(url, data=speaker) as answer:
            await next_line(answer)
            answer.close()
        await until(lambda: bool(ends))
    assert ends == ["left"]


async def test_a_client_that_reads_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplex, "SEND_S", 0.2)
    ends: list[str] = []

    async def talk(body: Body, answer: Answer) -> None:
        try:
            await answer.start()
            while True:
                await answer.line(said(b"x" * 100_000))
        except ClientLeft:
            ends.append("left")
            raise

    async with talking(talk) as (url, _http):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as deaf:
            deaf.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            await until(lambda: bool(ends))
    assert ends == ["left"]


async def test_a_bug_is_not_swallowed() -> None:
    async def talk(body: Body, answer: Answer) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await DuplexResponse(talk)({"type": "http"}, _nothing, _nowhere)


async def test_a_refusal_of_a_body_that_is_over_does_not_wait_for_more() -> None:
    body = Body(_nothing)
    await body.read()
    async with asyncio.timeout(0.5):
        await RefusedResponse(Refused(400, "odd", "odd"), body)({"type": "http"}, _forever, _nowhere)


async def _nothing() -> dict[str, object]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _forever() -> dict[str, object]:
    await asyncio.Event().wait()
    raise AssertionError


async def _nowhere(_message: object) -> None: ...
