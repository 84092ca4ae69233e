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
from app.errors import LlmError
from app.services.ai_call.dialogue import Dialogue
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


@dataclass(frozen=True, slots=True)
class Providers:
    """The outside services of a conversation, open. `rows` says which they are, for people; `chores` is work of
    theirs that goes on behind the first calls."""

    stt: SpeechToText
    llm: LanguageModel
    tts: TextToSpeech
    rows: Callable[[], Mapping[str, InUse]] = dict
    chores: Sequence[Callable[[], Coroutine[Any, Any, None]]] = ()


async def open_providers(settings: Settings, dialogue: Dialogue, stack: AsyncExitStack) -> Providers:
    shelf = await stack.enter_async_context(ModelShelf(_model_options(settings), lambda: utc_now().timestamp()))
    llm, llm_row = await _open_llm(settings, dialogue, stack)
    tts, tts_row = await _open_tts(settings, stack)
    stt = LocalStt(shelf, LocalSttOptions(partial_ms=settings.partial_flush_ms))
    return Providers(
        stt,
        llm,
        tts,
        rows=lambda: {"stt": _stt_row(shelf), "llm": llm_row, "tts": tts_row},
        chores=(shelf.fetch, lambda: _warm_up(llm)),
    )


async def _warm_up(llm: LanguageModel) -> None:
    """Have the model loaded before the first caller waits for it. Where that fails, readiness says why."""
    warm_up = getattr(llm, "warm_up", None)
    if warm_up is not None:
        try:
            await warm_up()
        except LlmError as error:
            log.warning("x model not warmed", provider=error.provider, kind=error.kind, error=str(error))


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
