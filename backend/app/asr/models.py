"""Which model recognises: MODEL_NAME resolved, fetched, loaded, warmed, and exchanged while calls are running.

name          on disk                    not on disk, development          not on disk, production
demo          comes with the package
a folder      loaded                     the start fails                   the start fails
tiny …        loaded                     fetched before serving            fetched before serving
auto          loaded (medium on a        demo serves at once, `fetch`      fetched before serving
              GPU, small on a CPU)       brings the right one behind it

On a CPU the model is decoded in this process, by threads. On a GPU it has a process of its own (worker.py).
"""

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

import structlog

from app.asr import hub
from app.asr.device import Device, choose_device
from app.asr.engine import DecodeEngine, EngineOptions
from app.asr.hub_memory import HubMemory
from app.asr.recogniser import Recogniser, RecogniserOptions
from app.asr.worker import WorkerOptions, WorkerProcess
from app.errors import ConfigError, InvalidState, SttError

log = structlog.get_logger(__name__)

REPOSITORIES = {
    "tiny": "Systran/faster-whisper-tiny",
    "base": "Systran/faster-whisper-base",
    "small": "Systran/faster-whisper-small",
    "medium": "Systran/faster-whisper-medium",
    "large-v3": "Systran/faster-whisper-large-v3",
    "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
}
DEMO_FOLDER = Path(__file__).parent / "demo_model"
DEMO_NOTE = "the demo model knows 54 phrases and hears any other speech as one of them"
MAX_WORKERS = 8
GPU_WORKERS = 2  # so that one batch is encoded while another is decoded


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """`name`, `device`, `compute_type`, `encoder_window` are MODEL_NAME, DEVICE, COMPUTE_TYPE, ENCODER_WINDOW. `data`
    is a folder of ours, where a hub that could not be reached is remembered; `cache` the hub's, None for
    huggingface_hub's own."""

    name: str = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compute_type: str = "auto"
    development: bool = False
    no_speech_threshold: float = 0.6
    encoder_window: Literal["auto", "full"] = "auto"
    engine: EngineOptions = field(default_factory=EngineOptions)
    worker: WorkerOptions = field(default_factory=WorkerOptions)
    data: Path = Path("data")
    cache: Path | None = None
    limits: hub.HubLimits = field(default_factory=hub.HubLimits)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What people are shown. `progress` is 0..1 while `fetching` is on its way; `note` is a sentence, or empty.

    `encoder_window` is what `auto` came to: short windows on a CPU, `full` on a GPU. `restarts` counts how often the
    model's own process had to be started again."""

    name: str
    demo: bool
    device: str
    compute_type: str
    encoder_window: Literal["auto", "full"] = "auto"
    restarts: int = 0
    fetching: str | None = None
    progress: float | None = None
    note: str = ""


@dataclass(eq=False, slots=True)
class _Served:
    decoder: Recogniser | WorkerProcess
    engine: DecodeEngine
    status: ModelStatus
    users: int = 0

    async def aclose(self) -> None:
        await self.engine.aclose()
        if isinstance(self.decoder, WorkerProcess):
            await asyncio.to_thread(self.decoder.close)


class ModelShelf:
    """Holds the engine that new calls get. A call that began with another one keeps it; that one is closed when its
    last call gives it back. `clock` is seconds since the epoch."""

    def __init__(self, options: ModelOptions, clock: Callable[[], float]) -> None:
        self._options = options
        self._memory = HubMemory(options.data / "model-hub.json", clock)
        self._current: _Served | None = None
        self._retired: list[_Served] = []
        self._wanted: tuple[str, Device] | None = None  # what `fetch` is to bring, and where it will run

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # ------------------------------------------------------------ what is served

    @property
    def loaded(self) -> bool:
        return self._current is not None

    @property
    def status(self) -> ModelStatus:
        served = self._served()
        if isinstance(served.decoder, WorkerProcess):
            return replace(served.status, restarts=served.decoder.restarts)
        return served.status

    @property
    def trouble(self) -> str:
        """Why a new call would not be heard now, in words; empty if it would."""
        if self._current is None:
            return "no model is loaded"
        decoder = self._current.decoder
        if isinstance(decoder, WorkerProcess) and decoder.trouble:
            return f"the recogniser cannot decode: {decoder.trouble}"
        return "the recogniser is stuck in a decode" if self._current.engine.stuck else ""

    @property
    def engine(self) -> DecodeEngine:
        """The engine of now, to look at; `borrow` it to work with it."""
        return self._served().engine

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[DecodeEngine]:
        served = self._served()
        served.users += 1
        try:
            yield served.engine
        finally:
            served.users -= 1
            await self._close_unused()

    def _served(self) -> _Served:
        if self._current is None:
            raise InvalidState("no model is loaded: open() comes first")
        return self._current

    # ------------------------------------------------------------ life

    async def open(self) -> None:
        """Load and warm the model to begin with. Raises ConfigError naming the setting that is in the way."""
        options = self._options
        device = await asyncio.to_thread(choose_device, options.device, options.compute_type)
        name = options.name
        if name == "auto":
            name = "medium" if device.name == "cuda" else "small"
        if name == "demo":
            return await self._serve_demo(device if options.device != "auto" else None)
        if name not in REPOSITORIES:
            folder = await asyncio.to_thread(_own_folder, name)
            return self._serve(await self._load(folder.name, folder, device))
        cached = await asyncio.to_thread(hub.find_cached, REPOSITORIES[name], options.cache)
        if options.development and options.name == "auto":
            return await self._serve_at_once(name, cached, device)
        self._serve(await self._load(name, cached or await self._fetch_or_fail(name), device))

    async def aclose(self) -> None:
        served = [*self._retired, *([self._current] if self._current else [])]
        self._current, self._retired = None, []
        for one in served:
            await one.aclose()

    async def fetch(self) -> None:
        """Bring the model that is wanted, if any, and give it to new calls; for a task of the application. What goes
        wrong is told in the log and in `status.note`, never raised; cancelling ends the download."""
        if self._wanted is None:
            return
        (name, device), self._wanted = self._wanted, None
        try:
            folder = await self._download(name)
            self._serve(await self._load(name, folder, device))
        except SttError as error:
            if error.kind in ("unreachable", "stalled", "missing"):
                self._memory.note(name, str(error))
            log.warning("x model not fetched", model=name, reason=str(error), serving=self.status.name)
            self._tell(fetching=None, progress=None, note=_sentence(DEMO_NOTE, f"{name} was not fetched: {error}"))
        except ConfigError as error:
            log.warning("x model not loaded", model=name, reason=str(error), serving=self.status.name)
            self._tell(fetching=None, progress=None, note=_sentence(DEMO_NOTE, str(error)))
        except (OSError, ValueError, LookupError) as error:  # no process to be had, an answer of nonsense
            log.warning("x model not fetched", model=name, reason=repr(error), serving=self.status.name)
            note = _sentence(DEMO_NOTE, f"{name} was not fetched ({type(error).__name__})")
            self._tell(fetching=None, progress=None, note=note)
        else:
            self._memory.forget()
            await self._close_unused()

    # ------------------------------------------------------------ loading

    async def _serve_at_once(self, name: str, cached: Path | None, device: Device) -> None:
        """The right model where it is at hand, else the demo model; in development nothing is waited for."""
        if cached is not None:
            try:
                return self._serve(await self._load(name, cached, device))
            except ConfigError as error:
                log.warning("x model not loaded", model=name, reason=str(error), serving="demo")
                await self._serve_demo()
                return self._tell(note=_sentence(DEMO_NOTE, str(error)))
        await self._serve_demo()
        reason = await asyncio.to_thread(self._memory.recall, name)
        if reason is None:
            self._wanted = (name, device)
            plan = f"{name} is being fetched and serves new calls as soon as it is warm"
            return self._tell(fetching=name, progress=0.0, note=_sentence(DEMO_NOTE, device.note, plan))
        plan = (
            f"{name} is not fetched: less than a day ago {reason}; "
            f"to try again now, delete {self._memory.file} and start again, or start with MODEL_NAME={name}"
        )
        self._tell(note=_sentence(DEMO_NOTE, device.note, plan))

    async def _serve_demo(self, device: Device | None = None) -> None:
        # a GPU would take longer to start than such a small model to decode, so it is used only when named
        if device is None:
            device = await asyncio.to_thread(choose_device, "cpu", "auto")
        self._serve(await self._load("demo", DEMO_FOLDER, device))
        self._tell(demo=True, note=DEMO_NOTE)

    async def _load(self, name: str, folder: Path, device: Device) -> _Served:
        options = RecogniserOptions(
            no_speech_threshold=self._options.no_speech_threshold,
            encoder_window=self._options.encoder_window,
        )
        window: Literal["auto", "full"] = "full" if device.name == "cuda" else options.encoder_window
        status = ModelStatus(name, False, device.name, device.compute_type, window, note=device.note)
        decoder, decode_ms = await asyncio.to_thread(self._load_blocking, name, folder, device, options)
        served = _Served(decoder, DecodeEngine(decoder, self._options.engine, expected_ms=decode_ms), status)
        served.engine.start()
        return served

    def _load_blocking(
        self, name: str, folder: Path, device: Device, options: RecogniserOptions
    ) -> tuple[Recogniser | WorkerProcess, float]:
        decoder: Recogniser | WorkerProcess
        where = (folder, name, device.name, device.compute_type)
        if device.name == "cuda":
            decoder = WorkerProcess.load(*where, workers=GPU_WORKERS, options=options, limits=self._options.worker)
        else:
            decoder = Recogniser.load(*where, workers=min(MAX_WORKERS, _cores()), options=options)
        decode_ms = decoder.warm_up()
        log.info(
            "- model loaded",
            model=name,
            device=device.name,
            compute_type=device.compute_type,
            workers=decoder.workers,
            decode_ms=round(decode_ms),
        )
        return decoder, decode_ms

    def _serve(self, served: _Served) -> None:
        if self._current is not None:
            self._retired.append(self._current)
        self._current = served

    async def _close_unused(self) -> None:
        unused = [served for served in self._retired if not served.users]
        self._retired = [served for served in self._retired if served.users]
        for served in unused:
            await served.aclose()

    def _tell(self, **changes: object) -> None:
        served = self._served()
        served.status = replace(served.status, **changes)  # type: ignore[arg-type]

    # ------------------------------------------------------------ fetching

    async def _fetch_or_fail(self, name: str) -> Path:
        try:
            return await self._download(name)
        except SttError as error:
            raise ConfigError(
                f"MODEL_NAME: {name} is not on this machine and could not be fetched: {error}; "
                "check the network and HF_ENDPOINT, or set MODEL_NAME to the folder of a model"
            ) from error

    async def _download(self, name: str) -> Path:
        log.info("- model download started", model=name, repository=REPOSITORIES[name])
        progress = functools.partial(self._progress, name, [-1])
        folder = await hub.download(REPOSITORIES[name], self._options.cache, progress, self._options.limits)
        log.info("- model download finished", model=name)
        return folder

    def _progress(self, name: str, logged: list[int], done: int, total: int) -> None:
        share = done / total if total else 0.0
        if self._current is not None:
            self._tell(progress=share)
        if int(share * 10) > logged[0]:
            logged[0] = int(share * 10)
            megabytes = f"{done / 1e6:.1f}/{total / 1e6:.1f}"
            log.info("- model download", model=name, percent=round(share * 100), megabytes=megabytes)


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _own_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"MODEL_NAME: neither a folder nor one of auto, demo, {', '.join(REPOSITORIES)}; see env.example"
        )
    return folder


def _sentence(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
