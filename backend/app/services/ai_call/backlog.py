"""What a recogniser must still be told, and what it would have to be told again: a call's audio and its cues.

A final confirms what it covers. When a recogniser's stream is lost, everything that no final has covered goes to the
next one, so nothing said is lost and nothing is said twice. The next one may want the audio in another form: one that
`hears` everything gets silence too, one that hears speech gets the stretches from Started to Stopped.
"""

from collections import deque
from dataclasses import dataclass

from app.audio.types import AudioFrame


@dataclass(frozen=True, slots=True)
class Started:
    """Speech began `at_ms`, pre-roll included. It stands behind the first frames of it: an onset is known late."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class Paused:
    speech_ms: int


@dataclass(frozen=True, slots=True)
class Resumed:
    pass


@dataclass(frozen=True, slots=True)
class Stopped:
    speech_ms: int


SYLLABLE_MS = 300

Cue = Started | Paused | Resumed | Stopped
Item = AudioFrame | Cue


@dataclass(frozen=True, slots=True)
class BacklogOptions:
    """`keep_ms` of audio on either side; of silence that was told, which no final will cover, `idle_keep_ms`. A vendor
    may answer up to `answer_ms` after the end of an utterance; until then the utterance is no silence."""

    keep_ms: int = 30_000
    idle_keep_ms: int = 5_000
    answer_ms: int = 12_000


class Backlog:
    """Bounded; cues always stay, they are few and finals are owed for them."""

    def __init__(self, frame_ms: int, options: BacklogOptions | None = None) -> None:
        self._frame_ms = frame_ms
        self._options = options or BacklogOptions()
        self._waiting: deque[Item] = deque()
        self._told: deque[Item] = deque()
        self._inside = False
        """Whether the oldest item lies in the midst of an utterance: its Started is confirmed already."""
        self._rest_is_doubtful = False
        """A final came; whether what is left behind it is its last syllable shows when the utterance is over."""
        self._heard_ms = 0
        self._answer_from_ms: int | None = None  # the oldest utterance for which an answer may still come
        self._answer_until_ms = 0

    def put(self, item: Item) -> int:
        """How many milliseconds of the oldest audio had to be given up for it."""
        given_up = 0
        match item:
            case AudioFrame():
                self._heard_ms = item.at_ms
                if len(self._waiting) * self._frame_ms > self._options.keep_ms:
                    self._waiting.remove(next(waiting for waiting in self._waiting if isinstance(waiting, AudioFrame)))
                    given_up = self._frame_ms
            case Started(at_ms) if self._answer_from_ms is None:
                self._answer_from_ms = at_ms
            case Stopped():
                self._answer_until_ms = self._heard_ms + self._options.answer_ms
        self._waiting.append(item)
        return given_up

    def take(self) -> Item | None:
        """The next item to tell; from now on it waits to be confirmed."""
        if not self._waiting:
            return None
        item = self._waiting.popleft()
        self._told.append(item)
        if isinstance(item, Stopped) and self._rest_is_doubtful:  # its final was faster than our endpointer
            self._confirm_last_syllable()
        return item

    @property
    def owed(self) -> int:
        """Utterances that are over and not confirmed."""
        return sum(isinstance(item, Stopped) for item in (*self._told, *self._waiting))

    # ------------------------------------------------------------ what a final confirms

    def confirm_utterance(self) -> bool:
        """The final of one that hears speech: the oldest utterance. Whether there was one."""
        while self._told:
            if isinstance(self._confirm_oldest(), Stopped):
                return True
        return False

    def confirm_until(self, end_ms: int) -> bool:
        """The final of one that hears everything: whatever lies before `end_ms`. Whether that is anything.

        A vendor's times are rough: a last syllable behind `end_ms` goes with its utterance, if that is over. It must
        not be heard twice.
        """
        before = len(self._told)
        while self._told and not (isinstance(self._told[0], AudioFrame) and self._told[0].at_ms >= end_ms):
            self._confirm_oldest()
        self._rest_is_doubtful = not self._confirm_last_syllable()
        begun = (item.at_ms for item in (*self._told, *self._waiting) if isinstance(item, Started))
        self._answer_from_ms = end_ms if self._inside else next(begun, None)
        return len(self._told) < before

    def _confirm_last_syllable(self) -> bool:
        rest = self._last_syllable()
        for _ in range(rest):
            self._confirm_oldest()
        self._rest_is_doubtful = False
        return rest > 0

    def _last_syllable(self) -> int:
        """How many of the oldest items are the rest of an utterance that is over, if that is a syllable at most."""
        speech_ms = unsure_ms = 0
        oldest = next((item.at_ms for item in self._told if isinstance(item, AudioFrame)), 0)
        for number, item in enumerate(self._told, 1):
            match item:
                case AudioFrame():
                    unsure_ms += self._frame_ms
                case Started(at_ms) if at_ms >= oldest:  # of a later utterance; its own stands behind its first frames
                    return 0
                case Paused() | Resumed():  # what follows a pause is silence, unless speech resumes
                    speech_ms, unsure_ms = speech_ms + unsure_ms, 0
                case Stopped():
                    return number if speech_ms <= SYLLABLE_MS else 0
        return 0

    def _confirm_oldest(self) -> Item:
        item = self._told.popleft()
        if isinstance(item, Started | Stopped):
            self._inside = isinstance(item, Started)
        return item

    def trim(self, idle: bool) -> None:
        """Bound what is kept for a successor. `idle`: the recogniser hears everything and only silence was told lately,
        which no final will cover; noises that it found no words in are forgotten with it."""
        if not idle:
            excess = len(self._told) - self._options.keep_ms // self._frame_ms
            if excess > 0:
                kept = [item for at, item in enumerate(self._told) if at >= excess or not isinstance(item, AudioFrame)]
                self._told = deque(kept)
            return
        from_ms = self._heard_ms - self._options.idle_keep_ms
        if self._heard_ms > self._answer_until_ms:
            self._answer_from_ms = None
        elif self._answer_from_ms is not None:
            from_ms = min(from_ms, self._answer_from_ms)
        while self._told and not (isinstance(self._told[0], AudioFrame) and self._told[0].at_ms >= from_ms):
            self._confirm_oldest()

    # ------------------------------------------------------------ once more

    def rewind(self) -> None:
        """Tell everything that is not confirmed again, in its order."""
        self._waiting.extendleft(reversed(self._told))
        self._told.clear()

    def leave_out_silence(self) -> list[AudioFrame]:
        """After a rewind, for a successor that hears speech only: keep what lies between Started and Stopped. Returns
        the frames behind the last Stopped, which may become the pre-roll of the next utterance."""
        kept: deque[Item] = deque()
        silence: list[AudioFrame] = []
        inside = self._inside
        for item in self._waiting:
            match item:
                case Started(at_ms):
                    inside = True
                    kept.extend(frame for frame in silence if frame.at_ms >= at_ms)
                    kept.append(item)
                    silence = []
                case AudioFrame() if not inside:
                    silence.append(item)
                case _:
                    inside = inside and not isinstance(item, Stopped)
                    kept.append(item)
        self._waiting = kept
        return silence
