"""Which concrete classes the settings mean. The only file that names them; everything else knows protocols.

`open_services` builds and opens everything once, at the start of the process, and closes it at the end.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog
from starlette.websockets import WebSocket

from app.asr.engine import EngineOptions
from app.asr.models import ModelOptions, ModelShelf
from app.audio.endpoint import Endpointer, EndpointOptions
from app.audio.vad import EnergyDetector, SpeechDetector, load_silero
from app.clock import utc_now
from app.config import Settings
from app.db.call_store import SqlCallStore
from app.db.engine import Database, open_database
from app.errors import LlmError
from app.metrics import Metrics
from app.services.ai_call.dialogue import LANGUAGES, Dialogue, Words
from app.services.ai_call.listening import Listener
from app.services.ai_call.local_stt import LocalStt, LocalSttOptions
from app.services.ai_call.phrases import PhraseBook, texts_of
from app.services.ai_call.ports import LanguageModel, SessionRegistry, SpeechToText, TextToSpeech
from app.services.ai_call.prompt import PromptBuilder
from app.services.ai_call.readiness import Readiness
from app.services.ai_call.recorder import Recorder
from app.services.ai_call.registry import InMemoryRegistry
from app.services.ai_call.session import CallSession, EventQueue, Participants
from app.services.ai_call.speaking import Speaker
from app.services.ai_call.switchboard import Switchboard
from app.services.ai_call.turns import TurnMachine, TurnRules
from app.services.ai_call.types import CallInfo
from app.telephony.media_stream import MediaStream
from app.telephony.twilio_line import LineOptions, TwilioLine
from app.telephony.twilio_rest import RestOptions, TwilioRest

log = structlog.get_logger(__name__)

PROBE_S = 1.5
"""How long a start in development waits for Ollama to answer."""
REST_BOUNDS = RestOptions(try_s=2.0, total_s=4.5)
"""Within the time that a call has to wind up."""


@dataclass(frozen=True, slots=True)
class InUse:
    """A row of the start table: what serves, why, and what to set for better."""

    name: str
    why: str
    better: str = ""


@dataclass(frozen=True, slots=True)
class Providers:
    """The outside services of a conversation, open. `rows` says which they are, for people."""

    stt: SpeechToText
    llm: LanguageModel
    tts: TextToSpeech
    rows: Callable[[], Mapping[str, InUse]] = dict


@dataclass(frozen=True, slots=True)
class Services:
    """All that the application is made of, open."""

    settings: Settings
    providers: Providers
    metrics: Metrics
    dialogue: Dialogue
    book: PhraseBook
    registry: SessionRegistry
    store: SqlCallStore
    switchboard: Switchboard
    readiness: Readiness
    vad_name: str
    new_detector: Callable[[], SpeechDetector]
    rest: TwilioRest | None
    token_secret: bytes

    @property
    def auth_tokens(self) -> tuple[str, ...]:
        """Twilio's auth tokens, two while rotating."""
        both = (self.settings.twilio_auth_token, self.settings.twilio_auth_token_secondary)
        return tuple(token for secret in both if (token := secret.get_secret_value()))

    @property
    def signatures_checked(self) -> bool:
        """Always in production; in development as soon as there is a token to check them with."""
        return bool(self.auth_tokens) or not self.settings.development

    def words(self, language: str) -> Words:
        """The bot's own words; Korean where the language of a call is not known yet."""
        return self.dialogue.words(language)

    def new_session(self, call: CallInfo, socket: WebSocket, stream: MediaStream) -> CallSession:
        """One call's participants, put together."""
        settings, metrics = self.settings, self.metrics
        events: EventQueue = asyncio.Queue()
        line = TwilioLine(
            socket,
            stream,
            LineOptions(lead_ms=settings.lead_ms),
            end_call=self._end_call(call.call_sid),
            on_drop=lambda ms: metrics.audio_dropped.labels("out").inc(ms),
        )
        stt = self.providers.stt
        listener = Listener(
            stt,
            self.new_detector(),
            Endpointer(EndpointOptions(silence_ms=settings.final_flush_silence_ms)),
            events.put_nowait,
            rate=line.rate,
            language=call.language,
            on_fault=lambda kind: metrics.provider_faults.labels("stt", kind).inc(),
        )
        speaker = Speaker(
            self.providers.llm,
            self.providers.tts,
            self.book,
            line,
            events.put_nowait,
            on_fault=lambda component, kind: metrics.provider_faults.labels(component, kind).inc(),
        )
        rules = TurnRules(
            barge_in=settings.barge_in,
            vendor_ends_turn=stt.hears == "everything",
            max_call_ms=settings.max_call_s * 1000,
        )
        system_prompts = {language: self.dialogue.words(language).system_prompt for language in LANGUAGES}
        return CallSession(
            call,
            Participants(
                events,
                line,
                listener,
                speaker,
                TurnMachine(rules),
                PromptBuilder(system_prompts, settings.context_turns, call.language),
                Recorder(self.store, call, metrics.store_faults.inc),
                metrics,
            ),
        )

    def _end_call(self, call_sid: str) -> Callable[[], Awaitable[None]]:
        async def end_call() -> None:
            if self.rest is not None:
                await self.rest.complete(call_sid)

        return end_call


@asynccontextmanager
async def open_services(settings: Settings, providers: Providers | None = None) -> AsyncIterator[Services]:
    """Everything the settings name, opened in order and closed in reverse. `providers` replaces the recogniser, the
    model and the voice that they name (for tests and benches). Raises ConfigError."""
    async with AsyncExitStack() as stack:
        database = await _open_database(settings, stack)
        background = await stack.enter_async_context(asyncio.TaskGroup())
        stack.callback(lambda: [task.cancel() for task in running])
        running: list[asyncio.Task[None]] = []
        dialogue = Dialogue.load()
        if providers is None:
            providers = await _open_providers(settings, dialogue, stack, background, running)
        vad_name, new_detector = _detectors(settings)
        metrics = Metrics()
        store = SqlCallStore(database)
        book = PhraseBook(on_fault=lambda component, kind: metrics.provider_faults.labels(component, kind).inc())
        readiness = Readiness(_checks(providers, database), needed=frozenset({"stt", "llm"}))
        switchboard = await stack.enter_async_context(Switchboard(settings.max_calls, metrics))
        services = Services(
            settings=settings,
            providers=providers,
            metrics=metrics,
            dialogue=dialogue,
            book=book,
            registry=InMemoryRegistry(asyncio.get_running_loop().time),
            store=store,
            switchboard=switchboard,
            readiness=readiness,
            vad_name=vad_name,
            new_detector=new_detector,
            rest=await _open_rest(settings, stack),
            token_secret=settings.media_token_secret.get_secret_value().encode() or secrets.token_bytes(32),
        )
        await store.close_orphans(utc_now())
        running.append(background.create_task(book.render(providers.tts, texts_of(dialogue))))
        await readiness.check()
        running.append(background.create_task(readiness.run()))
        yield services


async def _open_database(settings: Settings, stack: AsyncExitStack) -> Database:
    database = open_database(settings.database_url)
    stack.push_async_callback(database.aclose)
    await database.migrate()
    return database


async def _open_rest(settings: Settings, stack: AsyncExitStack) -> TwilioRest | None:
    """Without an account (development) a call ends with its stream."""
    token = settings.twilio_auth_token.get_secret_value()
    if not settings.twilio_account_sid or not token:
        return None
    rest = TwilioRest(settings.twilio_account_sid, token, settings.twilio_api_base, REST_BOUNDS)
    stack.push_async_callback(rest.aclose)
    return rest


def _detectors(settings: Settings) -> tuple[str, Callable[[], SpeechDetector]]:
    """What finds speech, in words, and how a call gets one."""
    if settings.vad == "energy":
        return f"loudness, {settings.vad_frame_ms} ms frames (VAD=energy)", lambda: EnergyDetector(
            settings.vad_frame_ms
        )
    model = load_silero()
    return f"{model.name}, {model.frame_ms} ms frames", model.detector


def _checks(providers: Providers, database: Database) -> dict[str, Callable[[], Awaitable[None]]]:
    checks: dict[str, Callable[[], Awaitable[None]]] = {"database": database.check}
    for component, provider in (("stt", providers.stt), ("llm", providers.llm), ("tts", providers.tts)):
        check = getattr(provider, "check", None)
        if check is not None:
            checks[component] = check
    return checks


# ---------------------------------------------------------------- the providers that the settings name


async def _open_providers(
    settings: Settings,
    dialogue: Dialogue,
    stack: AsyncExitStack,
    background: asyncio.TaskGroup,
    running: list[asyncio.Task[None]],
) -> Providers:
    shelf = await stack.enter_async_context(ModelShelf(_model_options(settings), lambda: utc_now().timestamp()))
    running.append(background.create_task(shelf.fetch()))
    llm, llm_row = await _open_llm(settings, dialogue, stack)
    tts, tts_row = await _open_tts(settings, stack)
    stt = LocalStt(shelf, LocalSttOptions(partial_ms=settings.partial_flush_ms))
    return Providers(stt, llm, tts, lambda: {"stt": _stt_row(shelf), "llm": llm_row, "tts": tts_row})


def _model_options(settings: Settings) -> ModelOptions:
    return ModelOptions(
        name=settings.model_name,
        device=settings.device,
        compute_type=settings.compute_type,
        development=settings.development,
        no_speech_threshold=settings.no_speech_threshold,
        engine=EngineOptions(beam=settings.beam_size),
    )


def _stt_row(shelf: ModelShelf) -> InUse:
    status = shelf.status
    name = f"local: faster-whisper, model {status.name}, {status.device}, {status.compute_type}"
    better = "MODEL_NAME=small, or a folder with a model" if status.demo else ""
    return InUse(name, status.note, better)


async def _open_llm(settings: Settings, dialogue: Dialogue, stack: AsyncExitStack) -> tuple[LanguageModel, InUse]:
    from app.services.ai_call.scripted_llm import ScriptedLlm

    if settings.llm_provider == "scripted":
        return ScriptedLlm(dialogue), InUse("scripted: a dialogue file, no model", "LLM_PROVIDER=scripted")
    from app.services.ai_call.ollama_llm import OllamaLlm, OllamaOptions

    llm = OllamaLlm(OllamaOptions(settings.llm_url, settings.llm_model, settings.num_predict, settings.temperature))
    stack.push_async_callback(llm.aclose)
    if settings.development:
        try:
            async with asyncio.timeout(PROBE_S):
                await llm.check()
        except (LlmError, TimeoutError) as error:
            why = str(error) or f"no answer from {settings.llm_url}"
            log.warning("- answering from the dialogue file: Ollama cannot be used", why=why)
            better = f"start Ollama, `ollama pull {settings.llm_model}`, and start again (LLM_URL, LLM_MODEL)"
            return ScriptedLlm(dialogue), InUse("scripted: a dialogue file, no model", why, better)
    return llm, InUse(f"ollama: {settings.llm_model} at {settings.llm_url}", "LLM_PROVIDER=ollama")


async def _open_tts(settings: Settings, stack: AsyncExitStack) -> tuple[TextToSpeech, InUse]:
    if settings.voice == "elevenlabs":
        from app.services.ai_call.elevenlabs_tts import ElevenLabsOptions, ElevenLabsTts

        voice = ElevenLabsTts(
            ElevenLabsOptions(
                api_key=settings.elevenlabs_api_key.get_secret_value(),
                voice_id=settings.elevenlabs_voice_id,
                model=settings.elevenlabs_model,
                base_url=settings.elevenlabs_base_url,
                max_connections=settings.max_calls,
            )
        )
        stack.push_async_callback(voice.aclose)
        return voice, InUse(f"elevenlabs: {settings.elevenlabs_model}", "there is an ELEVENLABS_API_KEY")
    from app.services.ai_call.espeak_tts import EspeakTts

    espeak = EspeakTts()
    stack.push_async_callback(espeak.aclose)
    await espeak.open()
    why = "TTS_PROVIDER=espeak" if settings.tts_provider else "there is no ELEVENLABS_API_KEY"
    return espeak, InUse("espeak: the keyless voice", why, "ELEVENLABS_API_KEY and ELEVENLABS_VOICE_ID")
