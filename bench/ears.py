"""What a server's endpointing decided, found by running the same detector over the audio that the caller sent.

A detector is a function of the audio alone, so this is what the server decided, and when it could have: no clock of
the server's is asked, and time that audio waited in a socket or a queue is not forgiven."""

from typing import Literal

from app.audio import g711
from app.audio.endpoint import Endpointer, EndpointOptions, SpeechStarted, SpeechStopped
from app.audio.vad import SileroModel, load_silero
from bench.figures import Decision, Decisions
from bench.floor import END_FRAMES, START_FRAMES, Ear
from bench.task import END_SILENCE_MS, FRAME_BYTES, FRAME_MS

EarName = Literal["silero", "loudness"]


class Ears:
    def __init__(self, name: EarName) -> None:
        self._model: SileroModel | None = load_silero() if name == "silero" else None

    def decisions(self, mulaw: bytes) -> Decisions:
        return _loudness(mulaw) if self._model is None else _silero(self._model, mulaw)


def _silero(model: SileroModel, mulaw: bytes) -> Decisions:
    detector, endpointer = model.detector(), Endpointer(EndpointOptions(silence_ms=END_SILENCE_MS))
    pcm = g711.decode(mulaw)
    begins, ends = [], []
    for at in range(0, len(pcm) - detector.frame_bytes + 1, detector.frame_bytes):
        probability = detector.probability(pcm[at : at + detector.frame_bytes])
        for event in endpointer.process(probability, detector.frame_ms):
            if isinstance(event, SpeechStarted):
                begins.append(Decision(endpointer.media_ms, event.at_ms))
            elif isinstance(event, SpeechStopped):
                ends.append(Decision(endpointer.media_ms, event.at_ms))
    return Decisions(begins, ends)


def _loudness(mulaw: bytes) -> Decisions:
    ear = Ear()
    begins, ends = [], []
    for frame in range(len(mulaw) // FRAME_BYTES):
        heard_ms = (frame + 1) * FRAME_MS
        match ear.hear(mulaw[frame * FRAME_BYTES : (frame + 1) * FRAME_BYTES]):
            case "started":
                begins.append(Decision(heard_ms, heard_ms - START_FRAMES * FRAME_MS))
            case "stopped":
                ends.append(Decision(heard_ms, heard_ms - END_FRAMES * FRAME_MS))
    return Decisions(begins, ends)
