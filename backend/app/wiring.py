"""Which concrete classes the settings mean: this file and, for vendors, `providers.py`. All else knows protocols.

`open_services` builds and opens everything once, at the start of the process, and closes it at the end.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog
from starlette.websockets import WebSocket

from app.audio.endpoint import Endpointer, EndpointOptions
from app.audio.vad import SpeechDetector
from app.background import Background
from app.clock import utc_now
from app.config import Settings
from app.db.call_store import SqlCallStore
from app.db.choice_store import SqlChoiceStore
from app.db.engine import Database, open_database
from app.errors import ProviderError
from app.hearing import detectors
from app.metrics import Metrics
from app.providers import Providers, open_providers
from app.services.ai_call.completeness import EndpointWaits
from app.services.ai_call.dialogue import LANGUAGES, Dialogue, Words
from app.services.ai_call.in_use import InUse
from app.services.ai_call.listening import Listener
from app.services.ai_call.phrases import PhraseBook, Texts, texts_of
from app.services.ai_call.ports import Checkable, SessionRegistry, TextToSpeech
from app.services.ai_call.prompt import PromptBuilder
from app.services.ai_call.readiness import Readiness
from app.services.ai_call.recognition import Recognition, RecognitionOptions
from app.services.ai_call.recorder import Recorder
from app.services.ai_call.registry import InMemoryRegistry
from app.services.ai_call.session import CallSession, EventQueue, Participants
from app.services.ai_call.speaking import Speaker
from app.services.ai_call.succession import Succession
from app.services.ai_call.switchboard import Switchboard
from app.services.ai_call.turns import TurnMachine, TurnRules
from app.services.ai_call.types import CallInfo
from app.telephony.media_stream import MediaStream
from app.telephony.twilio_line import LineOptions, TwilioLine
from app.telephony.twilio_rest import RestOptions, TwilioRest

log = structlog.get_logger(__name__)

REST_BOUNDS = RestOptions(try_s=2.0, total_s=4.5)
"""Within the time that a call has to wind up."""


@dataclass(frozen=True, slots=True)
class Services:
    """All that the application is made of, open."""

    settings: Settings
    providers: Providers
    recognition: Recognition
    metrics: Metrics
    dialogue: Dialogue
    book: PhraseBook
    registry: SessionRegistry
    store: SqlCallStore
    switchboard: Switchboard
    readiness: Readiness
    vad_name: str
    new_detector: Callable[[], SpeechDetector]
    prepare: Callable[[], None]
    """A call rings: whatever it will need and is not ready yet is made ready now, behind it."""
    rest: TwilioRest | None
    token_secret: bytes

    @property
    def in_use(self) -> dict[str, InUse]:
        """The start table's rows."""
        rows = {"stt": self.recognition.row(), "llm": self.providers.llm_row, "tts": self.providers.tts_row}
        return {kind: row for kind, row in rows.items() if row is not None}

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
            on_drop=metrics.audio_dropped.labels("out").inc,
        )
        recognisers = Succession(
            self.recognition.for_call(call.callee),
            asyncio.get_running_loop().time,
            on_fault=lambda name, kind: metrics.recogniser_faults.labels(name, kind).inc(),
        )
        listener = Listener(
            recognisers,
            self.new_detector(),
            Endpointer(EndpointOptions(silence_ms=settings.final_flush_silence_ms)),
            events.put_nowait,
            rate=line.rate,
            language=call.language,
            waits=_waits(settings.final_flush_silence_ms),
            on_drop=metrics.audio_dropped.labels("in").inc,
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
            if self.rest is None:
                return
            try:
                await self.rest.complete(call_sid)
            except ProviderError as error:
                self.metrics.provider_faults.labels("twilio", error.kind).inc()
                log.warning("x call not ended by Twilio", kind=error.kind, error=str(error))

        return end_call


@asynccontextmanager
async def open_services(settings: Settings, providers: Providers | None = None) -> AsyncIterator[Services]:
    """Everything the settings name, opened in order and closed in reverse. `providers` replaces the recogniser, the
    model and the voice that they name (for tests and benches). Raises ConfigError."""
    async with AsyncExitStack() as stack:
        database = await _open_database(settings, stack)
        dialogue = Dialogue.load()
        # a stack of their own: a recogniser that is opened while running, too, is closed after calls and chores
        theirs = await stack.enter_async_context(AsyncExitStack())
        providers = providers or await open_providers(settings, dialogue, theirs)
        rest = _open_rest(settings, stack)
        vad_name, new_detector = detectors(settings)
        metrics = Metrics()
        background = await stack.enter_async_context(Background())
        recognition = _recognition(settings, providers, SqlChoiceStore(database), metrics, background)
        await recognition.open()
        switchboard = await stack.enter_async_context(Switchboard(settings.max_calls, metrics))
        book = PhraseBook(on_fault=lambda component, kind: metrics.provider_faults.labels(component, kind).inc())
        services = Services(
            settings=settings,
            providers=providers,
            recognition=recognition,
            metrics=metrics,
            dialogue=dialogue,
            book=book,
            registry=InMemoryRegistry(asyncio.get_running_loop().time),
            store=SqlCallStore(database),
            switchboard=switchboard,
            readiness=Readiness(_checks(providers, recognition, database), needed=frozenset({"stt", "llm"})),
            vad_name=vad_name,
            new_detector=new_detector,
            prepare=_preparation(book, providers.tts, texts_of(dialogue), background),
            rest=rest,
            token_secret=settings.media_token_secret.get_secret_value().encode() or secrets.token_bytes(32),
        )
        await services.store.close_orphans(utc_now())
        await services.readiness.check()
        services.prepare()
        for chore in (*providers.chores, recognition.run, services.readiness.run):
            background.start(chore())
        yield services


async def _open_database(settings: Settings, stack: AsyncExitStack) -> Database:
    database = open_database(settings.database_url)
    stack.push_async_callback(database.aclose)
    await database.migrate()
    return database


def _open_rest(settings: Settings, stack: AsyncExitStack) -> TwilioRest | None:
    """Without an account (development) a call ends with its stream."""
    token = settings.twilio_auth_token.get_secret_value()
    if not settings.twilio_account_sid or not token:
        return None
    rest = TwilioRest(settings.twilio_account_sid, token, settings.twilio_api_base, REST_BOUNDS)
    stack.push_async_callback(rest.aclose)
    return rest


def _preparation(book: PhraseBook, tts: TextToSpeech, texts: Texts, background: Background) -> Callable[[], None]:
    """Render the phrases that are still canned, one rendering at a time."""
    renderings: list[asyncio.Task[None]] = []

    def prepare() -> None:
        if not book.complete and all(task.done() for task in renderings):
            renderings[:] = [background.start(book.render(tts, texts))]

    return prepare


def _waits(silence_ms: int) -> EndpointWaits:
    """FINAL_FLUSH_SILENCE_MS is the middle one; where it is very long it is the longest, too."""
    return EndpointWaits(unknown_ms=silence_ms, most_ms=max(EndpointWaits().most_ms, silence_ms))


def _recognition(
    settings: Settings, providers: Providers, choices: SqlChoiceStore, metrics: Metrics, background: Background
) -> Recognition:
    return Recognition(
        providers.recognisers,
        RecognitionOptions(
            settings.stt_provider, settings.stt_fallback, settings.stt_provider_by_number, settings.lang_hint
        ),
        choices,
        now=asyncio.get_running_loop().time,
        utc_now=utc_now,
        start=background.start,
        on_final=lambda name, ms: metrics.final_seconds.labels(name).observe(ms / 1000),
    )


def _checks(
    providers: Providers, recognition: Recognition, database: Database
) -> dict[str, Callable[[], Awaitable[None]]]:
    checks: dict[str, Callable[[], Awaitable[None]]] = {"database": database.check, "stt": recognition.check}
    for component, provider in (("llm", providers.llm), ("tts", providers.tts)):
        if isinstance(provider, Checkable):
            checks[component] = provider.check
    return checks
