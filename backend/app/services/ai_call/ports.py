"""What the conversation needs from the world, as small protocols.

Two-way partners (a line, a recogniser's stream) are objects that start no tasks of their own; one-way ones (a
model's words, a voice's audio) are async generators, always consumed under `contextlib.aclosing`.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol, runtime_checkable

from app.audio.types import AudioFrame, Transcript
from app.services.ai_call.types import CallInfo, EndReason, Exchange, LineEvent, Message


class Line(Protocol):
    """A phone line, or anything one can talk through. It alone owns its socket."""

    rate: int

    async def run(self, report: Callable[[LineEvent], None]) -> EndReason:
        """Serve the line both ways until the far side is gone and say why. `report` is called for each event, in
        order, and must not block. The only coroutine that reads or sends."""

    async def play(self, turn: int, frame: AudioFrame) -> None:
        """Queue audio; waits while enough is queued. Audio of a cleared turn, or after the end, is dropped."""

    async def mark(self, turn: int, text: str | None) -> None:
        """Report ReplySpoken(turn, text) when all audio so far was heard; None reports ReplyDone(turn)."""

    def clear(self, turn: int) -> None:
        """Stop sounding and forget all that is queued of this turn and those before, here and at the far side."""

    def pause(self) -> None:
        """Stop sounding but keep what was not heard."""

    def resume(self) -> None:
        """Play on from where the caller stopped hearing."""

    async def hang_up(self, reason: EndReason) -> None:
        """End the call itself, not only the stream. Bounded; safe to call when the far side is gone."""


class SttStream(Protocol):
    """One call's recognition, many utterances long."""

    async def send(self, frame: AudioFrame) -> None:
        """Where this leaves the process it is bounded by the adapter. Raises SttError, as do the others."""

    async def pause(self, speech_ms: int) -> None:
        """The caller may have finished, having spoken for `speech_ms` (pauses do not count): a recogniser of ours
        decodes now, on a guess, and tells its text as a partial whose `end_ms` is the end of what it was sent.
        Others ignore it."""

    async def resume(self) -> None:
        """The caller has not finished: what was guessed at the pause is worth nothing."""

    async def flush(self, speech_ms: int) -> None:
        """The caller's utterance is over, with `speech_ms` of speech in it. A recogniser that `hears` speech owes
        exactly one final for it, empty where there were no words; one that hears everything ends utterances itself and
        ignores this."""

    def __aiter__(self) -> AsyncIterator[Transcript]: ...


class SpeechToText(Protocol):
    name: str
    hears: Literal["everything", "speech"]
    """`everything`: silence is sent too and the vendor ends the utterance; `speech`: only what our endpointer
    takes for speech, with its pre-roll, and `flush` ends the utterance."""

    def open(self, rate: int, language: str) -> AbstractAsyncContextManager[SttStream]:
        """`rate` in samples a second; `language` is `ko`, `en` or `auto`. Raises SttError."""


class LanguageModel(Protocol):
    name: str

    def reply(self, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
        """The answer in pieces of text as the model writes them. Raises LlmError."""


class TextToSpeech(Protocol):
    name: str

    def speak(self, text: str, rate: int) -> AsyncGenerator[AudioFrame, None]:
        """The text as audio at `rate` samples a second, in pieces of any length. Raises TtsError."""


@runtime_checkable
class Guessing(Protocol):
    """A recogniser that answers each `pause` with a partial whose `end_ms` covers it, empty where it cannot tell. The
    endpointer waits for that text, since it says whether the sentence is whole."""

    guesses: Literal[True]


@runtime_checkable
class Admitting(Protocol):
    """A recogniser that knows how much it can take."""

    @property
    def full(self) -> bool:
        """A further call would make those of now wait."""


@runtime_checkable
class Checkable(Protocol):
    """What a provider offers beside its work, where it can be told to be well or ill."""

    async def check(self) -> None:
        """Raises ProviderError (with what to do about it) when a call could not be served now. Bounded."""


class CallStore(Protocol):
    """Where calls are remembered. Every write is idempotent: by call, and by call and turn."""

    async def open_call(self, call: CallInfo) -> None: ...

    async def add_exchange(self, call_sid: str, exchange: Exchange) -> None: ...

    async def close_call(self, call_sid: str, reason: EndReason, at: datetime) -> None:
        """The first end counts; a second one is a no-op."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What serves from now on, instead of what the settings name. `before` is what served until then; `setting` what
    the setting said at that moment; `why` is for people."""

    value: str
    before: str
    setting: str
    why: str
    changed_at: datetime
    version: int = 0


class ChoiceStore(Protocol):
    """Choices made while running, shared by all workers. Raises ProviderError."""

    async def get(self, name: str) -> Choice | None: ...

    async def put(self, name: str, choice: Choice) -> Choice | None:
        """Store it in place of `choice.version` (0: of none); None where another worker was faster. Returns it with
        its new version."""


class SessionRegistry(Protocol):
    """Which calls are expected; serialisable facts only, for the webhook and the stream may reach two processes."""

    async def expect(self, call: CallInfo, nonce: str, ttl_s: int) -> None:
        """The webhook announces a call whose stream will show this nonce."""

    async def claim(self, nonce: str) -> CallInfo | None:
        """The stream shows its nonce: the call it belongs to, once; None if unknown, used or too late."""
