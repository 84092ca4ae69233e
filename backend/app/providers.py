"""The recogniser, the model and the voice that the settings name: each opened by one function, all on this page.

A vendor's module is imported inside its function, so that one that is not used costs nothing at the start. A new
provider is one file of its own and a few lines here (docs/add-a-provider.md).
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import structlog

from app.asr.engine import EngineOptions
from app.asr.models import ModelOptions, ModelShelf
from app.clock import utc_now
from app.config import Settings
from app.errors import ConfigError, LlmError, TtsError
from app.services.ai_call.dialogue import LANGUAGES, Dialogue
from app.services.ai_call.local_stt import LocalStt, LocalSttOptions
from app.services.ai_call.ports import LanguageModel, SpeechToText, TextToSpeech

log = structlog.get_logger(__name__)

PROBE_S = 1.5
"""How long a start in development waits for Ollama to answer."""


@dataclass(frozen=True, slots=True)
class InUse:
    """A row of the start table: what serves, why, and what to set for better."""

    name: str
    why: str
    better: str = ""


Row = Callable[[], InUse]
Chore = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Providers:
    """The outside services of a conversation, open. `rows` says which they are, for people; `chores` is work of
    theirs that goes on behind the first calls."""

    stt: SpeechToText
    llm: LanguageModel
    tts: TextToSpeech
    rows: Callable[[], Mapping[str, InUse]] = dict
    chores: Sequence[Chore] = ()


async def open_providers(settings: Settings, dialogue: Dialogue, stack: AsyncExitStack) -> Providers:
    """Raises ConfigError. `stack` closes them."""
    stt, stt_row, stt_chore = await RECOGNISERS[settings.stt_provider](settings, stack)
    llm, llm_row = await MODELS[settings.llm_provider](settings, dialogue, stack)
    tts, tts_row = await VOICES[settings.voice](settings, stack)
    return Providers(
        stt,
        llm,
        tts,
        rows=lambda: {"stt": stt_row(), "llm": llm_row, "tts": tts_row},
        chores=(stt_chore, lambda: _warm_up(llm)),
    )


async def _warm_up(llm: LanguageModel) -> None:
    """Have the model loaded before the first caller waits for it. Where that fails, readiness says why."""
    warm_up = getattr(llm, "warm_up", None)
    if warm_up is not None:
        try:
            await warm_up()
        except LlmError as error:
            log.warning("x model not warmed", provider=error.provider, kind=error.kind, error=str(error))


# ---------------------------------------------------------------- recognisers


async def _open_local(settings: Settings, stack: AsyncExitStack) -> tuple[SpeechToText, Row, Chore]:
    options = ModelOptions(
        name=settings.model_name,
        device=settings.device,
        compute_type=settings.compute_type,
        development=settings.development,
        no_speech_threshold=settings.no_speech_threshold,
        engine=EngineOptions(beam=settings.beam_size),
    )
    shelf = await stack.enter_async_context(ModelShelf(options, lambda: utc_now().timestamp()))
    stt = LocalStt(shelf, LocalSttOptions(partial_ms=settings.partial_flush_ms))

    def row() -> InUse:
        status = shelf.status  # it changes while a better model is fetched
        name = f"local: faster-whisper, model {status.name}, {status.device}, {status.compute_type}"
        return InUse(name, status.note, "MODEL_NAME=small, or a folder with a model" if status.demo else "")

    return stt, row, shelf.fetch


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


RECOGNISERS = {"local": _open_local}
MODELS = {"ollama": _open_ollama, "scripted": _open_scripted}
VOICES = {"elevenlabs": _open_elevenlabs, "espeak": _open_espeak}
"""By the names that STT_PROVIDER, LLM_PROVIDER and TTS_PROVIDER take."""
