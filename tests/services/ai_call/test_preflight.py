"""A recogniser is tried with a spoken sentence: who passes, who does not, and why."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest

from app.asr.engine import DecodeEngine
from app.asr.models import DEMO_FOLDER
from app.asr.recogniser import Recogniser
from app.asr.stream import RecogniserStream, StreamOptions
from app.errors import SttError
from app.services.ai_call.preflight import TEXTS, PreflightOptions, preflight
from tests.conversation import VIRTUAL
from tests.fakes import Parrot, stt_error


@VIRTUAL
@pytest.mark.parametrize("hears", ["everything", "speech"])
async def test_the_words_come_back(hears: Any) -> None:
    stt = Parrot("영업 시간이 어떻게 되나요", hears=hears)
    assert await preflight(stt, "ko") == "영업 시간이 어떻게 되나요"
    assert stt.open_now == 0


@VIRTUAL
async def test_an_empty_final_of_a_vendor_is_not_yet_an_answer() -> None:
    assert await preflight(Parrot("", "what are your opening hours"), "en") == " what are your opening hours"


@VIRTUAL
@pytest.mark.parametrize(
    ("says", "kind"),
    [
        ("시청해주셔서 감사합니다", "wrong_words"),  # as from audio in another format
        (stt_error("auth"), "auth"),
        (None, "timeout"),
    ],
)
async def test_who_does_not_understand_does_not_pass(says: Any, kind: str) -> None:
    stt = Parrot(says)
    with pytest.raises(SttError) as failed:
        await preflight(stt, "ko", PreflightOptions(answer_s=4.0))
    assert failed.value.kind == kind
    assert stt.open_now == 0


@VIRTUAL
async def test_a_stream_that_ends_without_words_does_not_pass() -> None:
    with pytest.raises(SttError):
        await preflight(Parrot(), "ko")


@pytest.mark.parametrize("language", TEXTS)
async def test_the_real_recogniser_passes(language: str) -> None:
    engine = DecodeEngine(Recogniser.load(DEMO_FOLDER, "demo"))
    engine.start()

    class Real:
        name = "local"
        hears: Literal["everything", "speech"] = "speech"

        @asynccontextmanager
        async def open(self, rate: int, language: str) -> AsyncIterator[RecogniserStream]:
            stream = RecogniserStream(engine, rate, language, StreamOptions())
            yield stream
            stream.close()

    try:
        assert await preflight(Real(), language) == TEXTS[language]
    finally:
        await engine.aclose()
