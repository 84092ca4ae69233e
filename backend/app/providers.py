"""The recognisers, models and voices that there are: each opened by one function, all on this page.

A vendor's module is imported inside its function, so that one that is not used costs nothing at the start. A new
provider is one file of its own and a few lines here (docs/add-a-provider.md).
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Self

import structlog

from app.asr.models import ModelShelf
from app.clock import utc_now
from app.config import Settings, SttName
from app.errors import ConfigError, LlmError, TtsError
from app.hearing import model_options, stream_options
from app.services.ai_call.dialogue import LANGUAGES, Dialogue
from app.services.ai_call.google_client import GoogleOptions, verify
from app.services.ai_call.in_use import InUse
from app.services.ai_call.ports import LanguageModel, SpeechToText, TextToSpeech
from app.services.ai_call.recognition import Offer, Opened, Work

log = structlog.get_logger(__name__)

PROBE_S = 1.5
"""How long a start in development waits for Ollama to answer."""


@dataclass(frozen=True, slots=True)
class Providers:
    """The outside services of a conversation: the recognisers that there could be, a model and a voice, open. `llm_row`
    and `tts_row` say which they are, for people; `chores` is work of theirs that goes on behind the first calls."""

    recognisers: Sequence[Offer]
    llm: LanguageModel
    tts: TextToSpeech
    llm_row: InUse | None = None
    tts_row: InUse | None = None
    chores: Sequence[Work] = ()

    @classmethod
    def of(cls, stt: SpeechToText, llm: LanguageModel, tts: TextToSpeech) -> Self:
        """These three, whatever the settings name."""

        async def opened() -> Opened:
            return Opened(stt, lambda: InUse(stt.name, ""))

        return cls([Offer(name, (), opened) for name in RECOGNISERS], llm, tts)


async def open_providers(settings: Settings, dialogue: Dialogue, stack: AsyncExitStack) -> Providers:
    """Raises ConfigError. `stack` closes them, and the recognisers that are opened later."""
    llm, llm_row = await MODELS[settings.llm_provider](settings, dialogue, stack)
    tts, tts_row = await VOICES[settings.voice](settings, stack)
    return Providers(recognisers(settings, stack), llm, tts, llm_row, tts_row, chores=(lambda: _warm_up(llm),))


def recognisers(settings: Settings, stack: AsyncExitStack) -> list[Offer]:
    """All that there are, none of them open."""
    return [
        Offer(name, settings.missing(name), functools.partial(opener, settings, stack))
        for name, opener in RECOGNISERS.items()
    ]


async def _warm_up(llm: LanguageModel) -> None:
    """Have the model loaded before the first caller waits for it. Where that fails, readiness says why."""
    warm_up = getattr(llm, "warm_up", None)
    if warm_up is not None:
        try:
            await warm_up()
        except LlmError as error:
            log.warning("x model not warmed", provider=error.provider, kind=error.kind, error=str(error))


# ---------------------------------------------------------------- recognisers


async def _open_local(settings: Settings, stack: AsyncExitStack) -> Opened:
    from app.services.ai_call.local_stt import LocalStt

    shelf = await stack.enter_async_context(ModelShelf(model_options(settings), lambda: utc_now().timestamp()))

    def row() -> InUse:
        status = shelf.status  # it changes while a better model is fetched
        name = f"local: faster-whisper, model {status.name}, {status.device}, {status.compute_type}"
        return InUse(name, status.note, "MODEL_NAME=small, or a folder with a model" if status.demo else "")

    def figures() -> dict[str, float]:
        engine = shelf.engine
        return {
            "decodes": engine.decodes,
            "batches": engine.batches,
            "redecodes": engine.redecodes,
            "refused": engine.refused,
            "queued": engine.queue_depth,
        }

    return Opened(LocalStt(shelf, stream_options(settings)), row, shelf.fetch, figures)


async def _open_remote(settings: Settings, stack: AsyncExitStack) -> Opened:
    from app.services.ai_call.remote_stt import RemoteOptions, RemoteStt

    options = RemoteOptions(settings.asr_url, settings.asr_api_key.get_secret_value())
    if settings.stt_fallback:  # a successor is there at once, a service that is starting is not
        options = replace(options, patience_s=0.0)
    return _opened(RemoteStt(options), f"remote: our recogniser at {settings.asr_url}")


async def _open_rtzr(settings: Settings, stack: AsyncExitStack) -> Opened:
    from app.services.ai_call.rtzr_stt_realtime import RtzrStt
    from app.services.ai_call.rtzr_stt_service import RtzrOptions, RtzrSttService, parse_keywords

    service = RtzrSttService(
        RtzrOptions(
            client_id=settings.rtzr_client_id,
            client_secret=settings.rtzr_client_secret.get_secret_value(),
            api_base=settings.rtzr_api_base,
            keywords=parse_keywords(settings.rtzr_keywords),
            epd_s=settings.rtzr_epd_time,
        )
    )
    stack.push_async_callback(service.aclose)
    return _opened(RtzrStt(service), "rtzr: RTZR streaming")


async def _open_google(settings: Settings, stack: AsyncExitStack) -> Opened:
    from app.services.ai_call.google_stt import GoogleStt

    await verify(google_options(settings))
    stt = GoogleStt(google_options(settings))
    stack.push_async_callback(stt.aclose)
    return _opened(stt, "google: Google streaming")


async def _open_legacy(settings: Settings, stack: AsyncExitStack) -> Opened:
    from app.services.ai_call.audio_processor import LegacyStt
    from app.services.ai_call.stt_service import BatchTranscriber, GoogleBatch, OpenAiBatch, OpenAiOptions, STTService

    batch: BatchTranscriber
    if settings.stt_batch_provider == "openai":
        key = settings.openai_api_key.get_secret_value()
        batch = OpenAiBatch(OpenAiOptions(key, settings.openai_base_url, settings.openai_stt_model))
    else:
        await verify(google_options(settings))
        batch = GoogleBatch(google_options(settings))
    service = STTService(batch)
    stack.push_async_callback(service.aclose)
    return _opened(LegacyStt(service), f"legacy: half a second of silence, then one request to {batch.name}")


def _opened(stt: SpeechToText, name: str) -> Opened:
    return Opened(stt, lambda: InUse(name, f"STT_PROVIDER={stt.name}"))


def google_options(settings: Settings) -> GoogleOptions:
    return GoogleOptions(
        settings.google_application_credentials, settings.google_speech_endpoint, settings.google_speech_model
    )


# ---------------------------------------------------------------- models


async def _open_scripted(
    settings: Settings, dialogue: Dialogue, stack: AsyncExitStack, why: str = "LLM_PROVIDER=scripted", better: str = ""
) -> tuple[LanguageModel, InUse]:
    from app.services.ai_call.scripted_llm import ScriptedLlm

    return ScriptedLlm(dialogue), InUse("scripted: a dialogue file, no model", why, better)


async def _open_ollama(settings: Settings, dialogue: Dialogue, stack: AsyncExitStack) -> tuple[LanguageModel, InUse]:
    """In development the dialogue file answers where Ollama cannot be used; in production readiness waits for it."""
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
            return await _open_scripted(settings, dialogue, stack, why, better)
    return llm, InUse(f"ollama: {settings.llm_model} at {settings.llm_url}", "LLM_PROVIDER=ollama")


# ---------------------------------------------------------------- voices


async def _open_elevenlabs(settings: Settings, stack: AsyncExitStack) -> tuple[TextToSpeech, InUse]:
    from app.services.ai_call.elevenlabs_tts import ElevenLabsOptions, ElevenLabsTts

    voice = ElevenLabsTts(
        ElevenLabsOptions(
            api_key=settings.elevenlabs_api_key.get_secret_value(),
            voice_id=settings.elevenlabs_voice_id,
            model=settings.elevenlabs_model,
            base_url=settings.elevenlabs_base_url,
            language=_language(settings),
            max_connections=settings.max_calls,
        )
    )
    stack.push_async_callback(voice.aclose)
    why = "TTS_PROVIDER=elevenlabs" if settings.tts_provider else "there is an ELEVENLABS_API_KEY"
    return voice, InUse(f"elevenlabs: {settings.elevenlabs_model}", why)


async def _open_espeak(settings: Settings, stack: AsyncExitStack) -> tuple[TextToSpeech, InUse]:
    from app.services.ai_call.espeak_tts import EspeakTts

    voice = EspeakTts(_language(settings))
    stack.push_async_callback(voice.aclose)
    try:
        await voice.open()
    except TtsError as error:
        raise ConfigError(f"TTS_PROVIDER: espeak cannot speak: {error}") from error
    why = "TTS_PROVIDER=espeak" if settings.tts_provider else "there is no ELEVENLABS_API_KEY"
    return voice, InUse("espeak: the keyless voice", why, "ELEVENLABS_API_KEY and ELEVENLABS_VOICE_ID")


def _language(settings: Settings) -> str:
    """Of a text that does not show its own."""
    return settings.lang_hint if settings.lang_hint in LANGUAGES else LANGUAGES[0]


RECOGNISERS: Mapping[SttName, Callable[[Settings, AsyncExitStack], Awaitable[Opened]]] = {
    "local": _open_local,
    "remote": _open_remote,
    "rtzr": _open_rtzr,
    "google": _open_google,
    "legacy": _open_legacy,
}
MODELS = {"ollama": _open_ollama, "scripted": _open_scripted}
VOICES = {"elevenlabs": _open_elevenlabs, "espeak": _open_espeak}
"""By the names that STT_PROVIDER, LLM_PROVIDER and TTS_PROVIDER take."""
