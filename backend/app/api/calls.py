"""The calls, for admins: what is stored, what is live, and hanging up."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Query
from pydantic import BaseModel

from app.api.deps import ServicesDep, require_admin
from app.db.call_store import CallRecord, CallSummary, Cursor
from app.services.ai_call.types import Exchange
from app.wiring import Services

router = APIRouter(prefix="/api/calls", dependencies=[Depends(require_admin)], tags=["calls"])

CallSid = Annotated[str, Path(pattern=r"^CA[0-9a-f]{32}$")]


class Latency(BaseModel):
    """Milliseconds since the call was answered, by one clock; null where it did not happen.

    `response_ms` is the wait that the caller had: end of speech to first audio.
    """

    speech_end_ms: int | None
    final_ms: int | None
    first_token_ms: int | None
    first_audio_ms: int | None
    response_ms: int | None


class ExchangeOut(BaseModel):
    turn: int
    user: str
    bot: str
    interrupted: bool
    latency: Latency


class CallOut(BaseModel):
    call_sid: str
    caller: str
    callee: str
    language: str
    started_at: datetime
    ended_at: datetime | None
    end_reason: str | None
    live: bool


class CallLine(CallOut):
    exchange_count: int


class CallDetail(CallOut):
    exchanges: list[ExchangeOut]


class CallPage(BaseModel):
    calls: list[CallLine]
    next: str | None
    """Pass it as `before` for the next page."""


@router.get("")
async def list_calls(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[str | None, Query(max_length=200)] = None,
) -> CallPage:
    """Newest first."""
    records = await services.store.recent(limit, _cursor(before) if before else None)
    calls = [CallLine(**_call(record, services), exchange_count=record.exchange_count) for record in records]
    last = records[-1].call if len(records) == limit else None
    return CallPage(calls=calls, next=f"{last.started_at.isoformat()}~{last.call_sid}" if last else None)


@router.get("/{call_sid}")
async def show_call(call_sid: CallSid, services: ServicesDep) -> CallDetail:
    record = await services.store.get(call_sid)
    if record is None:
        raise HTTPException(404, "no such call")
    return CallDetail(**_call(record, services), exchanges=[_exchange(exchange) for exchange in record.exchanges])


@router.post("/{call_sid}/hangup", status_code=202)
async def hang_up(call_sid: CallSid, services: ServicesDep) -> dict[str, str]:
    """The bot says goodbye and the call ends; asked again, it ends at once."""
    session = services.switchboard.find(call_sid)
    if session is None:
        raise HTTPException(404, "no such call is live")
    session.hang_up("admin")
    return {"status": "hanging up"}


def _cursor(text: str) -> Cursor:
    try:
        started_at, call_sid = text.split("~")
        at = datetime.fromisoformat(started_at)
        if at.tzinfo is None:
            raise ValueError("in no time zone")
        return at.astimezone(UTC), call_sid
    except (ValueError, OverflowError) as error:
        raise HTTPException(400, "`before` must be the `next` of an earlier page") from error


def _call(record: CallRecord | CallSummary, services: Services) -> dict[str, Any]:
    call = record.call
    return {
        "call_sid": call.call_sid,
        "caller": call.caller,
        "callee": call.callee,
        "language": call.language,
        "started_at": call.started_at,
        "ended_at": record.ended_at,
        "end_reason": record.end_reason,
        "live": services.switchboard.find(call.call_sid) is not None,
    }


def _exchange(exchange: Exchange) -> ExchangeOut:
    latency = exchange.latency
    heard_after = None
    if latency.first_audio is not None and latency.speech_end is not None:
        heard_after = latency.first_audio - latency.speech_end
    return ExchangeOut(
        turn=exchange.turn,
        user=exchange.user,
        bot=exchange.bot,
        interrupted=exchange.interrupted,
        latency=Latency(
            speech_end_ms=latency.speech_end,
            final_ms=latency.final,
            first_token_ms=latency.first_token,
            first_audio_ms=latency.first_audio,
            response_ms=heard_after,
        ),
    )
