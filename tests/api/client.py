"""The application without a network: its services with small stand-ins, and a client that signs as Twilio does."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
from starlette.websockets import WebSocket

from app.clock import utc_now
from app.errors import LlmError
from app.main import create_app
from app.providers import Providers
from app.services.ai_call.ports import LanguageModel
from app.services.ai_call.types import CallInfo
from app.simulator.wire import Wire
from app.telephony.media_stream import MediaStream
from app.telephony.signature import sign
from app.wiring import Services, open_services
from tests.emulators.twilio_rest import TwilioRestEmulator
from tests.fakes import MemorySocket, ScriptedLlm, ScriptedStt, ToneTts
from tests.servers import ACCOUNT, ADMIN_KEY, CALLEE, CALLER, PRODUCTION, TOKEN, settings

SID = "CA" + "a" * 32
BASE = "https://bot.test"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


def form(**changes: str) -> dict[str, str]:
    fields = {"CallSid": SID, "AccountSid": ACCOUNT, "From": CALLER, "To": CALLEE, "CallStatus": "ringing"}
    return fields | changes


class AbsentLlm(ScriptedLlm):
    async def check(self) -> None:
        raise LlmError("the model is not there: ollama pull it", provider="ollama", kind="absent", retryable=True)


@dataclass
class Client:
    http: httpx.AsyncClient
    services: Services

    async def post(
        self, path: str, fields: Mapping[str, str], *, token: str = TOKEN, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        signed = {"X-Twilio-Signature": sign(BASE + path, fields.items(), token)} if token else {}
        sent = httpx.Headers({**signed, **(headers or {})}, encoding="latin-1")
        return await self.http.post(path, data=dict(fields), headers=sent)

    async def voice(self, **changes: str) -> httpx.Response:
        return await self.post("/twilio/voice", form(**changes))

    async def status(self, **changes: str) -> httpx.Response:
        return await self.post("/twilio/status", form(**changes))

    async def after_stream(self, **changes: str) -> httpx.Response:
        return await self.post("/twilio/after-stream", form(**changes))

    def count(self, metric: str, **labels: str) -> float:
        return self.services.metrics.registry.get_sample_value(f"malgil_{metric}", labels) or 0.0


@asynccontextmanager
async def application(folder: Path, *, llm: LanguageModel | None = None, **changes: Any) -> AsyncIterator[Client]:
    """In production, as far as anything is checked."""
    providers = Providers.of(ScriptedStt(), llm or ScriptedLlm(first_s=0), ToneTts(first_s=0, ms_per_char=1))
    async with (
        TwilioRestEmulator(ACCOUNT, TOKEN).serving() as rest,
        _services(folder, providers, rest.url, changes) as services,
    ):
        transport = httpx.ASGITransport(create_app(services))
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as http:
            yield Client(http, services)


def _services(
    folder: Path, providers: Providers, rest_url: str, changes: dict[str, Any]
) -> AbstractAsyncContextManager[Services]:
    ours = {"vad": "energy", "twilio_api_base": rest_url}
    return open_services(settings(folder, **(PRODUCTION | ours | changes)), providers)


@asynccontextmanager
async def live_call(client: Client, call_sid: str = SID) -> AsyncIterator[MemorySocket]:
    """A call in the middle of its greeting; over when the block is left."""
    services = client.services
    call = CallInfo(call_sid, ACCOUNT, CALLER, CALLEE, "ko", utc_now())
    spoken = asyncio.Event()
    socket = MemorySocket(lambda message: spoken.set())
    stream = MediaStream()
    wire = Wire(account_sid=ACCOUNT, call_sid=call_sid, stream_sid="MZ1", parameters={}, violations=[])
    for message in (wire.connected(), wire.start()):
        stream.receive(message, 0.0)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(
            services.switchboard.serve(services.new_session(call, cast(WebSocket, socket), stream))
        )
        async with asyncio.timeout(5):
            await spoken.wait()
        yield socket
        socket.leave()
        await serving
