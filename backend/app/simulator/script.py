"""What a caller does, as data, and the caller who does it.

A script is a list of steps, each begun when the one before it is over:

    [BotFinished(), Say(clip), BotSpeaking(after_ms=400), Say(other), BotFinished(), HangUp()]

A caller whose script has ended stays on the line and listens. Pure: `Caller.frame` is asked for the next 20 ms, with
the time as an argument.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from app.audio.g711 import SILENCE
from app.simulator.clip import RATE, Clip
from app.simulator.playout import Playout
from app.simulator.wire import FRAME_BYTES

_SILENT_FRAME = bytes([SILENCE]) * FRAME_BYTES
GREETING_S = 8.0
ANSWER_S = 15.0
_RESUMED_S = 1.0
"""A bot that is heard so long after the caller's last word has not been interrupted by it: it speaks on."""


@dataclass(frozen=True, slots=True)
class Say:
    clip: Clip


@dataclass(frozen=True, slots=True)
class BotFinished:
    """Wait until the bot has said something since our last word and was then silent; at most `give_up_s`."""

    silent_ms: int = 700
    give_up_s: float = ANSWER_S


@dataclass(frozen=True, slots=True)
class BotSpeaking:
    """Wait until the bot, which answers our last word, has been heard for `after_ms`; at most `give_up_s`."""

    after_ms: int
    give_up_s: float = ANSWER_S


@dataclass(frozen=True, slots=True)
class Pause:
    ms: int


@dataclass(frozen=True, slots=True)
class Press:
    """Keys of the telephone, 0-9 * #."""

    keys: str


@dataclass(frozen=True, slots=True)
class HangUp:
    """`abrupt`: the connection breaks, no `stop` is sent."""

    abrupt: bool = False


Step = Say | BotFinished | BotSpeaking | Pause | Press | HangUp


def conversation(clips: Sequence[Clip], barge_in_ms: int | None = None) -> list[Step]:
    """Say each clip when the bot has finished, or so many ms after it began to speak; hear the last answer; leave."""
    steps: list[Step] = []
    for clip in clips:
        give_up_s = GREETING_S if not steps else ANSWER_S
        wait = BotFinished(give_up_s=give_up_s) if barge_in_ms is None else BotSpeaking(barge_in_ms, give_up_s)
        steps += [wait, Say(clip)]
    return [*steps, BotFinished(), HangUp()]


@dataclass(frozen=True, slots=True)
class Utterance:
    """Something that the caller said. Times are the clock's, and the speech's own, not its file's."""

    text: str
    onset: float
    end: float


@dataclass(slots=True)
class Caller:
    """`frame` returns the 160 bytes that end at `now`, and moves the script on.

    `said`, `keys` (pressed, to be sent and removed by the phone) and `leaving` are what came of it.
    """

    steps: Sequence[Step]
    playout: Playout
    said: list[Utterance] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    leaving: HangUp | None = None
    _next: int = 0
    _since: float | None = None  # when the present step began
    _clip: Clip | None = None
    _position: int = 0

    def frame(self, now: float) -> bytes:
        self._advance(now)
        if self._clip is None:
            return _SILENT_FRAME
        mulaw = self._clip.mulaw[self._position : self._position + FRAME_BYTES]
        self._position += FRAME_BYTES
        if self._position >= len(self._clip.mulaw):
            self._clip = None
            mulaw = mulaw.ljust(FRAME_BYTES, _SILENT_FRAME[:1])
        return mulaw

    def _advance(self, now: float) -> None:
        while self._clip is None and self._next < len(self.steps):
            if self._since is None:
                self._since = now
            if not self._over(self.steps[self._next], now, self._since):
                return
            self._next += 1
            self._since = None

    def _over(self, step: Step, now: float, since: float) -> bool:
        """Do the step, or see whether what it waits for has come."""
        match step:
            case Say(clip):
                begins = now - FRAME_BYTES / RATE  # what is sent now was spoken during the last 20 ms
                self.said.append(Utterance(clip.text, begins + clip.onset / RATE, begins + clip.end / RATE))
                self._clip, self._position = clip, 0
                return True
            case BotFinished(silent_ms, give_up_s):
                heard = self._heard_until()
                return now >= since + give_up_s or (heard is not None and now >= heard + silent_ms / 1000)
            case BotSpeaking(after_ms, give_up_s):
                began = self._heard_from()
                return now >= since + give_up_s or (began is not None and now >= began + after_ms / 1000)
            case Pause(ms):
                return now >= since + ms / 1000
            case Press(keys):
                self.keys.extend(keys)
                return True
            case HangUp():
                self.leaving = step
                return False

    def _last_word(self) -> float:
        return self.said[-1].end if self.said else 0.0

    def _heard_from(self) -> float | None:
        """When the bot began to speak after our last word."""
        last = self._last_word()
        return next((sound.at for sound in self.playout.sounds if sound.at >= last), None)

    def _heard_until(self) -> float | None:
        """How far the bot speaks, as known by now, if it has spoken since our last word."""
        last = self._last_word()
        if not self.playout.sounds:
            return None
        sound = self.playout.sounds[-1]
        return sound.until if sound.at >= last or sound.until >= last + _RESUMED_S else None
