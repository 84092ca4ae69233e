"""Who may speak now: events in, commands out. No I/O, no clock; `now` is the loop's time in seconds.

    LISTENING ──words──▶ REPLYING ──heard to the end──▶ LISTENING
        │                   │  └──caller interrupts───▶ LISTENING
        └────── goodbye ────┴──▶ CLOSING ──heard──▶ ENDED

Rules that are easy to get wrong, each with its test:

* The caller's turn ends when the speech has stopped AND every final owed for it has come. An utterance without
  words is noise and changes nothing.
* An exchange is remembered when it closes, with what was heard, and with nothing else.
* A caller who goes on before anything of the answer was heard gets ONE answer to both halves.
* An event that carries an old turn number counts for nothing.
"""

import enum
from dataclasses import dataclass, field
from typing import Literal

from app.audio.endpoint import SpeechPaused, SpeechResumed, SpeechStarted, SpeechStopped
from app.audio.types import Transcript
from app.services.ai_call.completeness import Completeness, completeness
from app.services.ai_call.types import (
    Answered,
    Command,
    DropTimer,
    EndCall,
    EndReason,
    Event,
    Exchange,
    FirstToken,
    HangUpRequested,
    Heard,
    HungUp,
    KeyPressed,
    Pause,
    Phrase,
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
    TurnLatency,
)

BargeIn = Literal["speech", "words", "off"]


class Phase(enum.Enum):
    LISTENING = "listening"
    REPLYING = "replying"
    CLOSING = "closing"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class TurnRules:
    """`unfinished_ms`: so long a plainly unfinished sentence waits for its rest where the recogniser ended it.
    `no_words_ms`: after so long without words for speech of `no_words_speech_ms` the caller is asked to say it again.
    `pause_ms`: the bot is not held longer than that by sound in which no word was found, such as a television."""

    barge_in: BargeIn = "words"
    transcript_wait_ms: int = 2_000
    unfinished_ms: int = 700
    no_words_ms: int = 5_000
    no_words_speech_ms: int = 500
    silence_ms: int = 10_000
    nudges: int = 2
    max_call_ms: int = 1_800_000
    pause_ms: int = 5_000
    closing_ms: int = 15_000
    failures_to_goodbye: int = 2


@dataclass(slots=True)
class _Answer:
    """The exchange that is open now: whose answer is being given, and what of it was heard."""

    user: str = ""
    heard: list[str] = field(default_factory=list)
    failed: bool = False
    speech_end: int | None = None
    final: int | None = None
    first_token: int | None = None
    first_audio: int | None = None

    def close(self, turn: int, *, interrupted: bool) -> Exchange:
        latency = TurnLatency(self.speech_end, self.final, self.first_token, self.first_audio)
        return Exchange(turn, self.user, " ".join(self.heard), interrupted, latency)


class TurnMachine:
    def __init__(self, rules: TurnRules) -> None:
        self.rules = rules
        self.phase = Phase.LISTENING
        self.turn = 0
        """The generation of the conversation: +1 at every change of speaker, never less."""
        self._answered_at = 0.0
        self._ending: EndReason = "bot"
        self._failures = 0
        self._nudges = 0
        self._asked_to_end = False
        # the caller's turn
        self._speaking = False
        self._words: list[str] = []
        self._partial = ""
        self._vendor_ends_turn = False
        """The recogniser ends utterances itself and its final ends the turn; otherwise our endpointer does, and one
        final is owed for each utterance it ended."""
        self._finals_owed = 0
        self._inherited = 0  # of those owed, what a lost recogniser left behind: some may be answered already
        self._asked_again = False
        self._speech_ms = 0
        self._last_speech_ms = 0
        self._used_until_ms = 0
        """Media time up to which a partial stood in for the final; a final of before is stale."""
        self._ignored_until_ms = 0
        """Media time up to which the caller talked over a bot that does not give way."""
        self._speech_end: int | None = None
        self._final_at: int | None = None
        # the bot's turn
        self._answer = _Answer()
        self._paused = False
        self._done_at = 0
        self._talked_over = False
        """The caller is talking, and by the policy `off` that counts for nothing."""

    def handle(self, event: Event, now: float) -> list[Command]:
        if self.phase is Phase.ENDED:
            return []
        ms = round((now - self._answered_at) * 1000)
        match event:
            case Answered():
                self._answered_at = now
                max_call: Command = SetTimer("max_call", self.rules.max_call_ms)
                return [max_call, *self._say("greeting")]
            case HungUp(reason):
                return self._hung_up(reason)
            case HangUpRequested(reason):
                return self._hang_up_requested(reason)
            case RecogniserChanged(vendor_ends_turn, owed):
                return self._recogniser_changed(vendor_ends_turn, owed)
            case RecogniserLost():
                return self._goodbye("stt_down")
            case TimerFired(timer):
                return self._timer_fired(timer)
            case ReplySpoken() | ReplyDone() | ReplyFailed() | ReplyStarted() | FirstToken():
                stale = event.turn != self.turn or self.phase is Phase.LISTENING
                return [] if stale else self._reply_event(event, ms)
            case KeyPressed():
                return []
        return self._caller_event(event, ms) if self.phase is not Phase.CLOSING else []

    # ------------------------------------------------------------ the caller

    def _caller_event(
        self, event: SpeechStarted | SpeechPaused | SpeechResumed | SpeechStopped | Heard, ms: int
    ) -> list[Command]:
        match event:
            case SpeechStarted():
                self._speaking = True
                return self._speech_started()
            case SpeechPaused():
                self._speech_end = ms
                return []
            case SpeechResumed():
                return []
            case SpeechStopped(at_ms=at_ms, silence_ms=silence_ms):
                self._speaking = False
                self._last_speech_ms = round(at_ms + silence_ms)  # a recogniser was given the silence, too
                self._speech_end = ms - round(silence_ms)
                return self._speech_stopped(event.speech_ms)
            case Heard(transcript):
                return self._heard_final(transcript, ms) if transcript.final else self._heard_partial(transcript)

    def _speech_started(self) -> list[Command]:
        timers: tuple[Timer, ...] = ("silence", "transcript", "unfinished", "no_words")
        commands: list[Command] = [DropTimer(timer) for timer in timers]
        if self.phase is not Phase.REPLYING:
            return commands
        match self.rules.barge_in:
            case "speech":
                return commands + self._interrupted()
            case "words":
                return commands + self._pause()
            case "off":
                self._talked_over = True
                return commands

    def _speech_stopped(self, speech_ms: int) -> list[Command]:
        if self._talked_over:
            self._talked_over = False
            ended_before = self._speech_end is not None and self._speech_end <= self._done_at
            if self.phase is Phase.REPLYING or ended_before:  # else the caller went on when the bot had ended
                self._ignored_until_ms = self._last_speech_ms
        self._speech_ms = speech_ms
        commands: list[Command] = []
        if self.phase is Phase.LISTENING:
            commands.append(SetTimer("no_words", self.rules.no_words_ms))
        if self._vendor_ends_turn:  # its final comes when it comes, or never: then it was noise
            if self._words:  # a sentence that was held back for its rest is not held back for ever
                commands.append(SetTimer("unfinished", self.rules.transcript_wait_ms))
            elif self.phase is Phase.LISTENING:
                commands.append(SetTimer("silence", self.rules.silence_ms))
            return commands
        self._finals_owed += 1
        return [*commands, SetTimer("transcript", self.rules.transcript_wait_ms)]

    def _recogniser_changed(self, vendor_ends_turn: bool, owed: int) -> list[Command]:
        """What the lost one owed, the new one owes now; or it ends turns in its own way."""
        self._vendor_ends_turn = vendor_ends_turn
        self._finals_owed = self._inherited = 0 if vendor_ends_turn else owed
        if self.phase is Phase.CLOSING or self._speaking:
            return []
        if vendor_ends_turn and self._words:
            return [DropTimer("transcript"), SetTimer("unfinished", self.rules.transcript_wait_ms)]
        if self._finals_owed:
            return [SetTimer("transcript", self.rules.transcript_wait_ms)]
        commands: list[Command] = [DropTimer("transcript")]
        if self.phase is Phase.LISTENING:  # that timer may have been all that went on
            again: Timer = "no_words" if self._partial else "silence"
            commands.append(SetTimer(again, self.rules.no_words_ms if self._partial else self.rules.silence_ms))
        return commands

    def _heard_partial(self, transcript: Transcript) -> list[Command]:
        if self._used(transcript) or self._ignored(transcript) or not transcript.text.strip():
            return []
        self._partial = transcript.text.strip()
        # words are proof enough of an interruption: the final is not waited for
        commands = self._interrupted() if self.phase is Phase.REPLYING else []
        if not self._finals_owed and not self._speaking:  # should its final never come, nothing else would
            commands.append(SetTimer("no_words", self.rules.no_words_ms))
        return commands

    def _heard_final(self, transcript: Transcript, ms: int) -> list[Command]:
        if self._used(transcript) and not self._inherited:
            return []  # its partial stood for it; nothing is owed for it any more
        self._inherited = max(0, self._inherited - 1)
        self._finals_owed = max(0, self._finals_owed - 1)
        text = "" if self._ignored(transcript) or self._used(transcript) else transcript.text.strip()
        self._partial = ""
        commands: list[Command] = []
        if text or not self._vendor_ends_turn:
            commands.append(DropTimer("no_words"))
        if text:
            if self.phase is Phase.REPLYING:
                commands += self._interrupted()
            self._words.append(text)
            self._final_at = ms
            if self._vendor_ends_turn and completeness(text) is Completeness.CONTINUING:
                return [*commands, DropTimer("silence"), SetTimer("unfinished", self.rules.unfinished_ms)]
        return commands + self._end_of_turn(only_noise=not text and bool(self._words))

    def _used(self, transcript: Transcript) -> bool:
        """Its partial was answered. A vendor's end is rough, so the middle of it counts."""
        at_ms = (transcript.start_ms + transcript.end_ms) / 2 if self._vendor_ends_turn else transcript.end_ms
        return 0 < at_ms <= self._used_until_ms

    def _ignored(self, transcript: Transcript) -> bool:
        return self._talked_over or 0 < transcript.end_ms <= self._ignored_until_ms

    def _end_of_turn(self, *, only_noise: bool = False) -> list[Command]:
        """Answer, if the caller is done; otherwise go on with what the noise interrupted. `only_noise`: an utterance
        without words followed the words, so sound that goes on is no reason to wait any longer."""
        if not self._vendor_ends_turn and (self._finals_owed or (self._speaking and not only_noise)):
            return []
        commands: list[Command] = [DropTimer("transcript"), DropTimer("unfinished")]
        if self._words:
            return commands + self._reply()
        if self.phase is Phase.REPLYING:
            return commands if self._speaking else commands + self._go_on()
        return [*commands, SetTimer("silence", self.rules.silence_ms)]

    def _reply(self) -> list[Command]:
        user = " ".join(self._words)
        self._words.clear()
        self._nudges = 0
        self._asked_again = False
        self.turn += 1
        self.phase = Phase.REPLYING
        self._answer = _Answer(user=user, speech_end=self._speech_end, final=self._final_at)
        self._final_at = None
        return [DropTimer("silence"), Reply(self.turn, user)]

    # ------------------------------------------------------------ the bot

    def _say(self, phrase: Phrase) -> list[Command]:
        self.turn += 1
        self.phase = Phase.REPLYING
        self._answer = _Answer()
        return [DropTimer("silence"), Say(self.turn, phrase)]

    def _interrupted(self) -> list[Command]:
        """The caller takes the turn. What was heard of the answer is remembered; what was asked is kept for the
        next answer if nothing was."""
        commands: list[Command] = [Silence(self.turn)]
        if self._answer.heard:
            commands.append(Remember(self._answer.close(self.turn, interrupted=True)))
            if self._answer.user and not self._answer.failed:
                self._failures = 0
        elif self._answer.user:
            self._words.insert(0, self._answer.user)
        self._answer = _Answer()
        self._paused = False
        self.turn += 1
        self.phase = Phase.LISTENING
        return commands

    def _pause(self) -> list[Command]:
        if self._paused:
            return []
        self._paused = True
        return [Pause(), SetTimer("pause", self.rules.pause_ms)]

    def _go_on(self) -> list[Command]:
        if not self._paused:
            return []
        self._paused = False
        return [Resume()]

    def _reply_event(
        self, event: ReplySpoken | ReplyDone | ReplyFailed | ReplyStarted | FirstToken, ms: int
    ) -> list[Command]:
        match event:
            case FirstToken():
                self._answer.first_token = ms
            case ReplyStarted():
                if self._answer.first_audio is None:
                    self._answer.first_audio = ms
            case ReplySpoken(text=text):
                self._answer.heard.append(text)
            case ReplyFailed():
                return self._reply_failed()
            case ReplyDone():
                self._done_at = ms
                return self._reply_done()
        return []

    def _reply_done(self) -> list[Command]:
        commands: list[Command] = [Remember(self._answer.close(self.turn, interrupted=False)), *self._go_on()]
        if self._answer.user and not self._answer.failed:
            self._failures = 0
        self._answer = _Answer()
        if self.phase is Phase.CLOSING:
            return commands + self._end(self._ending)
        self.phase = Phase.LISTENING
        if not self._speaking:
            commands.append(SetTimer("silence", self.rules.silence_ms))
        return commands

    def _reply_failed(self) -> list[Command]:
        """Apologise behind what is still playing, in the same turn; the second failure in a row is the last."""
        if self.phase is Phase.CLOSING:
            return self._end(self._ending)
        self._failures += 1
        self._answer.failed = True
        if self._failures >= self.rules.failures_to_goodbye:
            return self._close("failed_turns")
        return [Say(self.turn, "apology")]

    # ------------------------------------------------------------ the end

    def _goodbye(self, reason: EndReason) -> list[Command]:
        """Give up whatever is being said, say goodbye, and end when it was heard (or when it cannot be)."""
        if self.phase is Phase.CLOSING:
            return []
        commands = self._interrupted() if self.phase is Phase.REPLYING else []
        commands += self._unanswered()
        self.turn += 1
        return commands + self._close(reason)

    def _close(self, reason: EndReason) -> list[Command]:
        self.phase = Phase.CLOSING
        self._ending = reason
        return [
            DropTimer("silence"),
            DropTimer("transcript"),
            DropTimer("unfinished"),
            DropTimer("no_words"),
            SetTimer("closing", self.rules.closing_ms),
            *self._go_on(),
            Say(self.turn, "goodbye"),
        ]

    def _hang_up_requested(self, reason: EndReason) -> list[Command]:
        """The first request is polite; a second one does not wait for the goodbye."""
        if self._asked_to_end:
            return self._end(reason)
        self._asked_to_end = True
        return self._goodbye(reason)

    def _hung_up(self, reason: EndReason) -> list[Command]:
        return self._end(self._ending if self.phase is Phase.CLOSING else reason)

    def _unanswered(self) -> list[Command]:
        """Words that were heard but will get no answer are remembered all the same."""
        words = [*self._words, self._partial] if self._partial else self._words
        if not words:
            return []
        self.turn += 1
        lost = _Answer(user=" ".join(words), speech_end=self._speech_end, final=self._final_at)
        self._words, self._partial = [], ""
        return [Remember(lost.close(self.turn, interrupted=True))]

    def _end(self, reason: EndReason) -> list[Command]:
        """Whatever was said and is not remembered yet is remembered now."""
        commands: list[Command] = []
        if self._answer.user or self._answer.heard:
            commands.append(Remember(self._answer.close(self.turn, interrupted=True)))
        commands += self._unanswered()
        self.phase = Phase.ENDED
        return [*commands, EndCall(reason)]

    # ------------------------------------------------------------ timers

    def _timer_fired(self, timer: str) -> list[Command]:
        match timer:
            case "closing":
                return self._end(self._ending) if self.phase is Phase.CLOSING else []
            case "max_call":
                return self._goodbye("max_duration")
            case "pause" if not self._words:
                return self._go_on()
            case "silence" if self.phase is Phase.LISTENING and not self._speaking and not self._finals_owed:
                self._nudges += 1
                return self._say("nudge") if self._nudges <= self.rules.nudges else self._goodbye("silence")
            case "transcript" if self.phase is not Phase.CLOSING and not self._speaking:
                return self._finals_overdue()
            case "unfinished" if self.phase is Phase.LISTENING and self._words and not self._speaking:
                return self._end_of_turn()
            case "no_words" if self.phase is Phase.LISTENING and not self._speaking:
                return self._without_words()
        return []

    def _without_words(self) -> list[Command]:
        """Something was said and no final came: what there is of it is answered, or the caller is asked once more."""
        if self._partial or self._words:
            return self._finals_overdue()
        if self._asked_again or self._speech_ms < self.rules.no_words_speech_ms:
            return []
        self._asked_again = True
        return self._say("repeat")

    def _finals_overdue(self) -> list[Command]:
        """The finals owed did not come in time: the partial, if there is one, stands for them, and they are stale
        when they do come. Without one they are still welcome: a slow recogniser is not deaf."""
        self._finals_owed = 0
        commands: list[Command] = []
        if self._partial:
            if self.phase is Phase.REPLYING:
                commands += self._interrupted()
            self._words.append(self._partial)
            self._partial = ""
            self._used_until_ms = self._last_speech_ms
        return commands + self._end_of_turn()
