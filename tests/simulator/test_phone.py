"""A phone against servers of the tests' own, over real sockets in real time. Each call lasts less than a second."""

import asyncio
import base64
import json
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK

from app.simulator.line import Line, Track
from app.simulator.options import DEFAULT_PARTIES, Parties, PhoneOptions
from app.simulator.phone import Phone
from app.simulator.playout import Playout
from app.simulator.report import CallReport
from app.simulator.script import BotFinished, BotSpeaking, Caller, HangUp, Pause, Press, Say, Step
from app.simulator.wire import Violation, Wire
from tests.simulator.far_side import HANG_UP, FarLine, FarSide, silence, tone, utterance

TOKEN = "a token of the tests' own"
SIGNED = Parties(DEFAULT_PARTIES.account_sid, TOKEN, "+15005550006", "+15005550001")
CONNECT = (
    '<Response><Connect><Stream url="{stream}"><Parameter name="token" value="t-1"/></Stream></Connect>'
    "<Redirect>/twilio/after-stream</Redirect></Response>"
)
DOCUMENTS = {"/twilio/voice": CONNECT, "/twilio/after-stream": HANG_UP}
LATE_S = 0.03
"""What a busy machine may add to a time."""


async def listen(line: FarLine) -> None:
    await line.begin()
    await line.to_the_end()


async def call(
    talk: Callable[[FarLine], Awaitable[None]], script: Sequence[Step], **options: Any
) -> tuple[CallReport, FarLine]:
    """One call straight to the media stream."""
    async with FarSide(talk) as far:
        report = await Phone(PhoneOptions(stream_url=far.stream_url, **options), script).call()
    return report, far.lines[0]


# ---------------------------------------------------------------- frames


async def test_a_call_begins_as_twilios_do_and_ends_with_stop() -> None:
    report, line = await call(listen, [Pause(100), HangUp()])

    messages = [message for _, message in line.messages]
    assert messages[0] == {"event": "connected", "protocol": "Call", "version": "1.0.0"}
    assert messages[1]["start"]["callSid"] == report.call_sid
    assert messages[1]["streamSid"] == report.stream_sid
    assert messages[-1]["event"] == "stop"
    assert line.events()[2:-1] == ["media"] * len(messages[2:-1])
    assert [message["sequenceNumber"] for message in messages[1:]] == [str(at) for at in range(1, len(messages))]
    assert (report.ended_by, report.close_code, report.violations) == ("caller", None, [])
    assert report.ok


async def test_frames_leave_every_20_ms_without_drift() -> None:
    report, line = await call(listen, [Pause(600), HangUp()])

    media = [(at, message["media"]) for at, message in line.messages if message["event"] == "media"]
    assert 29 <= len(media) <= 31
    assert [int(body["timestamp"]) for _, body in media] == [20 * at for at in range(len(media))]
    assert {len(base64.b64decode(body["payload"])) for _, body in media} == {160}
    assert media[-1][0] - media[0][0] == pytest.approx((len(media) - 1) * 0.02, abs=LATE_S)
    assert report.caller[: len(media) * 160] == silence(20 * len(media))


async def test_what_the_caller_says_arrives_to_the_byte() -> None:
    clip = utterance(90)
    report, line = await call(listen, [Pause(40), Say(clip), Pause(60), HangUp()])

    sent = b"".join(
        base64.b64decode(message["media"]["payload"]) for _, message in line.messages if message["event"] == "media"
    )
    assert clip.mulaw in sent
    assert report.caller == sent
    [turn] = report.turns
    assert sent.index(clip.mulaw) / 8 + clip.end / 8 == pytest.approx(turn.end_ms, abs=1)


async def test_keys_are_sent_as_dtmf() -> None:
    _, line = await call(listen, [Press("1#"), Pause(40), HangUp()])

    assert [message["dtmf"] for _, message in line.messages if message["event"] == "dtmf"] == [
        {"track": "inbound_track", "digit": "1"},
        {"track": "inbound_track", "digit": "#"},
    ]


# ---------------------------------------------------------------- marks and clear


async def test_a_mark_comes_back_when_the_audio_before_it_was_played() -> None:
    times: dict[str, float] = {}

    async def talk(line: FarLine) -> None:
        await line.begin()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await line.mark("idle")
        await line.media(tone(115))
        await line.mark("played")
        for _ in range(2):
            name = (await line.until("mark"))["mark"]["name"]
            times[name] = loop.time() - began
        await line.to_the_end()

    report, _ = await call(talk, [Pause(250), HangUp()])

    assert times["idle"] < LATE_S
    assert 0.115 <= times["played"] < 0.115 + LATE_S
    assert tone(115) in report.bot


async def test_clear_returns_all_marks_at_once_and_the_rest_is_not_heard() -> None:
    echoes: list[tuple[str, float]] = []

    async def talk(line: FarLine) -> None:
        await line.begin()
        loop = asyncio.get_running_loop()
        await line.media(tone(3000))
        await line.mark("a")
        await line.mark("b")
        await line.read(5)
        cleared = loop.time()
        await line.clear()
        for _ in range(2):
            name = (await line.until("mark"))["mark"]["name"]
            echoes.append((name, loop.time() - cleared))
        await line.to_the_end()

    report, _ = await call(talk, [Pause(300), HangUp()])

    assert [name for name, _ in echoes] == ["a", "b"]
    assert max(after for _, after in echoes) < LATE_S
    heard = len(report.bot.rstrip(b"\xff"))
    assert 80 * 8 <= heard < 200 * 8


async def test_an_interruption_as_heard() -> None:
    """The bot speaks, the caller talks over it, the bot gives way and answers."""

    async def talk(line: FarLine) -> None:
        await line.begin()
        await line.media(tone(2000))
        while True:
            body = (await line.until("media"))["media"]
            if base64.b64decode(body["payload"]) != silence(20):
                break
        await line.clear()
        await line.read(10)
        await line.media(silence(30) + tone(100))
        await line.mark("end")
        await line.to_the_end()

    steps: list[Step] = [BotSpeaking(100), Say(utterance(100, "잠깐만요.")), BotFinished(silent_ms=60), HangUp()]
    report, _ = await call(talk, steps)

    [turn] = report.turns
    assert turn.said == "잠깐만요."
    assert turn.interrupted
    assert turn.onset_ms == pytest.approx(100, abs=25 + 1000 * LATE_S)
    assert turn.clear_ms == pytest.approx(20, abs=5 + 1000 * LATE_S)
    assert turn.answer_ms == pytest.approx(20 + 10 * 20 + 30 - 100, abs=25 + 1000 * LATE_S)
    assert report.greeting_ms == pytest.approx(0, abs=1000 * LATE_S)
    assert len(report.caller) == len(report.bot)
    assert report.ok


# ---------------------------------------------------------------- ends


async def test_the_caller_hangs_up_at_a_time_whatever_the_script_says() -> None:
    report, line = await call(listen, [Pause(9000), Say(utterance())], hang_up_at_s=0.11)

    assert line.events().count("media") == 5
    assert line.events()[-1] == "stop"
    assert report.ended_by == "caller"


@pytest.mark.parametrize("step", [HangUp(abrupt=True), None])
async def test_an_abrupt_end_has_no_stop(step: HangUp | None) -> None:
    steps: list[Step] = [Pause(60), step] if step else []
    how: list[Exception] = []

    async def talk(line: FarLine) -> None:
        await line.begin()
        try:
            await line.read(1000)
        except (ConnectionClosedError, ConnectionClosedOK) as error:
            how.append(error)

    options: dict[str, Any] = {} if step else {"hang_up_at_s": 0.06, "abrupt": True}
    report, line = await call(talk, steps, **options)

    assert "stop" not in line.events()
    assert [type(error) for error in how] == [ConnectionClosedError]
    assert report.ended_by == "caller"


async def test_a_call_can_be_hung_up_from_outside() -> None:
    async with FarSide(listen) as far, asyncio.TaskGroup() as group:
        phone = Phone(PhoneOptions(stream_url=far.stream_url), [])
        calling = group.create_task(phone.call())
        line = await far.answered()
        await line.started.wait()
        phone.hang_up()

    assert calling.result().ended_by == "caller"
    assert far.lines[0].events()[-1] == "stop"


async def test_a_caller_who_leaves_before_start() -> None:
    async def talk(line: FarLine) -> None:
        await line.to_the_end()

    report, line = await call(talk, [], leave_before="start")

    assert line.events() == ["connected", "stop"]
    assert report.ended_by == "caller"


@pytest.mark.parametrize("code", [1000, 4401])
async def test_a_server_that_ends_the_stream(code: int) -> None:
    async def talk(line: FarLine) -> None:
        await line.begin()
        await line.media(tone(1000))
        await line.socket.close(code, "because")

    report, _ = await call(talk, [])

    assert (report.ended_by, report.close_code, report.close_reason) == ("bot", code, "because")
    assert report.ok is (code == 1000)
    assert len(report.bot) < 1000 * 8, "audio that was still buffered is not heard"


async def test_a_cancelled_call_leaves_nothing_behind() -> None:
    async with FarSide(listen) as far:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await Phone(PhoneOptions(stream_url=far.stream_url), []).call()
        await far.lines[0].closed.wait()

    assert len(asyncio.all_tasks()) == 1


# ---------------------------------------------------------------- a server that breaks the protocol


async def test_audio_after_stop_is_a_violation() -> None:
    async def talk(line: FarLine) -> None:
        await line.begin()
        await line.until("stop")
        await asyncio.sleep(0.15)
        await line.media(tone(20))

    report, _ = await call(talk, [Pause(40), HangUp()])

    assert [violation.kind for violation in report.violations] == ["after_stop"]
    assert not report.ok


async def test_audio_that_was_on_its_way_when_the_caller_left_is_none() -> None:
    async def talk(line: FarLine) -> None:
        await line.begin()
        while "stop" not in line.events():
            await line.media(tone(20))
            await line.read(1)

    report, _ = await call(talk, [Pause(100), HangUp()])

    assert report.violations == []


async def test_breaches_on_the_wire_are_reported_and_the_call_goes_on() -> None:
    async def talk(line: FarLine) -> None:
        await line.begin()
        await line.socket.send(b"\x00")
        await line.socket.send("{")
        await line.send({"event": "clear", "sequenceNumber": "1"})
        await line.media(b"RIFF")
        await line.media(tone(20))
        await line.to_the_end()

    report, _ = await call(talk, [Pause(100), HangUp()])

    assert [violation.kind for violation in report.violations] == ["binary", "json", "fields", "header"]
    assert tone(20) in report.bot


async def test_a_server_that_does_not_read_loses_audio() -> None:
    """A socket whose buffers are full for a second: real ones take half a minute to fill."""

    class Stuck:
        def __init__(self) -> None:
            self.sent: list[dict[str, Any]] = []

        async def send(self, text: str) -> None:
            self.sent.append(json.loads(text))
            if len(self.sent) == 5:
                await asyncio.sleep(1.1)

        async def recv(self) -> str:
            await asyncio.sleep(1.3)
            raise ConnectionClosedOK(None, None)

    stuck = Stuck()
    playout, report = Playout(), CallReport("CA")
    wire = Wire(account_sid="AC", call_sid="CA", stream_sid="MZ", parameters={}, violations=report.violations)
    track = Track()
    await Line(cast(ClientConnection, stuck), wire, playout, Caller([], playout), track, PhoneOptions(), report).run()

    assert [violation.kind for violation in report.violations] == ["congested"]
    timestamps = [int(message["media"]["timestamp"]) for message in stuck.sent if message["event"] == "media"]
    assert timestamps[:3] == [0, 20, 40]
    assert 1100 <= timestamps[3] <= 1200
    assert len(track.audio) == timestamps[-1] * 8 + 160


# ---------------------------------------------------------------- webhooks and TwiML


async def goodbye(line: FarLine) -> None:
    start = await line.begin()
    assert start["customParameters"] == {"token": "t-1"}
    await line.media(tone(20))
    await line.socket.close(1000)


async def test_a_signed_call_from_the_webhook_to_the_status_callback() -> None:
    async with FarSide(goodbye, DOCUMENTS, TOKEN) as far:
        report = await Phone(PhoneOptions(url=far.url, parties=SIGNED), []).call()

    assert report.refusal is None
    assert report.verbs == ["Connect", "Redirect", "Hangup"]
    assert [post.path for post in far.posts] == ["/twilio/voice", "/twilio/after-stream", "/twilio/status"]
    assert [post.fields["CallStatus"] for post in far.posts] == ["ringing", "in-progress", "completed"]
    for post in far.posts:
        assert post.fields["CallSid"] == report.call_sid
        assert post.fields["AccountSid"] == SIGNED.account_sid
        assert (post.fields["From"], post.fields["Caller"]) == (SIGNED.caller, SIGNED.caller)
        assert (post.fields["To"], post.fields["Called"]) == (SIGNED.callee, SIGNED.callee)
        assert {"Direction", "ApiVersion", "FromCity", "CalledCountry"} <= post.fields.keys()
    assert int(far.posts[-1].fields["CallDuration"]) == 0
    assert report.ok


async def test_a_caller_who_hung_up_asks_for_nothing_more() -> None:
    async with FarSide(listen, DOCUMENTS) as far:
        report = await Phone(PhoneOptions(url=far.url), [Pause(40), HangUp()]).call()

    assert [post.path for post in far.posts] == ["/twilio/voice", "/twilio/status"]
    assert report.verbs == ["Connect"]
    assert "X-Twilio-Signature" not in far.handshakes[0].headers
    assert "Origin" not in far.handshakes[0].headers


async def test_a_caller_who_leaves_before_the_socket_is_dialled() -> None:
    async with FarSide(listen, DOCUMENTS) as far:
        report = await Phone(PhoneOptions(url=far.url, leave_before="dial"), []).call()

    assert far.lines == []
    assert [post.path for post in far.posts] == ["/twilio/voice", "/twilio/status"]
    assert report.ok


async def test_a_second_stream_goes_on_in_the_same_recording() -> None:
    async def talk(line: FarLine) -> None:
        await line.begin()
        await line.media(tone(40))
        await line.read(5)
        await line.socket.close(1000)

    documents = DOCUMENTS | {"/twilio/after-stream": CONNECT.replace("<Redirect>/twilio/after-stream</Redirect>", "")}
    async with FarSide(talk, documents) as far:
        report = await Phone(PhoneOptions(url=far.url), []).call()

    assert report.verbs == ["Connect", "Redirect", "Connect"]
    assert far.lines[0].stream_sid != far.lines[1].stream_sid
    assert report.bot.count(tone(40)) == 2
    assert len(report.caller) == len(report.bot)
    assert report.ok


async def test_a_redirect_that_fails_after_the_stream_is_the_servers_fault() -> None:
    async with FarSide(goodbye, {"/twilio/voice": CONNECT}) as far:
        report = await Phone(PhoneOptions(url=far.url), []).call()

    assert [violation.kind for violation in report.violations] == ["webhook"]
    assert report.refusal is None
    assert far.posts[-1].path == "/twilio/status"


async def test_a_query_in_the_streams_url_is_dropped() -> None:
    documents = DOCUMENTS | {"/twilio/voice": CONNECT.replace("{stream}", "{stream}?token=x")}
    async with FarSide(goodbye, documents, TOKEN) as far:
        report = await Phone(PhoneOptions(url=far.url, parties=SIGNED), []).call()

    assert [violation.kind for violation in report.violations] == ["query"]
    assert far.handshakes[0].path == "/stream"


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ('<Response><Reject reason="busy"/></Response>', "the call was rejected: busy"),
        ("<Response><Say>나중에 걸어 주세요.</Say><Hangup/></Response>", "the call was declined: 나중에 걸어 주세요."),
        ("<Response/>", "the call was declined: no words"),
        ("no xml", "not XML"),
        ("<Response><Redirect>/twilio/voice</Redirect></Response>", "more than 10 redirects"),
    ],
)
async def test_instructions_without_a_stream_are_a_refusal(document: str, why: str) -> None:
    async with FarSide(listen, {"/twilio/voice": document}) as far:
        report = await Phone(PhoneOptions(url=far.url), []).call()

    assert report.refusal is not None
    assert (report.refusal.stage, report.refusal.status) == ("voice", 200)
    assert report.refusal.why.startswith(why)
    assert not report.ok


async def test_a_wrong_signature_is_refused_at_the_webhook() -> None:
    async with FarSide(listen, DOCUMENTS, "another token") as far:
        report = await Phone(PhoneOptions(url=far.url, parties=SIGNED), []).call()

    assert report.refusal is not None
    assert (report.refusal.stage, report.refusal.status) == ("voice", 403)
    assert far.posts == []


async def test_a_handshake_that_is_refused() -> None:
    async with FarSide(listen, token=TOKEN) as far:
        report = await Phone(PhoneOptions(stream_url=far.stream_url), []).call()

    assert report.refusal is not None
    assert (report.refusal.stage, report.refusal.status) == ("stream", 403)


@pytest.mark.parametrize("stage", ["voice", "stream"])
async def test_nobody_listens(stage: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    options = PhoneOptions(url=f"http://{address}", stream_url=f"ws://{address}/" if stage == "stream" else "")
    report = await Phone(options, []).call()

    assert report.refusal is not None
    assert (report.refusal.stage, report.refusal.status) == (stage, 0)


async def test_many_phones_at_once_keep_time() -> None:
    async def talk(line: FarLine) -> None:
        await line.begin()
        await line.media(tone(100))
        await line.mark("end")
        await line.to_the_end()

    script: list[Step] = [BotFinished(silent_ms=100), Say(utterance()), Pause(300), HangUp()]
    async with FarSide(talk) as far, asyncio.TaskGroup() as group:
        phones = [Phone(PhoneOptions(stream_url=far.stream_url), script) for _ in range(20)]
        calls = [group.create_task(phone.call()) for phone in phones]
    reports = [call.result() for call in calls]

    assert all(report.ok for report in reports)
    assert len({report.call_sid for report in reports}) == 20
    for line, count in [(line, line.events().count("media")) for line in far.lines]:
        assert 28 <= count <= 32, line.events()


def test_violations_read_well() -> None:
    assert str(Violation(31950, "binary", "a binary frame")) == "31950 binary: a binary frame"
    assert str(Violation(0, "header", "a header")) == "- header: a header"
