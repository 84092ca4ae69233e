"""The body of a reply: pieces, their order, and what is left when it fails or is cut off."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.audio.types import AudioFrame
from app.services.ai_call.phrases import PhraseBook, canned_clips
from app.services.ai_call.speaking import Speaker
from app.services.ai_call.types import Event, FirstToken, Message, ReplyFailed
from tests.conversation import VIRTUAL
from tests.fakes import ScriptedLlm, Step, ToneTts, llm_error, tts_error

pytestmark = VIRTUAL

ASKED = [Message("user", "영업시간이 어떻게 되나요?")]


@dataclass
class Tape:
    """A Line that takes down what it is given: the milliseconds of each piece, then its mark."""

    rate: int = 8000
    room_s: float = 0.0
    """How long each frame waits for room."""
    marks: list[tuple[float, int, str | None, int]] = field(default_factory=list)
    ms: float = 0.0

    async def play(self, turn: int, frame: AudioFrame) -> None:
        await asyncio.sleep(self.room_s)
        self.ms += frame.duration_ms

    async def mark(self, turn: int, text: str | None) -> None:
        self.marks.append((asyncio.get_running_loop().time(), turn, text, round(self.ms)))
        self.ms = 0.0


class Scene:
    def __init__(self, *script: Step, tts: ToneTts | None = None, room_s: float = 0.0) -> None:
        self.llm = ScriptedLlm(script)
        self.tts = tts or ToneTts()
        self.line = Tape(room_s=room_s)
        self.posted: list[Event] = []
        self.faults: list[tuple[str, str]] = []
        self.speaker = Speaker(
            self.llm,
            self.tts,
            PhraseBook(),
            self.line,  # type: ignore[arg-type]
            self.posted.append,
            on_fault=lambda component, kind: self.faults.append((component, kind)),
        )

    async def replied(self) -> "Scene":
        await self.speaker.reply(7, ASKED)
        assert (self.llm.open, self.tts.open) == (0, 0)
        return self

    @property
    def pieces(self) -> list[str | None]:
        return [text for _, _, text, _ in self.line.marks]


async def test_each_piece_is_voiced_and_marked_and_the_end_is_marked_last() -> None:
    scene = await Scene("네, 알겠습니다. 내일 세 시에 뵐게요! 감사합니다").replied()
    assert scene.pieces == ["네, 알겠습니다.", "내일 세 시에 뵐게요!", "감사합니다", None]
    assert [ms for *_, ms in scene.line.marks] == [scene.tts.ms(text) for text in scene.pieces if text] + [0]
    assert {turn for _, turn, _, _ in scene.line.marks} == {7}
    assert scene.posted == [FirstToken(7)], "once"


async def test_what_is_not_for_saying_is_not_said() -> None:
    scene = await Scene("**예약** 되었어요. 🙂 ", "\n- - -\n", "또 뵐게요.").replied()
    assert scene.pieces == ["예약 되었어요.", "또 뵐게요.", None]


async def test_the_next_piece_is_written_and_voiced_while_one_plays() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await Scene("하나 둘 셋입니다. ", 5.0, "넷입니다.").replied()
    assert loop.time() - began < 0.3 + 5.0 + 0.5


async def test_a_model_is_not_read_far_ahead_of_the_voice() -> None:
    """An endless answer waits; a barge-in then closes it."""
    sentences = [f"문장 {number} 입니다. " for number in range(50)]
    scene = Scene(*sentences, room_s=1.0)
    task = asyncio.get_running_loop().create_task(scene.speaker.reply(7, ASKED))
    await asyncio.sleep(5.0)
    assert scene.llm.open == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (scene.llm.open, scene.tts.open) == (0, 0)
    assert scene.posted == [FirstToken(7)], "a reply that was cut off has not failed"


@pytest.mark.parametrize("at", [0.1, 0.32, 0.45, 0.9, 2.0])
async def test_a_reply_can_be_cut_off_anywhere(at: float) -> None:
    scene = Scene("첫째 문장입니다. 둘째 문장입니다. ", 3.0, "끝.", room_s=0.3)
    task = asyncio.get_running_loop().create_task(scene.speaker.reply(7, ASKED))
    await asyncio.sleep(at)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (scene.llm.open, scene.tts.open) == (0, 0)
    assert None not in scene.pieces
    assert not any(isinstance(event, ReplyFailed) for event in scene.posted)


async def test_a_model_that_fails_later_is_heard_up_to_there() -> None:
    scene = await Scene("첫째 문장입니다. 둘째 ", llm_error("timeout"), room_s=0.05).replied()
    assert scene.pieces == ["첫째 문장입니다."]
    assert scene.posted == [FirstToken(7), ReplyFailed(7, "llm_timeout")]
    assert scene.faults == [("llm", "timeout")]


@pytest.mark.parametrize(
    ("scene", "code"),
    [
        (Scene(llm_error("down")), "llm_down"),
        (Scene(""), "llm_empty"),
        (Scene("🙂"), "llm_empty"),
        (Scene("네.", tts=ToneTts(dead=True)), "tts_down"),
        (Scene("네. 둘.", tts=ToneTts(faults=[None, tts_error("reset")])), "tts_reset"),
    ],
    ids=["model down", "nothing", "nothing to say", "voice down", "voice reset"],
)
async def test_a_failed_reply_is_posted_once_and_never_marked_done(scene: Scene, code: str) -> None:
    await scene.replied()
    assert [event for event in scene.posted if isinstance(event, ReplyFailed)] == [ReplyFailed(7, code)]
    assert None not in scene.pieces
    assert scene.faults == [tuple(code.split("_"))]


async def test_a_bug_in_a_provider_fails_the_reply_and_is_logged(log_lines: list[Any]) -> None:
    class Buggy(ToneTts):
        def ms(self, text: str) -> int:
            raise KeyError("a bug")

    scene = Scene("네.", tts=Buggy())
    await scene.speaker.reply(7, ASKED)
    assert scene.posted[-1] == ReplyFailed(7, "bug")
    assert [line["event"] for line in log_lines if line["log_level"] == "error"] == ["x reply broke"]


async def test_a_phrase_needs_no_provider() -> None:
    scene = Scene(tts=ToneTts(dead=True))
    await scene.speaker.say(3, "goodbye", "en")
    clip = canned_clips()["goodbye", "en"]
    assert scene.pieces == [clip.text, None]
    assert scene.line.marks[0][3] == round(sum(frame.duration_ms for frame in clip.frames))
    assert not scene.tts.texts
    assert not scene.llm.asked
