"""The second program: the recogniser as a service. Settings, a model, the server, and a drain.

On the first signal no new request is taken; streams and uploads that are under way may end by themselves, for DRAIN_S
at most. A second signal does not wait.
"""

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from app.asr.live import LiveLimits
from app.asr.models import ModelShelf
from app.asr.server import AsrOptions, AsrService, create_app
from app.audio.endpoint import EndpointOptions
from app.background import Background
from app.clock import utc_now
from app.config import Settings
from app.hearing import detectors, model_options, stream_options
from app.serving import listen, run, uvicorn_config

log = structlog.get_logger(__name__)


GRACE_S = 3
"""For requests that were told to end to say their last words."""


class AsrServer(uvicorn.Server):
    """uvicorn, whose own shutdown waits for requests to end. `on_serving` is called once, when they can be
    answered."""

    def __init__(self, app: FastAPI, drain_s: int, on_serving: Callable[[], None] = lambda: None) -> None:
        super().__init__(uvicorn_config(app, drain_s + 2 * GRACE_S))
        self._app = app
        self._drain_s = drain_s
        self._on_serving = on_serving

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_serving()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.started:
            super().handle_exit(sig, frame)
        elif self.should_exit:
            asyncio.get_running_loop().call_soon_threadsafe(self._leave)
        else:
            self.should_exit = True
            log.info("- draining", requests=len(self.server_state.tasks), at_most_s=self._drain_s)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        timer = asyncio.get_running_loop().call_later(self._drain_s, self._leave)
        await super().shutdown(sockets)
        timer.cancel()

    def _leave(self) -> None:
        if isinstance(service := getattr(self._app.state, "service", None), AsrService):
            service.end_all()
        asyncio.get_running_loop().call_later(GRACE_S, self._force)

    def _force(self) -> None:
        self.force_exit = True


def serve_asr(settings: Settings, on_serving: Callable[[ModelShelf], None] = lambda shelf: None) -> None:
    """Serve until told to stop. Raises ConfigError when the settings, the port or a model stand in the way."""

    async def process(listener: socket.socket) -> None:
        async with ModelShelf(model_options(settings), lambda: utc_now().timestamp()) as shelf:
            _, new_detector = detectors(settings)
            app = create_app(shelf, new_detector, asr_options(settings))
            async with Background() as background:
                background.start(shelf.fetch())
                await AsrServer(app, settings.drain_s, lambda: on_serving(shelf)).serve(sockets=[listener])

    with listen(settings.host, settings.asr_port, "ASR_PORT") as listener:
        run(process(listener))


def asr_options(settings: Settings) -> AsrOptions:
    return AsrOptions(
        api_key=settings.asr_api_key.get_secret_value(),
        language=settings.lang_hint,
        endpoint=EndpointOptions(silence_ms=settings.final_flush_silence_ms),
        stream=stream_options(settings),
        live=LiveLimits(streams=settings.max_calls),
    )


def start_lines(settings: Settings, shelf: ModelShelf) -> str:
    """What a person sees when it is up."""
    status = shelf.status
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    key = ' -H "Authorization: Bearer $ASR_API_KEY"' if settings.asr_api_key.get_secret_value() else ""
    lines = [
        "",
        f"  Malgil's recogniser listens on {settings.host} port {settings.asr_port}  ({settings.app_env})",
        "",
        f"  model       {status.name}, {status.device}, {status.compute_type}",
    ]
    if status.note:
        lines.append(f"              {status.note}")
    lines += [
        "",
        f"  Ask it:     curl{key} --data-binary @speech.wav http://{host}:{settings.asr_port}/transcribe-sync",
        "  Streaming and all else: docs/asr-service.md.",
        "",
    ]
    return "\n".join(lines)


def start_record(settings: Settings, shelf: ModelShelf) -> None:
    """The same for a collector of JSON logs."""
    status = shelf.status
    log.info(
        "- recogniser serving",
        host=settings.host,
        port=settings.asr_port,
        model=status.name,
        device=status.device,
        compute_type=status.compute_type,
        note=status.note,
    )
