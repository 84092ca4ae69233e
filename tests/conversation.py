"""A conversation as data, held on the virtual clock through everything real but the providers and the network:

    call = Conversation(llm=ScriptedLlm("저희는 아홉 시에 열어요. 여섯 시에 닫아요."))
    call.says("영업시간이 어떻게 되나요?", at=3.0, for_s=1.2)
    call.says("잠깐만요.", at=7.0, for_s=0.6)
    call.hangs_up(at=20.0)
    assert await call.held() == "caller"
    assert call.interrupted_at(7.1)
    assert call.bot_said(GREETING, "저희는 아홉 시에 열어요.", "네.")

The way of the audio: caller's sound -> Wire -> MediaStream -> TwilioLine -> Listener -> ... -> Speaker -> TwilioLine
-> MediaStream -> Wire -> Playout, the far side of the phone simulator: it buffers, plays 8,000 bytes a second, and
echoes marks when they were played and when they were cleared.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import pytest

from app.audio.endpoint import Endpointer, EndpointOptions
from app.metrics import Metrics
from app.services.ai_call.listening import Listener, ListenerOptions
from app.services.ai_call.phrases import PHRASES, PhraseBook, canned_clips
from app.services.ai_call.prompt import PromptBuilder
from app.services.ai_call.recorder import Recorder
from app.services.ai_call.session import CallSession, EventQueue, Participants
from app.services.ai_call.speaking import Speaker
from app.services.ai_call.succession import Candidate, Succession
from app.services.ai_call.turns import TurnMachine, TurnRules
from app.services.ai_call.types import EndReason, Phrase
from app.simulator.playout import BYTES_PER_S, Playout
from app.simulator.wire import Audio, Clear, Mark, Violation, Wire
from app.telephony.media_stream import MediaStream
from app.telephony.twilio_line import LineOptions, TwilioLine, await_start
from tests.fakes import (
    BLOCK,
    CALL,
    SILENT_BLOCK,
    LoudnessDetector,
    MemorySocket,
    MemoryStore,
    ScriptedLlm,
    ScriptedStt,
    ToneTts,
    sound,
    stretches,
)

VIRTUAL = pytest.mark.looptime(start=1000, noop_cycles=2)
"""The test's loop jumps to its next timer. There are no threads and no sockets here, so nothing need be waited for."""

TEXTS: dict[Phrase, str] = {
    "greeting": "안녕하세요, 무엇을 도와드릴까요?",
    "nudge": "여보세요, 듣고 계신가요?",
    "repeat": "못 들었어요, 한 번만 더요.",
    "apology": "죄송합니다, 다시 한번 말씀해 주세요.",
    "goodbye": "안녕히 계세요.",
}
GREETING, NUDGE, REPEAT, APOLOGY, GOODBYE = (TEXTS[phrase] for phrase in PHRASES)
CANNED = {phrase: canned_clips()[phrase, "ko"].text for phrase in PHRASES}


async def nobody_to_tell() -> None:
    """The call ends with its socket."""


Echo = Literal["played", "twice", "late", "never"]
LATE_S = 1.0


@dataclass(frozen=True)
class Heard:
    """A stretch of one text as the caller heard it: since when, and which of its blocks of 20 ms."""

    text: str
    at: float
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class _Sound:
    number: int
    words: int
    at: float
    until: float

    def block(self, at: float) -> bytes:
        place = int((at - self.at) / (self.until - self.at) * max(1, self.words))
        return sound(self.number, place)


class Conversation:
    def __init__(
        self,
        *,
        llm: ScriptedLlm | None = None,
        stt: ScriptedStt | None = None,
        successors: Sequence[ScriptedStt] = (),
        tts: ToneTts | None = None,
        store: MemoryStore | None = None,
        rules: TurnRules | None = None,
        line: LineOptions | None = None,
        listening: ListenerOptions | None = None,
        echo: Echo = "played",
        frame_ms: int = 20,
        end_call: Callable[[], Awaitable[None]] = nobody_to_tell,
    ) -> None:
        """`frame_ms` of caller's audio a message, a multiple of 20."""
        self.llm = llm or ScriptedLlm()
        self.stt = stt or ScriptedStt()
        self.successors = successors
        self.tts = tts or ToneTts()
        self.store = store or MemoryStore()
        self.metrics = Metrics()
        self.playout = Playout()
        self.violations: list[Violation] = []
        self.began = 0.0
        """When the media stream started; every time in a script counts from here."""
        self.left_at: float | None = None
        self.ended_at: float | None = None
        self._echo = echo
        self._frame_ms = frame_ms
        self._wire = Wire(
            account_sid=CALL.account_sid,
            call_sid=CALL.call_sid,
            stream_sid="MZ1",
            parameters={},
            violations=self.violations,
        )
        self.socket = MemorySocket(self._delivered, self._wire.over)
        self._sounds: list[_Sound] = []  # in the order in which they are made
        self._to_come: deque[_Sound] = deque()
        self._acts: list[tuple[float, Callable[[], object]]] = []
        self._silences: list[tuple[float, float]] = []
        self._build(rules or TurnRules(), line or LineOptions(), listening, end_call)

    def _build(
        self,
        rules: TurnRules,
        line_options: LineOptions,
        listening: ListenerOptions | None,
        end_call: Callable[[], Awaitable[None]],
    ) -> None:
        events: EventQueue = asyncio.Queue()
        self._stream = MediaStream()
        self.line = TwilioLine(self.socket, self._stream, line_options, end_call=end_call)
        recognisers = Succession(
            [Candidate(f"stt{number}", stt) for number, stt in enumerate((self.stt, *self.successors))],
            lambda: asyncio.get_running_loop().time(),
            on_fault=lambda name, kind: self.metrics.recogniser_faults.labels(name, kind).inc(),
        )
        self.listener = Listener(
            recognisers,
            LoudnessDetector(),
            Endpointer(EndpointOptions()),
            events.put_nowait,
            rate=8000,
            language="ko",
            options=listening,
        )
        self.book = PhraseBook()
        self.machine = TurnMachine(rules)
        self.session = CallSession(
            CALL,
            Participants(
                events,
                self.line,
                self.listener,
                Speaker(self.llm, self.tts, self.book, self.line, events.put_nowait),
                self.machine,
                PromptBuilder({"ko": "전화를 받는 상담원."}, 10, "ko"),
                Recorder(self.store, CALL, self.metrics.store_faults.inc),
                self.metrics,
            ),
        )

    # ------------------------------------------------------------ the script

    def says(self, text: str, *, at: float, for_s: float) -> None:
        """Each word of the text takes an equal part of the time."""
        number, words = len(self._sounds) + 1, text.split()
        for stt in (self.stt, *self.successors):
            stt.words |= {(number, place): word for place, word in enumerate(words)}
        self._sounds.append(_Sound(number, len(words), at, at + for_s))

    def coughs(self, *, at: float, for_s: float = 0.3) -> None:
        """A sound in which the recogniser finds no words."""
        self._sounds.append(_Sound(len(self._sounds) + 1, 0, at, at + for_s))

    def hangs_up(self, *, at: float, how: Literal["stop", "close", "abrupt"] = "stop") -> None:
        """`stop`: as Twilio ends a stream. `close`: without a word. `abrupt`: the network is gone; a send fails
        before the server hears of it."""
        self.at(at, lambda: self._leave(how))

    def freezes(self, *, at: float, for_s: float) -> None:
        """Nothing comes from the caller's side; when it goes on, all that was held back comes at once."""
        self._silences.append((at, at + for_s))

    def at(self, at: float, act: Callable[[], object]) -> None:
        self._acts.append((at, act))

    # ------------------------------------------------------------ holding it

    async def held(self, *, limit_s: float = 300.0) -> EndReason:
        """The whole call. What must hold in every call is asserted here."""
        loop = asyncio.get_running_loop()
        if not self.tts.dead:
            await self.book.render(self.tts, {"ko": TEXTS})
        async with asyncio.timeout(limit_s), asyncio.TaskGroup() as group:
            self.socket.put(self._wire.connected())
            self.socket.put(self._wire.start())
            await await_start(self.socket, self._stream, 5.0)
            self.began = loop.time()
            acts = [loop.call_at(self.began + at, act) for at, act in self._acts]
            caller = group.create_task(self._talk())
            reason = await self.session.run()
            self.ended_at = loop.time() - self.began
            self._wire.over()
            await asyncio.sleep(3.0)  # what still comes must not come
            caller.cancel()
            for handle in acts:
                handle.cancel()
        self._judge()
        return reason

    def _judge(self) -> None:
        assert not self.violations, [str(violation) for violation in self.violations]
        assert not self.socket.misuse, self.socket.misuse
        assert (self.llm.open, self.tts.open, self.stt.open_now) == (0, 0, 0), "a provider is still at work"
        assert all(timer.cancelled() for timer in self.session._timers.values()), "a timer keeps the call in memory"
        if self.left_at is not None and self.ended_at is not None:
            assert self.ended_at - self.left_at <= 5.0, "winding up took too long"
        if not (self.store.hangs or self.store.fails):
            assert (len(self.store.calls), len(self.store.ends)) == (1, 1), "one record"
        turns = [exchange.turn for exchange in self.store.exchanges]
        assert sorted(set(turns)) == turns, "each turn once, in order"

    async def _talk(self) -> None:
        loop, frame_s = asyncio.get_running_loop(), self._frame_ms / 1000
        self._to_come = deque(self._sounds)
        for number in range(1_000_000):
            end = (number + 1) * frame_s
            for since, until in self._silences:
                if since <= end < until:
                    end = until
            await asyncio.sleep(self.began + end - loop.time())
            if self.left_at is not None:
                return
            at_ms = number * self._frame_ms
            mulaw = b"".join(self._block((at_ms + ms) / 1000) for ms in range(0, self._frame_ms, 20))
            self.socket.put(self._wire.media(mulaw, at_ms))

    def _block(self, at: float) -> bytes:
        at += 1e-9
        while self._to_come and self._to_come[0].until <= at:
            self._to_come.popleft()
        return self._to_come[0].block(at) if self._to_come and self._to_come[0].at <= at else SILENT_BLOCK

    def _leave(self, how: Literal["stop", "close", "abrupt"]) -> None:
        if self.left_at is not None:
            return
        loop = asyncio.get_running_loop()
        self.left_at = loop.time() - self.began
        self.playout.stop(loop.time())
        if how == "stop":
            self.socket.put(self._wire.stop())
        if how == "abrupt":
            self.socket.send_fault = "disconnect"
            loop.call_later(0.05, self.socket.leave, 1006)
        else:
            self.socket.leave()

    # ------------------------------------------------------------ the far side

    def _delivered(self, text: str) -> None:
        loop = asyncio.get_running_loop()
        match self._wire.receive(text):
            case Audio(mulaw):
                self.playout.play(mulaw, loop.time())
            case Mark(name):
                self.playout.mark(name, loop.time())
                self._echo_when_due()
            case Clear():
                self.playout.clear(loop.time())
                self._echo_when_due()

    def _echo_when_due(self) -> None:
        loop = asyncio.get_running_loop()
        due = self.playout.next_echo_at
        if due is not None and self.left_at is None:
            loop.call_at(due + (LATE_S if self._echo == "late" else 0.0), self._echo_due)

    def _echo_due(self) -> None:
        now = asyncio.get_running_loop().time() + 1e-5  # the clock's own resolution
        for name in self.playout.take_echoes(now - (LATE_S if self._echo == "late" else 0.0)):
            if self.left_at is None and self._echo != "never":
                for _ in range(2 if self._echo == "twice" else 1):
                    self.socket.put(self._wire.mark(name))
        self._echo_when_due()

    # ------------------------------------------------------------ what happened

    @property
    def heard(self) -> list[Heard]:
        """All that the caller heard of the bot, in order, read back from the audio."""
        heard: list[Heard] = []
        for run in self.playout.runs:
            for number, group in groupby(stretches(bytes(run.audio)), key=lambda stretch: stretch.name[0]):
                piece = list(group)
                at = run.at - self.began + piece[0].start / BYTES_PER_S
                blocks = [one.name[1] for one in piece for _ in range(one.start, one.end, BLOCK)]
                heard.append(Heard(self.tts.texts[number], round(at, 3), tuple(blocks)))
        return heard

    def bot_said(self, *texts: str) -> bool:
        """The caller heard the whole of each of these texts or the beginning of it, in this order, and nothing else."""
        said = [text for text, _ in groupby(piece.text for piece in self.heard)]
        assert said == list(texts), f"the bot said {said}"
        return True

    def interrupted_at(self, *times: float) -> bool:
        """The bot fell silent at these moments and at no other."""
        clears = [round(at - self.began, 3) for at in self.playout.clears]
        assert clears == list(times), f"interrupted at {clears}"
        return True

    @property
    def audio(self) -> bytes:
        """All that was played to the caller, mu-law."""
        return b"".join(run.audio for run in self.playout.runs)

    def whole(self, text: str) -> bool:
        """The caller heard every part of the text in order, at most 40 ms of it twice for each interruption."""
        blocks = [block for piece in self.heard if piece.text == text for block in piece.blocks]
        assert blocks == sorted(blocks), f"out of order: {blocks}"
        assert sorted(set(blocks)) == list(range(self.tts.blocks(text))), f"lost: {blocks}"
        assert len(blocks) - len(set(blocks)) <= 2 * len(self.playout.clears), f"doubled: {blocks}"
        return True

    @property
    def exchanges(self) -> list[tuple[str, str, bool]]:
        return [(one.user, one.bot, one.interrupted) for one in self.store.exchanges]

    def latency(self, user: str) -> tuple[int | None, int | None, int | None, int | None]:
        exchange = next(one for one in self.store.exchanges if one.user == user)
        took = exchange.latency
        return took.speech_end, took.final, took.first_token, took.first_audio
