"""The providers, for admins: which there are, how they are, and which one new calls get."""

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException
from pydantic import BaseModel, Field

from app.api.deps import ServicesDep, require_admin
from app.errors import SttError
from app.services.ai_call.recognition import NotConfigured, Report, SwitchedElsewhere, UnknownRecogniser
from app.wiring import Services

router = APIRouter(prefix="/api/providers", dependencies=[Depends(require_admin)], tags=["providers"])


class RecogniserOut(BaseModel):
    """`missing` are variables that must be set first. `healthy` is null for one that was never used here. Latency is
    that of its last finals: milliseconds from the end of speech to the words."""

    name: str
    chosen: bool
    configured: bool
    missing: list[str]
    healthy: bool | None
    note: str
    latency_p50_ms: int | None
    latency_p95_ms: int | None
    calls: int


class ProvidersOut(BaseModel):
    stt: list[RecogniserOut]


class Wanted(BaseModel):
    name: Annotated[str, Field(max_length=50)]


@router.get("")
async def list_providers(services: ServicesDep) -> ProvidersOut:
    """`calls` and latencies are those of this worker."""
    return _providers(services)


@router.put("/stt")
async def switch_recogniser(wanted: Wanted, services: ServicesDep) -> ProvidersOut:
    """New calls use it once it has understood a spoken sentence; running calls keep theirs. 422 for a name that there
    is none of, 409 for one that cannot be used as things are set, 502 for one that did not understand, 503 when the
    choice could not be stored: then nothing has changed."""
    try:
        await services.recognition.switch(wanted.name)
    except UnknownRecogniser as error:
        raise HTTPException(422, str(error)) from error
    except (NotConfigured, SwitchedElsewhere) as error:
        raise HTTPException(409, str(error)) from error
    except SttError as error:
        chosen = services.recognition.chosen
        rest = "" if wanted.name == chosen else f"; calls go on with {chosen}"
        raise HTTPException(502, f"{error}{rest}") from error
    return _providers(services)


def _providers(services: Services) -> ProvidersOut:
    return ProvidersOut(stt=[_recogniser(report) for report in services.recognition.report()])


def _recogniser(report: Report) -> RecogniserOut:
    p50, p95 = report.latency_ms or (None, None)
    return RecogniserOut(
        name=report.name,
        chosen=report.chosen,
        configured=not report.missing,
        missing=list(report.missing),
        healthy=report.healthy,
        note=report.note,
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        calls=report.calls,
    )
