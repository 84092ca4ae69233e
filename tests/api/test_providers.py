"""GET and PUT /api/providers: the real recogniser with the demo model, and RTZR's emulator."""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.main import create_app
from app.providers import Providers, recognisers
from app.services.ai_call.preflight import TEXTS
from app.wiring import open_services
from tests.api.client import ADMIN, BASE, Client
from tests.emulators.rtzr import RtzrEmulator
from tests.fakes import ScriptedLlm, ToneTts
from tests.servers import PRODUCTION, settings

RTZR = {"rtzr_client_id": "test-id", "rtzr_client_secret": "test-secret"}


@asynccontextmanager
async def application(folder: Path, **changes: Any) -> AsyncIterator[Client]:
    """The recognisers of the product; a model and a voice of ours."""
    ours = settings(folder, **(PRODUCTION | {"model_name": "demo", "vad": "energy"} | changes))
    async with AsyncExitStack() as stack:
        providers = Providers(recognisers(ours, stack), ScriptedLlm(first_s=0), ToneTts(first_s=0, ms_per_char=1))
        services = await stack.enter_async_context(open_services(ours, providers))
        transport = httpx.ASGITransport(create_app(services))
        yield Client(await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url=BASE)), services)


async def shown(client: Client) -> dict[str, dict[str, Any]]:
    answer = await client.http.get("/api/providers", headers=ADMIN)
    assert answer.status_code == 200
    return {row["name"]: row for row in answer.json()["stt"]}


async def switch(client: Client, name: Any) -> httpx.Response:
    return await client.http.put("/api/providers/stt", headers=ADMIN, json={"name": name})


async def test_each_provider_is_shown_with_what_it_lacks(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        rows = await shown(client)
    assert list(rows) == ["local", "remote", "rtzr", "google", "legacy"]
    assert rows["local"] == {
        "name": "local",
        "chosen": True,
        "configured": True,
        "missing": [],
        "healthy": True,
        "note": "",
        "latency_p50_ms": None,
        "latency_p95_ms": None,
        "calls": 0,
    }
    assert rows["rtzr"]["missing"] == ["RTZR_CLIENT_ID", "RTZR_CLIENT_SECRET"]
    assert rows["google"]["missing"] == rows["legacy"]["missing"] == ["GOOGLE_APPLICATION_CREDENTIALS"]
    assert rows["rtzr"]["healthy"] is None


async def test_a_switch_there_and_back(tmp_path: Path) -> None:
    async with RtzrEmulator(texts=deque([TEXTS["ko"]])) as rtzr:
        async with application(tmp_path, **RTZR, rtzr_api_base=rtzr.url) as client:
            answer = await switch(client, "rtzr")
            assert answer.status_code == 200, answer.text
            rows = {row["name"]: row for row in answer.json()["stt"]}
            assert [name for name, row in rows.items() if row["chosen"]] == ["rtzr"]
            assert rows["rtzr"]["healthy"]
            assert client.services.in_use["stt"].why == "switched from local by an admin"
            assert (await switch(client, "local")).status_code == 200
            assert (await shown(client))["local"]["chosen"]
        assert rtzr.violations == []


async def test_a_switch_survives_a_restart(tmp_path: Path) -> None:
    async with RtzrEmulator(texts=deque([TEXTS["ko"]])) as rtzr:
        for status in (200, 0):
            async with application(tmp_path, **RTZR, rtzr_api_base=rtzr.url) as client:
                if status:
                    assert (await switch(client, "rtzr")).status_code == status
                assert (await shown(client))["rtzr"]["chosen"]


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("whisper", 422, "'whisper' is none of local, remote, rtzr, google, legacy"),
        ("", 422, "is none of"),
        (7, 422, "valid string"),
        ("rtzr", 409, "rtzr lacks RTZR_CLIENT_ID, RTZR_CLIENT_SECRET: set it in the environment"),
    ],
)
async def test_a_wrong_name_or_a_missing_key_says_what_to_set(
    tmp_path: Path, name: Any, status: int, says: str
) -> None:
    async with application(tmp_path) as client:
        answer = await switch(client, name)
        assert answer.status_code == status
        assert says in answer.text
        assert (await shown(client))["local"]["chosen"]


async def test_one_that_does_not_answer_is_not_switched_to(tmp_path: Path) -> None:
    async with application(tmp_path, **RTZR, rtzr_api_base="http://127.0.0.1:9") as client:
        answer = await switch(client, "rtzr")
        assert answer.status_code == 502
        assert "calls go on with local" in answer.json()["detail"]
        assert "test-secret" not in answer.text
        assert (await shown(client))["local"]["chosen"]


async def test_one_that_hears_something_else_is_not_switched_to(tmp_path: Path) -> None:
    async with (
        RtzrEmulator(texts=deque(["시청해 주셔서 감사합니다"])) as rtzr,
        application(tmp_path, **RTZR, rtzr_api_base=rtzr.url) as client,
    ):
        answer = await switch(client, "rtzr")
    assert answer.status_code == 502
    assert "not what was said" in answer.json()["detail"]
    assert "시청" not in answer.text


async def test_who_switches_must_be_an_admin(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        assert (await client.http.put("/api/providers/stt", json={"name": "local"})).status_code == 401
