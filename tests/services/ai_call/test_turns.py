"""Who may speak now: each rule as a short script of events and the commands that must follow. No loop, no clock."""

import random
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.audio.endpoint import SpeechPaused, SpeechResumed, SpeechStarted, SpeechStopped
from app.audio.types import Transcript
from app.services.ai_call.turns import Phase, TurnMachine, TurnRules
from app.services.ai_call.types import (
    Answered,
    Command,
    DropTimer,
    EndCall,
    Event,
    FirstToken,
    HangUpRequested,
    Heard,
    HungUp,
    KeyPressed,
    Pause,
    RecogniserChanged,
    RecogniserLost,
    Remember,
    Reply,
    ReplyDone,
    ReplyFailed,
    ReplySpoken,
    ReplyStarted,
    Resume,
    Say,
    SetTimer,
    Silence,
    Timer,
    TimerFired,
)


class Table:
    """A machine and its clock; remembers what it commanded, timers aside."""

    def __init__(self, **rules: Any) -> None:
        self.machine = TurnMachine(TurnRules(**rules))
        self.now = 100.0
        self.media_ms = 0

    def on(self, *events: Event) -> list[Command]:
        commands: list[Command] = []
        for event in events:
            self.now += 0.1
            commands += self.machine.handle(event, self.now)
        return commands

    def acts(self, *events: Event) -> list[Command]:
        return [c for c in self.on(*events) if not isinstance(c, SetTimer | DropTimer)]

    def says(self, text: str, *, final: bool = True) -> list[Command]:
        """One utterance of the caller with its owed final."""
        start = self.media_ms + 100
        self.media_ms = start + 900
        events: list[Event] = [
            SpeechStarted(start),
            SpeechPaused(self.media_ms),
            SpeechStopped(self.media_ms, 900, 350),
        ]
        if final:
            events.append(Heard(Transcript(text, True, start, self.media_ms)))
        return self.acts(*events)

    def vendor(self, ends_turn: bool = True) -> "Table":
        self.on(RecogniserChanged(ends_turn, 0))
        return self

    def greeted(self) -> "Table":
        self.on(Answered(), ReplyStarted(1), ReplySpoken(1, "안녕하세요."), ReplyDone(1))
        return self


def exchanges(commands: list[Command]) -> list[tuple[str, str, bool]]:
    return [(c.exchange.user, c.exchange.bot, c.exchange.interrupted) for c in commands if isinstance(c, Remember)]


def test_the_greeting_is_said_and_remembered_when_heard() -> None:
    table = Table()
    assert table.acts(Answered()) == [Say(1, "greeting")]
    assert table.acts(ReplySpoken(1, "안녕하세요.")) == []
    assert exchanges(table.acts(ReplyDone(1))) == [("", "안녕하세요.", False)]
    assert table.machine.phase is Phase.LISTENING


def test_an_utterance_is_answered_when_its_final_came() -> None:
    table = Table().greeted()
    assert table.says("예약할게요.", final=False) == []
    assert table.acts(Heard(Transcript("예약할게요.", True, 100, 1000))) == [Reply(2, "예약할게요.")]


def test_a_final_that_comes_before_the_speech_has_stopped_waits_for_it() -> None:
    table = Table().greeted()
    table.says("예약을", final=False)
    start = [SpeechStarted(1100)]
    assert table.acts(*start, Heard(Transcript("예약을", True, 100, 1000))) == []
    assert table.acts(SpeechStopped(2000, 800, 350)) == []
    assert table.acts(Heard(Transcript("하고 싶어요.", True, 1100, 2000))) == [Reply(2, "예약을 하고 싶어요.")]


def test_ten_utterances_are_all_answered() -> None:
    table = Table().greeted()
    for number in range(10):
        commands = table.says(f"질문 {number}")
        turn = table.machine.turn
        assert commands == [Reply(turn, f"질문 {number}")]
        assert exchanges(table.acts(ReplySpoken(turn, "답"), ReplyDone(turn))) == [(f"질문 {number}", "답", False)]


def test_noise_is_no_turn_and_starts_the_silence_timer_again() -> None:
    table = Table().greeted()
    table.says("", final=False)
    commands = table.on(Heard(Transcript("", True, 100, 1000)))
    assert SetTimer("silence", 10_000) in commands
    assert table.machine.phase is Phase.LISTENING


def test_words_interrupt_and_only_what_was_heard_is_remembered() -> None:
    table = Table().greeted()
    table.says("영업시간이요?")
    table.on(ReplyStarted(2), ReplySpoken(2, "아침 열 시부터"))
    assert table.acts(SpeechStarted(5000)) == [Pause()]
    commands = table.acts(Heard(Transcript("잠깐", False, 5000, 5400)))
    assert commands[0] == Silence(2)
    assert exchanges(commands) == [("영업시간이요?", "아침 열 시부터", True)]
    stopped = table.acts(SpeechStopped(6000, 900, 350))
    assert stopped == []
    assert table.acts(Heard(Transcript("잠깐만요.", True, 5000, 6000))) == [Reply(4, "잠깐만요.")]


def test_a_cough_pauses_the_bot_and_it_goes_on() -> None:
    table = Table().greeted()
    table.says("영업시간이요?")
    table.on(ReplyStarted(2), ReplySpoken(2, "아침 열 시부터"))
    assert table.acts(SpeechStarted(5000), SpeechStopped(5200, 200, 350)) == [Pause()]
    assert table.acts(Heard(Transcript("", True, 5000, 5200))) == [Resume()]
    assert exchanges(table.acts(ReplySpoken(2, "저녁 아홉 시까지"), ReplyDone(2))) == [
        ("영업시간이요?", "아침 열 시부터 저녁 아홉 시까지", False)
    ]


def test_a_cough_without_any_final_goes_on_after_the_wait() -> None:
    table = Table().greeted()
    table.says("영업시간이요?")
    table.on(ReplyStarted(2), SpeechStarted(5000), SpeechStopped(5200, 200, 350))
    assert table.acts(TimerFired("transcript")) == [Resume()]


def test_a_reply_that_ends_while_paused_releases_the_line() -> None:
    table = Table().greeted()
    table.says("네?")
    table.on(ReplyStarted(2), ReplySpoken(2, "다."), SpeechStarted(5000))
    commands = table.acts(ReplyDone(2))
    assert Resume() in commands
    assert exchanges(commands) == [("네?", "다.", False)]


def test_policy_speech_interrupts_at_the_onset() -> None:
    table = Table(barge_in="speech").greeted()
    table.says("영업시간이요?")
    table.on(ReplyStarted(2), ReplySpoken(2, "열 시부터"))
    commands = table.acts(SpeechStarted(5000))
    assert commands[0] == Silence(2)
    assert exchanges(commands) == [("영업시간이요?", "열 시부터", True)]


def test_policy_off_ignores_what_is_said_over_the_bot() -> None:
    table = Table(barge_in="off").greeted()
    table.says("영업시간이요?")
    assert table.acts(SpeechStarted(5000), Heard(Transcript("아니", False, 5000, 5300))) == []
    table.on(SpeechStopped(6000, 900, 350))
    assert table.acts(Heard(Transcript("아니요.", True, 5000, 6000))) == []
    assert exchanges(table.acts(ReplySpoken(2, "열 시요."), ReplyDone(2))) == [("영업시간이요?", "열 시요.", False)]
    table.media_ms = 7000
    assert table.says("고마워요.") == [Reply(3, "고마워요.")]


def test_a_caller_who_goes_on_before_anything_was_heard_gets_one_answer_to_both_halves() -> None:
    table = Table().greeted()
    table.says("택시를")
    table.on(ReplyStarted(2))  # audio is on the wire, but no mark came back
    table.acts(SpeechStarted(5000))
    assert exchanges(table.acts(Heard(Transcript("불러", False, 5000, 5300)))) == []
    table.on(SpeechStopped(6000, 900, 350))
    assert table.acts(Heard(Transcript("불러 주세요.", True, 5000, 6000))) == [Reply(4, "택시를 불러 주세요.")]


def test_policy_speech_and_a_noise_before_anything_was_heard_asks_again() -> None:
    table = Table(barge_in="speech").greeted()
    table.says("택시 불러 주세요.")
    table.on(SpeechStarted(5000), SpeechStopped(5200, 100, 350))
    assert table.acts(Heard(Transcript("", True, 5000, 5200))) == [Reply(4, "택시 불러 주세요.")]


@pytest.mark.parametrize("event", [ReplySpoken(1, "옛날"), ReplyDone(1), ReplyFailed(1, "x"), FirstToken(1)])
def test_an_event_of_an_old_turn_counts_for_nothing(event: Event) -> None:
    table = Table().greeted()
    table.says("질문")
    assert table.acts(event) == []
    assert exchanges(table.acts(ReplyDone(2))) == [("질문", "", False)]


def test_one_failure_apologises_and_two_in_a_row_say_goodbye() -> None:
    table = Table().greeted()
    table.says("하나")
    assert table.acts(ReplyFailed(2, "llm_timeout")) == [Say(2, "apology")]
    assert exchanges(table.acts(ReplySpoken(2, "죄송합니다."), ReplyDone(2))) == [("하나", "죄송합니다.", False)]
    table.says("둘")
    assert table.acts(ReplyFailed(3, "llm_timeout")) == [Say(3, "goodbye")]
    assert table.acts(ReplySpoken(3, "안녕히"), ReplyDone(3))[-1] == EndCall("failed_turns")
    assert table.machine.phase is Phase.ENDED


def test_a_good_reply_between_two_failures_forgives_the_first() -> None:
    table = Table().greeted()
    for turn in (2, 4):
        table.says("질문")
        assert table.acts(ReplyFailed(turn, "tts_cut")) == [Say(turn, "apology")]
        table.on(ReplyDone(turn))
        table.says("또")
        table.on(ReplySpoken(turn + 1, "답"), ReplyDone(turn + 1))


def test_the_silence_ladder_nudges_twice_and_then_says_goodbye() -> None:
    table = Table().greeted()
    for turn in (2, 3):
        assert table.acts(TimerFired("silence")) == [Say(turn, "nudge")]
        assert SetTimer("silence", 10_000) in table.on(ReplyDone(turn))
    assert table.acts(TimerFired("silence")) == [Say(4, "goodbye")]
    assert table.acts(ReplyDone(4))[-1] == EndCall("silence")


def test_words_start_the_silence_ladder_anew() -> None:
    table = Table().greeted()
    table.on(TimerFired("silence"), ReplyDone(2))
    table.says("네")
    table.on(ReplyDone(3))
    assert table.acts(TimerFired("silence")) == [Say(4, "nudge")]


def test_a_goodbye_that_is_never_heard_ends_all_the_same() -> None:
    table = Table().greeted()
    table.on(HangUpRequested("admin"))
    assert table.acts(TimerFired("closing")) == [EndCall("admin")]


def test_while_closing_the_caller_is_not_answered() -> None:
    table = Table().greeted()
    table.on(HangUpRequested("admin"))
    assert table.says("잠깐만요") == []


def test_a_second_request_to_hang_up_does_not_wait() -> None:
    table = Table().greeted()
    assert table.acts(HangUpRequested("shutdown")) == [Say(2, "goodbye")]
    assert table.acts(HangUpRequested("shutdown")) == [EndCall("shutdown")]


def test_hang_up_in_the_middle_of_an_answer_remembers_what_was_heard() -> None:
    table = Table().greeted()
    table.says("질문")
    table.on(ReplySpoken(2, "첫 문장."))
    commands = table.acts(HungUp("caller"))
    assert exchanges(commands) == [("질문", "첫 문장.", True)]
    assert commands[-1] == EndCall("caller")
    assert table.on(ReplyDone(2), HungUp("caller"), Answered()) == []


def test_hang_up_while_the_caller_is_speaking_keeps_the_words_that_were_final() -> None:
    table = Table().greeted()
    table.says("예약을", final=False)
    table.on(SpeechStarted(1100), Heard(Transcript("예약을", True, 100, 1000)))
    assert exchanges(table.acts(HungUp("caller"))) == [("예약을", "", True)]


def test_the_maximum_duration_ends_with_a_goodbye_in_the_middle_of_an_answer() -> None:
    table = Table().greeted()
    table.says("질문")
    table.on(ReplySpoken(2, "긴 답"))
    commands = table.acts(TimerFired("max_call"))
    assert commands[0] == Silence(2)
    assert exchanges(commands) == [("질문", "긴 답", True)]
    assert commands[-1] == Say(4, "goodbye")
    assert table.acts(ReplyDone(4))[-1] == EndCall("max_duration")


def test_a_lost_recogniser_says_goodbye() -> None:
    table = Table().greeted()
    assert table.acts(RecogniserLost("connect")) == [Say(2, "goodbye")]
    assert table.acts(ReplyDone(2))[-1] == EndCall("stt_down")


def test_the_partial_stands_for_a_final_that_does_not_come_and_the_late_final_is_stale() -> None:
    table = Table().greeted()
    table.on(SpeechStarted(100), Heard(Transcript("예약", False, 100, 600)), SpeechStopped(1000, 900, 350))
    assert table.acts(TimerFired("transcript")) == [Reply(2, "예약")]
    assert table.acts(Heard(Transcript("예약이요", True, 100, 1000))) == []


def test_a_final_that_comes_very_late_is_answered_all_the_same() -> None:
    table = Table().greeted()
    table.says("예약이요", final=False)
    assert table.acts(TimerFired("transcript")) == []
    assert table.acts(Heard(Transcript("예약이요", True, 100, 1000))) == [Reply(2, "예약이요")]


def test_a_final_that_never_comes_does_not_hold_the_next_turn_up() -> None:
    table = Table().greeted()
    table.says("예약이요", final=False)
    table.on(TimerFired("transcript"))
    assert table.says("여보세요?") == [Reply(2, "여보세요?")]


def test_a_vendor_that_ends_turns_is_believed_at_once() -> None:
    table = Table().greeted().vendor()
    table.on(SpeechStarted(100), SpeechPaused(1000))
    assert table.acts(Heard(Transcript("예약이요", True, 100, 1000))) == [Reply(2, "예약이요")]


def test_a_vendors_final_that_is_plainly_unfinished_waits_for_its_rest() -> None:
    table = Table().greeted().vendor()
    commands = table.on(Heard(Transcript("내일 저녁에", True, 100, 1000)))
    assert SetTimer("unfinished", 700) in commands
    assert not any(isinstance(command, Reply) for command in commands)
    assert DropTimer("unfinished") in table.on(SpeechStarted(1500))
    assert table.acts(Heard(Transcript("예약해 주세요.", True, 1500, 2500))) == [Reply(2, "내일 저녁에 예약해 주세요.")]


def test_a_vendors_final_that_stays_unfinished_is_answered_all_the_same() -> None:
    table = Table().greeted().vendor()
    table.on(Heard(Transcript("내일 저녁에", True, 100, 1000)))
    assert table.acts(TimerFired("unfinished")) == [Reply(2, "내일 저녁에")]


def test_noise_behind_an_unfinished_sentence_does_not_hold_it_for_ever() -> None:
    table = Table().greeted().vendor()
    table.on(Heard(Transcript("내일 저녁에", True, 100, 1000)), SpeechStarted(1500))
    assert table.acts(TimerFired("unfinished")) == [], "the caller is speaking"
    assert SetTimer("unfinished", 2_000) in table.on(SpeechStopped(1900, 300, 350))
    assert table.acts(TimerFired("unfinished")) == [Reply(2, "내일 저녁에")]


# ---------------------------------------------------------------- words that do not come


@pytest.mark.parametrize("vendor", [False, True])
def test_who_was_not_understood_is_asked_once_to_say_it_again(vendor: bool) -> None:
    table = Table().greeted().vendor(vendor)
    assert SetTimer("no_words", 5_000) in table.on(SpeechStarted(100), SpeechStopped(1000, 900, 350))
    assert table.acts(TimerFired("transcript"), TimerFired("no_words")) == [Say(2, "repeat")]
    table.on(ReplyDone(2), SpeechStarted(8000), SpeechStopped(9000, 900, 350))
    assert table.acts(TimerFired("no_words")) == [], "once a turn"
    assert table.acts(Heard(Transcript("예약이요", True, 8000, 9000))) == [Reply(3, "예약이요")]
    table.on(ReplyDone(3), SpeechStarted(12000), SpeechStopped(13000, 900, 350))
    assert table.acts(TimerFired("no_words")) == [Say(4, "repeat")]


def test_a_short_noise_is_not_asked_about() -> None:
    table = Table().greeted().vendor()
    table.on(SpeechStarted(100), SpeechStopped(400, 200, 350))
    assert table.acts(TimerFired("no_words")) == []


def test_a_partial_whose_final_a_vendor_owes_for_ever_is_used() -> None:
    table = Table().greeted().vendor()
    table.on(SpeechStarted(100), Heard(Transcript("예약", False, 100, 900)), SpeechStopped(1000, 900, 350))
    assert table.acts(TimerFired("no_words")) == [Reply(2, "예약")]
    assert table.acts(Heard(Transcript("예약이요", True, 100, 1000))) == [], "too late, it was answered"


def test_a_partial_that_stops_the_bot_after_the_speech_is_used_too() -> None:
    table = Table().greeted().vendor()
    table.on(Heard(Transcript("영업시간이요?", True, 100, 1000)), ReplyStarted(2))
    table.on(SpeechStarted(3000), SpeechStopped(3900, 900, 350))
    assert SetTimer("no_words", 5_000) in table.on(Heard(Transcript("잠깐만요", False, 3000, 3900)))
    assert table.acts(TimerFired("no_words")) == [Reply(4, "영업시간이요? 잠깐만요")]


def test_an_empty_final_of_ours_settles_what_was_noise() -> None:
    table = Table().greeted()
    table.on(SpeechStarted(100), SpeechStopped(1000, 900, 350))
    assert DropTimer("no_words") in table.on(Heard(Transcript("", True, 100, 1000)))


# ---------------------------------------------------------------- another recogniser takes over


def test_what_the_lost_recogniser_owed_the_next_one_owes() -> None:
    table = Table().greeted().vendor()
    table.on(SpeechStarted(100), SpeechStopped(1000, 900, 350))
    assert SetTimer("transcript", 2_000) in table.on(RecogniserChanged(False, 1))
    table.on(SpeechStarted(3000), SpeechStopped(4000, 900, 350))
    assert table.acts(Heard(Transcript("예약하려고", True, 100, 1000))) == [], "one is still owed"
    assert table.acts(Heard(Transcript("하는데요", True, 3000, 4000))) == [Reply(2, "예약하려고 하는데요")]


def test_a_vendor_that_takes_over_owes_nothing() -> None:
    table = Table().greeted()
    table.on(SpeechStarted(100), SpeechStopped(1000, 900, 350))
    assert DropTimer("transcript") in table.on(RecogniserChanged(True, 1))
    assert table.acts(Heard(Transcript("예약이요", True, 100, 1000))) == [Reply(2, "예약이요")]


def test_a_change_after_a_short_noise_leaves_no_dead_air() -> None:
    table = Table().greeted()
    table.on(SpeechStarted(100), SpeechStopped(200, 100, 350))
    assert SetTimer("silence", 10_000) in table.on(RecogniserChanged(True, 0))


def test_a_late_partial_whose_final_is_owed_by_nobody_leaves_no_dead_air() -> None:
    table = Table().greeted()
    table.says("영업시간이요?")
    table.on(ReplyStarted(2), SpeechStarted(3000), SpeechStopped(3900, 900, 350), TimerFired("transcript"))
    assert SetTimer("no_words", 5_000) in table.on(Heard(Transcript("잠깐만요", False, 3000, 4300)))


def test_a_final_whose_partial_was_answered_settles_what_was_owed_for_it() -> None:
    table = Table().greeted().vendor()
    table.on(SpeechStarted(100), Heard(Transcript("예약", False, 100, 900)), SpeechStopped(1000, 900, 350))
    table.on(TimerFired("no_words"), ReplyDone(2), RecogniserChanged(False, 1))
    assert table.acts(Heard(Transcript("예약이요", True, 100, 1000))) == [], "it was answered"
    table.media_ms = 5000
    assert table.says("내일이요.") == [Reply(3, "내일이요.")], "nothing is owed any more"


def test_a_vendors_final_that_ends_a_little_late_is_the_one_that_was_answered() -> None:
    table = Table().greeted().vendor()
    table.on(SpeechStarted(100), Heard(Transcript("예약", False, 100, 100)), SpeechStopped(1000, 900, 350))
    table.on(TimerFired("no_words"))
    assert table.acts(Heard(Transcript("예약이요", True, 100, 1500))) == []


def test_an_empty_final_does_not_resume_the_bot_while_the_caller_is_speaking() -> None:
    table = Table().greeted().vendor()
    table.on(Heard(Transcript("영업시간이요?", True, 100, 1000)), ReplyStarted(2))
    assert table.acts(SpeechStarted(3000)) == [Pause()]
    assert table.acts(Heard(Transcript("", True, 2000, 2500))) == []
    assert table.acts(TimerFired("pause")) == [Resume()]


def test_words_that_waited_for_more_are_not_forgotten_by_the_change() -> None:
    table = Table().greeted()
    table.says("예약하려고요", final=False)
    table.says("내일이요", final=False)
    assert table.acts(Heard(Transcript("예약하려고요", True, 100, 1000))) == []
    table.on(RecogniserChanged(True, 1))
    assert table.acts(TimerFired("unfinished")) == [Reply(2, "예약하려고요")]


def test_latencies_are_milliseconds_since_the_call_was_answered_by_one_clock() -> None:
    machine = TurnMachine(TurnRules())
    machine.handle(Answered(), 50.0)
    machine.handle(ReplyDone(1), 51.0)
    machine.handle(SpeechStarted(1000), 52.0)
    machine.handle(SpeechStopped(3000, 900, 350), 53.350)
    machine.handle(Heard(Transcript("네", True, 1000, 3000)), 53.360)
    machine.handle(FirstToken(2), 53.700)
    machine.handle(ReplyStarted(2), 53.800)
    machine.handle(ReplyStarted(2), 59.0)
    (remember, *_) = [c for c in machine.handle(ReplyDone(2), 60.0) if isinstance(c, Remember)]
    latency = remember.exchange.latency
    assert (latency.speech_end, latency.final, latency.first_token, latency.first_audio) == (
        3000,
        3360,
        3700,
        3800,
    )


def test_sound_without_words_holds_the_bot_for_so_long_only() -> None:
    table = Table().greeted()
    table.says("영업시간이요?")
    assert SetTimer("pause", 5_000) in table.on(ReplyStarted(2), SpeechStarted(5000))
    assert table.acts(TimerFired("pause")) == [Resume()]
    assert table.acts(TimerFired("pause")) == []


def test_words_are_answered_although_noise_goes_on_behind_them() -> None:
    table = Table().greeted()
    table.says("예약이요", final=False)
    table.on(SpeechStarted(1100))
    assert table.acts(Heard(Transcript("예약이요", True, 100, 1000))) == []
    table.on(SpeechStopped(31_000, 29_000, 0, forced=True), SpeechStarted(31_000))
    assert table.acts(Heard(Transcript("", True, 1100, 31_000))) == [Reply(2, "예약이요")]


def test_a_call_cut_in_its_goodbye_keeps_the_last_question() -> None:
    table = Table(failures_to_goodbye=1).greeted()
    table.says("마지막 질문")
    assert table.acts(ReplyFailed(2, "llm_timeout")) == [Say(2, "goodbye")]
    commands = table.acts(TimerFired("closing"))
    assert exchanges(commands) == [("마지막 질문", "", True)]
    assert commands[-1] == EndCall("failed_turns")


def test_answers_that_were_interrupted_were_answers_all_the_same() -> None:
    table = Table().greeted()
    table.says("하나")
    table.on(ReplyFailed(2, "tts_cut"), ReplyDone(2))
    table.says("둘")
    table.on(ReplyStarted(3), ReplySpoken(3, "답"), SpeechStarted(5000))
    table.on(Heard(Transcript("셋", False, 5000, 5400)), SpeechStopped(6000, 900, 350))
    table.on(Heard(Transcript("셋", True, 5000, 6000)))
    assert table.acts(ReplyFailed(table.machine.turn, "tts_cut")) == [Say(table.machine.turn, "apology")]


def test_a_late_final_leaves_the_next_utterance_alone() -> None:
    table = Table().greeted()
    table.on(SpeechStarted(100), Heard(Transcript("예약", False, 100, 600)), SpeechStopped(1000, 900, 350))
    assert table.acts(TimerFired("transcript")) == [Reply(2, "예약")]
    table.on(ReplyDone(2), SpeechStarted(3000), SpeechStopped(4000, 900, 350))
    assert table.acts(Heard(Transcript("예약이요", True, 100, 1000))) == []
    assert table.acts(Heard(Transcript("내일이요", True, 3000, 4000))) == [Reply(3, "내일이요")]


def test_policy_off_hears_a_caller_who_only_began_before_the_bot_had_ended() -> None:
    table = Table(barge_in="off").greeted()
    table.says("영업시간이요?")
    table.on(SpeechStarted(5000), ReplyDone(2))
    table.now += 2.0
    table.on(SpeechStopped(7000, 1900, 350))
    assert table.acts(Heard(Transcript("예약도 돼요?", True, 5000, 7000))) == [Reply(3, "예약도 돼요?")]


def test_hang_up_in_the_middle_of_a_word_keeps_the_partial() -> None:
    table = Table().greeted()
    table.on(SpeechStarted(100), Heard(Transcript("예약을 취소", False, 100, 900)))
    assert exchanges(table.acts(HungUp("caller"))) == [("예약을 취소", "", True)]


def test_a_request_to_hang_up_lets_another_goodbye_finish() -> None:
    table = Table().greeted()
    table.on(TimerFired("max_call"))
    assert table.acts(HangUpRequested("shutdown")) == []
    assert table.acts(ReplyDone(table.machine.turn))[-1] == EndCall("max_duration")


def test_an_owed_final_is_not_talked_over_by_a_nudge() -> None:
    table = Table().greeted()
    table.says("예약이요", final=False)
    assert table.acts(TimerFired("silence")) == []


acts = st.one_of(
    st.sampled_from(["says", "noise", "talks over", "spoken", "done", "failed", "silence", "transcript", "pause"])
)


@settings(max_examples=400)
@given(st.lists(acts, max_size=40), st.sampled_from(["speech", "words"]))
def test_every_word_of_the_caller_is_remembered_exactly_once(script: list[str], barge_in: str) -> None:
    table = Table(barge_in=barge_in, failures_to_goodbye=99, nudges=99).greeted()
    said: list[str] = []
    commands: list[Command] = []
    for number, act in enumerate(script):
        turn = table.machine.turn
        match act:
            case "says" | "noise":
                words = f"<{number}>" if act == "says" else ""
                said += [words] if words else []
                start, table.media_ms = table.media_ms + 100, table.media_ms + 1000
                end = table.media_ms
                commands += table.on(SpeechStarted(start), SpeechStopped(end, 900, 350))
                commands += table.on(Heard(Transcript(words, True, start, end)))
            case "talks over":
                said.append(f"<{number}>")
                start, table.media_ms = table.media_ms + 100, table.media_ms + 1000
                end = table.media_ms
                heard = Transcript(f"<{number}>", False, start, end)
                commands += table.on(SpeechStarted(start), Heard(heard), SpeechStopped(end, 900, 350))
                commands += table.on(Heard(Transcript(heard.text, True, start, end)))
            case "spoken":
                commands += table.on(ReplySpoken(turn, "답"))
            case "done":
                commands += table.on(ReplyDone(turn))
            case "failed":
                commands += table.on(ReplyFailed(turn, "llm_timeout"))
            case timer:
                commands += table.on(TimerFired(timer))  # type: ignore[arg-type]
    commands += table.on(HungUp("caller"))
    remembered = " ".join(user for user, _, _ in exchanges(commands))
    assert [remembered.count(words) for words in said] == [1] * len(said)


class Chance:
    """A call by the dice, its timers run by a clock of its own; a recogniser may be exchanged at any moment."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.machine = TurnMachine(TurnRules(barge_in=self.dice.choice(["words", "speech", "off"])))
        self.now = 0.0
        self.timers: dict[Timer, float] = {}
        self.reply: int | None = None
        self.speaking = self.vendor = False
        self.owed = 0

    def on(self, *events: Event) -> None:
        for event in events:
            for command in self.machine.handle(event, self.now):
                match command:
                    case SetTimer(timer, ms):
                        self.timers[timer] = self.now + ms / 1000
                    case DropTimer(timer):
                        self.timers.pop(timer, None)
                    case Say(turn) | Reply(turn):
                        self.reply = turn
                    case Silence():
                        self.reply = None

    def waits(self, seconds: float) -> None:
        until = self.now + seconds
        while self.timers and min(self.timers.values()) <= until:
            timer = min(self.timers, key=lambda name: self.timers[name])
            self.now = max(self.now, self.timers.pop(timer))
            self.on(TimerFired(timer))
        self.now = until

    def says(self, until_silent: bool = False) -> None:
        ms = round(self.now * 1000)
        if self.speaking:
            self.speaking = False
            self.owed += 1
            self.on(SpeechPaused(ms), SpeechStopped(ms - 350, self.dice.choice([100, 800]), 350))
        elif not until_silent:
            self.speaking = True
            self.on(SpeechStarted(ms))

    def something_happens(self) -> None:
        ms = round(self.now * 1000)
        text = self.dice.choice(["안녕하세요.", "그리고", ""])
        match self.dice.randrange(6):
            case 0 | 1:
                self.says()
            case 2:
                self.on(Heard(Transcript(text, False, ms - 500, ms - 100)))
            case 3 if self.vendor or self.owed:
                self.owed = max(0, self.owed - 1)
                self.on(Heard(Transcript(text, True, ms - 500, ms - 100)))
            case 4:
                self.vendor = self.dice.random() < 0.5
                self.on(RecogniserChanged(self.vendor, self.owed))
            case 5:
                self.answer_is_heard()

    def answer_is_heard(self) -> None:
        if self.reply is not None:
            turn, self.reply = self.reply, None
            self.on(ReplyStarted(turn), ReplySpoken(turn, "네."), ReplyDone(turn))


@pytest.mark.parametrize("seeds", [range(start, start + 500) for start in range(0, 2_000, 500)])
def test_who_has_fallen_silent_is_never_left_in_dead_air(seeds: range) -> None:
    """Whatever happened before: some timer runs until the bot has said goodbye."""
    for seed in seeds:
        call = Chance(seed)
        call.on(Answered(), RecogniserChanged(False, 0))
        for _ in range(call.dice.randint(3, 14)):
            call.waits(call.dice.choice([0.05, 0.3, 0.8, 1.5, 2.5, 5.5]))
            call.something_happens()
        call.says(until_silent=True)
        for _ in range(100):
            call.answer_is_heard()
            if call.machine.phase is Phase.ENDED:
                break
            assert call.timers.keys() - {"max_call"}, f"dead air, seed {seed}"
            call.waits(1.0)
        assert call.machine.phase is Phase.ENDED, f"endless, seed {seed}"


turns = st.integers(0, 8)
words = st.sampled_from(["", "네", "예약이요"])
spans = st.integers(0, 50).map(lambda n: (n * 100, n * 100 + 90))
events = st.one_of(
    st.builds(SpeechStarted, st.integers(0, 5000)),
    st.builds(SpeechPaused, st.integers(0, 5000)),
    st.builds(SpeechResumed, st.integers(0, 5000)),
    st.builds(SpeechStopped, st.integers(0, 5000), st.just(100), st.just(350)),
    st.builds(lambda text, final, span: Heard(Transcript(text, final, *span)), words, st.booleans(), spans),
    st.builds(ReplyStarted, turns),
    st.builds(ReplySpoken, turns, st.just("말")),
    st.builds(ReplyDone, turns),
    st.builds(ReplyFailed, turns, st.just("llm_timeout")),
    st.builds(FirstToken, turns),
    st.builds(KeyPressed, st.just("1")),
    st.builds(TimerFired, st.sampled_from(get_args(Timer))),
    st.builds(HangUpRequested, st.just("admin")),
    st.builds(HungUp, st.just("caller")),
    st.builds(RecogniserChanged, st.booleans(), st.integers(0, 2)),
    st.builds(RecogniserLost, st.just("eof")),
)


@settings(max_examples=600)
@example([Heard(Transcript("네", False, 0, 90)), TimerFired("silence"), TimerFired("transcript")], "speech", False)
@given(
    st.lists(events, max_size=60),
    st.sampled_from(["speech", "words", "off"]),
    st.booleans(),
)
def test_no_order_of_events_breaks_the_rules(script: list[Event], barge_in: str, vendor: bool) -> None:
    """One reply at most, the turn never falls, nothing after the end, an exchange once, a pause always undone."""
    machine = TurnMachine(TurnRules(barge_in=barge_in))  # type: ignore[arg-type]
    machine.handle(RecogniserChanged(vendor, 0), 0.0)
    turn, held, alive, remembered, ended = 0, False, False, set[int](), False
    for step, event in enumerate([Answered(), *script]):
        for command in machine.handle(event, step * 0.1):
            assert not ended
            match command:
                case Pause():
                    assert not held
                    held = True
                case Resume():
                    assert held
                    held = False
                case Silence():
                    held = alive = False
                case Say(said) | Reply(said):
                    assert said == machine.turn
                    # the apology waits behind what is held, and a Resume comes when the caller's sound is understood
                    assert not held or isinstance(event, ReplyFailed), "a reply on a held line would never be heard"
                    assert not alive or isinstance(event, ReplyFailed)
                    alive = True
                case Remember(exchange):
                    assert exchange.turn not in remembered
                    remembered.add(exchange.turn)
                    if isinstance(event, ReplyDone):
                        alive = False
                case EndCall():
                    ended = True
        assert machine.turn >= turn
        turn = machine.turn
    assert (machine.phase is Phase.ENDED) == ended
