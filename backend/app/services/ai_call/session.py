"""CallSession: one call, one TaskGroup. It turns what happens into events for the TurnMachine and does what the
machine commands; it decides nothing itself.

    line.run ──events──▶ ┐                      ┌▶ reply task (one at most) ──audio, marks──▶ line
    listener ──events──▶ ├▶ queue ▶ TurnMachine ┼▶ line: pause, resume, clear
    timers   ──events──▶ ┘                      └▶ recorder
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from app.audio.types import AudioFrame
from app.clock import utc_now
from app.metrics import Metrics
from app.services.ai_call.dialogue import LANGUAGES
from app.services.ai_call.language import language_of
from app.services.ai_call.listening import Listener
from app.services.ai_call.ports import Line
from app.services.ai_call.prompt import PromptBuilder
from app.services.ai_call.recorder import Recorder
from app.services.ai_call.speaking import Speaker
from app.services.ai_call.turns import TurnMachine
from app.services.ai_call.types import (
    Answered,
    CallInfo,
    Command,
    DropTimer,
    EndCall,
    EndReason,
    Event,
    Exchange,
    HangUpRequested,
    HungUp,
    LineEvent,
    Pause,
    Remember,
    Reply,
    Resume,
    Say,
    SetTimer,
    Silence,
    Timer,
    TimerFired,
)

log = structlog.get_logger(__name__)

WIND_UP_S = 5.0
"""Everything a call owns is released within this time of its end."""

INSIST_S = 1.0
"""A task that was cancelled and is still there after so long is cancelled again."""

EventQueue = asyncio.Queue[Event]


@dataclass(frozen=True, slots=True)
class Participants:
    """Who takes part in one call. All of them post to the same queue."""

    events: EventQueue
    line: Line
    listener: Listener
    speaker: Speaker
    machine: TurnMachine
    prompt: PromptBuilder
    recorder: Recorder
    metrics: Metrics


class CallSession:
    def __init__(self, call: CallInfo, parts: Participants) -> None:
        self.call = call
        self._parts = parts
        self._post: Callable[[Event], None] = parts.events.put_nowait
        self._ended: EndReason | None = None
        self._timers: dict[Timer, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reply: asyncio.Task[None] | None = None
        self._history: list[Exchange] = []
        self._language = call.language if call.language != "auto" else LANGUAGES[0]

    async def run(self) -> EndReason:
        """Hold the conversation to its end and return why it ended. Never raises, never leaves a task behind."""
        reason: EndReason = "error"
        try:
            reason = await self._converse()
        except* Exception as bugs:  # the edge of a call: whatever breaks in it breaks nothing else
            log.error("x call broke", exc_info=bugs)
        finally:
            await self._wind_up(self._ended or reason)
        return self._ended or reason

    @property
    def ended_because(self) -> EndReason | None:
        """None while the conversation goes on; set before the far side can know."""
        return self._ended

    def hang_up(self, reason: EndReason) -> None:
        """Somebody wants the call to end. Politely the first time, at once the second."""
        self._post(HangUpRequested(reason))

    def caller_left(self) -> None:
        """Twilio says the call is over, perhaps before its stream does."""
        self._post(HungUp("caller"))

    # ------------------------------------------------------------ the conversation

    async def _converse(self) -> EndReason:
        parts, loop = self._parts, asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            for part in (self._serve_line(), parts.listener.run(), parts.recorder.run()):
                self._start(part, group)
            try:
                self._post(Answered())
                while self._ended is None:
                    event = await parts.events.get()
                    for command in parts.machine.handle(event, loop.time()):
                        self._do(command, group)
            finally:
                for timer in self._timers.values():
                    timer.cancel()
                self._release()
        return self._ended

    def _start(self, work: Coroutine[Any, Any, None], group: asyncio.TaskGroup) -> asyncio.Task[None]:
        task = group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _release(self) -> None:
        """Cancel whatever the call still runs; again and again, should a provider's clean-up hang."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            asyncio.get_running_loop().call_later(INSIST_S, self._release)

    async def _serve_line(self) -> None:
        reason = await self._parts.line.run(self._on_line)
        self._post(HungUp(reason))

    def _on_line(self, event: LineEvent) -> None:
        if isinstance(event, AudioFrame):
            self._parts.listener.hear(event)
        else:
            self._post(event)

    # ------------------------------------------------------------ commands

    def _do(self, command: Command, group: asyncio.TaskGroup) -> None:
        """Synchronous on purpose: commands cannot interleave."""
        parts = self._parts
        match command:
            case Say(turn, phrase):
                self._start_reply(parts.speaker.say(turn, phrase, self._language), group)
            case Reply(turn, user):
                self._start_answer(turn, user, group)
            case Pause():
                parts.line.pause()
            case Resume():
                parts.line.resume()
            case Silence(turn):
                self._cancel_reply()
                parts.line.clear(turn)
            case Remember(exchange):
                self._remember(exchange)
            case SetTimer(timer, ms):
                self._set_timer(timer, ms)
            case DropTimer(timer):
                self._drop_timer(timer)
            case EndCall(reason):
                self._ended = reason

    def _start_answer(self, turn: int, user: str, group: asyncio.TaskGroup) -> None:
        if self.call.language == "auto":
            self._language = language_of(user, self._language)
        messages = self._parts.prompt.build(self._history, user)
        self._start_reply(self._parts.speaker.reply(turn, messages), group)

    def _start_reply(self, speech: Coroutine[Any, Any, None], group: asyncio.TaskGroup) -> None:
        self._cancel_reply()
        self._reply = self._start(speech, group)

    def _cancel_reply(self) -> None:
        """Not waited for: its turn number makes whatever it still does harmless."""
        if self._reply is not None:
            self._reply.cancel()
            self._reply = None

    def _set_timer(self, timer: Timer, ms: int) -> None:
        self._drop_timer(timer)
        loop = asyncio.get_running_loop()
        self._timers[timer] = loop.call_later(ms / 1000, self._post, TimerFired(timer))

    def _drop_timer(self, timer: Timer) -> None:
        handle = self._timers.pop(timer, None)
        if handle is not None:
            handle.cancel()

    def _remember(self, exchange: Exchange) -> None:
        self._history.append(exchange)
        self._parts.recorder.remember(exchange)
        latency = exchange.latency
        since_speech = {
            "final": latency.final,
            "first_token": latency.first_token,
            "first_audio": latency.first_audio,
        }
        waits = {
            part: at - latency.speech_end
            for part, at in since_speech.items()
            if at is not None and latency.speech_end is not None
        }
        for part, ms in waits.items():
            self._parts.metrics.turn_seconds.labels(part).observe(ms / 1000)
        log.info(
            "- turn",
            turn=exchange.turn,
            interrupted=exchange.interrupted,
            **{f"{p}_ms": v for p, v in waits.items()},
        )

    # ------------------------------------------------------------ the end

    async def _wind_up(self, reason: EndReason) -> None:
        """End the call for the far side and write its end, both bounded and neither waiting for the other's luck."""
        async with asyncio.TaskGroup() as group:
            group.create_task(_guarded("hang_up", self._parts.line.hang_up(reason)))
            group.create_task(_guarded("record", self._parts.recorder.close(reason, utc_now())))


async def _guarded(step: str, work: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.timeout(WIND_UP_S):
            await work
    except TimeoutError:
        log.error("x wind-up step took too long", step=step)
    except Exception as error:  # the edge of a step: the other one must still run
        log.error("x wind-up step failed", step=step, exc_info=error)
