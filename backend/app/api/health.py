"""Alive, ready, metrics."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends, Response

from app import metrics
from app.api.deps import AdminDep, ServicesDep, require_admin

router = APIRouter()


@router.get("/live")
async def live() -> dict[str, str]:
    """The process serves requests. Touches nothing else."""
    return {"status": "alive"}


@router.get("/ready")
async def ready(services: ServicesDep, admin: AdminDep, response: Response) -> dict[str, Any]:
    """Whether a new call would be served well: 200, or 503. Which component is ill, and what to do about it, is
    told to whoever shows the admin key."""
    draining = services.switchboard.draining
    well = services.readiness.ready and not draining
    response.status_code = 200 if well else 503
    answer: dict[str, Any] = {"status": "draining" if draining else "ready" if well else "not_ready"}
    if admin:
        answer["components"] = {
            name: {"ok": health.ok, "note": health.note} for name, health in services.readiness.components.items()
        }
        answer["in_use"] = {name: asdict(row) for name, row in services.in_use.items()}
    return answer


@router.get("/metrics", dependencies=[Depends(require_admin)])
async def exposition(services: ServicesDep) -> Response:
    for figure, value in services.recognition.figures().items():
        services.metrics.engine.labels(figure).set(value)
    return Response(services.metrics.exposition(), media_type=metrics.CONTENT_TYPE)
