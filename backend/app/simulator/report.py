"""What came of a call, as the caller heard it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from app.simulator.playout import Playout
from app.simulator.script import Utterance
from app.simulator.wire import Violation


@dataclass(frozen=True, slots=True)
class Turn:
    """One utterance of the caller. Times are ms since the media stream began, of speech and not of files.

    `answer_ms`: from the end of our speech to the first sound of the answer; None if none came; negative when the bot
    was too early. `interrupted`: the bot was speaking when we began. `clear_ms`: from the onset of our speech to the
    `clear` that it led to.
    """

    said: str
    onset_ms: float
    end_ms: float
    answer_ms: float | None
    interrupted: bool
    clear_ms: float | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """The call did not come about: at the `voice` webhook, or at the `stream`'s handshake. `status` is HTTP's, 0 when
    nothing answered."""

    stage: Literal["voice", "stream"]
    status: int
    why: str


@dataclass(slots=True)
class CallReport:
    """`ended_by` is who ended the last media stream. `caller` and `bot` are mu-law of the same length, and a byte of
    one was heard together with the same byte of the other. `verbs` are the TwiML verbs that were run. `greeting_ms` is
    the first sound of the bot after the stream began. `late_ms`: how late this program sent its latest frame; over 20
    or so the machine was too busy for the other figures to mean much."""

    call_sid: str
    stream_sid: str = ""
    verbs: list[str] = field(default_factory=list)
    refusal: Refusal | None = None
    violations: list[Violation] = field(default_factory=list)
    ended_by: Literal["caller", "bot", ""] = ""
    close_code: int | None = None
    close_reason: str = ""
    turns: list[Turn] = field(default_factory=list)
    greeting_ms: float | None = None
    caller: bytes = b""
    bot: bytes = b""
    underruns: int = 0
    late_ms: float = 0.0

    @property
    def ok(self) -> bool:
        """The server kept to the protocol, and the call ended as calls do."""
        return self.refusal is None and not self.violations and (self.ended_by != "bot" or self.close_code == 1000)


def turns_of(said: Sequence[Utterance], playout: Playout, began: float) -> list[Turn]:
    turns = []
    for index, utterance in enumerate(said):
        until = said[index + 1].onset if index + 1 < len(said) else float("inf")
        answer = next(
            (
                sound.at
                for sound in playout.sounds
                if utterance.onset <= sound.at < until and sound.until > utterance.end
            ),
            None,
        )
        interrupted = any(sound.at < utterance.onset < sound.until for sound in playout.sounds) or any(
            0 <= cleared - utterance.onset < utterance.end - utterance.onset for cleared in playout.clears
        )
        cleared = next((at for at in playout.clears if utterance.onset <= at < until), None)
        turns.append(
            Turn(
                utterance.text,
                (utterance.onset - began) * 1000,
                (utterance.end - began) * 1000,
                None if answer is None else (answer - utterance.end) * 1000,
                interrupted,
                (cleared - utterance.onset) * 1000 if interrupted and cleared is not None else None,
            )
        )
    return turns


def greeting_of(said: Sequence[Utterance], playout: Playout, began: float) -> float | None:
    """The first sound of the bot, if it was heard before the caller's first word."""
    if not playout.sounds or (said and playout.sounds[0].at >= said[0].onset):
        return None
    return (playout.sounds[0].at - began) * 1000
