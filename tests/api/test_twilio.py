"""The webhooks: who is believed, what is refused, and the TwiML that Twilio gets."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from app.simulator.twiml import Redirect, Stream, parse
from app.simulator.wire import Violation
from app.telephony import stream_token
from tests.api.client import BASE, SID, AbsentLlm, application, form, live_call
from tests.servers import TOKEN

OTHER_TOKEN = "abcdefabcdefabcdefabcdefabcdefab"
BUSY = '<Response><Reject reason="busy" /></Response>'
HANG_UP = "<Response><Hangup /></Response>"


def document(answer: httpx.Response) -> str:
    """The TwiML without its first line."""
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/xml; charset=utf-8"
    head, body = answer.text.split("?>", 1)
    assert head == '<?xml version="1.0" encoding="UTF-8"'
    return body


def said(answer: httpx.Response) -> tuple[str, str]:
    """What a document that says something and hangs up says, and in which language."""
    say, hang_up = ElementTree.fromstring(document(answer))
    assert (say.tag, hang_up.tag) == ("Say", "Hangup")
    assert say.text
    return say.text, say.get("language", "")


# ---------------------------------------------------------------- voice: the answer


async def test_a_call_is_connected_to_our_stream_and_something_deliberate_follows(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        answer = await client.voice()
        violations: list[Violation] = []
        stream, after = parse(answer.text, f"{BASE}/twilio/voice", violations)
        assert not violations
        assert isinstance(stream, Stream)
        assert stream.url == "wss://bot.test/twilio/stream"
        assert list(stream.parameters) == ["token"]
        assert after == Redirect(f"{BASE}/twilio/after-stream", "POST")
        nonce = stream_token.verify(client.services.token_secret, stream.parameters["token"], SID, 0)
        call = await client.services.registry.claim(nonce)
        assert call is not None
        assert (call.call_sid, call.language) == (SID, "ko")
        assert await client.services.registry.claim(nonce) is None


async def test_the_twiml_is_exactly_what_twilio_documents(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        root = ElementTree.fromstring(document(await client.voice()))
    connect, redirect = root
    (stream,) = connect
    (parameter,) = stream
    assert (root.tag, connect.tag, connect.attrib) == ("Response", "Connect", {})
    assert stream.attrib == {"url": "wss://bot.test/twilio/stream"}
    assert parameter.tag == "Parameter"
    assert sorted(parameter.attrib) == ["name", "value"]
    assert redirect.attrib == {"method": "POST"}


async def test_a_repeated_webhook_gets_a_new_token_and_after_the_end_a_hang_up(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        first, second = document(await client.voice()), document(await client.voice())
        async with live_call(client):
            while_live = document(await client.voice())
        assert len({first, second, while_live}) == 3
        assert "<Connect>" in while_live
        assert document(await client.voice()) == HANG_UP


async def test_every_field_that_twilio_may_add_is_ignored(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        answer = await client.voice(CallerName="</Say><Dial>+1900</Dial>", StirVerstat="", Brandneu="ja")
        assert "<Connect>" in document(answer)


# ---------------------------------------------------------------- voice: who is believed


async def test_unsigned_and_wrongly_signed_webhooks_are_refused_without_a_word(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        for answer in (
            await client.post("/twilio/voice", form(), token=""),
            await client.post("/twilio/voice", form(), token=OTHER_TOKEN),
            await client.post(
                "/twilio/voice", form(), token="", headers={"X-Twilio-Signature": b"\xff\xe9".decode("latin-1")}
            ),
            await client.post("/twilio/voice", {"A": "b"}, token=OTHER_TOKEN),
        ):
            assert answer.status_code == 403
            assert "Signature" not in answer.text
        assert client.count("webhooks_refused_total", reason="signature") == 4


async def test_a_signature_is_for_this_form_and_this_url_only(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        signed = (await client.voice()).request.headers["X-Twilio-Signature"]
        changed = form(From="+15005550099")
        for path, fields in (("/twilio/voice", changed), ("/twilio/status", form()), ("/twilio/voice?a=b", form())):
            answer = await client.post(path, fields, token="", headers={"X-Twilio-Signature": signed})
            assert answer.status_code == 403, path


async def test_what_the_request_says_of_its_own_host_counts_for_nothing(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        headers = {"Host": "evil.test", "X-Forwarded-Host": "evil.test", "X-Forwarded-Proto": "http"}
        answer = await client.post("/twilio/voice", form(), headers=headers)
        assert "wss://bot.test/twilio/stream" in document(answer)


async def test_the_second_auth_token_serves_while_the_first_is_rotated(tmp_path: Path) -> None:
    async with application(tmp_path, twilio_auth_token_secondary=OTHER_TOKEN) as client:
        for token in (TOKEN, OTHER_TOKEN):
            assert (await client.post("/twilio/voice", form(), token=token)).status_code == 200


async def test_development_without_a_token_asks_for_no_signature(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {
        "app_env": "development",
        "twilio_auth_token": "",
        "twilio_account_sid": "",
        "public_base_url": "",
    }
    async with application(tmp_path, **nothing) as client:
        answer = await client.post("/twilio/voice", form(), token="")
        assert 'url="ws://127.0.0.1:8000/twilio/stream"' in document(answer)


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"AccountSid": "AC" + "2" * 32}, 403, "account"),
        ({"AccountSid": ""}, 403, "account"),
        ({"To": "+15005550009"}, 403, "number"),
        ({"CallSid": ""}, 400, "call_sid"),
        ({"CallSid": "CA" + "A" * 32}, 400, "call_sid"),
        ({"CallSid": SID + "\n"}, 400, "call_sid"),
        ({"CallSid": "../../etc/passwd"}, 400, "call_sid"),
    ],
)
async def test_a_signed_webhook_that_is_not_for_us_is_refused(
    tmp_path: Path, changes: dict[str, str], status: int, reason: str
) -> None:
    async with application(tmp_path, twilio_numbers=("+15005550001",)) as client:
        assert (await client.voice()).status_code == 200
        assert (await client.voice(**changes)).status_code == status
        assert client.count("webhooks_refused_total", reason=reason) == 1


# ---------------------------------------------------------------- voice: the form


async def test_only_a_form_of_sane_size_is_read(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        json = await client.http.post("/twilio/voice", json=form())
        multipart = await client.http.post("/twilio/voice", files={"CallSid": b"x"})
        big = await client.voice(Big="x" * 65_536)
        many = await client.voice(**{f"Field{number}": "x" for number in range(200)})
        not_utf8 = await client.http.post(
            "/twilio/voice",
            content=b"CallSid=\xff\xfe",
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )
        assert [answer.status_code for answer in (json, multipart, big, many, not_utf8)] == [415, 415, 413, 400, 400]
        for reason, times in (("content_type", 2), ("body", 1), ("fields", 2)):
            assert client.count("webhooks_refused_total", reason=reason) == times


async def test_a_body_without_a_length_is_cut_off_while_it_is_read(tmp_path: Path) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 8_192
            yield b"x" * 8_192

    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    async with application(tmp_path) as client:
        answer = await client.http.post("/twilio/voice", content=endless(), headers=headers)
    assert answer.status_code == 413
    assert sent <= 2 * 65_536


@pytest.mark.parametrize("path", ["/twilio/voice", "/twilio/status", "/twilio/after-stream"])
async def test_webhooks_are_posted(tmp_path: Path, path: str) -> None:
    async with application(tmp_path) as client:
        assert (await client.http.get(path)).status_code == 405


# ---------------------------------------------------------------- voice: not now


async def test_full_or_draining_means_the_busy_tone(tmp_path: Path) -> None:
    async with application(tmp_path, max_calls=1) as client:
        async with live_call(client, "CA" + "b" * 32):
            assert document(await client.voice()) == BUSY
        assert "<Connect>" in document(await client.voice())
        client.services.switchboard.draining = True
        assert document(await client.voice()) == BUSY
        assert client.count("webhooks_refused_total", reason="busy") == 2


@pytest.mark.parametrize(("language", "tag", "word"), [("ko", "ko-KR", "죄송합니다"), ("en", "en-US", "sorry")])
async def test_without_a_model_a_call_is_declined_in_words(tmp_path: Path, language: str, tag: str, word: str) -> None:
    async with application(tmp_path, llm=AbsentLlm(), lang_hint=language) as client:
        words, spoken_as = said(await client.voice())
        assert (word in words, spoken_as) == (True, tag)
        assert client.count("webhooks_refused_total", reason="not_ready") == 1


# ---------------------------------------------------------------- status


async def test_the_status_callback_is_204_whatever_it_says(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        for status in ("queued", "ringing", "in-progress", "completed", "failed", "never-heard-of", ""):
            answer = await client.status(CallStatus=status)
            assert (answer.status_code, answer.content) == (204, b"")
        assert (await client.status(CallSid="")).status_code == 204
        assert (await client.services.store.recent(1)) == []


async def test_completed_ends_the_live_call_and_what_comes_later_changes_nothing(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        async with live_call(client):
            assert (await client.status(CallStatus="in-progress")).status_code == 204
            assert client.services.switchboard.find(SID)
            assert (await client.status(CallStatus="completed")).status_code == 204
        ended = await client.services.store.get(SID)
        assert (await client.status(CallStatus="completed")).status_code == 204
        assert ended == await client.services.store.get(SID)
        assert ended is not None
        assert ended.end_reason == "caller"


async def test_a_forged_completed_is_no_weapon(tmp_path: Path) -> None:
    async with application(tmp_path) as client, live_call(client):
        answer = await client.post("/twilio/status", form(CallStatus="completed"), token=OTHER_TOKEN)
        assert answer.status_code == 403
        assert client.services.switchboard.find(SID)


# ---------------------------------------------------------------- after the stream


async def test_after_a_call_that_the_bot_ended_twilio_hangs_up(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        async with live_call(client):
            session = client.services.switchboard.find(SID)
            assert session is not None
            session.hang_up("bot")
            session.hang_up("bot")
        assert client.services.switchboard.ended(SID) == "bot"
        assert document(await client.after_stream()) == HANG_UP


@pytest.mark.parametrize(("language", "word"), [("ko", "끊어졌습니다"), ("en", "cut off")])
async def test_after_a_broken_stream_the_caller_is_told(tmp_path: Path, language: str, word: str) -> None:
    async with application(tmp_path, lang_hint=language) as client:
        words, _ = said(await client.after_stream())  # a crash: nobody knows the call
        assert word in words
        async with live_call(client) as socket:
            socket.put(b"binary")
        assert client.services.switchboard.ended(SID) == "protocol"
        words, _ = said(await client.after_stream())
        assert word in words


async def test_unsigned_nobody_learns_how_a_call_ended(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        assert (await client.post("/twilio/after-stream", form(), token="")).status_code == 403
