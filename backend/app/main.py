"""create_app: the web application over opened Services. It opens and closes nothing itself; `server.py` does."""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from app.api import calls, health, providers, twilio
from app.errors import ProviderError
from app.wiring import Services


def create_app(services: Services) -> FastAPI:
    development = services.settings.development
    app = FastAPI(
        title="Malgil",
        docs_url="/docs" if development else None,
        redoc_url=None,
        openapi_url="/openapi.json" if development else None,
    )
    app.state.services = services
    app.add_exception_handler(ProviderError, _unavailable)
    app.include_router(health.router)
    app.include_router(calls.router)
    app.include_router(providers.router)
    app.include_router(twilio.router)
    return app


async def _unavailable(_request: Request, error: Exception) -> JSONResponse:
    """What a request needs is down for now: no fault of the request, and no bug."""
    return JSONResponse({"detail": f"{error}; GET /ready says more"}, 503, {"Retry-After": "5"})
