"""One speaker's utterances over the engine: frames and cues in; partials, guesses and finals out.

The final is decoded before it is needed. `pause` (the first silent frame) starts a decode of the utterance so far, on
the guess that it is over. If the speaker goes on, `resume` voids the guess; if not, only silence came after it and its
text is the final at `flush`. So the wait of the endpointer and the decode run side by side.

What is not decided yet is decoded again and again, for partials and guesses. When it grows beyond the window, it is
cut (pieces.py): the head is decoded once and its text kept, and only the rest goes on. So neither a partial nor the
final of a long utterance costs more than one window.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog

from app.asr.engine import DecodeEngine, Job, Kind
from app.asr.pieces import find_cut, join
from app.asr.recogniser import Decoded, Request
from app.audio.types import SAMPLE_BYTES, AudioFrame, Transcript
from app.errors import SttError

log = structlog.get_logger(__name__)

MAX_DECODE_MS = 30_000
"""What Whisper hears at once."""

PREVIOUS_CHARS = 200


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """`partial_ms`, `window_s`, `overlap_ms`, `condition_on_prev` and `wait_ms` are PARTIAL_FLUSH_MS, WINDOW_S,
    WINDOW_OVERLAP_MS, CONDITION_ON_PREV and FINAL_FLUSH_SILENCE_MS: when that is over, a guess is due."""

    partial_ms: int = 250
    window_s: float = 15.0
    overlap_ms: int = 120
    condition_on_prev: bool = False
    wait_ms: int = 350
    retry_s: float = 0.25
    busy_s: float = 10.0  # a full queue is waited for, not taken for a dead recogniser


@dataclass(slots=True)
class _Piece:
    """A stretch of an utterance that is decoded by itself. `job` is None where it was refused, or has no audio."""

    request: Request
    in_pause: bool = True  # the cut after it
    job: Job | None = None


@dataclass(frozen=True, slots=True)
class _Early:
    """A decode of what is undecided, in an utterance that goes on: a partial, or the guess at a pause."""

    job: Job
    before: tuple[_Piece, ...]
    end_ms: int
    guess: bool


@dataclass(frozen=True, slots=True)
class _Over:
    """An utterance that awaits its final."""

    pieces: tuple[_Piece, ...]
    start_ms: int
    end_ms: int


class RecogniserStream:
    """Starts no task. `send`, `pause` and `flush` only submit; waiting happens in the iteration."""

    def __init__(self, engine: DecodeEngine, rate: int, language: str, options: StreamOptions) -> None:
        self._engine = engine
        self._rate = rate
        self._language = language
        self._options = options
        self._changed = asyncio.Event()
        self._over: deque[_Over] = deque()
        self._said = ""  # the end of the text of all finals
        self._last_text = ""  # the partial that the listener knows
        self._early: _Early | None = None  # the one of which the listener has not heard
        self._guess: Job | None = None  # the one that stands
        self._unsure: Transcript | None = None  # a pause of which nothing can be told
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._pieces: list[_Piece] = []
        self._undecided = bytearray()
        self._heard_ms = 0.0
        self._start_ms = self._end_ms = 0  # media time
        self._paused = False
        self._next_partial_ms: float = 2 * self._options.partial_ms  # the first half of it is pre-roll

    # ------------------------------------------------------------ audio in

    async def send(self, frame: AudioFrame) -> None:
        if not self._heard_ms:
            self._start_ms = frame.at_ms
        self._undecided += frame.pcm
        self._heard_ms += frame.duration_ms
        self._end_ms = round(frame.at_ms + frame.duration_ms)
        while len(self._undecided) > (limit := self._limit()):
            self._cut(limit)
        if self._partial_is_due():
            self._next_partial_ms = self._heard_ms + self._options.partial_ms
            self._begin_early(Kind.PARTIAL, None)

    def _limit(self) -> int:
        """In bytes. During a pause nothing is cut: it would cost the guess, and few pauses are long."""
        window_ms = MAX_DECODE_MS if self._paused else min(MAX_DECODE_MS, self._options.window_s * 1000)
        return int(window_ms * self._rate / 1000) * SAMPLE_BYTES

    def _cut(self, limit: int) -> None:
        if self._paused:
            self._void()
        cut = find_cut(bytes(self._undecided[:limit]), self._rate, self._options.overlap_ms)
        head = self._request(bytes(self._undecided[: cut.head_end]), None)
        self._pieces.append(_Piece(head, cut.in_pause, self._submit(head, Kind.GUESS)))
        del self._undecided[: cut.rest_start]

    def _partial_is_due(self) -> bool:
        """While the caller speaks, and only where it keeps nobody's final waiting: a machine whose decodes take
        longer than two partials has no time for any."""
        return (
            self._heard_ms >= self._next_partial_ms
            and not self._paused
            and self._early is None
            and not self._over
            and self._engine.idle
            and self._engine.decode_ms <= 2 * self._options.partial_ms
        )

    async def pause(self, speech_ms: int) -> None:
        """Guess that the utterance is over, from all of its audio so far."""
        self._drop_early()
        self._paused = True
        self._guess = self._begin_early(Kind.GUESS, speech_ms)
        if self._guess is None:
            self._unsure = Transcript("", False, self._start_ms, self._end_ms)
            self._changed.set()

    async def resume(self) -> None:
        self._void()

    def _void(self) -> None:
        """The guess is no final. Where it has its words already, they are still worth a partial."""
        self._paused = False
        self._guess = self._unsure = None
        if self._early is not None and self._early.guess and not self._early.job.future.done():
            self._drop_early()

    def _begin_early(self, kind: Kind, speech_ms: int | None) -> Job | None:
        for piece in self._pieces:
            if piece.job is None:  # refused when it was cut
                piece.job = self._submit(piece.request, Kind.GUESS)
        job = self._submit(self._request(bytes(self._undecided), speech_ms), kind)
        if job is not None:
            self._early = _Early(job, tuple(self._pieces), self._end_ms, kind is Kind.GUESS)
        return job

    async def flush(self, speech_ms: int) -> None:
        guess, self._guess, self._unsure = self._guess, None, None
        if self._early is not None and self._early.job is not guess:
            self._drop_early()
        self._early = None
        last = _Piece(self._request(bytes(self._undecided), speech_ms), job=guess)
        pieces = (*self._pieces, last)
        for piece in pieces:
            if piece.job is None or _failed(piece.job):
                piece.job = self._submit(piece.request, Kind.FINAL)
            else:
                self._engine.promote(piece.job)
        self._over.append(_Over(pieces, self._start_ms, self._end_ms))
        self._last_text = ""
        self._begin()
        self._changed.set()

    def close(self) -> None:
        """Drop what is queued. The iteration ends."""
        self._closed = True
        self._drop_early()
        self._guess = None
        for piece in (*self._pieces, *(piece for utterance in self._over for piece in utterance.pieces)):
            if piece.job is not None:
                piece.job.future.cancel()
        self._changed.set()

    def _drop_early(self) -> None:
        if self._early is not None:
            self._early.job.future.cancel()
        self._early = None

    def _submit(self, request: Request, kind: Kind) -> Job | None:
        if not request.pcm:
            return None
        try:
            due_s = self._options.wait_ms / 1000 if kind is Kind.GUESS else 0.0
            job = self._engine.submit(request, kind, due_s=due_s)
        except SttError as error:
            log.debug("x decode refused", kind=error.kind, of=kind.name)
            return None
        job.future.add_done_callback(lambda _: self._changed.set())
        return job

    def _request(self, pcm: bytes, speech_ms: int | None) -> Request:
        """`speech_ms` is of the whole utterance: in the last of several pieces there is no more of it than audio."""
        if speech_ms is not None:
            speech_ms = min(speech_ms, len(pcm) * 1000 // (SAMPLE_BYTES * self._rate))
        return Request(pcm, self._rate, self._language, speech_ms, self._previous())

    def _previous(self) -> str:
        if not self._options.condition_on_prev:
            return ""
        known = [(decoded.text, piece.in_pause) for piece in self._pieces if (decoded := _result(piece.job))]
        return join([(self._said, True), *known])[-PREVIOUS_CHARS:]

    # ------------------------------------------------------------ words out

    async def __aiter__(self) -> AsyncIterator[Transcript]:
        """Partials as they come, each replacing the one before. The guess of a pause always, though its words be
        known, or none, or not to be had: its `end_ms` tells that it covers the pause. Exactly one final for each
        flush, in order. Ends when the stream is closed. Raises SttError for a final that failed twice."""
        while not self._closed:
            self._changed.clear()
            if self._over:
                try:
                    final = await self._final(self._over[0])
                except SttError:
                    if self._closed:
                        return
                    raise
                if final is not None:
                    yield final
            elif (partial := self._news()) is not None:
                yield partial
            else:
                await self._changed.wait()

    def _news(self) -> Transcript | None:
        """What a partial or the guess found; None where it is known, or not whole."""
        if self._unsure is not None:
            unsure, self._unsure = self._unsure, None
            return unsure
        early = self._early
        if early is None or not early.job.future.done() or any(map(_waits, early.before)):
            return None
        self._early = None
        decoded = [_result(job) for job in (*(piece.job for piece in early.before), early.job)]
        heard = [one for one in decoded if one is not None]
        if len(heard) < len(decoded):  # a part of it was refused or failed, and half of a sentence misleads
            return Transcript("", False, self._start_ms, early.end_ms) if early.guess else None
        seams = [*(piece.in_pause for piece in early.before), True]
        transcript = _transcript(heard, seams, False, self._start_ms, early.end_ms)
        if transcript.text == self._last_text and not early.guess:
            return None
        self._last_text = transcript.text
        return transcript

    async def _final(self, utterance: _Over) -> Transcript | None:
        """None where the stream was closed meanwhile."""
        heard = []
        for piece in utterance.pieces:
            decoded = await self._decode(piece)
            if decoded is None:
                return None
            heard.append(decoded)
        self._over.popleft()
        for decoded in heard:
            if decoded.dropped:
                log.info("x words not believed", reason=decoded.dropped)
        seams = [piece.in_pause for piece in utterance.pieces]
        transcript = _transcript(heard, seams, True, utterance.start_ms, utterance.end_ms)
        self._said = f"{self._said} {transcript.text}".strip()[-PREVIOUS_CHARS:]
        return transcript

    async def _decode(self, piece: _Piece) -> Decoded | None:
        """None where the stream was closed meanwhile."""
        if not piece.request.pcm:
            return Decoded("", self._language)
        try:
            if piece.job is not None:
                return await self._result_of(piece.job)
        except SttError as error:
            log.warning("x decode failed, trying again", kind=error.kind)
        options = self._options
        piece.job = await self._engine.submit_patiently(piece.request, busy_s=options.busy_s, retry_s=options.retry_s)
        return await self._result_of(piece.job)

    async def _result_of(self, job: Job) -> Decoded | None:
        """Not by awaiting the future: `close` cancels that, which is no cancellation of whoever iterates."""
        if self._closed:
            job.future.cancel()
        if not job.future.done():
            await asyncio.wait([job.future])
        return None if self._closed else job.future.result()


def _transcript(heard: list[Decoded], seams: list[bool], final: bool, start_ms: int, end_ms: int) -> Transcript:
    """As sure as the least sure of its pieces. `seams`: whether the cut after each was in a pause."""
    text = join([(decoded.text, in_pause) for decoded, in_pause in zip(heard, seams, strict=True)])
    sure = [decoded.confidence for decoded in heard if decoded.confidence is not None]
    return Transcript(text, final, start_ms, end_ms, min(sure, default=None))


def _waits(piece: _Piece) -> bool:
    return piece.job is not None and not piece.job.future.done()


def _result(job: Job | None) -> Decoded | None:
    """None where it is not there yet, or never will be."""
    if job is None or not job.future.done() or job.future.cancelled() or job.future.exception() is not None:
        return None
    return job.future.result()


def _failed(job: Job) -> bool:
    return job.future.done() and _result(job) is None
