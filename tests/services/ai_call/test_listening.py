"""The ears: what reaches the recogniser, what is posted, and how a recogniser is kept open."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.audio import g711
from app.audio.endpoint import Endpointer, EndpointOptions, SpeechPaused, SpeechStarted, SpeechStopped
from app.audio.types import AudioFrame
from app.services.ai_call.backlog import BacklogOptions
from app.services.ai_call.completeness import EndpointWaits
from app.services.ai_call.listening import Listener, ListenerOptions
from app.services.ai_call.succession import Candidate, Succession, SuccessionOptions
from app.services.ai_call.types import Event, Heard, RecogniserChanged, RecogniserLost
from tests.conversation import VIRTUAL
from tests.fakes import SILENT_BLOCK, LoudnessDetector, ScriptedStt, names_in, sound, stt_error

pytestmark = VIRTUAL


class Ears:
    """A listener that runs, and a caller who makes sounds; each place of a sound is 100 ms and a word."""

    def __init__(
        self,
        *stts: ScriptedStt,
        options: ListenerOptions | None = None,
        succession: SuccessionOptions | None = None,
        **endpoint: int,
    ) -> None:
        """Several recognisers: each is the successor of the one before."""
        self.stt, self.stts = stts[0], stts
        self.posted: list[Event] = []
        """But for the news of a recogniser that hears in another way: those are in `changes`."""
        self.changes: list[RecogniserChanged] = []
        self.faults: list[str] = []
        self.candidates = [Candidate(f"stt{number}", stt) for number, stt in enumerate(stts)]
        self.dropped: list[float] = []
        self.sent: list[AudioFrame] = []
        self.sounds = 0
        self.at_ms = 0
        self._options, self._succession, self._endpoint = options, succession, endpoint

    async def __aenter__(self) -> "Ears":
        self.listener = Listener(
            Succession(
                self.candidates,
                asyncio.get_running_loop().time,
                self._succession,
                on_fault=lambda name, kind: self.faults.append(kind),
            ),
            LoudnessDetector(),
            Endpointer(EndpointOptions(**self._endpoint)),
            self._post,
            rate=8000,
            language="ko",
            options=self._options,
            on_drop=self.dropped.append,
        )
        self.running = asyncio.get_running_loop().create_task(self.listener.run())
        return self

    async def __aexit__(self, *error: object) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        assert not any(stt.open_now for stt in self.stts)
        assert not any(candidate.calls for candidate in self.candidates)

    def _post(self, event: Event) -> None:
        if isinstance(event, RecogniserChanged):
            self.changes.append(event)
        else:
            self.posted.append(event)

    async def says(self, *words: str) -> None:
        self.sounds += 1
        for place, word in enumerate(words):
            if word:
                for stt in self.stts:
                    stt.words[self.sounds, place] = word
            for _ in range(5):
                await self._frame(sound(self.sounds, place))

    async def waits(self, seconds: float) -> None:
        for _ in range(round(seconds * 50)):
            await self._frame(SILENT_BLOCK)

    async def _frame(self, mulaw: bytes) -> None:
        await asyncio.sleep(0.02)
        self.listener.hear(AudioFrame(g711.decode(mulaw), 8000, self.at_ms))
        self.at_ms += 20

    @property
    def heard(self) -> list[str]:
        return [event.transcript.text for event in self.posted if isinstance(event, Heard) and event.transcript.final]


class Tape(ScriptedStt):
    """Keeps what it is sent."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.tape: list[AudioFrame | str] = []

    @asynccontextmanager
    async def open(self, rate: int, language: str) -> AsyncIterator[Any]:
        async with super().open(rate, language) as stream:
            yield _Taped(stream, self.tape)


class _Taped:
    def __init__(self, stream: Any, tape: list[AudioFrame | str]) -> None:
        self._stream, self._tape = stream, tape

    async def send(self, frame: AudioFrame) -> None:
        self._tape.append(frame)
        await self._stream.send(frame)

    async def pause(self, speech_ms: int) -> None:
        self._tape.append("pause")

    async def resume(self) -> None:
        self._tape.append("resume")

    async def flush(self, speech_ms: int) -> None:
        self._tape.append("flush")
        await self._stream.flush(speech_ms)

    def __aiter__(self) -> Any:
        return self._stream.__aiter__()


# ---------------------------------------------------------------- the media path


async def test_only_speech_is_sent_with_its_preroll_and_its_cues() -> None:
    stt = Tape()
    async with Ears(stt) as ears:
        await ears.waits(2.0)
        await ears.says("네", "그래요")
        await ears.waits(2.0)
    frames = [item for item in stt.tape if isinstance(item, AudioFrame)]
    assert frames[0].at_ms == 2_000 - 300
    assert frames[-1].at_ms + 20 == 2_000 + 200 + 360, "to the end of the wait"
    assert [frame.at_ms for frame in frames] == list(range(frames[0].at_ms, frames[-1].at_ms + 1, 20)), "without a gap"
    first_silence = next(index for index, item in enumerate(stt.tape) if item == "pause")
    assert isinstance(before := stt.tape[first_silence - 1], AudioFrame)
    assert before.at_ms == 2_200, "the pause stands behind the first silent frame"
    assert [item for item in stt.tape if isinstance(item, str)] == ["pause", "flush"]
    assert stt.tape[-1] == "flush"
    assert ears.heard == ["네 그래요"]


async def test_speech_at_the_very_beginning_of_a_call() -> None:
    stt = Tape()
    async with Ears(stt) as ears:
        await ears.says("여보세요")
        await ears.waits(1.0)
    assert ears.heard == ["여보세요"]


async def test_two_utterances_share_no_audio() -> None:
    stt = Tape()
    async with Ears(stt) as ears:
        await ears.says("하나")
        await ears.waits(0.4)
        await ears.says("둘")
        await ears.waits(1.0)
    times = [item.at_ms for item in stt.tape if isinstance(item, AudioFrame)]
    assert times == sorted(set(times))
    assert ears.heard == ["하나", "둘"]


async def test_a_long_utterance_is_cut_without_losing_a_word() -> None:
    words = [f"말{number}" for number in range(40)]
    async with Ears(ScriptedStt(), max_utterance_ms=1_000) as ears:
        await ears.says(*words)
        await ears.waits(1.0)
    assert list(dict.fromkeys(" ".join(ears.heard).split())) == words
    assert len(ears.heard) == 4


async def test_a_recogniser_that_hears_everything_gets_everything_once() -> None:
    stt = Tape(hears="everything")
    async with Ears(stt) as ears:
        await ears.waits(1.0)
        await ears.says("네")
        await ears.waits(1.0)
    assert [item.at_ms for item in stt.tape if isinstance(item, AudioFrame)] == list(range(0, 2_100, 20))
    assert ears.heard == ["네"]


async def test_events_are_posted_in_order_and_any_cut_of_the_audio_gives_the_same() -> None:
    async with Ears(ScriptedStt()) as ears:
        audio = g711.decode(SILENT_BLOCK * 10 + sound(1, 0) * 20 + SILENT_BLOCK * 30)
        for start in range(0, len(audio), 722):
            ears.listener.hear(AudioFrame(audio[start : start + 722], 8000))
    assert ears.posted == [SpeechStarted(200), SpeechPaused(600, 400), SpeechStopped(600, 400, 360)]


# ---------------------------------------------------------------- keeping the recogniser open


async def test_a_stream_that_ends_after_each_final_is_opened_again_and_again() -> None:
    """In quick succession: a stream that did its work is no failure, however short it lived."""
    async with Ears(ScriptedStt(ends_after_final=True)) as ears:
        for number in range(20):
            await ears.says(f"말{number}")
            await ears.waits(0.6)
        assert ears.heard == [f"말{number}" for number in range(20)]
        assert not any(isinstance(event, RecogniserLost) for event in ears.posted)


async def test_words_said_while_the_stream_is_being_opened_again_are_heard() -> None:
    async with Ears(ScriptedStt(), succession=SuccessionOptions(reopen_s=(0.5, 0.5))) as ears:
        await ears.waits(1.0)
        ears.stt.breaks()
        await ears.says("아무도", "안", "듣나요")
        await ears.waits(1.5)
        assert ears.heard == ["아무도 안 듣나요"]


async def test_a_reset_in_the_middle_of_speech_is_made_good() -> None:
    async with Ears(ScriptedStt()) as ears:
        await ears.says("하나", "둘", "셋")
        ears.stt.breaks()
        await ears.waits(0.1)
        await ears.says("넷")
        await ears.waits(1.0)
        assert ears.heard == ["하나 둘 셋 넷"]
        assert ears.faults == ["reset"]


async def test_what_has_a_final_is_not_sent_again() -> None:
    async with Ears(ScriptedStt()) as ears:
        await ears.says("하나")
        await ears.waits(0.6)
        ears.stt.breaks()
        await ears.waits(0.1)
        await ears.says("둘")
        await ears.waits(1.0)
        assert ears.heard == ["하나", "둘"]


async def test_a_final_for_each_of_two_utterances_that_were_lost() -> None:
    async with Ears(ScriptedStt(decode_s=2.0)) as ears:
        await ears.says("하나")
        await ears.waits(0.5)
        await ears.says("둘")
        await ears.waits(0.5)
        ears.stt.breaks()
        await ears.waits(4.0)
        assert ears.heard == ["하나", "둘"]


async def test_a_recogniser_that_cannot_be_opened_is_given_up(log_lines: list[Any]) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with Ears(ScriptedStt(dead=True)) as ears:
        await ears.running
        assert ears.posted == [RecogniserLost("refused")]
        assert ears.stt.opened == 5
        assert loop.time() - began == pytest.approx(1.7)
        assert ears.faults == ["refused"] * 5
    assert log_lines[-1]["event"] == "x recogniser given up"


async def test_a_recogniser_that_ends_at_once_is_given_up() -> None:
    """Also one that first gives a final for nothing: that is no work done."""

    class Hasty(ScriptedStt):
        @asynccontextmanager
        async def open(self, rate: int, language: str) -> AsyncIterator[Any]:
            async with super().open(rate, language) as stream:
                await stream.flush(100)
                yield stream

    async with Ears(Hasty(ends_after_final=True)) as ears:
        await ears.running
    assert [event for event in ears.posted if not isinstance(event, Heard)] == [RecogniserLost("eof")]


async def test_a_vendor_that_closes_idle_streams_for_an_hour_is_no_failure() -> None:
    """B8: one every three minutes, and the tries are counted anew each time."""
    async with Ears(ScriptedStt()) as ears:
        for _ in range(20):
            await asyncio.sleep(180)
            ears.stt.ends()
        await asyncio.sleep(1)
        assert ears.stt.opened == 21
        assert ears.posted == []


async def test_resets_in_a_row_are_counted_until_a_stream_lives() -> None:
    async with Ears(ScriptedStt()) as ears:
        for _ in range(3):
            for _ in range(4):
                await asyncio.sleep(1.1)
                ears.stt.breaks()
            await asyncio.sleep(7.0)  # long enough to be well again
        assert ears.posted == []
        for _ in range(5):
            await asyncio.sleep(1.1)
            ears.stt.breaks()
        await asyncio.sleep(1.0)
        assert ears.posted == [RecogniserLost("reset")]


async def test_a_bug_in_a_recogniser_is_logged_and_leaves_the_call_to_its_successor(log_lines: list[Any]) -> None:
    async with Ears(ScriptedStt(), ScriptedStt()) as ears:
        await ears.says("하나", "둘")
        ears.stt.breaks(KeyError("a bug"))
        await ears.waits(1.0)
        assert ears.heard == ["하나 둘"]
        assert ears.faults == ["bug"]
    (broke,) = [line for line in log_lines if line["event"] == "x recogniser broke"]
    assert broke["log_level"] == "error"


@pytest.mark.parametrize("hears", ["speech", "everything"])
async def test_an_hour_of_noises_leaves_nothing_behind(hears: Any) -> None:
    async with Ears(ScriptedStt(hears=hears)) as ears:
        for _ in range(600):
            await ears.says("")
            await ears.waits(1.0)
            for _ in range(245):
                ears.listener.hear(AudioFrame(g711.decode(SILENT_BLOCK), 8000))
            await asyncio.sleep(0.1)
        backlog = ears.listener._backlog
        assert len(backlog._told) <= 2 + 5_100 / 20
        assert len(backlog._waiting) == 0
        assert len(ears.listener._preroll) <= 26


async def test_what_a_successor_hears_again_is_bounded() -> None:
    options = ListenerOptions(backlog=BacklogOptions(keep_ms=2_000, idle_keep_ms=1_000))
    async with Ears(ScriptedStt(deaf=True), options=options) as ears:
        for _ in range(10):
            await ears.says("말")
            await ears.waits(1.0)
        told = ears.listener._backlog._told
        assert sum(isinstance(item, AudioFrame) for item in told) <= 2_000 / 20


async def test_the_error_of_a_send_reopens_as_well() -> None:
    class Refusing(ScriptedStt):
        refuse = True

        @asynccontextmanager
        async def open(self, rate: int, language: str) -> AsyncIterator[Any]:
            async with super().open(rate, language) as stream:
                tape: list[AudioFrame | str] = []
                taped = _Taped(stream, tape)
                if self.refuse:
                    self.refuse = False

                    async def send(frame: AudioFrame) -> None:
                        raise stt_error("broken_pipe")

                    taped.send = send  # type: ignore[method-assign]
                yield taped

    async with Ears(Refusing()) as ears:
        await ears.says("하나", "둘")
        await ears.waits(1.0)
        assert ears.heard == ["하나 둘"]
        assert ears.faults == ["broken_pipe"]


def test_the_fakes_names_survive_the_way_through_pcm() -> None:
    for number, place in [(0, 0), (1, 63), (4095, 4095), (64, 1)]:
        assert names_in(g711.encode(g711.decode(sound(number, place)))) == [(number, place)]


class Stuck(ScriptedStt):
    """Takes nothing: `send` never returns."""

    @asynccontextmanager
    async def open(self, rate: int, language: str) -> AsyncIterator[Any]:
        async with super().open(rate, language) as stream:

            async def hang(frame: AudioFrame) -> None:
                await asyncio.Event().wait()

            stream.send = hang  # type: ignore[method-assign]
            yield stream


async def test_what_a_recogniser_does_not_take_is_bounded_and_counted() -> None:
    async with Ears(
        Stuck(), options=ListenerOptions(backlog=BacklogOptions(keep_ms=1_000)), max_utterance_ms=600_000
    ) as ears:
        await ears.says(*["word"] * 50)
        assert 3_500 <= sum(ears.dropped) <= 4_500


# ---------------------------------------------------------------- a successor takes over


@pytest.mark.parametrize("first", ["speech", "everything"])
@pytest.mark.parametrize("second", ["speech", "everything"])
async def test_a_successor_hears_what_no_final_covered_and_nothing_twice(first: Any, second: Any) -> None:
    async with Ears(ScriptedStt(hears=first), ScriptedStt(hears=second)) as ears:
        await ears.waits(0.5)
        await ears.says("하나", "둘")
        await ears.waits(1.5)
        assert ears.heard == ["하나 둘"]
        await ears.says("셋", "넷")
        ears.stts[0].dead = True
        ears.stts[0].breaks()
        await ears.says("다섯")
        await ears.waits(1.5)
        await ears.says("여섯")
        await ears.waits(1.5)
        assert " ".join(ears.heard).split() == ["하나", "둘", "셋", "넷", "다섯", "여섯"]
        assert ears.stts[1].opened == 1
        assert ears.candidates[1].calls == 1
    ways = [first] if first == second else [first, second]
    assert ears.changes == [RecogniserChanged(hears == "everything", 0) for hears in ways]


async def test_an_utterance_that_ended_before_the_change_is_owed_by_the_successor() -> None:
    async with Ears(ScriptedStt(hears="everything", deaf=True), ScriptedStt()) as ears:
        await ears.says("하나")
        await ears.waits(0.6)
        await ears.says("둘")
        await ears.waits(0.6)
        ears.stts[0].dead = True
        ears.stts[0].breaks()
        await ears.waits(1.0)
        assert ears.heard == ["하나", "둘"]
    assert ears.changes == [RecogniserChanged(True, 0), RecogniserChanged(False, 2)]


async def test_the_first_syllable_after_the_change_has_its_preroll() -> None:
    second = Tape()
    async with Ears(ScriptedStt(hears="everything"), second) as ears:
        await ears.waits(1.0)
        ears.stts[0].dead = True
        ears.stts[0].breaks()
        await ears.says("네")
        await ears.waits(1.0)
    frames = [item for item in second.tape if isinstance(item, AudioFrame)]
    assert frames[0].at_ms == 1_000 - 300
    assert ears.heard == ["네"]


async def test_silence_that_was_held_back_goes_to_a_successor_that_hears_everything() -> None:
    second = Tape(hears="everything")
    async with Ears(ScriptedStt(), second) as ears:
        await ears.waits(1.0)
        ears.stts[0].dead = True
        ears.stts[0].breaks()
        await ears.waits(1.0)
    at = [item.at_ms for item in second.tape if isinstance(item, AudioFrame)]
    assert at == list(range(at[0], 2_000, 20)), "without a gap"
    assert at[0] <= 1_000 - 300


async def test_one_that_takes_audio_and_tells_nothing_is_left() -> None:
    async with Ears(ScriptedStt(hears="everything", deaf=True), ScriptedStt()) as ears:
        for word in ("하나", "둘", "셋"):
            await ears.says(*[word] * 6)
            await ears.waits(6.0)
        assert " ".join(dict.fromkeys(" ".join(ears.heard).split())) == "하나 둘 셋"
        assert ears.faults == ["mute"]
        assert ears.candidates[0].suspected
        assert not ears.candidates[0].breaker.open, "perhaps there were no words: a probe will tell"


async def test_one_that_hears_words_now_and_then_is_kept() -> None:
    async with Ears(ScriptedStt(hears="everything"), ScriptedStt()) as ears:
        for word in ("하나", "", "둘", "", "셋", ""):
            await ears.says(*[word] * 6)
            await ears.waits(6.0)
        assert ears.faults == []


async def test_a_guess_that_dies_with_its_stream_is_not_waited_for() -> None:
    stt = Guessing()
    stt.guess_s = 60.0
    async with Ears(stt, ScriptedStt()) as ears:
        await ears.says("여보세요")
        await ears.waits(0.2)
        stt.dead = True
        stt.breaks()
        await ears.waits(1.0)
        assert [event.silence_ms for event in ears.posted if isinstance(event, SpeechStopped)] == [360]


# ---------------------------------------------------------------- how long a pause may be


class Guessing(ScriptedStt):
    """Tells what it heard at each pause, as a local recogniser does, after `guess_s`."""

    guesses = True
    guess_s = 0.0

    @asynccontextmanager
    async def open(self, rate: int, language: str) -> AsyncIterator[Any]:
        async with super().open(rate, language) as stream:

            async def pause(speech_ms: int) -> None:
                guess = stream._transcript(final=False)
                asyncio.get_running_loop().call_later(self.guess_s, lambda: stream.results.put_nowait(guess))

            stream.pause = pause  # type: ignore[method-assign]
            yield stream


@pytest.mark.parametrize(
    ("words", "silence_ms"), [("예약해 주세요", 200), ("그냥", 360), ("예약하고 싶은데", EndpointWaits().continuing_ms)]
)
async def test_the_text_says_how_long_a_pause_may_be(words: str, silence_ms: int) -> None:
    async with Ears(Guessing()) as ears:
        await ears.says(*words.split())
        await ears.waits(2.0)
        assert ears.heard == [words]
        assert [event.silence_ms for event in ears.posted if isinstance(event, SpeechStopped)] == [silence_ms]


@pytest.mark.parametrize(("words", "silence_ms"), [("예약해 주세요", 520), ("예약하고 싶은데", 900)])
async def test_words_that_come_late_still_say_how_long_a_pause_may_be(words: str, silence_ms: int) -> None:
    stt = Guessing()
    stt.guess_s = 0.5
    async with Ears(stt) as ears:
        await ears.says(*words.split())
        await ears.waits(2.0)
        assert [event.silence_ms for event in ears.posted if isinstance(event, SpeechStopped)] == [silence_ms]


async def test_a_guess_that_never_comes_does_not_hold_the_turn_for_ever() -> None:
    stt = Guessing()
    stt.guess_s = 60.0
    async with Ears(stt) as ears:
        await ears.says("여보세요")
        await ears.waits(2.0)
        assert [event.silence_ms for event in ears.posted if isinstance(event, SpeechStopped)] == [1200]


async def test_a_guess_of_an_earlier_pause_says_nothing_about_this_one() -> None:
    class Late(Guessing):
        @asynccontextmanager
        async def open(self, rate: int, language: str) -> AsyncIterator[Any]:
            async with super().open(rate, language) as stream:

                async def pause(speech_ms: int) -> None:
                    if not self.words.get((2, 0)):  # only the first pause is told of, when the second one is there
                        guess = stream._transcript(final=False)
                        asyncio.get_running_loop().call_later(0.5, lambda: stream.results.put_nowait(guess))

                stream.pause = pause
                yield stream

    async with Ears(Late()) as ears:
        await ears.says("예약해", "주세요")
        await ears.waits(0.3)
        await ears.says("내일")
        await ears.waits(1.5)
        assert [event.silence_ms for event in ears.posted if isinstance(event, SpeechStopped)] == [1200]


async def test_the_time_to_the_final_counts_from_the_end_of_speech() -> None:
    async with Ears(ScriptedStt(decode_s=0.1)) as ears:
        await ears.says("하나")
        await ears.waits(1.0)
    assert ears.candidates[0].latency_ms() == (460, 460)
