"""create_app: the web application over opened Services. It opens and closes nothing itself; `server.py` does."""

from fastapi import FastAPI

from app.api import calls, health, twilio
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
    app.include_router(health.router)
    app.include_router(calls.router)
    app.include_router(twilio.router)
    return app
