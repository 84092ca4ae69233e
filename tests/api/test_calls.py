"""The calls, for admins: listed, shown, hung up."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.services.ai_call.types import CallInfo, Exchange, TurnLatency
from tests.api.client import ADMIN, SID, Client, application, live_call
from tests.servers import ACCOUNT, CALLEE, CALLER, until

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def sid(number: int) -> str:
    return f"CA{number:032x}"


async def store_calls(client: Client, count: int) -> None:
    """One a minute, the last with the highest number; two begin in the same moment."""
    for number in range(count):
        started_at = NOON + timedelta(minutes=max(1, number))
        await client.services.store.open_call(CallInfo(sid(number), ACCOUNT, CALLER, CALLEE, "ko", started_at))


async def test_the_list_is_paged_newest_first_and_complete(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        await store_calls(client, 7)
        seen: list[str] = []
        query: dict[str, str | int] = {"limit": 3}
        for expected in (3, 3, 1):
            page = (await client.http.get("/api/calls", params=query, headers=ADMIN)).json()
            seen += [call["call_sid"] for call in page["calls"]]
            assert len(page["calls"]) == expected
            query["before"] = page["next"]
        assert page["next"] is None
        assert seen == [sid(number) for number in reversed(range(7))]


async def test_an_empty_list_is_a_list(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        answer = await client.http.get("/api/calls", headers=ADMIN)
        assert answer.json() == {"calls": [], "next": None}


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"limit": "0"}, 422),
        ({"limit": "201"}, 422),
        ({"limit": "many"}, 422),
        ({"before": "nonsense"}, 400),
        ({"before": "~"}, 400),
        ({"before": "2026-03-01~a~b"}, 400),
        ({"before": f"2026-03-01T12:02:00~{sid(2)}"}, 400),  # in no time zone
        ({"before": f"0001-01-01T00:00:00+23:59~{sid(2)}"}, 400),
        ({"before": "x" * 201}, 422),
    ],
)
async def test_a_page_that_cannot_be_is_refused(tmp_path: Path, query: dict[str, str], status: int) -> None:
    async with application(tmp_path) as client:
        assert (await client.http.get("/api/calls", params=query, headers=ADMIN)).status_code == status


async def test_a_call_is_shown_with_its_exchanges_and_every_latency(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        await store_calls(client, 1)
        store = client.services.store
        await store.add_exchange(sid(0), Exchange(1, "", "안녕하세요.", False, TurnLatency(first_audio=20)))
        await store.add_exchange(
            sid(0), Exchange(2, "영업시간이 어떻게 되나요?", "네.", True, TurnLatency(5000, 5350, 5700, 5900))
        )
        await store.close_call(sid(0), "caller", NOON + timedelta(minutes=2))
        call = (await client.http.get(f"/api/calls/{sid(0)}", headers=ADMIN)).json()
    greeting, exchange = call.pop("exchanges")
    assert call == {
        "call_sid": sid(0),
        "caller": CALLER,
        "callee": CALLEE,
        "language": "ko",
        "started_at": "2026-03-01T12:01:00Z",
        "ended_at": "2026-03-01T12:02:00Z",
        "end_reason": "caller",
        "live": False,
    }
    assert greeting["latency"]["response_ms"] is None
    assert exchange == {
        "turn": 2,
        "user": "영업시간이 어떻게 되나요?",
        "bot": "네.",
        "interrupted": True,
        "latency": {
            "speech_end_ms": 5000,
            "final_ms": 5350,
            "first_token_ms": 5700,
            "first_audio_ms": 5900,
            "response_ms": 900,
        },
    }


async def test_a_live_call_is_marked_and_hung_up_politely_then_at_once(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        async with live_call(client) as socket:
            listed = (await client.http.get("/api/calls", headers=ADMIN)).json()["calls"]
            assert [(call["call_sid"], call["live"]) for call in listed] == [(SID, True)]
            for _ in range(2):
                answer = await client.http.post(f"/api/calls/{SID}/hangup", headers=ADMIN)
                assert (answer.status_code, answer.json()) == (202, {"status": "hanging up"})
            await until(lambda: not client.services.switchboard.live)
        assert socket.closed_with == 1000
        assert (await client.http.get(f"/api/calls/{SID}", headers=ADMIN)).json()["end_reason"] == "admin"
        assert (await client.http.post(f"/api/calls/{SID}/hangup", headers=ADMIN)).status_code == 404


@pytest.mark.parametrize(("call_sid", "status"), [(sid(9), 404), ("CA123", 422), ("CA" + "A" * 32, 422), ("x", 422)])
async def test_a_call_that_is_not_there(tmp_path: Path, call_sid: str, status: int) -> None:
    async with application(tmp_path) as client:
        assert (await client.http.get(f"/api/calls/{call_sid}", headers=ADMIN)).status_code == status
        assert (await client.http.post(f"/api/calls/{call_sid}/hangup", headers=ADMIN)).status_code == status
