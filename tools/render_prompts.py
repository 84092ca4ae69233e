"""Writes the canned phrases that ship with the package: `python tools/render_prompts.py` after a change of the
dialogue's greeting, nudge, repeat, apology or goodbye, or of the sentence that a recogniser is tried with. Spoken by
espeak, kept as raw mu-law at 8 kHz, with an index of the texts that are heard in the phrases."""

import asyncio
import json
from contextlib import aclosing
from pathlib import Path

from app.audio import g711
from app.services.ai_call.dialogue import Dialogue
from app.services.ai_call.espeak_tts import EspeakTts
from app.services.ai_call.phrases import RATE, texts_of
from app.services.ai_call.preflight import TEXTS

PROMPTS = Path(__file__).parents[1] / "backend/app/services/ai_call/prompts"


async def main() -> None:
    texts = texts_of(Dialogue.load())
    PROMPTS.mkdir(exist_ok=True)
    for language, words in texts.items():
        voice = EspeakTts(language)
        try:
            for phrase, text in (*words.items(), ("preflight", TEXTS[language])):
                async with aclosing(voice.speak(text, RATE)) as frames:
                    mulaw = g711.encode(b"".join([frame.pcm async for frame in frames]))
                (PROMPTS / f"{language}_{phrase}.ulaw").write_bytes(mulaw)
                print(f"{language} {phrase}: {len(mulaw) / RATE:.1f} s  {text}")
        finally:
            await voice.aclose()
    index = json.dumps(texts, ensure_ascii=False, indent=2)
    (PROMPTS / "index.json").write_text(index + "\n", encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
