"""LLM_PROVIDER=ollama: the answer from an Ollama server, streamed.

Closing the generator closes the connection, and that stops the server's work: Ollama by default serves one
request at a time, so an answer nobody hears any more would keep the next one waiting.

A stream is whole only if it ends with `done: true`. A failure after the first line comes as one more line with
an `error`, or as nothing at all.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast
from urllib.parse import urlsplit

import httpx
import structlog
from ollama import AsyncClient, ChatResponse, ResponseError

from app.errors import LlmError
from app.services.ai_call.types import Message

log = structlog.get_logger(__name__)

Fault = Literal[
    "connect",  # nobody answers at the address
    "timeout",  # no first words, or no answer to a check, in time
    "stall",  # the words stopped coming
    "overrun",  # the answer does not end
    "missing_model",
    "busy",
    "rejected",  # the server does not take the request, or broke over it
    "reset",  # the connection or the answer was cut
    "bad_chunk",  # a line that is no answer
    "empty",  # an answer without a word
]
RETRIED: frozenset[Fault] = frozenset({"connect", "busy", "reset", "empty"})
"""Asked once more, as long as nothing was said. A reset too: a gateway that closed an idle connection looks so."""
_PERMANENT: frozenset[Fault] = frozenset({"missing_model", "rejected"})
_VENDOR_ERRORS = (ResponseError, ConnectionError, httpx.HTTPError, ValueError, AttributeError, TypeError)
"""The last three are what the client raises for a line that is no JSON, no object, or of another shape."""
_MAX_REASON_CHARS = 200

LOOPBACK = ("localhost", "127.0.0.1", "::1")

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class OllamaOptions:
    """`model` with its tag. Of the waits only time spent waiting for the server counts, never the time in which
    the listener took no words."""

    url: str
    model: str
    num_predict: int = 60
    temperature: float = 0.6
    keep_alive: str = "30m"
    connect_s: float = 2.0
    first_token_s: float = 8.0
    idle_s: float = 3.0
    answer_s: float = 15.0
    retry_after_s: float = 0.3
    check_s: float = 2.0
    warm_up_s: float = 60.0


class OllamaLlm:
    name = "ollama"

    def __init__(self, options: OllamaOptions) -> None:
        self._options = options
        # Reading has no bound in httpx: `_Patience` bounds it, by what is being waited for.
        self._client = AsyncClient(
            options.url,
            timeout=httpx.Timeout(options.connect_s, read=None),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=60.0),
            trust_env=urlsplit(options.url).hostname not in LOOPBACK,  # a proxy cannot reach it
        )
        self._request: dict[str, Any] = {
            "model": options.model,
            # Left out, a thinking model thinks, which is seconds of silence. gpt-oss takes no False.
            "think": "low" if "gpt-oss" in options.model else False,
            "options": {"num_predict": options.num_predict, "temperature": options.temperature},
            "keep_alive": options.keep_alive,
        }

    async def aclose(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    async def check(self) -> None:
        """Whether the server is there and has the model."""
        listed = await self._bounded(self._client.list(), self._options.check_s)
        names = {(model.model or "").casefold() for model in listed.models}
        wanted = self._options.model.casefold()
        if not names & {wanted, f"{wanted}:latest"}:
            raise self._missing_model()

    async def warm_up(self) -> None:
        """Load the model, with the very options of the calls: others would make the server load it anew."""
        await self._bounded(self._client.chat(messages=[], **self._request), self._options.warm_up_s)

    async def reply(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        patience = _Patience(self._options)
        for retry_left in (True, False):
            said = False
            try:
                async with aclosing(self._ask(messages, patience)) as texts:
                    async for text in texts:
                        said = True
                        yield text
                return
            except LlmError as error:
                if said or not retry_left or error.kind not in RETRIED:
                    raise
                log.warning("x the model is asked once more", kind=error.kind)
            await asyncio.sleep(self._options.retry_after_s)

    async def _ask(self, messages: Sequence[Message], patience: "_Patience") -> AsyncGenerator[str, None]:
        """One request. What comes before the first letter is held back, so that an answer without one is not
        begun."""
        asked = [{"role": message.role, "content": message.content} for message in messages]
        stream = await self._client.chat(messages=asked, stream=True, **self._request)
        held, worded = "", False
        # The client types what is an async generator as an iterator.
        async with aclosing(cast(AsyncGenerator[ChatResponse, None], stream)) as chunks:
            while (chunk := await self._next(chunks, patience)) is not None:
                text = chunk.message.content or ""
                if text:
                    patience.got_text()
                    held += text
                    worded = worded or any(char.isalnum() for char in text)
                if worded and held:
                    yield held
                    held = ""
                if chunk.done:
                    if not worded:
                        raise _error("empty", "the model answered without a word")
                    return
        raise _error("reset", "the model's answer was cut: it ended without done")

    async def _next(self, chunks: AsyncGenerator[ChatResponse, None], patience: "_Patience") -> ChatResponse | None:
        try:
            return await patience.wait(chunks.__anext__())
        except StopAsyncIteration:
            return None
        except _VENDOR_ERRORS as error:
            raise self._translated(error) from error

    async def _bounded(self, request: Awaitable[_Result], bound_s: float) -> _Result:
        try:
            async with asyncio.timeout(bound_s):
                return await request
        except TimeoutError as error:
            message = f"no answer from Ollama at {self._address} in {bound_s:g} s"
            raise _error("timeout", message) from error
        except _VENDOR_ERRORS as error:
            raise self._translated(error) from error

    # ------------------------------------------------------------ errors

    def _translated(self, error: Exception) -> LlmError:
        match error:
            case ResponseError():
                return self._refused(error)
            case ConnectionError() | httpx.ConnectError() | httpx.ConnectTimeout():
                return _error("connect", f"no Ollama at {self._address}: start it (ollama serve) or set LLM_URL")
            case httpx.HTTPError():
                return _error("reset", f"the connection to Ollama broke ({type(error).__name__})")
        return _error("bad_chunk", f"Ollama sent what is no answer ({type(error).__name__})")

    def _refused(self, error: ResponseError) -> LlmError:
        status, reason = error.status_code, " ".join(error.error.split())[:_MAX_REASON_CHARS]
        match status:
            case -1:  # in the middle of an answer, whose words the reason may quote
                log.debug("< ollama broke off", reason=reason)
                return _error("bad_chunk", "Ollama broke off its answer with an error")
            case 404:
                return self._missing_model()
            case 429 | 503:
                return _error("busy", f"Ollama is busy: {reason}")
        return _error("rejected", f"Ollama refused the request with {status}: {reason}")

    def _missing_model(self) -> LlmError:
        model = self._options.model
        return _error("missing_model", f"Ollama at {self._address} has no model {model}: run  ollama pull {model}")

    @property
    def _address(self) -> str:
        """Without the password a URL may hold."""
        parts = urlsplit(self._options.url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


class _Patience:
    """How much longer to wait for one reply's words, over both its requests.

    The bound stands around each wait and never around a `yield`: a timeout that is still armed while the
    consumer runs would cancel the consumer.
    """

    def __init__(self, options: OllamaOptions) -> None:
        self._options = options
        self._answer_s = options.answer_s
        self._next_s = options.first_token_s
        self._texts = 0

    async def wait(self, chunk: Awaitable[ChatResponse]) -> ChatResponse:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(min(self._next_s, self._answer_s)):
                return await chunk
        except TimeoutError as error:
            raise self._overdue() from error
        finally:
            waited = loop.time() - began
            self._next_s -= waited
            self._answer_s -= waited

    def got_text(self) -> None:
        """A line holds one token at least, so many more lines than were asked for will never end."""
        self._next_s = self._options.idle_s
        self._texts += 1
        if self._texts > 2 * self._options.num_predict:
            raise _error("overrun", f"the model wrote on after {self._texts} tokens")

    def _overdue(self) -> LlmError:
        options = self._options
        if self._answer_s < self._next_s:
            return _error("overrun", f"the model was not done after {options.answer_s:g} s")
        if self._texts:
            return _error("stall", f"the model wrote nothing for {options.idle_s:g} s")
        return _error("timeout", f"no words from the model in {options.first_token_s:g} s")


def _error(kind: Fault, message: str) -> LlmError:
    return LlmError(message, provider=OllamaLlm.name, kind=kind, retryable=kind not in _PERMANENT)
