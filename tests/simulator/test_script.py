"""Callers who follow a script: 20 ms a step, no clock runs."""

from collections.abc import Sequence
from typing import Any

import pytest

from app.simulator.playout import Playout
from app.simulator.script import (
    BotFinished,
    BotSpeaking,
    Caller,
    HangUp,
    Pause,
    Press,
    Say,
    Step,
    conversation,
)
from tests.simulator.far_side import silence, tone, utterance

SILENT = silence(20)


class Conversation:
    """A caller and a bot whose speech is a table of (when, audio)."""

    def __init__(self, steps: Sequence[Step], bot: Sequence[tuple[float, bytes]] = ()) -> None:
        self.playout = Playout()
        self.caller = Caller(steps, self.playout)
        self.bot = list(bot)
        self.track = b""

    def run(self, seconds: float) -> "Conversation":
        for frame in range(1, round(seconds * 50) + 1):
            now = frame / 50
            while self.bot and self.bot[0][0] <= now:
                self.playout.play(self.bot.pop(0)[1], now)
            self.track += self.caller.frame(now)
            if self.caller.leaving:
                self.left_at = now
                break
        return self

    def spoken_at(self) -> list[float]:
        return [utterance.onset for utterance in self.caller.said]


def test_a_caller_without_a_script_is_silent() -> None:
    assert Conversation([]).run(0.2).track == silence(200)


def test_an_utterance_is_cut_into_frames_and_padded_with_silence() -> None:
    clip = utterance(70)
    conversation = Conversation([Say(clip)]).run(0.2)

    assert conversation.track == clip.mulaw + silence(200)[len(clip.mulaw) :]
    [said] = conversation.caller.said
    assert said.onset == pytest.approx(0.0, abs=0.011)
    assert said.end == pytest.approx(0.07, abs=0.011)


def test_utterances_follow_each_other_and_a_pause_lies_between() -> None:
    clip = utterance(40)
    conversation = Conversation([Say(clip), Say(clip), Pause(100), Say(clip), HangUp()]).run(1.0)

    assert conversation.spoken_at() == pytest.approx([0.0, 0.04, 0.18], abs=0.02)
    assert conversation.caller.leaving == HangUp()
    assert conversation.left_at == pytest.approx(0.24, abs=0.02)


def test_keys_are_pressed_in_order() -> None:
    conversation = Conversation([Press("1#"), Press("*")]).run(0.1)

    assert conversation.caller.keys == ["1", "#", "*"]


def test_the_caller_waits_until_the_bot_has_spoken_and_fallen_silent() -> None:
    bot = [(0.5, tone(300)), (0.5, silence(200)), (0.5, tone(300))]
    conversation = Conversation([BotFinished(silent_ms=400), Say(utterance())], bot).run(3.0)

    assert conversation.spoken_at() == pytest.approx([1.3 + 0.4], abs=0.021)


def test_audio_that_is_buffered_but_not_yet_heard_is_waited_for() -> None:
    bot = [(0.1, tone(1000)), (0.3, tone(1000))]
    conversation = Conversation([BotFinished(silent_ms=200), Say(utterance())], bot).run(4.0)

    assert conversation.spoken_at() == pytest.approx([2.1 + 0.2], abs=0.021)


def test_a_bot_that_never_speaks_is_waited_for_only_so_long() -> None:
    steps: list[Step] = [BotFinished(give_up_s=0.5), Say(utterance()), BotSpeaking(100, give_up_s=0.5), HangUp()]
    conversation = Conversation(steps).run(5.0)

    assert conversation.spoken_at() == pytest.approx([0.5], abs=0.021)
    assert conversation.left_at == pytest.approx(1.1, abs=0.05)


def test_an_answer_is_what_begins_after_our_words() -> None:
    """The greeting ran into our words; it is no answer to them."""
    bot = [(0.0, tone(200)), (1.0, tone(200))]
    steps: list[Step] = [Pause(100), Say(utterance(300)), BotFinished(silent_ms=100), HangUp()]

    assert Conversation(steps, bot).run(5.0).left_at == pytest.approx(1.3, abs=0.021)


def test_a_bot_that_speaks_on_regardless_is_waited_for_too() -> None:
    bot = [(0.0, tone(3000))]
    steps: list[Step] = [Pause(100), Say(utterance(100)), BotFinished(silent_ms=100), HangUp()]

    assert Conversation(steps, bot).run(5.0).left_at == pytest.approx(3.1, abs=0.021)


def test_an_interruption_comes_so_long_after_the_bot_began() -> None:
    bot = [(0.5, silence(100) + tone(2000))]
    conversation = Conversation([BotSpeaking(250), Say(utterance())], bot).run(2.0)

    assert conversation.spoken_at() == pytest.approx([0.85], abs=0.021)


@pytest.mark.parametrize(("barge_in_ms", "wait"), [(None, BotFinished), (300, BotSpeaking)])
def test_a_conversation_says_each_clip_in_turn_and_hears_the_last_answer(barge_in_ms: int | None, wait: Any) -> None:
    clips = [utterance(text="one"), utterance(text="two")]
    steps = conversation(clips, barge_in_ms)

    assert [type(step) for step in steps] == [wait, Say, wait, Say, BotFinished, HangUp]
    assert [step.clip.text for step in steps if isinstance(step, Say)] == ["one", "two"]
