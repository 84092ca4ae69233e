"""The vocabulary of a call: what can happen (Event), what to do about it (Command), and what is remembered.

Closed and small on purpose: plain frozen values without a base class, matched with `match`. `turn` is the
generation number of the conversation; it grows by one at every change of speaker, so anything that carries an
old number is stale and counts for nothing.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from app.audio.endpoint import SpeechPaused, SpeechResumed, SpeechStarted, SpeechStopped
from app.audio.types import AudioFrame, Transcript

Phrase = Literal["greeting", "nudge", "repeat", "apology", "goodbye"]
"""The bot's own sentences, rendered before they are needed so that a dead voice can still be heard."""

Timer = Literal["pause", "transcript", "unfinished", "no_words", "silence", "max_call", "closing"]

EndReason = Literal[
    "caller",  # the caller hung up
    "bot",  # the bot ended the conversation after its goodbye
    "silence",  # the caller said nothing for the whole silence ladder
    "max_duration",
    "failed_turns",  # two replies in a row could not be given
    "stt_down",  # the recogniser could not be kept alive
    "admin",  # ended by POST /api/calls/{call_sid}/hangup
    "shutdown",  # the drain's deadline passed
    "media_stall",  # the socket stayed open but no message came
    "protocol",  # the peer broke the media-stream protocol
    "error",  # a bug of ours; the log has the stack
]

# ---------------------------------------------------------------- what is remembered


@dataclass(frozen=True, slots=True)
class CallInfo:
    """Who calls whom. Numbers are personal data: masked in every log."""

    call_sid: str
    account_sid: str
    caller: str
    callee: str
    language: str
    started_at: datetime


@dataclass(frozen=True, slots=True)
class TurnLatency:
    """Moments of one turn, in milliseconds since the call was answered, all read from the loop's clock.

    None where it did not happen: a greeting has no end of speech, an unanswered turn no first audio.
    """

    speech_end: int | None = None
    final: int | None = None
    first_token: int | None = None
    first_audio: int | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer. `bot` is what the caller HEARD (marks prove it), not what was generated."""

    turn: int
    user: str
    bot: str
    interrupted: bool
    latency: TurnLatency = field(default_factory=TurnLatency)


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Answered:
    """The line is open both ways."""


@dataclass(frozen=True, slots=True)
class Heard:
    """The recogniser's words. An empty final says that what sounded like speech held no words."""

    transcript: Transcript


@dataclass(frozen=True, slots=True)
class KeyPressed:
    digit: str


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The language model's first words for this turn arrived."""

    turn: int


@dataclass(frozen=True, slots=True)
class ReplyStarted:
    """The first audio of this turn went on the wire."""

    turn: int


@dataclass(frozen=True, slots=True)
class ReplySpoken:
    """The far side played this piece of the reply to its end."""

    turn: int
    text: str


@dataclass(frozen=True, slots=True)
class ReplyDone:
    """The far side played the whole reply."""

    turn: int


@dataclass(frozen=True, slots=True)
class ReplyFailed:
    turn: int
    code: str


@dataclass(frozen=True, slots=True)
class RecogniserChanged:
    """Who ends the caller's turn from now on: the recogniser with its final (`vendor_ends_turn`), or our endpointer.
    `owed`: utterances that have ended and whose finals the recogniser of now still owes us."""

    vendor_ends_turn: bool
    owed: int


@dataclass(frozen=True, slots=True)
class RecogniserLost:
    """The recogniser could not be reopened: the bot is deaf."""

    code: str


@dataclass(frozen=True, slots=True)
class TimerFired:
    timer: Timer


@dataclass(frozen=True, slots=True)
class HangUpRequested:
    """Somebody other than the caller wants the call to end: an admin, a shutdown."""

    reason: EndReason


@dataclass(frozen=True, slots=True)
class HungUp:
    """The far side is gone; nothing can be heard or said any more."""

    reason: EndReason


LineEvent = AudioFrame | KeyPressed | ReplyStarted | ReplySpoken | ReplyDone
"""What a Line reports."""

Event = (
    Answered
    | SpeechStarted
    | SpeechPaused
    | SpeechResumed
    | SpeechStopped
    | Heard
    | KeyPressed
    | FirstToken
    | ReplyStarted
    | ReplySpoken
    | ReplyDone
    | ReplyFailed
    | RecogniserChanged
    | RecogniserLost
    | TimerFired
    | HangUpRequested
    | HungUp
)

# ---------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class Say:
    """Play a rendered phrase as the reply of this turn."""

    turn: int
    phrase: Phrase


@dataclass(frozen=True, slots=True)
class Reply:
    """Ask the model for an answer to these words and speak it as this turn."""

    turn: int
    user: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop sounding at once, but keep what was not heard: the caller may only have coughed."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on from where the caller stopped hearing."""


@dataclass(frozen=True, slots=True)
class Silence:
    """Give way: cancel the reply of this turn and forget what was not heard of it."""

    turn: int


@dataclass(frozen=True, slots=True)
class Remember:
    exchange: Exchange


@dataclass(frozen=True, slots=True)
class SetTimer:
    """(Re)start a timer; it fires once, `ms` after now."""

    timer: Timer
    ms: int


@dataclass(frozen=True, slots=True)
class DropTimer:
    timer: Timer


@dataclass(frozen=True, slots=True)
class EndCall:
    reason: EndReason


Command = Say | Reply | Pause | Resume | Silence | Remember | SetTimer | DropTimer | EndCall
