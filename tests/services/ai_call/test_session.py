"""Whole conversations on the virtual clock. What must hold in every call (nothing sent after its end, one record, no
provider left at work, no breach of the protocol) is asserted by `Conversation.held`."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal

import pytest

from app.audio import g711
from app.audio.types import AudioFrame
from app.services.ai_call.phrases import PHRASES, canned_clips
from app.services.ai_call.turns import TurnRules
from app.services.ai_call.types import Message, Phrase
from tests.conversation import APOLOGY, GOODBYE, GREETING, NUDGE, REPEAT, VIRTUAL, Conversation, Echo
from tests.fakes import MemoryStore, ScriptedLlm, ScriptedStt, ToneTts, llm_error, tts_error

pytestmark = VIRTUAL

OPEN_AT, CLOSE_AT = "저희는 아홉 시에 열어요.", "그리고 여섯 시에 닫아요."
HOURS = f"{OPEN_AT} {CLOSE_AT}"
QUESTION = "영업시간이 어떻게 되나요?"


def asked(**parts: Any) -> Conversation:
    """The caller asks from 3.0 to 4.0; the first audio of the answer goes out at 4.92."""
    call = Conversation(**{"llm": ScriptedLlm(HOURS)} | parts)
    call.says(QUESTION, at=3.0, for_s=1.0)
    return call


# ---------------------------------------------------------------- the ordinary call


async def test_the_greeting_is_heard_and_stored() -> None:
    call = Conversation()
    call.hangs_up(at=3.0)
    assert await call.held() == "caller"
    assert call.bot_said(GREETING)
    assert call.whole(GREETING)
    assert call.heard[0].at == 0.0
    assert call.exchanges == [("", GREETING, False)]
    assert call.store.ends == ["caller"]
    assert call.ended_at == 3.0
    assert call.socket.closed_with == 1000


async def test_an_answer_and_its_latencies() -> None:
    """350 ms of silence are 18 frames of 20 ms; then 100 ms of decoding, 300 ms to the first word, 60 ms until the
    first sentence is written, 100 ms of voice."""
    call = asked()
    call.hangs_up(at=20.0)
    await call.held()
    assert call.bot_said(GREETING, OPEN_AT, CLOSE_AT, NUDGE)
    assert call.whole(OPEN_AT)
    assert call.whole(CLOSE_AT)
    assert call.exchanges[1] == (QUESTION, HOURS, False)
    assert call.latency(QUESTION) == (4000, 4460, 4760, 4920)
    assert call.heard[1].at == 4.92
    assert call.heard[2].at == 4.92 + call.tts.ms(OPEN_AT) / 1000, "no gap between two sentences"
    assert call.playout.underruns == 0


@pytest.mark.parametrize(
    "stt",
    [
        ScriptedStt(),
        ScriptedStt(ends_after_final=True),
        ScriptedStt(partials=True),
        ScriptedStt(hears="everything"),
        ScriptedStt(hears="everything", ends_after_final=True),
    ],
    ids=["speech", "speech-ends", "partials", "everything", "everything-ends"],
)
async def test_ten_utterances_are_all_answered(stt: ScriptedStt) -> None:
    """Also by a recogniser whose stream ends with every final."""
    call = Conversation(stt=stt)
    questions = [f"질문 {number} 입니다." for number in range(10)]
    for number, question in enumerate(questions):
        call.says(question, at=3.0 + 3 * number, for_s=0.8)
    call.hangs_up(at=33.5)
    assert await call.held() == "caller"
    assert call.llm.questions == questions
    assert call.exchanges == [("", GREETING, False), *((question, "네.", False) for question in questions)]
    assert stt.opened == (10 + 1 if stt.ends_after_final else 1)


async def test_words_heard_in_one_breath_are_answered_once() -> None:
    """The pause between the halves is shorter than the wait, the recogniser is slow: two finals, one turn."""
    call = Conversation(stt=ScriptedStt(decode_s=0.6))
    call.says("내일", at=3.0, for_s=0.5)
    call.says("세 시에 갈게요.", at=4.0, for_s=0.9)
    call.hangs_up(at=8.0)
    await call.held()
    assert call.llm.questions == ["내일 세 시에 갈게요."]


# ---------------------------------------------------------------- talking over the bot


async def test_words_interrupt_and_only_what_was_heard_is_history() -> None:
    call = asked(llm=ScriptedLlm(HOURS, "네, 말씀하세요."))
    call.says("잠깐만요.", at=7.0, for_s=0.6)
    call.hangs_up(at=12.0)
    await call.held()
    assert call.interrupted_at(7.1), "as soon as 96 ms of speech are there"
    assert call.bot_said(GREETING, OPEN_AT, CLOSE_AT, "네, 말씀하세요.")
    assert call.exchanges[1:] == [(QUESTION, OPEN_AT, True), ("잠깐만요.", "네, 말씀하세요.", False)]
    assert [(m.role, m.content) for m in call.llm.asked[1][1:]] == [
        ("assistant", GREETING),
        ("user", QUESTION),
        ("assistant", f"{OPEN_AT} …"),
        ("user", "잠깐만요."),
    ]


async def test_marks_that_come_back_late_count_for_nothing() -> None:
    """The first sentence ends at 6.32, its echo would come at 7.32: after the caller has the turn."""
    call = asked(echo="late")
    call.says("잠깐만요.", at=6.4, for_s=0.3)
    call.hangs_up(at=12.0)
    await call.held()
    assert call.interrupted_at(6.5)
    assert call.exchanges[1:] == [(f"{QUESTION} 잠깐만요.", "네.", False)]


@pytest.mark.parametrize("at", [5.0, 5.6, 6.1, 6.26, 6.3, 6.5, 7.5])
async def test_a_cough_pauses_and_the_bot_goes_on(at: float) -> None:
    call = asked()
    call.coughs(at=at, for_s=0.2)
    call.hangs_up(at=14.0)
    await call.held()
    assert call.interrupted_at(round(at + 0.1, 3))
    assert call.whole(OPEN_AT)
    assert call.whole(CLOSE_AT)
    assert call.exchanges[1:] == [(QUESTION, HOURS, False)]
    assert call.llm.questions == [QUESTION]


async def test_two_coughs_while_the_answer_is_still_being_thought() -> None:
    call = asked(llm=ScriptedLlm([2.0, HOURS]))
    call.coughs(at=4.8, for_s=0.2)
    call.coughs(at=5.6, for_s=0.2)
    call.hangs_up(at=16.0)
    await call.held()
    assert call.whole(OPEN_AT)
    assert call.whole(CLOSE_AT)
    assert call.exchanges[1:] == [(QUESTION, HOURS, False)]


async def test_the_policy_speech_gives_way_to_a_cough() -> None:
    call = asked(rules=TurnRules(barge_in="speech"))
    call.coughs(at=7.0)
    call.hangs_up(at=12.0)
    await call.held()
    assert call.interrupted_at(7.1)
    assert call.exchanges[1:] == [(QUESTION, OPEN_AT, True)]


async def test_an_interruption_stops_the_model_and_the_voice_at_once() -> None:
    call = asked(llm=ScriptedLlm([OPEN_AT + " ", 60.0, CLOSE_AT]), rules=TurnRules(barge_in="speech"))
    at_work: list[tuple[int, int]] = []
    for at in (6.0, 6.5):
        call.at(at, lambda: at_work.append((call.llm.open, call.tts.open)))
    call.coughs(at=6.3)
    call.hangs_up(at=9.0)
    await call.held()
    assert at_work == [(1, 0), (0, 0)]


async def test_the_policy_off_talks_on() -> None:
    call = asked(rules=TurnRules(barge_in="off"))
    call.says("잠깐만요.", at=7.0, for_s=0.6)
    call.hangs_up(at=14.0)
    await call.held()
    assert call.interrupted_at()
    assert call.whole(CLOSE_AT)
    assert call.exchanges[1:] == [(QUESTION, HOURS, False)]


@pytest.mark.parametrize("at", [4.6, 4.7, 4.85, 5.2])
async def test_who_goes_on_before_anything_was_heard_gets_one_answer(at: float) -> None:
    """While the model thinks, writes, the voice begins, and in the middle of the first sentence."""
    call = asked(llm=ScriptedLlm(HOURS, "네."))
    call.says("주말에는요?", at=at, for_s=0.8)
    call.hangs_up(at=12.0)
    await call.held()
    assert call.llm.questions[-1] == f"{QUESTION} 주말에는요?"
    assert call.exchanges[1:] == [(f"{QUESTION} 주말에는요?", "네.", False)]


async def test_partial_words_interrupt_before_the_final() -> None:
    call = asked(stt=ScriptedStt(partials=True))
    call.says("저기요 잠깐만 기다려 주세요.", at=7.0, for_s=2.0)
    call.hangs_up(at=14.0)
    await call.held()
    assert call.interrupted_at(7.1)
    assert call.exchanges[1:] == [(QUESTION, OPEN_AT, True), ("저기요 잠깐만 기다려 주세요.", "네.", False)]


# ---------------------------------------------------------------- failures of the mind and the voice


async def test_one_failed_reply_is_apologised_for() -> None:
    call = asked(llm=ScriptedLlm([llm_error()], "네, 예약됐어요."))
    call.says("예약해 주세요.", at=10.0, for_s=0.8)
    call.hangs_up(at=15.0)
    assert await call.held() == "caller"
    assert call.bot_said(GREETING, APOLOGY, "네, 예약됐어요.")
    assert call.exchanges[1:] == [(QUESTION, APOLOGY, False), ("예약해 주세요.", "네, 예약됐어요.", False)]


async def test_an_apology_that_falls_into_a_cough_is_heard_after_it() -> None:
    call = asked(llm=ScriptedLlm([1.0, llm_error()]))
    call.coughs(at=5.5)
    call.hangs_up(at=14.0)
    await call.held()
    assert call.bot_said(GREETING, APOLOGY)
    assert call.whole(APOLOGY)


async def test_two_failed_replies_in_a_row_are_the_last() -> None:
    call = asked(llm=ScriptedLlm([llm_error()], [llm_error()]))
    call.says("예약해 주세요.", at=10.0, for_s=0.8)
    assert await call.held() == "failed_turns"
    assert call.bot_said(GREETING, APOLOGY, GOODBYE)
    assert call.whole(GOODBYE)
    assert call.socket.closed_with == 1000


async def test_a_model_that_breaks_after_a_sentence() -> None:
    call = asked(llm=ScriptedLlm([f"{OPEN_AT} 그리고 ", llm_error()]))
    call.hangs_up(at=11.0)
    await call.held()
    assert call.bot_said(GREETING, OPEN_AT, APOLOGY)
    assert call.whole(OPEN_AT)
    assert call.exchanges[1:] == [(QUESTION, f"{OPEN_AT} {APOLOGY}", False)]


async def test_a_voice_that_breaks_in_the_middle_of_a_word() -> None:
    """What was voiced is heard, and nothing of it proves the sentence."""
    call = asked(tts=ToneTts(faults=[None] * len(PHRASES) + [tts_error()], fault_after_ms=430))
    call.hangs_up(at=11.0)
    await call.held()
    assert call.bot_said(GREETING, OPEN_AT, APOLOGY)
    assert call.exchanges[1:] == [(QUESTION, APOLOGY, False)]


async def test_a_dead_voice_does_not_mean_a_mute_line() -> None:
    call = Conversation(tts=ToneTts(dead=True))
    call.says(QUESTION, at=8.0, for_s=0.8)
    call.says("예약해 주세요.", at=18.0, for_s=0.8)
    assert await call.held() == "failed_turns"
    phrases: tuple[Phrase, ...] = ("greeting", "apology", "goodbye")
    clips = {phrase: canned_clips()[phrase, "ko"] for phrase in phrases}
    for phrase, clip in clips.items():
        assert mulaw_of(clip.frames) in call.audio, f"the canned {phrase} was not heard"
    assert call.exchanges[0] == ("", clips["greeting"].text, False)


def mulaw_of(frames: Any) -> bytes:
    return g711.encode(b"".join(frame.pcm for frame in frames))


async def test_an_answer_without_words_is_a_failed_one() -> None:
    call = asked(llm=ScriptedLlm("🙂 ** "))
    call.hangs_up(at=10.0)
    await call.held()
    assert call.bot_said(GREETING, APOLOGY)


# ---------------------------------------------------------------- silence and the end


async def test_the_silence_ladder() -> None:
    """10 s after each time the bot has spoken: two questions, then goodbye."""
    call = Conversation()
    assert await call.held() == "silence"
    greeting, nudge, goodbye = (call.tts.ms(text) / 1000 for text in (GREETING, NUDGE, GOODBYE))
    first = greeting + 10
    second = first + nudge + 10
    last = second + nudge + 10
    assert call.bot_said(GREETING, NUDGE, GOODBYE)
    assert [round(piece.at, 1) for piece in call.heard] == [0.0, round(first, 1), round(second, 1), round(last, 1)]
    assert call.ended_at == pytest.approx(last + goodbye, abs=0.05)


async def test_noise_is_no_answer_to_the_silence_ladder() -> None:
    call = Conversation()
    call.coughs(at=5.0)
    call.hangs_up(at=19.0)
    await call.held()
    assert call.llm.questions == []
    assert call.heard[1].text == NUDGE


async def test_the_silence_ladder_counts_from_the_last_thing_that_happened() -> None:
    """The recogniser takes 3 s to find no words in a cough: the silence that began at its 2 s bound begins anew."""
    call = Conversation(stt=ScriptedStt(decode_s=3.0))
    call.coughs(at=5.0)
    call.hangs_up(at=20.0)
    await call.held()
    assert call.heard[1].text == NUDGE
    assert call.heard[1].at == pytest.approx(5.3 + 0.36 + 3.0 + 10.0, abs=0.02)


@pytest.mark.parametrize("echo", ["played", "never"])
async def test_no_call_is_longer_than_allowed(echo: Echo) -> None:
    call = Conversation(rules=TurnRules(max_call_ms=60_000), echo=echo)
    for at in range(3, 60, 4):
        call.says("네, 계속 말씀하세요.", at=at, for_s=1.0)
    assert await call.held() == "max_duration"
    assert call.heard[-1].text == GOODBYE
    assert call.whole(GOODBYE)
    assert call.ended_at is not None
    assert 60.0 < call.ended_at < 60.0 + 10.0


async def test_an_admin_ends_the_call_with_a_goodbye() -> None:
    call = asked()
    call.at(7.0, lambda: call.session.hang_up("admin"))
    assert await call.held() == "admin"
    assert call.interrupted_at(7.0)
    assert call.bot_said(GREETING, OPEN_AT, CLOSE_AT, GOODBYE)
    assert call.whole(GOODBYE)
    assert call.ended_at == pytest.approx(7.0 + call.tts.ms(GOODBYE) / 1000, abs=0.05)
    assert call.exchanges[1:] == [(QUESTION, OPEN_AT, True), ("", GOODBYE, False)]


async def test_a_second_request_does_not_wait_for_the_goodbye() -> None:
    call = Conversation()
    call.at(3.0, lambda: call.session.hang_up("admin"))
    call.at(3.2, lambda: call.session.hang_up("shutdown"))
    assert await call.held() == "shutdown"
    assert call.ended_at == pytest.approx(3.2, abs=0.001)


async def test_twilio_says_by_callback_that_the_caller_left() -> None:
    call = asked()
    call.at(6.0, call.session.caller_left)
    assert await call.held() == "caller"
    assert call.ended_at == 6.0


STAGES = {
    "before the greeting": 0.0,
    "greeting": 0.5,
    "listening": 2.5,
    "caller speaks": 3.5,
    "endpointing": 4.2,
    "recognising": 4.4,
    "thinking": 4.6,
    "writing": 4.78,
    "voicing": 4.9,
    "speaking": 5.5,
    "between sentences": 6.32,
    "closing": 9.3,
}


@pytest.mark.parametrize("how", ["stop", "close", "abrupt"])
@pytest.mark.parametrize("at", STAGES.values(), ids=STAGES.keys())
async def test_hanging_up_at_every_stage(at: float, how: Literal["stop", "close", "abrupt"]) -> None:
    call = asked()
    call.at(9.0, lambda: call.session.hang_up("admin"))
    call.hangs_up(at=at, how=how)
    assert await call.held() == ("admin" if at > 9.0 else "caller")
    assert call.ended_at == pytest.approx(at, abs=0.06), "at once"
    if at > 4.46:
        assert call.exchanges[1][0] == QUESTION, "what the caller said is remembered, answered or not"


async def test_a_second_hang_up_and_a_late_one_do_nothing() -> None:
    call = asked()
    call.hangs_up(at=5.0)
    call.at(5.0, call.session.caller_left)
    call.at(5.0, lambda: call.session.hang_up("admin"))
    call.at(6.0, call.session.caller_left)
    assert await call.held() == "caller"
    assert call.store.ends == ["caller"]


# ---------------------------------------------------------------- the far side's faults


@pytest.mark.parametrize("echo", ["never", "twice", "late"])
async def test_marks_that_misbehave_do_not_hold_up_the_call(echo: Echo) -> None:
    call = asked(echo=echo)
    call.says("예약해 주세요.", at=12.0, for_s=0.8)
    call.hangs_up(at=18.0)
    assert await call.held() == "caller"
    assert call.exchanges == [("", GREETING, False), (QUESTION, HOURS, False), ("예약해 주세요.", "네.", False)]
    assert call.whole(OPEN_AT)
    assert call.whole(CLOSE_AT)


async def test_a_peer_that_takes_no_audio_ends_the_call() -> None:
    call = asked()
    call.socket.close_hangs = True
    call.at(5.5, lambda: setattr(call.socket, "send_fault", "hangs"))
    assert await call.held() == "media_stall"
    assert call.ended_at == pytest.approx(5.5 + 2.0 + 0.5, abs=0.2), "the bounds of a send and of closing"


@pytest.mark.parametrize("fault", ["runtime_error", "disconnect", "os_error"])
async def test_a_socket_that_refuses_a_send(fault: str) -> None:
    """The reader alone judges that the call is over: here the far side's silence."""
    call = asked()
    call.at(5.5, lambda: setattr(call.socket, "send_fault", fault))
    call.freezes(at=5.5, for_s=60.0)
    assert await call.held() == "media_stall"
    assert call.ended_at == pytest.approx(15.5, abs=0.1)


async def test_a_line_on_which_nothing_comes_any_more_is_ended() -> None:
    call = asked()
    call.freezes(at=3.5, for_s=60.0)
    assert await call.held() == "media_stall"
    assert call.ended_at == pytest.approx(13.5, abs=0.1)
    assert call.socket.closed_with == 1000


async def test_a_burst_after_a_pause_of_the_network_ends_no_sentence() -> None:
    """E-23: the caller's second of silence is the network's, not the caller's."""
    call = Conversation()
    call.says("내일 오후 세 시에 예약할게요.", at=3.0, for_s=2.5)
    call.freezes(at=4.0, for_s=1.0)
    call.hangs_up(at=10.0)
    await call.held()
    assert call.llm.questions == ["내일 오후 세 시에 예약할게요."]


async def test_a_peer_that_breaks_the_protocol_is_cut_off() -> None:
    call = asked()
    call.at(3.5, lambda: call.socket.put(b"\x00\x01"))
    assert await call.held() == "protocol"
    assert call.socket.closed_with == 1003
    assert call.ended_at == 3.5


# ---------------------------------------------------------------- the recogniser's faults


async def test_a_dead_recogniser_ends_the_call_with_a_goodbye(log_lines: list[Any]) -> None:
    call = Conversation(stt=ScriptedStt(dead=True))
    assert await call.held() == "stt_down"
    assert call.bot_said(GREETING, GOODBYE)
    assert call.whole(GOODBYE)
    assert call.stt.opened == 5
    assert "x recogniser given up" in [line["event"] for line in log_lines]


async def test_a_reset_in_the_middle_of_a_word_loses_nothing() -> None:
    call = asked()
    call.at(3.4, call.stt.breaks)
    call.at(3.8, call.stt.breaks)
    call.hangs_up(at=12.0)
    await call.held()
    assert call.exchanges[1:] == [(QUESTION, HOURS, False)]
    assert call.stt.opened == 3


async def test_a_reset_while_the_final_is_awaited_loses_nothing() -> None:
    call = asked(stt=ScriptedStt(decode_s=0.4))
    call.at(4.5, call.stt.breaks)
    call.hangs_up(at=12.0)
    await call.held()
    assert call.llm.questions == [QUESTION]


async def test_a_partial_stands_in_for_a_final_that_never_comes() -> None:
    call = asked(stt=ScriptedStt(partials=True, deaf=True))
    call.hangs_up(at=12.0)
    await call.held()
    assert call.llm.questions == [QUESTION]


async def test_a_final_that_comes_after_its_partial_was_answered_is_stale() -> None:
    call = asked(stt=ScriptedStt(partials=True, decode_s=3.0))
    call.hangs_up(at=14.0)
    await call.held()
    assert call.exchanges[1:] == [(QUESTION, HOURS, False)]


async def test_a_recogniser_slower_than_the_wait_is_answered_all_the_same() -> None:
    call = asked(stt=ScriptedStt(decode_s=3.0))
    call.hangs_up(at=14.0)
    await call.held()
    assert call.exchanges[1:] == [(QUESTION, HOURS, False)]


async def test_speech_without_any_transcript_leads_to_a_question() -> None:
    call = asked(stt=ScriptedStt(deaf=True))
    call.hangs_up(at=26.0)
    await call.held()
    assert call.bot_said(GREETING, REPEAT, NUDGE)


# ---------------------------------------------------------------- the store's faults, and ours


@pytest.mark.parametrize("store", [MemoryStore(fails=True), MemoryStore(hangs=True)], ids=["fails", "hangs"])
async def test_a_broken_store_does_not_disturb_the_call(store: MemoryStore) -> None:
    well, ill = asked(), asked(store=store)
    for call in (well, ill):
        call.hangs_up(at=12.0)
        assert await call.held() == "caller"
    assert ill.heard == well.heard
    assert ill.audio == well.audio
    assert ill.playout.underruns == 0
    assert ill.metrics.registry.get_sample_value("malgil_store_faults_total")


async def test_a_store_that_is_well_again_has_the_whole_call() -> None:
    call = asked(store=MemoryStore(fails=True))
    call.at(8.0, lambda: setattr(call.store, "fails", False))
    call.hangs_up(at=12.0)
    await call.held()
    assert call.exchanges == [("", GREETING, False), (QUESTION, HOURS, False)]


async def test_a_bug_of_ours_ends_its_own_call_and_is_logged(log_lines: list[Any]) -> None:
    def bug(frame: AudioFrame) -> None:
        raise KeyError("a bug")

    call = asked()
    call.at(5.5, lambda: setattr(call.listener, "hear", bug))
    assert await call.held() == "error"
    assert call.ended_at == pytest.approx(5.5, abs=0.03)
    assert call.store.ends == ["error"]
    assert [line["event"] for line in log_lines if line["log_level"] == "error"] == ["x call broke"]


@pytest.mark.parametrize("broken", [asyncio.sleep(3600), None], ids=["hangs", "raises"])
async def test_a_hang_up_that_cannot_be_done_is_bounded(broken: Any, log_lines: list[Any]) -> None:
    async def end_call() -> None:
        if broken is None:
            raise KeyError("a bug")
        await broken

    call = Conversation(end_call=end_call)
    call.at(2.5, lambda: call.session.hang_up("admin"))
    call.at(2.5, lambda: call.session.hang_up("admin"))
    assert await call.held() == "admin"
    assert call.ended_at is not None
    assert call.ended_at <= 2.5 + 5.0
    assert call.store.ends == ["admin"]
    assert any(line["event"].startswith("x wind-up step") for line in log_lines)


class HangingLlm(ScriptedLlm):
    """Cancelled, it cleans up for ever."""

    async def reply(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        try:
            async for word in super().reply(messages):
                yield word
        finally:
            await asyncio.Event().wait()


async def test_a_provider_that_never_finishes_cleaning_up_is_not_waited_for() -> None:
    call = asked(llm=HangingLlm(HOURS))
    call.hangs_up(at=4.8)
    assert await call.held() == "caller"
    assert call.ended_at is not None
    assert call.ended_at <= 4.8 + 5.0


@pytest.mark.parametrize(("at", "ended"), [(3.0, 0), (None, 1)])
async def test_twilio_is_told_to_end_the_call_unless_the_caller_has_left(at: float | None, ended: int) -> None:
    told: list[float] = []

    async def end_call() -> None:
        told.append(1)

    call = Conversation(end_call=end_call)
    if at is not None:
        call.hangs_up(at=at)
    await call.held()
    assert len(told) == ended


async def test_a_cancelled_session_still_winds_up() -> None:
    call = asked()
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        held = group.create_task(call.held())
        loop.call_later(6.0, held.cancel)
    assert call.store.ends == ["error"]
    assert call.socket.closed_with == 1011


# ---------------------------------------------------------------- an hour


async def test_an_hour_long_call_leaves_nothing_behind() -> None:
    """150 questions, some with a cough over the answer; a recogniser that closes every three minutes."""
    rules = TurnRules(silence_ms=60_000, max_call_ms=7_200_000)
    call = Conversation(rules=rules, frame_ms=200)
    for number in range(150):
        at = 4.0 + 24 * number
        call.says(f"질문 {number} 입니다.", at=at, for_s=1.0)
        if number % 3 == 0:
            call.coughs(at=at + 2.2)
    for minute in range(3, 60, 3):
        call.at(60.0 * minute, call.stt.ends)
    call.hangs_up(at=3600.0)
    held: dict[str, int] = {}
    call.at(3599.0, lambda: held.update(sizes(call)))
    assert await call.held(limit_s=4000.0) == "caller"
    assert len(call.llm.asked) == 150
    assert all(bot == "네." for _, bot, _ in call.exchanges[1:])
    assert call.stt.opened == 1 + 19
    assert held == dict.fromkeys(held, 0) | {"_preroll": held["_preroll"], "_timers": 2}


def sizes(call: Conversation) -> dict[str, int]:
    """How much each part of the call holds on to."""
    kept: dict[str, int] = {}
    for part, names in (
        (call.line, ("_queue", "_flight", "_marks")),
        (call.listener, ("_preroll",)),
        (call.listener._backlog, ("_waiting", "_told")),
        (call.session, ("_timers",)),
    ):
        kept |= {name: len(getattr(part, name)) for name in names}
    return kept
