"""The Ollama adapter with the real client, against a server that speaks the real protocol and breaks on demand."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from app.errors import LlmError
from app.services.ai_call.ollama_llm import OllamaLlm, OllamaOptions
from app.services.ai_call.types import Message
from tests.emulators.ollama import DEFAULT_MODEL, THINKING_MODEL, Fault, OllamaEmulator

ANSWER = "네, 안내해 드릴게요. 평일은 오전 열 시에 엽니다."
ASKED = [Message("system", "짧게 답하세요."), Message("user", "몇 시에 문을 열어요?")]
NOTICED_S = 2.0
"""How long the server may take to see that the client has gone: milliseconds, on a machine that is not busy."""


@pytest.fixture
async def ollama() -> AsyncIterator[OllamaEmulator]:
    async with OllamaEmulator(answer=lambda messages: ANSWER) as emulator:
        yield emulator
    assert emulator.violations == []


def llm_for(url: str, model: str = DEFAULT_MODEL, **options: Any) -> OllamaLlm:
    """Bounds of milliseconds where a fault makes them count, and generous ones where they must not."""
    return OllamaLlm(OllamaOptions(url, model, **{"retry_after_s": 0.01, **options}))


async def told(llm: OllamaLlm, asked: Sequence[Message] = ASKED) -> list[str]:
    async with aclosing(llm.reply(asked)) as texts:
        return [text async for text in texts]


async def told_until_error(llm: OllamaLlm) -> tuple[list[str], LlmError]:
    got: list[str] = []
    try:
        async with aclosing(llm.reply(ASKED)) as texts:
            async for text in texts:
                got.append(text)
    except LlmError as error:
        return got, error
    pytest.fail("the answer had no fault")


async def test_the_answer_comes_in_pieces_and_whole(ollama: OllamaEmulator) -> None:
    llm = llm_for(ollama.url, num_predict=60, temperature=0.6)
    pieces = await told(llm)
    await llm.aclose()
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 5
    assert ollama.completed == 1


async def test_the_request_is_what_the_protocol_asks_for(ollama: OllamaEmulator) -> None:
    llm = llm_for(ollama.url, num_predict=60, temperature=0.6)
    await told(llm)
    await llm.aclose()
    (request,) = ollama.requests
    assert request["model"] == DEFAULT_MODEL
    assert request["messages"] == [{"role": message.role, "content": message.content} for message in ASKED]
    assert request["stream"] is True
    assert request["think"] is False
    assert request["options"] == {"num_predict": 60, "temperature": 0.6}
    assert request["keep_alive"] == "30m"


@pytest.mark.parametrize(
    ("model", "think"), [("gpt-oss:20b", "low"), ("qwen3:8b", False), ("qwen2.5:7b-instruct", False)]
)
async def test_thinking_is_off_or_as_little_as_the_model_allows(model: str, think: object) -> None:
    async with OllamaEmulator(models={model: frozenset({"completion", "thinking"})}) as ollama:
        if think is False:
            ollama.models = {model: frozenset({"completion"})}
        llm = llm_for(ollama.url, model)
        await told(llm)
        await llm.aclose()
        assert ollama.requests[0]["think"] == think
        assert ollama.violations == []


async def test_thoughts_are_never_spoken(ollama: OllamaEmulator) -> None:
    ollama.fault = "thinks_anyway"
    llm = llm_for(ollama.url, THINKING_MODEL)
    assert "".join(await told(llm)) == ANSWER
    await llm.aclose()


# ---------------------------------------------------------------- giving up an answer


async def test_closing_early_closes_the_connection_and_stops_the_server(ollama: OllamaEmulator) -> None:
    ollama.fault = "endless"
    llm = llm_for(ollama.url, num_predict=10_000)
    texts = llm.reply(ASKED)
    assert await anext(texts)
    assert ollama.active == 1
    await texts.aclose()
    async with asyncio.timeout(NOTICED_S):
        await ollama.idle.wait()
    assert ollama.cancelled == 1
    assert ollama.connections == 0
    ollama.fault = None
    assert "".join(await told(llm)) == ANSWER
    await llm.aclose()


@pytest.mark.parametrize("fault", ["silent", "stall"])
async def test_cancelling_the_listener_stops_the_server(ollama: OllamaEmulator, fault: Fault) -> None:
    """`silent` is cancelled before the first word, `stall` in the middle of the answer."""
    ollama.fault = fault
    llm = llm_for(ollama.url)
    got: list[str] = []
    heard = asyncio.Event()

    async def listen() -> None:
        async with aclosing(llm.reply(ASKED)) as texts:
            async for text in texts:
                got.append(text)
                heard.set()

    async with asyncio.TaskGroup() as group:
        listener = group.create_task(listen())
        async with asyncio.timeout(NOTICED_S):
            await (ollama.generating if fault == "silent" else heard).wait()
        listener.cancel()
    async with asyncio.timeout(NOTICED_S):
        await ollama.idle.wait()
    await llm.aclose()
    assert ollama.cancelled == 1
    assert bool(got) == (fault == "stall")


async def test_a_storm_of_interruptions_leaves_one_request_at_most(ollama: OllamaEmulator) -> None:
    ollama.fault = "endless"
    llm = llm_for(ollama.url, num_predict=10_000)
    for _ in range(20):
        async with aclosing(llm.reply(ASKED)) as texts:
            await anext(texts)
        async with asyncio.timeout(NOTICED_S):
            await ollama.idle.wait()
    assert ollama.cancelled == 20
    assert ollama.connections == 0
    await llm.aclose()


async def test_only_the_wait_for_the_model_is_bounded_not_its_listener(ollama: OllamaEmulator) -> None:
    """A voice takes seconds to say what the model wrote at once."""
    llm = llm_for(ollama.url, first_token_s=0.2, idle_s=0.2, answer_s=0.2)
    pieces = []
    async with aclosing(llm.reply(ASKED)) as texts:
        async for text in texts:
            pieces.append(text)
            if len(pieces) in (1, 3):
                await asyncio.sleep(0.3)  # longer than any bound: this is what is measured
    await llm.aclose()
    assert "".join(pieces) == ANSWER


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("fault", "kind", "requests", "retryable"),
    [
        ("silent", "timeout", 1, True),
        ("only_thinks", "timeout", 1, True),
        ("stall", "stall", 1, True),
        ("reset", "reset", 1, True),
        ("cut", "reset", 1, True),
        ("no_done", "reset", 1, True),
        ("error_line", "bad_chunk", 1, True),
        ("garbage", "bad_chunk", 1, True),
        ("array", "bad_chunk", 1, True),
        ("empty", "empty", 2, True),
        ("blank", "empty", 2, True),
        ("busy", "busy", 2, True),
        ("unauthorised", "rejected", 1, False),
        ("broken", "rejected", 1, False),
    ],
)
async def test_every_fault_has_its_kind(
    ollama: OllamaEmulator, fault: Fault, kind: str, requests: int, retryable: bool
) -> None:
    ollama.fault = fault
    llm = llm_for(ollama.url, first_token_s=0.1, idle_s=0.05)
    got, error = await told_until_error(llm)
    async with asyncio.timeout(NOTICED_S):
        await ollama.idle.wait()
    await llm.aclose()
    assert (error.kind, error.retryable) == (kind, retryable)
    assert error.provider == "ollama"
    assert len(ollama.requests) == requests
    spoken_of = {"stall", "reset", "cut", "no_done", "error_line", "garbage", "array"}
    assert "".join(got).startswith(ANSWER[:4]) == (fault in spoken_of)
    assert fault != "blank" or got == []


async def test_between_words_the_wait_is_shorter_than_for_the_first(ollama: OllamaEmulator) -> None:
    ollama.fault = "stall"
    llm = llm_for(ollama.url, first_token_s=60, answer_s=60, idle_s=0.05)
    async with asyncio.timeout(NOTICED_S):
        _, error = await told_until_error(llm)
    await llm.aclose()
    assert error.kind == "stall"


async def test_a_server_that_ignores_num_predict_is_cut_off(ollama: OllamaEmulator) -> None:
    ollama.fault = "endless"
    llm = llm_for(ollama.url, num_predict=10)
    got, error = await told_until_error(llm)
    await llm.aclose()
    assert error.kind == "overrun"
    assert 10 <= len(got) <= 20


async def test_an_answer_that_drips_on_has_an_end(ollama: OllamaEmulator) -> None:
    ollama.fault = "endless"
    ollama.tokens_per_s = 200
    llm = llm_for(ollama.url, num_predict=10_000, answer_s=0.1)
    with pytest.raises(LlmError) as caught:
        await told(llm)
    await llm.aclose()
    assert caught.value.kind == "overrun"


async def test_a_missing_model_says_how_to_get_it(ollama: OllamaEmulator) -> None:
    llm = llm_for(ollama.url, "exaone3.5:7.8b")
    with pytest.raises(LlmError, match=r"ollama pull exaone3\.5:7\.8b") as caught:
        await told(llm)
    await llm.aclose()
    assert (caught.value.kind, caught.value.retryable) == ("missing_model", False)
    assert len(ollama.requests) == 1


async def test_nobody_there_says_what_to_do_and_keeps_the_password(ollama: OllamaEmulator) -> None:
    await ollama.refuse()
    llm = llm_for(ollama.url.replace("//", "//user:pa55word@"))
    with pytest.raises(LlmError, match="ollama serve") as caught:
        await told(llm)
    await llm.aclose()
    assert caught.value.kind == "connect"
    assert "pa55word" not in str(caught.value)
    assert ollama.requests == []


@pytest.mark.parametrize("fault", ["busy", "empty", "blank"])
async def test_one_retry_saves_the_turn(ollama: OllamaEmulator, fault: Fault) -> None:
    ollama.faults.append(fault)
    llm = llm_for(ollama.url)
    assert "".join(await told(llm)) == ANSWER
    await llm.aclose()
    assert len(ollama.requests) == 2


async def test_one_retry_outlives_a_restart_of_the_server(ollama: OllamaEmulator) -> None:
    await ollama.refuse()
    llm = llm_for(ollama.url, retry_after_s=0.2)
    with capture_logs() as lines:
        async with asyncio.TaskGroup() as group, asyncio.timeout(5):
            answer = group.create_task(told(llm))
            while not lines:  # noqa: ASYNC110 (a log has no event to wait for)
                await asyncio.sleep(0)
            await ollama.listen()
            assert "".join(await answer) == ANSWER
    await llm.aclose()
    assert [line["kind"] for line in lines] == ["connect"]


async def test_a_connection_closed_while_idle_is_no_fault(ollama: OllamaEmulator) -> None:
    llm = llm_for(ollama.url)
    await told(llm)
    await ollama.refuse()
    await ollama.listen()
    assert "".join(await told(llm)) == ANSWER
    await llm.aclose()


async def test_what_was_said_is_never_asked_for_again(ollama: OllamaEmulator) -> None:
    ollama.faults.append("reset")
    llm = llm_for(ollama.url)
    with pytest.raises(LlmError):
        await told(llm)
    await llm.aclose()
    assert len(ollama.requests) == 1


async def test_what_the_model_wrote_is_not_in_the_error(ollama: OllamaEmulator) -> None:
    """Ollama's error in the middle of an answer may quote it, and errors are logged."""
    ollama.fault = "error_line"
    llm = llm_for(ollama.url)
    with pytest.raises(LlmError) as caught:
        await told(llm)
    await llm.aclose()
    assert "running the model" not in str(caught.value)


# ---------------------------------------------------------------- before a call


@pytest.mark.parametrize(
    ("served", "wanted"),
    [(DEFAULT_MODEL, DEFAULT_MODEL), ("llama3.2:latest", "llama3.2"), ("Mixed:Q4_K_M", "mixed:q4_k_m")],
)
async def test_check_finds_the_model(served: str, wanted: str) -> None:
    async with OllamaEmulator(models={served: frozenset({"completion"})}) as ollama:
        llm = llm_for(ollama.url, wanted)
        await llm.check()
        await llm.aclose()
        assert ollama.violations == []


async def test_check_says_which_model_to_pull(ollama: OllamaEmulator) -> None:
    llm = llm_for(ollama.url, "qwen2.5:14b-instruct")
    with pytest.raises(LlmError, match=r"ollama pull qwen2\.5:14b-instruct") as caught:
        await llm.check()
    await llm.aclose()
    assert caught.value.kind == "missing_model"


async def test_check_without_a_server(ollama: OllamaEmulator) -> None:
    await ollama.refuse()
    llm = llm_for(ollama.url)
    with pytest.raises(LlmError, match="ollama serve") as caught:
        await llm.check()
    await llm.aclose()
    assert caught.value.kind == "connect"


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (b"", "timeout"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "bad_chunk"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", "bad_chunk"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "reset"),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\noops", "rejected"),
    ],
)
async def test_check_against_something_else_on_the_port(sent: bytes, kind: str) -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await reader.read()
        writer.close()
        gone.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = cast(int, server.sockets[0].getsockname()[1])
        llm = llm_for(f"http://127.0.0.1:{port}", check_s=0.1)
        with pytest.raises(LlmError) as caught:
            await llm.check()
        await llm.aclose()
        async with asyncio.timeout(NOTICED_S):
            await gone.wait()
        assert caught.value.kind == kind


async def test_warm_up_loads_the_model_that_the_calls_use(ollama: OllamaEmulator) -> None:
    llm = llm_for(ollama.url)
    await llm.warm_up()
    assert ollama.loads == 1
    await told(llm)
    await llm.aclose()
    assert ollama.loads == 1
    warm, call = ollama.requests
    assert warm["messages"] == []
    assert (warm["options"], warm["keep_alive"]) == (call["options"], call["keep_alive"])


async def test_warm_up_is_bounded(ollama: OllamaEmulator) -> None:
    ollama.load_s = 60
    llm = llm_for(ollama.url, warm_up_s=0.05)
    with pytest.raises(LlmError) as caught:
        await llm.warm_up()
    await llm.aclose()
    assert caught.value.kind == "timeout"
