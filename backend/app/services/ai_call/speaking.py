"""The body of a reply: the model's text becomes pieces, pieces become audio, audio goes to the line with a mark
behind each piece. While one piece plays, the next is already written and voiced.

Both methods are run as a task that may be cancelled at any await: the caller interrupted.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing

import structlog

from app.errors import LlmError, ProviderError, TtsError
from app.services.ai_call.phrases import PhraseBook
from app.services.ai_call.ports import LanguageModel, Line, TextToSpeech
from app.services.ai_call.sentences import SentenceSplitter, speakable
from app.services.ai_call.types import Event, FirstToken, Message, Phrase, ReplyFailed

log = structlog.get_logger(__name__)

PIECES_AHEAD = 2
INSIST_S = 1.0


class Speaker:
    def __init__(
        self,
        llm: LanguageModel,
        tts: TextToSpeech,
        book: PhraseBook,
        line: Line,
        post: Callable[[Event], None],
        *,
        on_fault: Callable[[str, str], None] = lambda component, kind: None,
    ) -> None:
        self._llm = llm
        self._tts = tts
        self._book = book
        self._line = line
        self._post = post
        self._on_fault = on_fault

    async def say(self, turn: int, phrase: Phrase, language: str) -> None:
        """Play a rendered phrase: no provider is asked, so this works when all of them are down."""
        clip = self._book.get(phrase, language)
        for frame in clip.frames:
            await self._line.play(turn, frame)
        await self._line.mark(turn, clip.text)
        await self._line.mark(turn, None)

    async def reply(self, turn: int, messages: Sequence[Message]) -> None:
        """Answer, or post ReplyFailed; what was voiced before a failure stays queued and is heard."""
        pieces: asyncio.Queue[str | LlmError | None] = asyncio.Queue(PIECES_AHEAD)
        try:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write(turn, messages, pieces))
                try:
                    await self._voice(turn, pieces)
                finally:
                    if not writer.done():  # a group cancels once; a clean-up that hangs needs it twice
                        asyncio.get_running_loop().call_later(INSIST_S, writer.cancel)
        except* ProviderError as failed:
            self._failed(turn, failed)
        except* Exception as bugs:  # the edge of a reply: what breaks in it is an apology, not the end of the call
            log.error("x reply broke", turn=turn, exc_info=bugs)
            self._on_fault("reply", "bug")
            self._post(ReplyFailed(turn, "bug"))
        else:
            await self._line.mark(turn, None)

    async def _write(
        self, turn: int, messages: Sequence[Message], pieces: "asyncio.Queue[str | LlmError | None]"
    ) -> None:
        """The model's words, cut into pieces. A failure travels behind the pieces that were written before it."""
        splitter = SentenceSplitter()
        waiting = True
        try:
            async with aclosing(self._llm.reply(messages)) as deltas:
                async for delta in deltas:
                    if waiting:
                        waiting = False
                        self._post(FirstToken(turn))
                    for piece in splitter.feed(delta):
                        await pieces.put(piece)
        except LlmError as error:
            await pieces.put(error)
            return
        for piece in splitter.finish():
            await pieces.put(piece)
        await pieces.put(None)

    async def _voice(self, turn: int, pieces: "asyncio.Queue[str | LlmError | None]") -> None:
        spoken = 0
        while (piece := await pieces.get()) is not None:
            if isinstance(piece, LlmError):
                raise piece
            text = speakable(piece)
            if not text:
                continue
            await self._voice_piece(turn, text)
            spoken += 1
        if not spoken:
            raise LlmError(
                "the model answered nothing that can be said",
                provider=self._llm.name,
                kind="empty",
                retryable=True,
            )

    async def _voice_piece(self, turn: int, text: str) -> None:
        async with aclosing(self._tts.speak(text, self._line.rate)) as frames:
            async for frame in frames:
                await self._line.play(turn, frame)
        await self._line.mark(turn, text)

    def _failed(self, turn: int, failed: BaseExceptionGroup[ProviderError]) -> None:
        error = failed.exceptions[0]
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        component = "tts" if isinstance(error, TtsError) else "llm"
        log.warning("x reply failed", turn=turn, provider=error.provider, kind=error.kind, error=str(error))
        self._on_fault(component, error.kind)
        self._post(ReplyFailed(turn, f"{component}_{error.kind}"))
