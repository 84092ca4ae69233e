"""What our own recogniser and the detector of speech are given: the settings, as their options. For both programs."""

from collections.abc import Callable

from app.asr.engine import EngineOptions
from app.asr.models import ModelOptions
from app.asr.stream import StreamOptions
from app.audio.vad import EnergyDetector, SpeechDetector, load_silero
from app.config import Settings


def model_options(settings: Settings) -> ModelOptions:
    return ModelOptions(
        name=settings.model_name,
        device=settings.device,
        compute_type=settings.compute_type,
        development=settings.development,
        no_speech_threshold=settings.no_speech_threshold,
        encoder_window=settings.encoder_window,
        engine=EngineOptions(beam=settings.beam_size),
    )


def stream_options(settings: Settings) -> StreamOptions:
    return StreamOptions(
        partial_ms=settings.partial_flush_ms,
        window_s=settings.window_s,
        overlap_ms=settings.window_overlap_ms,
        condition_on_prev=settings.condition_on_prev,
        wait_ms=settings.final_flush_silence_ms,
    )


def detectors(settings: Settings) -> tuple[str, Callable[[], SpeechDetector]]:
    """What finds speech, in words, and how a call or a stream gets one."""
    if settings.vad == "energy":
        name = f"loudness, {settings.vad_frame_ms} ms frames (VAD=energy)"
        return name, lambda: EnergyDetector(settings.vad_frame_ms)
    model = load_silero()
    return f"{model.name}, {model.frame_ms} ms frames", model.detector
