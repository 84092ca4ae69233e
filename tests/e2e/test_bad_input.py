"""Everything that a broken, strange or hostile peer may send. Each has its outcome and its counter, leaves no stack in
the log, and does no harm to the call that goes on beside it (`beside`)."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.api import twilio
from app.clock import utc_now
from app.providers import Providers
from app.simulator.twiml import Stream
from app.telephony import stream_token
from app.telephony.signature import sign
from tests.e2e.by_hand import QUESTION, Call, calling, dialled, new_call_sid, question, record, ring
from tests.fakes import LoudnessDetector, ScriptedLlm, ScriptedStt, ToneTts, sound
from tests.servers import TOKEN, Running, serving, until

pytestmark = pytest.mark.usefixtures("quiet_log")

ASKED = "영업시간이 어떻게 되나요?"
Json = dict[str, Any]


@dataclass
class Beside:
    """The server, and what its recogniser was given."""

    running: Running
    stt: ScriptedStt

    @property
    def url(self) -> str:
        return self.running.url

    def faults(self, kind: str) -> float:
        return self.running.count("stream_faults_total", kind=kind)

    def refused(self, reason: str) -> float:
        return self.running.count("streams_refused_total", reason=reason)

    async def counts(self, kind: str, times: int) -> None:
        await until(lambda: self.faults(kind) >= times)
        assert self.faults(kind) == times

    async def ended(self, call: Call, reason: str, exchanges: int = 1) -> None:
        """The call has its record, and no longer any part of the process."""
        ended = await record(self.url, call.call_sid, exchanges)
        assert (ended["end_reason"], len(ended["exchanges"])) == (reason, exchanges)
        await until(lambda: self.running.services.switchboard.find(call.call_sid) is None)


@asynccontextmanager
async def beside(
    folder: Path, detector: Callable[[], LoudnessDetector] = LoudnessDetector, **changes: Any
) -> AsyncIterator[Beside]:
    """While the test does its worst, another call is live; afterwards it is answered as if nothing had been."""
    stt = ScriptedStt(decode_s=0.01)
    stt.words[QUESTION] = ASKED
    providers = Providers.of(stt, ScriptedLlm(first_s=0.01, word_s=0), ToneTts(first_s=0, ms_per_char=5))
    async with serving(folder, providers, detector=detector, **changes) as running:
        async with calling(running.url) as good:
            yield Beside(running, stt)
            await good.asks()
            await good.stop()
        ended = await record(running.url, good.call_sid, 2)
        assert [exchange["user"] for exchange in ended["exchanges"]] == ["", ASKED]
        assert ended["end_reason"] == "caller"


@asynccontextmanager
async def unstarted(here: Beside, **changes: Any) -> AsyncIterator[Call]:
    """A call whose socket is open and on which nothing was sent yet."""
    call_sid = new_call_sid()
    async with dialled(await ring(here.url, call_sid), call_sid, **changes) as call:
        yield call


def media(call: Call, payload: object, **changes: object) -> Json:
    """A media message with whatever payload, and without the number that would have to fit."""
    message: Json = json.loads(call.wire.media(b"\xff" * 160, 0))
    del message["sequenceNumber"]
    message["media"]["payload"] = payload
    message["media"] |= changes
    return message


def encoded(mulaw: bytes) -> str:
    return base64.b64encode(mulaw).decode()


# ---------------------------------------------------------------- messages of a call: dropped, counted, and on it goes

JSON_NOISE = [
    "",
    "{",
    "nonsense",
    "null",
    "[]",
    "7",
    '"start"',
    "{}",
    '{"event":7}',
    '{"event":null}',
    '{"event":"media"}' + "}",
    "[" * 10_000,
    '{"event":"media","media":' + "9" * 5_000 + "}",
]
PAYLOAD_NOISE: list[object] = [
    "!!!!",
    "AAA",
    "A===",
    "AAAA=",
    "AA AA",
    "ÄÄÄÄ",
    "AAA\n",
    None,
    7,
    [],
    {},
    encoded(bytes(8_001)),
]


async def test_what_is_not_a_message_is_dropped(tmp_path: Path) -> None:
    async with beside(tmp_path) as here, calling(here.url) as call:
        for number, text in enumerate(JSON_NOISE, 1):
            await call.send(text)
            await here.counts("bad_json", number)
        await call.asks()


async def test_a_payload_that_is_no_audio_is_dropped(tmp_path: Path) -> None:
    async with beside(tmp_path) as here, calling(here.url) as call:
        for number, payload in enumerate(PAYLOAD_NOISE, 1):
            await call.send(media(call, payload))
            await here.counts("bad_payload", number)
        await call.asks()


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ({"event": "video", "video": {}}, "unknown_event"),
        ({"event": "connected", "protocol": "Call", "version": "1.0.0"}, "out_of_order"),
        ({"event": "mark", "streamSid": "MZ0", "mark": {"name": "1"}}, "wrong_stream"),
        ({"event": "stop", "streamSid": "MZ0", "stop": {}}, "wrong_stream"),
    ],
)
async def test_a_message_out_of_place_is_ignored(tmp_path: Path, message: Json, kind: str) -> None:
    async with beside(tmp_path) as here, calling(here.url) as call:
        for _ in range(30):  # many more than there may be malformed ones
            await call.send(message)
        await call.asks()
        assert here.faults(kind) == 30


async def test_a_key_that_no_telephone_has(tmp_path: Path) -> None:
    async with beside(tmp_path) as here, calling(here.url) as call:
        for number, digit in enumerate(("A9", "", "x", None, 5, "٣"), 1):
            message = json.loads(call.wire.dtmf("1"))
            message["dtmf"]["digit"] = digit
            await call.send(message)
            await here.counts("bad_dtmf", number)
        await call.asks()


async def test_marks_that_were_never_sent_or_come_twice_prove_nothing(tmp_path: Path) -> None:
    async with beside(tmp_path) as here, calling(here.url) as call:
        for name in ("1", "1", "2", "99", "", "x" * 5_000):
            await call.send(call.wire.mark(name))
        await call.asks()
        await call.stop()
        await here.ended(call, "caller", exchanges=2)


async def test_our_own_voice_is_not_heard(tmp_path: Path) -> None:
    async with beside(tmp_path) as here, calling(here.url) as call:
        spoken = question()
        for at in range(0, len(spoken), 800):
            await call.send(media(call, encoded(spoken[at : at + 800]), track="outbound"))
        await call.asks()
        await call.stop()
        await here.ended(call, "caller", exchanges=2)
        assert here.faults("wrong_track") == -(-len(spoken) // 800)


async def test_payloads_of_every_length_are_heard_whole(tmp_path: Path) -> None:
    heard = 0

    class Counting(LoudnessDetector):
        def probability(self, pcm: bytes) -> float:
            nonlocal heard
            heard += 160 if any(pcm) else 0
            return super().probability(pcm)

    sizes = (0, 1, 159, 161, 8_000, 159, 1)
    async with beside(tmp_path, detector=Counting) as here, calling(here.url) as call:
        for size in sizes:
            await call.send(media(call, encoded(b"\x80" * size)))
        await call.say(b"\xff" * 8 * 600)
        await until(lambda: heard == -(-sum(sizes) // 160) * 160)
        await call.asks()
        assert here.faults("bad_payload") == 0


# ---------------------------------------------------------------- messages of a call: too many


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda call: "{", "bad_json"),
        (lambda call: media(call, "!!!!"), "bad_payload"),
        (lambda call: {"event": "media", "streamSid": media(call, "")["streamSid"], "media": 7}, "bad_json"),
    ],
)
async def test_twenty_malformed_messages_are_forgiven_and_one_more_is_not(
    tmp_path: Path, make: Callable[[Call], str | Json], kind: str
) -> None:
    async with beside(tmp_path) as here, calling(here.url) as call:
        for _ in range(20):
            await call.send(make(call))
        await call.asks()
        await call.send(make(call))
        assert await call.closed() == 4400
        await here.ended(call, "protocol", exchanges=2)
        assert here.faults(kind) == 21


async def test_a_flood_is_cut_off(tmp_path: Path) -> None:
    async with beside(tmp_path) as here, calling(here.url) as call:
        frame = call.wire.dtmf("1")

        with suppress(ConnectionClosed):
            while True:  # 600 a second, for which it takes three
                await asyncio.gather(*(call.send(frame) for _ in range(60)))
                await asyncio.sleep(0.1)
        assert await call.closed() == 4429
        await here.ended(call, "protocol")
        assert here.faults("too_fast") == 1


# ---------------------------------------------------------------- frames


async def test_a_binary_frame_ends_the_stream(tmp_path: Path) -> None:
    async with beside(tmp_path) as here, calling(here.url) as call:
        await call.send(b"\x00\x01")
        assert await call.closed() == 1003
        await here.ended(call, "protocol")
        assert here.faults("binary") == 1


@pytest.mark.parametrize("letter", ["x", "é"])
async def test_64_kib_are_read_and_one_byte_more_is_not(tmp_path: Path, letter: str) -> None:
    async with beside(tmp_path) as here, calling(here.url) as call:
        await call.send(letter * (65_536 // len(letter.encode())))
        await call.asks()
        assert here.faults("bad_json") == 1
        await call.send("x" + letter * (65_536 // len(letter.encode())))
        assert await call.closed() == 1009
        await here.ended(call, "caller", exchanges=2)


async def test_a_mebibyte_is_not_read_either(tmp_path: Path) -> None:
    async with beside(tmp_path) as here, calling(here.url) as call:
        await call.send("x" * 2**20)
        assert await call.closed() == 1009
        await here.ended(call, "caller")


async def test_a_message_in_fragments_is_one_message(tmp_path: Path) -> None:
    async with beside(tmp_path) as here, calling(here.url) as call:
        text = call.wire.dtmf("7")
        await call.socket.send([text[:10], text[10:20], text[20:]])
        await call.asks()
        assert here.faults("bad_json") == 0


# ---------------------------------------------------------------- before the start


async def test_a_stream_that_never_starts_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twilio, "START_S", 0.2)
    async with beside(tmp_path) as here, unstarted(here) as silent, unstarted(here) as half:
        await half.send(half.wire.connected())
        assert await silent.closed() == 4408
        assert await half.closed() == 4408
        assert here.refused("no_start") == 2


async def test_who_hangs_up_before_the_start_is_let_go(tmp_path: Path) -> None:
    async with beside(tmp_path) as here, unstarted(here) as polite, unstarted(here) as abrupt:
        await polite.send(polite.wire.connected())
        await polite.stop()
        assert await polite.closed() == 1000
        abrupt.abort()
        await until(lambda: here.refused("no_start") == 2)


async def test_a_start_without_connected_is_accepted(tmp_path: Path) -> None:
    async with beside(tmp_path) as here, unstarted(here) as call:
        await call.send(call.wire.start())
        await call.greeted()
        await call.asks()


async def test_fifty_frames_before_the_start_are_forgiven_and_one_more_is_not(tmp_path: Path) -> None:
    async with beside(tmp_path) as here:
        async with unstarted(here) as call:
            await call.send(call.wire.connected())
            for _ in range(50):
                await call.say(sound(*QUESTION))
            await call.send(call.wire.start())
            await call.greeted()
            await call.asks()
            await call.stop()
            await here.ended(call, "caller", exchanges=2)
        async with unstarted(here) as call:
            for _ in range(51):
                await call.say(b"\xff" * 160)
            assert await call.closed() == 4400
        assert here.faults("media_before_start") == 101
        assert here.refused("media_before_start") == 1


@pytest.mark.parametrize(
    ("first", "code", "kind"),
    [
        ({"event": "mark", "mark": {"name": "1"}}, 4400, "wrong_first"),
        ({"event": "hello"}, 4400, "wrong_first"),
        (b"\x00", 1003, "binary"),
        ("x" * 65_537, 1009, "no_start"),
    ],
)
async def test_a_first_message_of_another_protocol(tmp_path: Path, first: Any, code: int, kind: str) -> None:
    async with beside(tmp_path) as here, unstarted(here) as call:
        await call.send(first)
        assert await call.closed() == code
        await until(lambda: here.refused(kind) == 1)


BAD_STARTS: list[tuple[Json, str]] = [
    ({"mediaFormat": {"encoding": "audio/l16", "sampleRate": 8000, "channels": 1}}, "bad_format"),
    ({"mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 16000, "channels": 1}}, "bad_format"),
    ({"mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 2}}, "bad_format"),
    ({"mediaFormat": None}, "bad_format"),
    ({"callSid": None}, "bad_start"),
    ({"callSid": "x" * 129}, "bad_start"),
    ({"streamSid": "MZ0"}, "bad_start"),
    ({"customParameters": {"token": 7}}, "bad_start"),
    ({"customParameters": "token"}, "bad_start"),
]


async def test_a_start_that_cannot_be_served(tmp_path: Path) -> None:
    async with beside(tmp_path) as here:
        for change, kind in BAD_STARTS:
            before = here.refused(kind)
            async with unstarted(here) as call:
                start = json.loads(call.wire.start())
                start["start"] |= change
                await call.send(call.wire.connected())
                await call.send(start)
                assert await call.closed() == 4400, change
            assert here.refused(kind) == before + 1


async def test_the_same_start_again_is_ignored_and_another_one_is_not(tmp_path: Path) -> None:
    async with beside(tmp_path) as here, calling(here.url) as call:
        start = json.loads(call.wire.start())
        await call.send(start)
        await call.asks()
        assert here.faults("second_start") == 1
        start["start"]["callSid"] = new_call_sid()
        await call.send(start)
        assert await call.closed() == 4400
        await here.ended(call, "protocol", exchanges=2)


# ---------------------------------------------------------------- the token


async def refused_token(here: Beside, call_sid: str, stream: Stream) -> None:
    before = here.refused("token")
    async with dialled(stream, call_sid) as call:
        await call.begin()
        assert await call.closed() == 4401
        assert not call.received
    assert here.refused("token") == before + 1


def with_token(stream: Stream, token: str) -> Stream:
    return replace(stream, parameters={"token": token})


async def test_a_token_serves_once(tmp_path: Path) -> None:
    async with beside(tmp_path) as here:
        call_sid = new_call_sid()
        stream = await ring(here.url, call_sid)
        async with dialled(stream, call_sid) as call:
            await call.begin()
            await call.greeted()
            await refused_token(here, call_sid, stream)
            await call.stop()
        await refused_token(here, call_sid, stream)


async def test_a_token_of_another_call_or_account_is_refused(tmp_path: Path) -> None:
    async with beside(tmp_path) as here:
        stream = await ring(here.url, new_call_sid())
        await refused_token(here, new_call_sid(), stream)
        call_sid = new_call_sid()
        async with dialled(await ring(here.url, call_sid), call_sid) as call:
            start = json.loads(call.wire.start())
            start["start"]["accountSid"] = "AC" + "2" * 32
            await call.send(start)
            assert await call.closed() == 4401


async def test_a_token_that_is_forged_old_broken_or_missing_is_refused(tmp_path: Path) -> None:
    async with beside(tmp_path) as here:
        call_sid = new_call_sid()
        stream = await ring(here.url, call_sid)
        ours = stream.parameters["token"]
        secret, now = here.running.services.token_secret, int(utc_now().timestamp())
        for token in (
            stream_token.mint(b"guessed", call_sid, now + 60, "nonce"),
            stream_token.mint(secret, call_sid, now - stream_token.SKEW_S - 1, "nonce"),
            stream_token.mint(secret, call_sid, now + 60, "never-expected"),
            ours[:-1] + ("0" if ours[-1] != "0" else "1"),
            ours + "0",
            "v1.é.ÿ.한",
            "",
        ):
            await refused_token(here, call_sid, with_token(stream, token))
        await refused_token(here, call_sid, replace(stream, parameters={}))
        async with dialled(stream, call_sid) as call:  # all of that has not used it up
            await call.begin()
            await call.greeted()


async def test_a_second_stream_of_a_live_call_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with beside(tmp_path) as here, calling(here.url) as call:
        again = await ring(here.url, call.call_sid)  # Twilio repeats a webhook: a new token
        async with dialled(again, call.call_sid) as second:
            await second.begin()
            assert await second.closed() == 4409
        await call.asks()
        assert here.refused("second_stream") == 1


# ---------------------------------------------------------------- the handshake


async def refused_handshake(here: Beside, status: int, headers: Mapping[str, str] | None = None) -> httpx.Headers:
    call_sid = new_call_sid()
    stream = Stream(here.url.replace("http", "ws") + "/twilio/stream")
    with pytest.raises(InvalidStatus) as refusal:
        async with dialled(stream, call_sid, headers=headers):
            pass
    assert refusal.value.response.status_code == status
    assert not refusal.value.response.body
    return httpx.Headers(list(refusal.value.response.headers.raw_items()))


async def test_an_unsigned_or_wrongly_signed_handshake_is_refused(tmp_path: Path) -> None:
    async with beside(tmp_path) as here:
        url = here.url.replace("http", "ws") + "/twilio/stream"
        for headers in (
            {},
            {"X-Twilio-Signature": ""},
            {"X-Twilio-Signature": sign(url, (), "another token")},
            {"X-Twilio-Signature": sign(url.replace("ws", "http"), (), TOKEN)},
            {"X-Twilio-Signature": sign("wss://evil.test/twilio/stream", (), TOKEN)},
        ):
            await refused_handshake(here, 403, headers)
        assert here.refused("signature") == 5


async def test_a_browser_is_refused_even_if_it_were_signed(tmp_path: Path) -> None:
    async with beside(tmp_path) as here:
        url = here.url.replace("http", "ws") + "/twilio/stream"
        await refused_handshake(here, 403, {"Origin": here.url, "X-Twilio-Signature": sign(url, (), TOKEN)})
        assert here.refused("origin") == 1


async def test_full_or_draining_is_503_before_the_handshake(tmp_path: Path) -> None:
    async with beside(tmp_path, max_calls=2) as here:
        async with calling(here.url) as call:
            headers = await refused_handshake(here, 503)
            assert headers["Retry-After"] == "5"
            await call.stop()
            await here.ended(call, "caller")
        here.running.services.switchboard.draining = True
        await refused_handshake(here, 503)
        assert here.refused("busy") == 2
