import asyncio
from collections.abc import AsyncGenerator

import numpy as np
import pytest

from app.audio.types import AudioFrame
from app.errors import TtsError
from app.services.ai_call.dialogue import LANGUAGES, Dialogue
from app.services.ai_call.elevenlabs_tts import ElevenLabsOptions, ElevenLabsTts
from app.services.ai_call.espeak_tts import EspeakTts
from app.services.ai_call.phrases import FRAME_MS, PHRASES, Clip, PhraseBook, Texts, canned_clips, texts_of
from app.services.ai_call.types import Phrase
from tests.emulators.elevenlabs import ElevenLabsEmulator

TEXTS: Texts = {language: {phrase: f"{language} {phrase}" for phrase in PHRASES} for language in ("ko", "en")}


class Voice:
    """Hums every text, but fails for those in `failing`."""

    name = "voice"

    def __init__(self, failing: dict[str, TtsError] | None = None, pieces: int = 3) -> None:
        self.failing = failing or {}
        self.pieces = pieces
        self.asked: list[str] = []
        self.closed = 0

    async def speak(self, text: str, rate: int) -> AsyncGenerator[AudioFrame, None]:
        self.asked.append(text)
        try:
            for _ in range(self.pieces):
                yield AudioFrame(b"\x01\x02" * 1000, rate)
                if text in self.failing:
                    raise self.failing[text]
        finally:
            self.closed += 1


class MuteVoice:
    name = "mute"

    async def speak(self, text: str, rate: int) -> AsyncGenerator[AudioFrame, None]:
        await asyncio.Event().wait()
        yield AudioFrame(b"", rate)


def failed(retryable: bool) -> TtsError:
    return TtsError("no", provider="voice", kind="throttled" if retryable else "quota", retryable=retryable)


def samples(clip: Clip) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    return np.frombuffer(b"".join(frame.pcm for frame in clip.frames), np.int16)


def test_the_canned_clips_say_what_the_dialogue_says_now() -> None:
    canned = canned_clips()
    wanted = texts_of(Dialogue.load())
    assert {key: clip.text for key, clip in canned.items()} == {
        (phrase, language): wanted[language][phrase] for language in LANGUAGES for phrase in PHRASES
    }, "run tools/render_prompts.py"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("phrase", PHRASES)
def test_a_canned_clip_is_speech(phrase: Phrase, language: str) -> None:
    clip = PhraseBook().get(phrase, language)
    audio = samples(clip).astype(np.float64)
    assert 1 < len(audio) / 8000 < 8
    assert 1000 < np.sqrt(np.mean(audio**2)) < 8000
    assert np.abs(audio[:800]).max() > 500, "it begins at once"
    assert all(frame.rate == 8000 and frame.duration_ms <= FRAME_MS for frame in clip.frames)


def test_a_call_without_a_known_language_hears_the_first() -> None:
    book = PhraseBook()
    assert book.get("greeting", "auto") == book.get("greeting", LANGUAGES[0])


async def test_rendered_phrases_take_the_place_of_the_canned() -> None:
    book, voice = PhraseBook(), Voice()
    await book.render(voice, TEXTS)
    for language, words in TEXTS.items():
        for phrase, text in words.items():
            clip = book.get(phrase, language)
            assert clip.text == text
            assert len(samples(clip)) == 3000
    assert voice.asked[:2] == ["ko greeting", "en greeting"]
    assert voice.closed == len(voice.asked) == 2 * len(PHRASES)


async def test_a_phrase_that_fails_stays_canned_with_its_own_text() -> None:
    faults: list[tuple[str, str]] = []
    book = PhraseBook(on_fault=lambda component, kind: faults.append((component, kind)))
    await book.render(Voice({"ko apology": failed(retryable=True)}), TEXTS)
    assert book.get("apology", "ko") == canned_clips()["apology", "ko"]
    assert book.get("apology", "en").text == "en apology"
    assert faults == [("tts", "throttled")]


async def test_a_voice_that_can_not_work_is_not_asked_eight_times() -> None:
    book, voice = PhraseBook(), Voice({"ko greeting": failed(retryable=False)})
    await book.render(voice, TEXTS)
    assert voice.asked == ["ko greeting"]
    assert book.get("greeting", "ko") == canned_clips()["greeting", "ko"]


async def test_a_mute_voice_is_left_after_a_while() -> None:
    faults: list[tuple[str, str]] = []
    book = PhraseBook(on_fault=lambda component, kind: faults.append((component, kind)), render_s=0.01)
    await book.render(MuteVoice(), TEXTS)
    assert faults == [("tts", "timeout")] * 2 * len(PHRASES)
    assert book.get("goodbye", "en") == canned_clips()["goodbye", "en"]


@pytest.mark.parametrize(("pieces", "kind"), [(0, "silent"), (10_000, "format")])
async def test_a_phrase_has_some_sound_and_an_end(pieces: int, kind: str) -> None:
    faults: list[str] = []
    book = PhraseBook(on_fault=lambda _, kind: faults.append(kind))
    await book.render(Voice(pieces=pieces), TEXTS)
    assert set(faults) == {kind}
    assert book.get("nudge", "ko") == canned_clips()["nudge", "ko"]


async def test_get_answers_while_phrases_are_rendered() -> None:
    book = PhraseBook()
    async with asyncio.TaskGroup() as group:
        rendering = group.create_task(book.render(MuteVoice(), TEXTS))
        await asyncio.sleep(0)
        assert book.get("greeting", "ko").frames
        rendering.cancel()


async def test_espeak_renders_the_dialogue() -> None:
    book, tts = PhraseBook(), EspeakTts()
    await book.render(tts, texts_of(Dialogue.load()))
    await tts.aclose()
    for key, canned in canned_clips().items():
        rendered = book.get(*key)
        assert rendered.text == canned.text
        assert len(samples(rendered)) == pytest.approx(len(samples(canned)), rel=0.02)


async def test_a_dead_elevenlabs_leaves_the_canned_clips() -> None:
    faults: list[str] = []
    async with ElevenLabsEmulator(fault="quota") as emulator:
        tts = ElevenLabsTts(
            ElevenLabsOptions(api_key=emulator.api_key, voice_id=emulator.voice_id, base_url=emulator.url)
        )
        book = PhraseBook(on_fault=lambda _, kind: faults.append(kind))
        await book.render(tts, texts_of(Dialogue.load()))
        await tts.aclose()
    assert faults == ["quota"]
    assert {key: book.get(*key) for key in canned_clips()} == canned_clips()
