"""The line against the phone simulator's far side, on the virtual clock: what goes on the wire when, and what of it
is reported as heard."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import looptime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audio import g711
from app.audio.types import AudioFrame
from app.errors import ProtocolViolation
from app.services.ai_call.types import EndReason, KeyPressed, LineEvent, ReplyDone, ReplySpoken, ReplyStarted
from app.simulator.playout import Playout
from app.simulator.wire import Audio, Clear, Mark, Violation, Wire
from app.telephony.media_stream import MediaStream
from app.telephony.twilio_line import LineOptions, TwilioLine, await_start
from tests.conversation import VIRTUAL, nobody_to_tell
from tests.fakes import BLOCK, MemorySocket, names_in, sound, stretches

pytestmark = VIRTUAL

LEAD_S = 0.6


@dataclass
class FarSide:
    """A line and the phone at its other end; time counts from the stream's start."""

    options: LineOptions = field(default_factory=LineOptions)
    echoes: bool = True
    end_call: Callable[[], Awaitable[None]] = nobody_to_tell

    def __post_init__(self) -> None:
        self.violations: list[Violation] = []
        self.wire = Wire(account_sid="AC1", call_sid="CA1", stream_sid="MZ1", parameters={}, violations=self.violations)
        self.playout = Playout()
        self.socket = MemorySocket(self._delivered, self.wire.over)
        self.stream = MediaStream()
        self.line = TwilioLine(self.socket, self.stream, self.options, end_call=self.end_call)
        self.sent: list[tuple[float, str | bytes]] = []  # what came over the wire: mu-law, or a mark's name, or clear
        self.reports: list[tuple[float, LineEvent]] = []
        self.most_ahead_s = 0.0
        self.began = 0.0

    @property
    def now(self) -> float:
        return round(asyncio.get_running_loop().time() - self.began, 3)

    async def __aenter__(self) -> "FarSide":
        self.socket.put(self.wire.start())
        await await_start(self.socket, self.stream, 5.0)
        self.began = asyncio.get_running_loop().time()
        self.running = asyncio.get_running_loop().create_task(self._run())
        return self

    async def _run(self) -> EndReason:
        return await self.line.run(lambda event: self.reports.append((self.now, event)))

    async def __aexit__(self, *error: object) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        assert not self.violations, self.violations
        assert not self.socket.misuse, self.socket.misuse

    async def play(self, turn: int, ms: int, first: int = 0) -> None:
        """Sound named (turn, place), 20 ms a place."""
        mulaw = b"".join(sound(turn, first + place) for place in range(ms // 20))
        await self.line.play(turn, AudioFrame(g711.decode(mulaw), 8000))

    def _delivered(self, text: str) -> None:
        loop = asyncio.get_running_loop()
        match self.wire.receive(text):
            case Audio(mulaw):
                self.playout.play(mulaw, loop.time())
                self.most_ahead_s = max(self.most_ahead_s, self.playout.runs[-1].until - loop.time())
                self.sent.append((self.now, mulaw))
            case Mark(name):
                self.playout.mark(name, loop.time())
                self.sent.append((self.now, name))
                self._echo_when_due()
            case Clear():
                self.playout.clear(loop.time())
                self.sent.append((self.now, "clear"))
                self._echo_when_due()

    def _echo_when_due(self) -> None:
        due = self.playout.next_echo_at
        if due is not None:
            asyncio.get_running_loop().call_at(due, self._echo)

    def _echo(self) -> None:
        for name in self.playout.take_echoes(asyncio.get_running_loop().time() + 1e-5):
            if self.echoes:
                self.socket.put(self.wire.mark(name))
        self._echo_when_due()

    @property
    def on_the_wire(self) -> list[Any]:
        """Names of sounds, and messages, in order."""
        return [names_in(sent)[0] if isinstance(sent, bytes) else sent for _, sent in self.sent]

    @property
    def heard(self) -> list[tuple[int, int]]:
        heard = [stretch for run in self.playout.runs for stretch in stretches(bytes(run.audio))]
        return [stretch.name for stretch in heard for _ in range(stretch.start, stretch.end, BLOCK)]

    @property
    def spoken(self) -> list[tuple[float, LineEvent]]:
        return [(at, event) for at, event in self.reports if isinstance(event, ReplySpoken | ReplyDone)]


def places(turn: int, *numbers: int) -> list[tuple[int, int]]:
    return [(turn, number) for number in numbers]


# ---------------------------------------------------------------- pacing


async def test_audio_is_sent_at_most_the_lead_ahead_and_never_runs_dry() -> None:
    async with FarSide() as far:
        await far.play(1, 5_000)
        await asyncio.sleep(6.0)
        assert LEAD_S <= far.most_ahead_s <= LEAD_S + 0.02 + 1e-6, "the lead, rounded up to a frame"
        assert far.playout.underruns == 0
        assert len(far.playout.runs) == 1, "without a gap"
        assert far.heard == places(1, *range(250))
        assert len({at for at, _ in far.sent}) <= 1 + 4_400 / 100, "in bursts of 100 ms, not frame by frame"


async def test_play_waits_while_too_much_is_queued() -> None:
    async with FarSide(LineOptions(queue_ms=1_000)) as far:
        waited = []
        for number in range(4):
            await far.play(1, 1_000, first=50 * number)
            waited.append(far.now)
        assert waited == [0.0, pytest.approx(0.4, abs=0.11), pytest.approx(1.4, abs=0.11), pytest.approx(2.4, abs=0.11)]


@pytest.mark.parametrize("ends_by", ["clear", "stop"])
async def test_who_waits_for_room_is_let_go(ends_by: str) -> None:
    async with FarSide(LineOptions(queue_ms=100)) as far:
        async with asyncio.timeout(1.0), asyncio.TaskGroup() as group:
            group.create_task(far.play(1, 60_000))
            await asyncio.sleep(0.5)
            far.line.clear(1) if ends_by == "clear" else far.socket.put(far.wire.stop())
        assert far.now == 0.5


# ---------------------------------------------------------------- framing


@pytest.mark.parametrize("size", [2, 158, 318, 322, 998, 16_000])
async def test_pieces_of_any_size_become_frames_of_160_bytes(size: int) -> None:
    """The rest of a piece is filled up with silence when its mark comes, and not before."""
    mulaw = b"".join(sound(1, place) for place in range(5)) + sound(1, 5)[:60]
    pcm = g711.decode(mulaw)
    async with FarSide() as far:
        for start in range(0, len(pcm), size):
            await far.line.play(1, AudioFrame(pcm[start : start + size], 8000))
        await asyncio.sleep(0.1)
        assert b"".join(sent for _, sent in far.sent if isinstance(sent, bytes)) == mulaw[: 5 * BLOCK]
        await far.line.mark(1, "다섯.")
        await asyncio.sleep(0.1)
        frames = [sent for _, sent in far.sent if isinstance(sent, bytes)]
        assert {len(frame) for frame in frames} == {BLOCK}
        assert b"".join(frames) == mulaw + b"\xff" * 100


async def test_the_rest_of_a_turn_that_was_cleared_is_not_heard_in_the_next() -> None:
    async with FarSide() as far:
        await far.line.play(1, AudioFrame(g711.decode(sound(1, 0)[:80]), 8000))
        far.line.clear(1)
        await far.line.play(1, AudioFrame(g711.decode(sound(1, 1)[:80]), 8000))  # a late piece of the old turn
        await far.play(2, 40)
        await far.line.mark(2, None)
        await asyncio.sleep(0.5)
        assert [sent for _, sent in far.sent if isinstance(sent, bytes)] == [sound(2, 0), sound(2, 1)]


async def test_a_late_mark_of_an_old_turn_does_not_cut_into_the_next() -> None:
    async with FarSide() as far:
        far.line.clear(1)
        await far.line.play(2, AudioFrame(g711.decode(sound(2, 0)[:80]), 8000))
        await far.line.mark(1, None)
        await far.line.play(2, AudioFrame(g711.decode(sound(2, 0)[80:]), 8000))
        await asyncio.sleep(0.1)
        assert [sent for _, sent in far.sent] == [sound(2, 0)]


# ---------------------------------------------------------------- what was heard


async def test_marks_stand_behind_their_audio_and_come_back_when_it_was_heard() -> None:
    async with FarSide() as far:
        await far.play(1, 300)
        await far.line.mark(1, "첫째.")
        await far.play(1, 200, first=15)
        await far.line.mark(1, "둘째.")
        await far.line.mark(1, None)
        await asyncio.sleep(1.0)
        assert far.on_the_wire == [*places(1, *range(15)), "1", *places(1, *range(15, 25)), "2", "3"]
        assert far.reports == [
            (0.0, ReplyStarted(1)),
            (0.3, ReplySpoken(1, "첫째.")),
            (0.5, ReplySpoken(1, "둘째.")),
            (0.5, ReplyDone(1)),
        ]


async def test_a_reply_is_reported_started_once_a_turn() -> None:
    async with FarSide() as far:
        for turn in (1, 2):
            await far.play(turn, 40)
            await asyncio.sleep(0.2)
            await far.play(turn, 40)
            await asyncio.sleep(0.2)
        assert far.reports == [(0.0, ReplyStarted(1)), (0.4, ReplyStarted(2))]


async def test_a_mark_without_an_echo_counts_when_its_time_is_long_over() -> None:
    async with FarSide(echoes=False) as far:
        await far.play(1, 300)
        await far.line.mark(1, "네.")
        await asyncio.sleep(5.0)
        assert far.spoken == [(2.3, ReplySpoken(1, "네."))]
        far.socket.put(far.wire.mark("1"))
        await asyncio.sleep(1.0)
        assert len(far.spoken) == 1, "the echo came after all"


async def test_marks_that_are_unknown_or_come_twice_count_for_nothing() -> None:
    async with FarSide() as far:
        await far.play(1, 300)
        await far.line.mark(1, "네.")
        far.socket.put(far.wire.mark("17"))
        await asyncio.sleep(1.0)
        far.socket.put(far.wire.mark("1"))
        await asyncio.sleep(1.0)
        assert far.spoken == [(0.3, ReplySpoken(1, "네."))]


async def test_an_echo_is_believed_over_the_clock() -> None:
    """The far side was faster: what it says it has played is not played to it again after a pause."""
    async with FarSide() as far:
        await far.play(1, 300)
        await far.line.mark(1, "첫째.")
        await far.play(1, 100, first=15)
        await asyncio.sleep(0.2)
        far.socket.put(far.wire.mark("1"))
        await asyncio.sleep(0.001)
        far.line.pause()
        far.line.resume()
        await asyncio.sleep(1.0)
        assert far.spoken == [(0.2, ReplySpoken(1, "첫째."))]
        assert far.on_the_wire[-6:] == ["clear", *places(1, *range(15, 20))]


# ---------------------------------------------------------------- pause, resume, clear


async def test_clear_throws_away_what_was_not_heard_here_and_there() -> None:
    async with FarSide() as far:
        await far.play(1, 2_000)
        await far.line.mark(1, "lang")
        await asyncio.sleep(0.5)
        far.line.clear(1)
        await asyncio.sleep(3.0)
        assert far.on_the_wire[-1] == "clear"
        assert far.heard == places(1, *range(25))
        assert far.spoken == []
        far.line.clear(1)
        await asyncio.sleep(0.1)
        assert far.on_the_wire.count("clear") == 1, "nothing was sent since"


async def test_the_next_turn_follows_the_clear_at_once() -> None:
    async with FarSide() as far:
        await far.play(1, 2_000)
        await asyncio.sleep(0.5)
        far.line.clear(1)
        await far.play(2, 100)
        await far.line.mark(2, "둘.")
        await far.play(1, 100)  # late
        await far.line.mark(1, "alt")
        await asyncio.sleep(3.0)
        assert far.on_the_wire[-7:] == ["clear", *places(2, *range(5)), "1"]
        assert far.spoken == [(0.6, ReplySpoken(2, "둘."))]


async def test_a_clear_while_a_send_is_under_way_goes_before_the_next_turn() -> None:
    """Otherwise the far side throws away the new answer, and its marks come back as if it had been heard."""
    async with FarSide() as far:
        deliver, gate = far.socket.send_text, asyncio.Event()

        async def slow(data: str) -> None:
            await gate.wait()
            await deliver(data)

        far.socket.send_text = slow  # type: ignore[method-assign]
        await far.play(1, 200)
        await asyncio.sleep(0.1)
        far.line.clear(1)
        await far.play(2, 100)
        gate.set()
        await asyncio.sleep(1.0)
        assert far.on_the_wire == [(1, 0), "clear", *places(2, *range(5))]
        assert far.heard == places(2, *range(5))


@pytest.mark.parametrize("pause_at", [0.0, 0.1, 0.29, 0.3, 0.31, 0.45, 0.7])
async def test_a_pause_keeps_what_was_not_heard(pause_at: float) -> None:
    async with FarSide() as far:
        await far.play(1, 300)
        await far.line.mark(1, "첫째.")
        await far.play(1, 300, first=15)
        await far.line.mark(1, "둘째.")
        await far.line.mark(1, None)
        await asyncio.sleep(pause_at)
        far.line.pause()
        await asyncio.sleep(1.0)
        silent_from = len(far.heard)
        await asyncio.sleep(1.0)
        assert len(far.heard) == silent_from, "silent while paused"
        far.line.resume()
        await asyncio.sleep(2.0)
        assert sorted(set(far.heard)) == far.heard[:1] + sorted(set(far.heard))[1:] == places(1, *range(30))
        assert len(far.heard) <= 31, "one frame at most is heard twice"
        assert [event for _, event in far.spoken] == [ReplySpoken(1, "첫째."), ReplySpoken(1, "둘째."), ReplyDone(1)]


async def test_what_comes_while_paused_waits() -> None:
    async with FarSide() as far:
        far.line.pause()
        await far.play(1, 100)
        await far.line.mark(1, "네.")
        await asyncio.sleep(3.0)
        assert far.on_the_wire == []
        far.line.resume()
        await asyncio.sleep(1.0)
        assert far.spoken == [(3.1, ReplySpoken(1, "네."))]


async def test_a_clear_ends_a_pause() -> None:
    async with FarSide() as far:
        await far.play(1, 300)
        far.line.pause()
        far.line.clear(1)
        await far.play(2, 100)
        await asyncio.sleep(1.0)
        assert far.heard == places(2, *range(5))


# ---------------------------------------------------------------- the end


@dataclass(frozen=True)
class End:
    reason: EndReason
    close_code: int | None
    ends_call: bool


async def ended(far: FarSide) -> EndReason:
    async with asyncio.timeout(15.0):
        return await far.running


@pytest.mark.parametrize(
    ("act", "end"),
    [
        (lambda far: far.socket.put(far.wire.stop()), End("caller", 1000, False)),
        (lambda far: far.socket.leave(), End("caller", None, False)),
        (lambda far: far.socket.put(b"\0"), End("protocol", 1003, True)),
        (lambda far: far.socket.put("x" * 65_537), End("protocol", 1009, True)),
        (lambda far: [far.socket.put("nonsense") for _ in range(21)], End("protocol", 4400, True)),
        (lambda far: None, End("media_stall", 1000, True)),
    ],
    ids=["stop", "disconnect", "binary", "too large", "nonsense", "silence"],
)
async def test_how_a_line_ends(act: Callable[[FarSide], object], end: End) -> None:
    told = []

    async def end_call() -> None:
        told.append(1)

    async with FarSide(end_call=end_call) as far:
        await far.play(1, 3_000)
        await asyncio.sleep(0.1)
        act(far)
        reason = await ended(far)
        await far.play(1, 100)  # falls into the void
        await far.line.mark(1, None)
        far.line.pause()
        far.line.resume()
        far.line.clear(1)
        await far.line.hang_up("bot")
        await far.line.hang_up("bot")
        await asyncio.sleep(3.0)
    assert (reason, far.socket.closed_with, bool(told)) == (end.reason, end.close_code, end.ends_call)
    assert len(told) <= 1
    assert far.now >= 3.0
    assert max(at for at, _ in far.sent) <= far.now - 3.0


@pytest.mark.parametrize("fault", ["runtime_error", "disconnect", "os_error"])
async def test_a_socket_that_refuses_is_neither_sent_to_nor_closed(fault: Any) -> None:
    async with FarSide() as far:
        far.socket.send_fault = fault
        await far.play(1, 3_000)
        await asyncio.sleep(1.0)
        far.socket.send_fault = None
        await asyncio.sleep(1.0)
        assert far.sent == []
        far.socket.leave(1006)
        assert await ended(far) == "caller"


async def test_who_waits_for_room_is_let_go_when_the_socket_refuses() -> None:
    async with FarSide(LineOptions(queue_ms=100)) as far:
        far.socket.send_fault = "disconnect"
        async with asyncio.timeout(1.0):
            await far.play(1, 60_000)


async def test_a_socket_whose_close_fails_is_closed() -> None:
    """Starlette raises WebSocketDisconnect from `close` when the transport is gone."""
    async with FarSide() as far:
        far.socket.send_fault = "disconnect"
        await far.line.hang_up("bot")


@pytest.mark.parametrize("fault", ["close", "send"])
async def test_a_deaf_peer_is_given_up_within_bounds(fault: str) -> None:
    async with FarSide() as far:
        if fault == "send":
            far.socket.send_fault = "hangs"
            await far.play(1, 100)
            assert await ended(far) == "media_stall"
            assert far.now == 2.0
        else:
            far.socket.close_hangs = True
            await far.line.hang_up("bot")
            assert far.now == 0.5


async def test_the_callers_audio_and_keys_are_reported_in_order() -> None:
    async with FarSide() as far:
        far.socket.put(far.wire.media(sound(7, 0), 0))
        far.socket.put(far.wire.dtmf("5"))
        far.socket.put(far.wire.media(sound(7, 1)[:100], 20))
        await asyncio.sleep(0.1)
        assert [event for _, event in far.reports] == [
            AudioFrame(g711.decode(sound(7, 0)), 8000, 0),
            KeyPressed("5"),
            AudioFrame(g711.decode(sound(7, 1)[:100]), 8000, 20),
        ]


# ---------------------------------------------------------------- the handshake


@pytest.mark.parametrize(
    ("messages", "close_code", "kind"),
    [
        ([], 4408, "no_start"),
        ([1000], 1001, "no_start"),
        (['{"event":"connected"}', '{"event":"stop"}'], 1000, "no_start"),
        (['{"event":"stop"}'], 4400, "wrong_first"),
        ([b"\0"], 1003, "binary"),
        (['{"event":"connected"}', '{"event":"start"}'], 4400, "bad_start"),
    ],
)
async def test_a_handshake_that_is_none(messages: list[Any], close_code: int, kind: str) -> None:
    socket = MemorySocket(lambda text: None)
    for message in messages:
        socket.leave(message) if isinstance(message, int) else socket.put(message)
    with pytest.raises(ProtocolViolation) as violation:
        await await_start(socket, MediaStream(), 5.0)
    assert (violation.value.close_code, violation.value.kind) == (close_code, kind)


# ---------------------------------------------------------------- any order of things

Op = tuple[str, int]
ops = st.lists(
    st.tuples(
        st.sampled_from(["play", "play", "mark", "mark", "wait", "wait", "pause", "resume", "clear", "late", "twice"]),
        st.integers(1, 20),
    ),
    max_size=40,
)


@settings(max_examples=250, deadline=None)
@given(ops, st.booleans())
def test_no_order_of_commands_breaks_the_rules(script: list[Op], echoes: bool) -> None:
    """Nothing of a cleared turn is sent; no piece is reported twice, or before all of it was heard; nothing is lost
    that was not cleared; the line's counts agree with what it holds."""
    loop = looptime.new_event_loop(start=1000, noop_cycles=2)
    try:
        loop.run_until_complete(_follow(script, echoes))
    finally:
        loop.close()


async def _follow(script: list[Op], echoes: bool) -> None:
    async with FarSide(LineOptions(queue_ms=1_000_000), echoes=echoes) as far:
        turn, place = 1, 0
        pieces: dict[str, tuple[int, int]] = {}  # of the living turn: up to which place it reaches
        since = 0
        for op, number in script:
            match op:
                case "play":
                    await far.play(turn, 20 * number, first=place)
                    place += number
                case "mark":
                    if place > since:
                        pieces[f"{turn}.{place}"] = (turn, place)
                        since = place
                        await far.line.mark(turn, f"{turn}.{place}")
                case "wait":
                    await asyncio.sleep(number * 0.037)
                case "pause":
                    far.line.pause()
                case "resume":
                    far.line.resume()
                case "clear":
                    await asyncio.sleep(0)
                    far.line.clear(turn)
                    sent = len(far.sent)
                    pieces = {text: piece for text, piece in pieces.items() if _reported(far, text)}
                    turn, place, since = turn + 1, 0, 0
                    await asyncio.sleep(0.001)
                    assert all(name == "clear" for name in far.on_the_wire[sent:])
                case "late" if turn > 1:
                    await far.play(turn - 1, 20 * number)
                    await far.line.mark(turn - 1, "late")
                case "twice":
                    far.socket.put(far.wire.mark(str(number)))  # the echo of a mark that may or may not be out
            assert far.line._queued == sum(hasattr(item, "mulaw") for item in far.line._queue)
        far.line.resume()
        await asyncio.sleep(sum(n for _, n in script) * 0.02 + 5.0)
        _judge(far, turn, place, pieces, faithful=not any(op == "twice" for op, _ in script))


def _reported(far: FarSide, text: str) -> bool:
    return any(isinstance(event, ReplySpoken) and event.text == text for _, event in far.spoken)


def _judge(far: FarSide, turn: int, place: int, pieces: dict[str, tuple[int, int]], faithful: bool) -> None:
    names = [event.text for _, event in far.spoken if isinstance(event, ReplySpoken)]
    assert len(names) == len(set(names)), "a piece was reported twice"
    assert set(pieces) <= set(names), "a piece that nobody cleared was never reported"
    assert set(names) <= set(pieces), "a piece was reported that had been cleared"
    if faithful:
        assert [block for who, block in dict.fromkeys(far.heard) if who == turn] == list(range(place)), "audio was lost"
        for at, event in far.spoken:
            if isinstance(event, ReplySpoken):
                who, until = pieces[event.text]
                assert at >= _heard_at(far, who, until - 1) - 0.002, "reported before it was heard"
    assert not far.line._queue
    assert len(far.line._flight) <= LEAD_S / 0.02 + 1
    assert not far.line._marks


def _heard_at(far: FarSide, turn: int, place: int) -> float:
    """When the far side had played this block to its end, for the first time."""
    for run in far.playout.runs:
        for stretch in stretches(bytes(run.audio)):
            if stretch.name == (turn, place) and stretch.end - stretch.start >= BLOCK:
                return run.at - far.began + stretch.end / 8000
    raise AssertionError(f"never heard: {turn}.{place}")
