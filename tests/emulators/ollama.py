"""An Ollama server in software: the HTTP API that Malgil uses, strict, on a real socket, with faults on demand.

    async with OllamaEmulator(answer=lambda messages: "네, 알겠습니다.") as ollama:
        ...                     # ollama.url
    assert not ollama.violations

By hand: python -m tests.emulators.ollama --port 11434 --first-token-ms 350 --tokens-per-s 40
"""

import argparse
import asyncio
import json
import math
import re
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, Self

import h11

DEFAULT_MODEL = "qwen2.5:7b-instruct"
THINKING_MODEL = "qwen3:8b"
DEFAULT_MODELS: Mapping[str, frozenset[str]] = {
    DEFAULT_MODEL: frozenset({"completion", "tools"}),
    THINKING_MODEL: frozenset({"completion", "tools", "thinking"}),
}

Fault = Literal[
    "busy",  # 503 at once
    "unauthorised",  # 401 at once
    "broken",  # 500 at once
    "silent",  # takes the request and never answers
    "stall",  # some tokens, then nothing
    "reset",  # some tokens, then a TCP reset
    "cut",  # some tokens, then the connection is closed in order, without the last chunk
    "no_done",  # some tokens, then a stream that ends well but for `done`
    "error_line",  # some tokens, then {"error"} under status 200
    "garbage",  # some tokens, then half a line
    "array",  # some tokens, then a line of JSON that is no object
    "endless",  # num_predict is not kept to
    "empty",  # done, and not a token
    "blank",  # done, and tokens without a letter
    "thinks_anyway",  # thinks although it was told not to
    "only_thinks",  # thinks and never comes to an end
]

Messages = Sequence[Mapping[str, Any]]

_NUMBER = (int, float)
_CHAT_FIELDS: Mapping[str, tuple[type, ...]] = {
    "model": (str,),
    "messages": (list,),
    "stream": (bool,),
    "format": (str, dict),
    "options": (dict,),
    "keep_alive": (str, int, float),
    "tools": (list,),
    "think": (bool, str),
    "truncate": (bool,),
    "shift": (bool,),
    "logprobs": (bool,),
    "top_logprobs": (int,),
}
_MESSAGE_FIELDS: Mapping[str, tuple[type, ...]] = {
    "role": (str,),
    "content": (str,),
    "thinking": (str,),
    "images": (list,),
    "tool_calls": (list,),
    "tool_name": (str,),
    "tool_call_id": (str,),
}
_LOAD_OPTIONS: Mapping[str, tuple[type, ...]] = {
    "num_ctx": (int,),
    "num_batch": (int,),
    "num_gpu": (int,),
    "main_gpu": (int,),
    "use_mmap": (bool,),
    "num_thread": (int,),
    "draft_num_predict": (int,),
}
"""A request that changes one of these makes the server load the model anew."""
_OPTIONS: Mapping[str, tuple[type, ...]] = {
    **_LOAD_OPTIONS,
    "num_keep": (int,),
    "num_predict": (int,),
    "top_k": (int,),
    "repeat_last_n": (int,),
    "seed": (int,),
    "stop": (list,),
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "min_p": _NUMBER,
    "typical_p": _NUMBER,
    "repeat_penalty": _NUMBER,
    "presence_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
}
_ROLES = {"system", "user", "assistant", "tool"}
_CREATED_AT = "2026-11-21T00:00:00.000000Z"
_TOKEN = re.compile(r"\s*\S{1,3}")


def default_answer(messages: Messages) -> str:
    user = next((str(message["content"]) for message in reversed(messages) if message["role"] == "user"), "")
    if re.search(r"[가-힣]", user):
        return "네, 말씀 잘 들었습니다. 바로 확인해 드릴게요. 더 궁금하신 점이 있으세요?"
    return "Thank you, I heard you well. Let me check that for you. Is there anything else?"


class ClientGone(Exception):
    """The client closed the connection, or broke HTTP."""


class OllamaEmulator:
    """`faults` are used up, one a chat request, in order; `fault` is for every request that is left. Tokens come
    at once unless `tokens_per_s` says otherwise. All public attributes may be changed while it runs."""

    def __init__(
        self,
        answer: Callable[[Messages], str] = default_answer,
        models: Mapping[str, frozenset[str]] = DEFAULT_MODELS,
        *,
        port: int = 0,
        first_token_s: float = 0.0,
        tokens_per_s: float = math.inf,
        load_s: float = 0.0,
    ) -> None:
        self.answer = answer
        self.models = models
        self.first_token_s = first_token_s
        self.tokens_per_s = tokens_per_s
        self.load_s = load_s
        self.fault: Fault | None = None
        self.faults: deque[Fault] = deque()
        self.fault_after = 2
        """Tokens before a fault in the middle of an answer."""
        self.requests: list[dict[str, Any]] = []
        """The bodies of the chat requests; those that only load a model among them."""
        self.violations: list[str] = []
        self.loads = 0
        self.active = 0
        self.completed = 0
        self.cancelled = 0
        """Generations whose client went away before the end."""
        self.idle = asyncio.Event()
        """Set while nothing is being generated."""
        self.idle.set()
        self.generating = asyncio.Event()
        """Set while something is."""
        self._port = port
        self._server: asyncio.Server | None = None
        self._peers: set[_Peer] = set()
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._loaded: dict[str, dict[str, Any]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def connections(self) -> int:
        return len(self._peers)

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.refuse()

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Close every connection and refuse new ones, until `listen` is called again."""
        if self._server is not None:
            self._server.close()
            for peer in list(self._peers):
                peer.abort()
            await self._server.wait_closed()
            self._server = None
            await self._nobody.wait()  # until 3.12 a closed server does not wait for its connections

    # ------------------------------------------------------------ HTTP

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = _Peer(reader, writer)
        self._peers.add(peer)
        self._nobody.clear()
        try:
            with suppress(ClientGone, ConnectionError):
                while (request := await peer.request()) is not None:
                    await self._route(peer, *request)
        finally:
            self._peers.discard(peer)
            if not self._peers:
                self._nobody.set()
            writer.close()

    async def _route(self, peer: "_Peer", method: str, path: str, body: bytes) -> None:
        match method, path:
            case "GET" | "HEAD", "/":
                await peer.reply(200, "" if method == "HEAD" else "Ollama is running")
            case "GET", "/api/version":
                await peer.reply(200, {"version": "0.13.0"})
            case "GET", "/api/tags":
                await peer.reply(200, {"models": [_tag(name, can) for name, can in self.models.items()]})
            case "GET", "/api/ps":
                running = [_tag(name, self.models[name]) for name in self._loaded]
                more = {"expires_at": _CREATED_AT, "size_vram": 1, "context_length": 4096}
                await peer.reply(200, {"models": [model | more for model in running]})
            case "POST", "/api/chat":
                await self._chat(peer, body)
            case _:
                self.violations.append(f"{method} {path}: no such endpoint")
                await peer.reply(404, "404 page not found")

    # ------------------------------------------------------------ chat

    async def _chat(self, peer: "_Peer", body: bytes) -> None:
        request, refusal = self._read(body)
        if refusal:
            self.violations.append(refusal)
            await peer.reply(400, {"error": refusal})
            return
        self.requests.append(request)
        model = request["model"]
        if model not in self.models:
            await peer.reply(404, {"error": f"model '{model}' not found"})
            return
        thinks = "thinking" in self.models[model]
        if request.get("think") and not thinks:
            await peer.reply(400, {"error": f'"{model}" does not support thinking'})
            return
        if not request.get("messages"):
            await self._load_only(peer, request)
            return
        if thinks and "think" not in request:
            self.violations.append("think: left out for a thinking model, which then thinks")
        fault = self.faults.popleft() if self.faults else self.fault
        self.active += 1
        self.idle.clear()
        self.generating.set()
        try:
            await self._generate(peer, request, fault, thinks=thinks and request.get("think") is not False)
            self.completed += 1
        except (ClientGone, ConnectionError):
            self.cancelled += 1
            raise
        finally:
            self.active -= 1
            if not self.active:
                self.generating.clear()
                self.idle.set()

    def _read(self, body: bytes) -> tuple[dict[str, Any], str]:
        """The request, and why it is refused. What Ollama ignores but nobody should send is a violation."""
        if not body:
            return {}, "missing request body"
        try:
            request = json.loads(body)
        except ValueError as error:
            return {}, f"invalid JSON: {error}"
        if not isinstance(request, dict) or not request.get("model"):
            return {}, "model is required"
        wrong = self._wrong_types("", request, _CHAT_FIELDS)
        wrong += self._wrong_types("options.", request.get("options") or {}, _OPTIONS)
        for message in request.get("messages") or []:
            wrong += self._wrong_types("messages.", message, _MESSAGE_FIELDS)
            if message.get("role") not in _ROLES:
                wrong.append(f"messages.role: {message.get('role')!r}")
        return request, "; ".join(wrong)

    def _wrong_types(self, where: str, table: Mapping[str, Any], known: Mapping[str, tuple[type, ...]]) -> list[str]:
        self.violations += [f"{where}{key}: no such field" for key in table.keys() - known.keys()]
        return [
            f"{where}{key}: cannot be a {type(value).__name__}"
            for key, value in table.items()
            if key in known and not _is_a(value, known[key])
        ]

    async def _load(self, peer: "_Peer", request: Mapping[str, Any]) -> None:
        options = request.get("options") or {}
        wanted = {key: value for key, value in options.items() if key in _LOAD_OPTIONS}
        if self._loaded.get(request["model"]) != wanted:
            self.loads += 1
            await peer.pause(self.load_s)
            self._loaded[request["model"]] = wanted

    async def _load_only(self, peer: "_Peer", request: Mapping[str, Any]) -> None:
        unload = request.get("keep_alive") in (0, "0", "0s")
        if unload:
            self._loaded.pop(request["model"], None)
        else:
            await self._load(peer, request)
        await peer.reply(200, _line(request, "", done_reason="unload" if unload else "load"))

    async def _generate(self, peer: "_Peer", request: Mapping[str, Any], fault: Fault | None, *, thinks: bool) -> None:
        match fault:
            case "busy":
                error = "server busy, please try again.  maximum pending requests exceeded"
                return await peer.reply(503, {"error": error})
            case "unauthorised":
                return await peer.reply(401, {"error": "unauthorized"})
            case "broken":
                return await peer.reply(500, {"error": "model runner has unexpectedly stopped"})
            case "silent":
                await peer.pause(math.inf)
        await self._load(peer, request)
        await peer.pause(self.first_token_s)
        thoughts, tokens = self._tokens(request, fault, thinks=thinks)
        limit = (request.get("options") or {}).get("num_predict", -1)
        done_reason = "stop"
        if fault != "endless" and 0 < limit < len(tokens):
            tokens, done_reason = tokens[:limit], "length"
        if request.get("stream") is False:
            return await peer.reply(200, _line(request, "".join(tokens), "".join(thoughts), done_reason))
        await peer.start_stream()
        for thought in thoughts:
            await peer.line(_line(request, "", thought))
            await peer.pause(1 / self.tokens_per_s)
        for number, token in enumerate(tokens):
            if fault and number == self.fault_after and await self._break(peer, fault):
                return
            await peer.line(_line(request, token))
            await peer.pause(1 / self.tokens_per_s)
        await peer.line(_line(request, "", done_reason=done_reason))
        await peer.end_stream()

    def _tokens(self, request: Mapping[str, Any], fault: Fault | None, *, thinks: bool) -> tuple[list[str], list[str]]:
        """What is thought and what is said."""
        thoughts = ["The", " caller", " wants", " to", " know", "."] if thinks or fault == "thinks_anyway" else []
        match fault:
            case "only_thinks":
                return ["hm, "] * 100_000, []
            case "endless":
                return thoughts, ["그리고 "] * 100_000
            case "empty":
                return thoughts, []
            case "blank":
                return thoughts, ["\n", "**", " ", "…"]
        return thoughts, _TOKEN.findall(self.answer(request["messages"]))

    async def _break(self, peer: "_Peer", fault: Fault) -> bool:
        """Whether the answer ended here."""
        match fault:
            case "stall":
                await peer.pause(math.inf)
            case "reset":
                peer.reset()
            case "cut":
                peer.close()
            case "no_done":
                await peer.end_stream()
            case "error_line":
                await peer.line({"error": "an error was encountered while running the model"})
                await peer.end_stream()
            case "garbage":
                await peer.data(b'{"model": "' + b"x" * 20 + b"\n")
                await peer.end_stream()
            case "array":
                await peer.data(b"[1, 2]\n")
                await peer.end_stream()
            case _:
                return False
        return True


class _Peer:
    """One client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER)

    async def request(self) -> tuple[str, str, bytes] | None:
        """Method, path and body; None when the connection was closed between two requests."""
        if self._http.their_state is h11.DONE and self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        head: h11.Request | None = None
        body = b""
        while True:
            event = await self._event()
            match event:
                case h11.Request():
                    head = event
                case h11.Data():
                    body += bytes(event.data)
                case h11.EndOfMessage() if head is not None:
                    return head.method.decode(), head.target.decode(), body
                case _:
                    return None

    async def _event(self) -> object:
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise ClientGone from error
            if event is not h11.NEED_DATA:
                return event
            self._http.receive_data(await self._reader.read(65536))

    async def pause(self, seconds: float) -> None:
        """Wait as a server does that works on an answer. Raises ClientGone as soon as nobody wants it any more."""
        try:
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await self._reader.read(1)
        except TimeoutError:
            return
        raise ClientGone

    async def reply(self, status: int, body: Mapping[str, Any] | str) -> None:
        text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
        kind = "text/plain; charset=utf-8" if isinstance(body, str) else "application/json; charset=utf-8"
        data = text.encode()
        headers = [("content-type", kind), ("content-length", str(len(data)))]
        await self._send(h11.Response(status_code=status, headers=headers))
        await self._send(h11.Data(data))
        await self._send(h11.EndOfMessage())

    async def start_stream(self) -> None:
        headers = [("content-type", "application/x-ndjson"), ("transfer-encoding", "chunked")]
        await self._send(h11.Response(status_code=200, headers=headers))

    async def line(self, message: Mapping[str, Any]) -> None:
        await self.data(json.dumps(message, ensure_ascii=False).encode() + b"\n")

    async def data(self, data: bytes) -> None:
        await self._send(h11.Data(data))

    async def end_stream(self) -> None:
        await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()

    def close(self) -> None:
        self._http.send_failed()
        self._writer.close()

    def abort(self) -> None:
        self._writer.transport.abort()

    def reset(self) -> None:
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._http.send_failed()
        self.abort()


def _is_a(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _tag(name: str, capabilities: frozenset[str]) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "modified_at": _CREATED_AT,
        "size": 1,
        "digest": "0" * 64,
        "details": {"format": "gguf", "family": name.partition(":")[0]},
        "capabilities": sorted(capabilities),
    }


def _line(
    request: Mapping[str, Any], content: str, thinking: str = "", done_reason: str | None = None
) -> dict[str, Any]:
    message = {"role": "assistant", "content": content} | ({"thinking": thinking} if thinking else {})
    line: dict[str, Any] = {"model": request["model"], "created_at": _CREATED_AT, "message": message}
    if done_reason is None:
        return line | {"done": False}
    return line | {"done": True, "done_reason": done_reason, "total_duration": 1, "eval_count": 1}


async def _main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.emulators.ollama", description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=11434)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--first-token-ms", type=float, default=0.0)
    parser.add_argument("--tokens-per-s", type=float, default=math.inf)
    options = parser.parse_args(argv)
    async with OllamaEmulator(
        models={options.model: frozenset({"completion", "tools"})},
        port=options.port,
        first_token_s=options.first_token_ms / 1000,
        tokens_per_s=options.tokens_per_s,
    ) as ollama:
        sys.stdout.write(f"Ollama emulator with {options.model} at {ollama.url}, until Ctrl+C\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_main())
