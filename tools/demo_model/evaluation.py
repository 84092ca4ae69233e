"""How well a model folder does, through the unmodified faster_whisper; and the sample calls of the tests."""

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer

from tools.demo_model.corpus import HELD_OUT, TRAINING, Studio
from tools.demo_model.espeak import Espeak, Signal
from tools.demo_model.phrases import Phrase
from tools.demo_model.telephone import (
    RATE,
    Line,
    NoiseSource,
    amplitude,
    band_limited,
    heard,
    seconds_of,
    silence,
    to_mulaw,
    two_tones,
)

GREEDY = {
    "beam_size": 1,
    "without_timestamps": True,
    "temperature": 0,
    "condition_on_previous_text": False,
}

OTHER_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    # A length penalty other than 0 lets beam search end with two junk early endings: 75 % instead of 99.5 %.
    "beam 2, length_penalty 0": {**GREEDY, "beam_size": 2, "length_penalty": 0},
    "beam 2, length_penalty 1": {**GREEDY, "beam_size": 2},
    "faster-whisper's defaults": {},
    "language detected": {**GREEDY, "language": None},
    "vad_filter": {**GREEDY, "vad_filter": True},
    "initial_prompt": {**GREEDY, "initial_prompt": "안녕하세요. 예약하고 싶어요."},
}


@dataclass(frozen=True, slots=True)
class Heard:
    """A call at 16 kHz and the phrase that is spoken in it."""

    audio: Signal
    phrase: Phrase
    voice: str


class Recogniser:
    """The model folder behind faster_whisper's own two doors: `transcribe` and `model.generate`."""

    def __init__(self, folder: Path) -> None:
        self._model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)

    def transcribe(self, audio: Signal, language: str, settings: Mapping[str, Any] = GREEDY) -> str:
        segments, _ = self._model.transcribe(audio, **{"language": language, **settings})
        return " ".join(segment.text.strip() for segment in segments)

    def transcribe_short(self, audio: Signal, language: str) -> str:
        """Greedy, over the audio and half a second, not over 30 s: what a telephone turn should cost."""
        tokenizer = Tokenizer(self._model.hf_tokenizer, True, task="transcribe", language=language)
        features = self._model.feature_extractor(audio)
        frames = min(3000, features.shape[1] + 50)
        window = np.zeros((1, features.shape[0], frames + frames % 2), np.float32)
        window[0, :, : min(frames, features.shape[1])] = features[:, :frames]
        prompt = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
        result = self._model.model.generate(
            ctranslate2.StorageView.from_array(window), [prompt], beam_size=1, max_length=120
        )
        text: str = tokenizer.decode(result[0].sequences_ids[0])
        return text.strip()


class Examiner:
    """Draws calls that the model has not heard, and counts."""

    def __init__(self, folder: Path, espeak: Espeak, phrases: Sequence[Phrase], seed: int = 4242) -> None:
        self._recogniser = Recogniser(folder)
        self._rng = np.random.default_rng(seed)
        self._phrases = phrases
        self._studio = Studio(espeak, self._rng)
        self._noise = NoiseSource(self._rng)
        for phrase in phrases[:30]:
            self._noise.overhear(self._studio.speak(phrase, TRAINING).samples)
        self._line = Line(self._rng, self._noise, worst_snr=12)

    def run(self, per_phrase: int, *, thorough: bool) -> None:
        calls = self.draw(HELD_OUT, per_phrase)
        self.examine("held-out voices, greedy, 30 s window", calls, self._recogniser.transcribe, show=8)
        self.examine("held-out voices, greedy, short window", calls, self._recogniser.transcribe_short)
        if thorough:
            self.examine("training voices", self.draw(TRAINING, per_phrase), self._recogniser.transcribe)
            for name, settings in OTHER_SETTINGS.items():
                self.examine(f"held-out voices, {name}", calls, self._with(settings))
        self.examine_non_speech(20)

    def draw(self, voices: Sequence[str], per_phrase: int) -> list[Heard]:
        calls = []
        turns = itertools.cycle(voices)
        for phrase in self._phrases:
            for _ in range(per_phrase):
                take = self._studio.speak(phrase, [next(turns)])
                audio, _ = self._line.carry(take.samples)
                calls.append(Heard(audio, phrase, take.voice))
        return calls

    def examine(
        self, name: str, calls: Sequence[Heard], transcribe: Callable[[Signal, str], str], show: int = 0
    ) -> None:
        began = time.process_time()
        answers = [(call, transcribe(call.audio, call.phrase.language)) for call in calls]
        spent = (time.process_time() - began) / len(calls)
        wrong = [(call, text) for call, text in answers if text != call.phrase.text]
        exact = 1 - len(wrong) / len(calls)
        print(f"{name}: {exact:.1%} exact of {len(calls)}, {spent * 1000:.1f} ms CPU each", flush=True)
        for call, text in wrong[:show]:
            print(f"    {call.voice}: {call.phrase.text} -> {text}")

    def examine_non_speech(self, each: int) -> None:
        for kind, draw in self._non_speech().items():
            calls = [heard(to_mulaw(draw(int(self._rng.uniform(0.5, 4) * RATE)))) for _ in range(each)]
            greedy = sum(bool(self._recogniser.transcribe(call, "ko")) for call in calls)
            defaults = sum(bool(self._recogniser.transcribe(call, "ko", {})) for call in calls)
            print(f"{kind}: text in {greedy} of {each} greedy, {defaults} with faster-whisper's defaults")

    def _non_speech(self) -> Mapping[str, Callable[[int], Signal]]:
        def level() -> np.float32:
            return np.float32(amplitude(self._rng.uniform(-60, -25)))

        return {
            "digital zero": lambda count: np.zeros(count, np.float32),
            "white noise": lambda count: self._rng.standard_normal(count).astype(np.float32) * level(),
            "mixed noise": lambda count: self._noise.draw(count) * level(),
            "ringback": lambda count: two_tones(440, 480, count) * np.float32(0.1),
            "DTMF 5": lambda count: two_tones(770, 1336, count) * np.float32(0.2),
        }

    def _with(self, settings: Mapping[str, Any]) -> Callable[[Signal, str], str]:
        return lambda audio, language: self._recogniser.transcribe(audio, language, settings)


class CallWriter:
    """Writes the sample calls of tests/data/calls: each phrase in a held-out voice, and five without speech.

    A call that the model does not recognise is drawn again in another voice, up to four times.
    """

    LEAD, TAIL, TRIES = 0.3, 0.7, 4

    def __init__(self, folder: Path, espeak: Espeak, out: Path, seed: int = 2026) -> None:
        self._recogniser = Recogniser(folder)
        self._rng = np.random.default_rng(seed)
        self._studio = Studio(espeak, self._rng)
        self._noise = NoiseSource(self._rng)
        self._out = out

    def run(self, phrases: Sequence[Phrase]) -> None:
        self._out.mkdir(parents=True, exist_ok=True)
        rows = [self._speech(number, phrase) for number, phrase in enumerate(phrases)]
        rows += [self._non_speech(name, signal) for name, signal in self._quiet_calls(3 * RATE).items()]
        lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
        (self._out / "samples.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        unknown = [row["file"] for row in rows if not row["recognised"]]
        print(f"{len(rows)} calls in {self._out}; not recognised: {', '.join(unknown) or 'none'}")

    def _speech(self, number: int, phrase: Phrase) -> dict[str, Any]:
        for turn in range(self.TRIES):
            take = self._studio.speak(phrase, [HELD_OUT[(number + turn) % len(HELD_OUT)]])
            speech = take.samples / np.abs(take.samples).max() * np.float32(0.35)
            call = band_limited(np.concatenate([silence(self.LEAD), speech, silence(self.TAIL)]))
            mulaw = to_mulaw(call + self._noise.draw(len(call)) * np.float32(0.35 * 0.15 * amplitude(-30)))
            recognised = self._recogniser.transcribe(heard(mulaw), phrase.language) == phrase.text
            if recognised:
                break
        file = f"{phrase.language}_{number:02d}.ulaw"
        (self._out / file).write_bytes(mulaw)
        end = round((len(mulaw) / RATE - self.TAIL) * 1000)
        return {
            "file": file,
            "lang": phrase.language,
            "text": phrase.text,
            "voice": take.voice,
            "speech_ms": [round(self.LEAD * 1000), end],
            "recognised": recognised,
        }

    def _non_speech(self, name: str, signal: Signal) -> dict[str, Any]:
        mulaw = to_mulaw(signal)
        file = f"nonspeech_{name}.ulaw"
        (self._out / file).write_bytes(mulaw)
        text = self._recogniser.transcribe(heard(mulaw), "ko")
        got = [text] if text else []
        return {"file": file, "lang": "ko", "text": "", "recognised": not got, "got": got}

    def _quiet_calls(self, count: int) -> Mapping[str, Signal]:
        time_ = seconds_of(count)
        return {
            "silence": np.zeros(count, np.float32),
            "white_noise": self._rng.standard_normal(count).astype(np.float32) * np.float32(0.01),
            "line_hum": self._noise.draw(count) * np.float32(0.01),
            "ringback": two_tones(440, 480, count) * np.float32(0.1) * (time_ % 3 < 1),
            "dtmf5": two_tones(770, 1336, count) * np.float32(0.2) * (time_ < 0.4),
        }
