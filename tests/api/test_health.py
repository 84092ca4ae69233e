"""Alive, ready, metrics: what everybody may know, and what only the admin is told."""

from pathlib import Path
from typing import Any

import pytest

from tests.api.client import ADMIN, AbsentLlm, Client, application, live_call
from tests.servers import ADMIN_KEY

OPEN: dict[str, Any] = {"app_env": "development", "admin_api_key": "", "public_base_url": ""}


async def statuses(client: Client, path: str) -> list[int]:
    """Without a key, with a wrong one, with another scheme, with the right one."""
    wrong: list[dict[str, str]] = [{}, {"Authorization": "Bearer nonsense"}, {"Authorization": f"Basic {ADMIN_KEY}"}]
    return [(await client.http.get(path, headers=headers)).status_code for headers in (*wrong, ADMIN)]


async def test_live_touches_nothing(tmp_path: Path) -> None:
    async with application(tmp_path, llm=AbsentLlm()) as client:
        answer = await client.http.get("/live")
        assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


async def test_ready_tells_the_world_one_word(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        answer = await client.http.get("/ready")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
        assert await statuses(client, "/ready") == [200, 200, 200, 200]


async def test_not_ready_tells_the_admin_alone_what_is_ill_and_what_to_do(tmp_path: Path) -> None:
    async with application(tmp_path, llm=AbsentLlm()) as client:
        answer = await client.http.get("/ready")
        assert (answer.status_code, answer.json()) == (503, {"status": "not_ready"})
        told = (await client.http.get("/ready", headers=ADMIN)).json()
        assert told["components"]["llm"] == {"ok": False, "note": "the model is not there: ollama pull it"}
        assert told["components"]["database"]["ok"] is True


async def test_draining_is_not_ready_at_once(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        client.services.switchboard.draining = True
        answer = await client.http.get("/ready")
        assert (answer.status_code, answer.json()) == (503, {"status": "draining"})


async def test_metrics_are_the_admins_in_production(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        async with live_call(client):
            assert await statuses(client, "/metrics") == [401, 403, 401, 200]
            text = (await client.http.get("/metrics", headers=ADMIN)).text
            assert "malgil_live_calls 1.0" in text
        answer = await client.http.get("/metrics", headers=ADMIN)
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert 'malgil_calls_ended_total{reason="caller"} 1.0' in answer.text


async def test_metrics_hold_nothing_of_a_caller(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        await client.voice(From="+15005550042")
        async with live_call(client):
            pass
        text = (await client.http.get("/metrics", headers=ADMIN)).text
        assert "15005550042" not in text
        assert "CA" + "a" * 32 not in text


async def test_development_without_a_key_is_open(tmp_path: Path) -> None:
    async with application(tmp_path, **OPEN) as client:
        assert (await client.http.get("/metrics")).status_code == 200
        assert "in_use" in (await client.http.get("/ready")).json()


async def test_development_with_a_key_asks_for_it(tmp_path: Path) -> None:
    async with application(tmp_path, app_env="development") as client:
        assert await statuses(client, "/metrics") == [401, 403, 401, 200]


@pytest.mark.parametrize("shown", ["", "ÿ", ADMIN_KEY[:-1], ADMIN_KEY + "0", ADMIN_KEY.upper()])
async def test_the_key_is_compared_whole(tmp_path: Path, shown: str) -> None:
    async with application(tmp_path) as client:
        answer = await client.http.get("/metrics", headers={b"Authorization": f"Bearer {shown}".encode()})
        assert answer.status_code in (401, 403)
