"""The table of routes: each is public by name, or refuses in production whoever shows nothing."""

from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, WebSocketRoute

from app.main import create_app
from tests.api.client import BASE, SID, Client, application

PUBLIC = {("GET", "/live"), ("GET", "/ready")}
SIGNED = {("POST", "/twilio/voice"), ("POST", "/twilio/status"), ("POST", "/twilio/after-stream")}
SIGNED_SOCKETS = {"/twilio/stream", "/twilio/stream/{rest:path}"}
ADMIN = {
    ("GET", "/metrics"),
    ("GET", "/api/calls"),
    ("GET", "/api/calls/{call_sid}"),
    ("POST", "/api/calls/{call_sid}/hangup"),
    ("GET", "/api/providers"),
    ("PUT", "/api/providers/stt"),
}


def routes(client: Client) -> list[BaseRoute]:
    """Flat: FastAPI keeps an included router as one entry that holds its own."""
    found: list[BaseRoute] = []
    waiting = list(create_app(client.services).routes)
    for route in waiting:
        included = getattr(route, "original_router", None)
        if included is None:
            found.append(route)
        else:
            waiting += included.routes
    return found


async def test_the_routes_of_production_are_these_and_no_others(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        table = routes(client)
    http = {(method, route.path) for route in table if isinstance(route, APIRoute) for method in route.methods or ()}
    sockets = {route.path for route in table if isinstance(route, WebSocketRoute)}
    assert http == PUBLIC | SIGNED | ADMIN
    assert sockets == SIGNED_SOCKETS
    assert len(table) == len(http) + len(sockets)


async def test_development_adds_the_documentation_only(tmp_path: Path) -> None:
    async with application(tmp_path, app_env="development") as client:
        more = {getattr(route, "path", "") for route in routes(client) if not isinstance(route, APIRoute)}
    assert more - SIGNED_SOCKETS == {"/openapi.json", "/docs", "/docs/oauth2-redirect"}


@pytest.mark.parametrize(("method", "path"), sorted(ADMIN | SIGNED))
async def test_without_credentials_every_route_but_the_public_ones_refuses(
    tmp_path: Path, method: str, path: str
) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"} if method == "POST" else {}
    async with application(tmp_path) as client:
        answer = await client.http.request(method, path.format(call_sid=SID), headers=form)
    assert answer.status_code == (403 if (method, path) in SIGNED else 401)
    assert not answer.cookies


async def test_an_unknown_path_is_404_and_tells_nothing(tmp_path: Path) -> None:
    async with application(tmp_path) as client:
        for path in ("/", "/docs", "/openapi.json", "/api", "/twilio", "/api/calls/../../etc/passwd"):
            answer = await client.http.get(BASE + path)
            assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
