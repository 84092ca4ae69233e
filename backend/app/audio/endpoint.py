"""Where sentences begin and end: speech probabilities in, events out, counted in milliseconds of audio.

No clock and no audio in here. Time is the length of the frames that went through, so a test is a loop over
numbers, and a stalled network cannot end a sentence.

    silence --min_speech_ms of speech--> speaking --one silent frame--> pause --the wait is over--> silence
                                            ^                             |
                                            +-------resume_ms of speech---+

Each utterance gives SpeechStarted (SpeechPaused SpeechResumed)* [SpeechPaused] SpeechStopped, in this order.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The caller speaks. `at_ms` is the onset, `min_speech_ms` or more ago.

    A detector hears an onset 40 to 170 ms late, so whoever keeps the audio takes it from some 250 ms before.
    """

    at_ms: int


@dataclass(frozen=True, slots=True)
class SpeechPaused:
    """The first silent frame; speech ended at `at_ms`. A guess that the sentence is over, worth a decode.

    `speech_ms` counts as in SpeechStopped.
    """

    at_ms: int
    speech_ms: int = 0


@dataclass(frozen=True, slots=True)
class SpeechResumed:
    """The guess was wrong: the same utterance goes on, since `at_ms`."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The utterance is over.

    `at_ms` is the end of speech, `silence_ms` the audio heard since then. `speech_ms` counts only the frames
    with speech, neither pauses nor noises in them. `forced`: cut for its length, the caller may still be
    speaking; what follows is an utterance of its own and begins, at the earliest, exactly here.
    """

    at_ms: int
    speech_ms: int
    silence_ms: int
    forced: bool = False


EndpointEvent = SpeechStarted | SpeechPaused | SpeechResumed | SpeechStopped


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """Milliseconds are rounded up to whole frames, since a frame is all speech or all silence.

    `silence_ms` is FINAL_FLUSH_SILENCE_MS. A detector hears an end 100 to 200 ms late, so the caller waits
    that much longer.
    """

    start_threshold: float = 0.5
    stop_threshold: float = 0.35
    min_speech_ms: int = 96  # three frames of Silero: a click or a cough is no utterance
    resume_ms: int = 64  # two frames: shorter noises in a pause do not restart the wait
    silence_ms: int = 350
    max_utterance_ms: int = 30_000  # what Whisper hears at once

    def __post_init__(self) -> None:
        if not 0 <= self.stop_threshold <= self.start_threshold <= 1:
            raise ValueError("thresholds must satisfy 0 <= stop <= start <= 1")
        if self.min_speech_ms < 0 or self.resume_ms < 0 or self.silence_ms < 0:
            raise ValueError("durations must not be negative")
        if self.max_utterance_ms <= self.min_speech_ms:
            raise ValueError("max_utterance_ms must be more than min_speech_ms")


class Endpointer:
    """One call's utterances.

    A stretch of speech begins with a frame at or above the start threshold and goes on while frames are at or
    above the stop threshold.
    """

    def __init__(self, options: EndpointOptions) -> None:
        self._options = options
        self.media_ms = 0
        """Audio heard so far."""
        self.speaking = False
        """Inside an utterance, its pauses included."""
        self._onset_ms = 0  # of the utterance
        self._voiced_ms = 0  # of the utterance
        self._paused_ms: int | None = None  # where the present pause began
        self._wait_ms = options.silence_ms
        self._run_ms = 0  # speech in one piece, not yet long enough to be believed
        self._run_onset_ms = 0

    @property
    def paused(self) -> bool:
        return self._paused_ms is not None

    def process(self, probability: float, frame_ms: int) -> list[EndpointEvent]:
        """Counts one frame; most give no event, none gives more than two."""
        start_ms = self.media_ms
        self.media_ms += frame_ms
        if self.speaking and self._paused_ms is None:
            return self._speech(probability, start_ms, frame_ms)
        self._extend_run(probability, start_ms, frame_ms)
        if self._paused_ms is not None:
            return self._pause(self._paused_ms)
        if self._run_ms and self._run_ms >= self._options.min_speech_ms:
            self.speaking = True
            self._onset_ms = self._run_onset_ms
            self._voiced_ms = self._take_run()
            return [SpeechStarted(self._onset_ms)]
        return []

    def wait(self, ms: int) -> None:
        """Sets how much silence ends the present pause, from its beginning; counts from the next frame on.

        The next pause waits `silence_ms` again. Outside a pause this does nothing: it came too late.
        """
        if self._paused_ms is not None:
            self._wait_ms = ms

    def _speech(self, probability: float, start_ms: int, frame_ms: int) -> list[EndpointEvent]:
        if probability >= self._options.stop_threshold:
            self._voiced_ms += frame_ms
            if self._too_long():
                return [self._stop(self.media_ms, forced=True)]
            return []
        self._paused_ms = start_ms
        self._wait_ms = self._options.silence_ms
        return [SpeechPaused(start_ms, self._voiced_ms), *self._pause(start_ms)]

    def _pause(self, paused_ms: int) -> list[EndpointEvent]:
        if self._run_ms and self._run_ms >= self._options.resume_ms:
            self._paused_ms = None
            resumed = SpeechResumed(self._run_onset_ms)
            self._voiced_ms += self._take_run()
            return [resumed, self._stop(self.media_ms, forced=True)] if self._too_long() else [resumed]
        if not self._run_ms and self.media_ms - paused_ms >= self._wait_ms:
            return [self._stop(paused_ms)]
        if self._too_long():  # a sound that has just begun stays in the run: it may be the next onset
            return [self._stop(paused_ms, forced=True)]
        return []

    def _stop(self, at_ms: int, forced: bool = False) -> SpeechStopped:
        self.speaking = False
        self._paused_ms = None
        return SpeechStopped(at_ms, self._voiced_ms, self.media_ms - at_ms, forced)

    def _too_long(self) -> bool:
        return self.media_ms - self._onset_ms >= self._options.max_utterance_ms

    def _extend_run(self, probability: float, start_ms: int, frame_ms: int) -> None:
        if self._run_ms and probability >= self._options.stop_threshold:
            self._run_ms += frame_ms
        elif probability >= self._options.start_threshold:
            self._run_onset_ms, self._run_ms = start_ms, frame_ms
        else:
            self._run_ms = 0

    def _take_run(self) -> int:
        run_ms, self._run_ms = self._run_ms, 0
        return run_ms
