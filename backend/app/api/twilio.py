"""What Twilio asks for: the voice webhook, the media stream, what comes after the stream, the call's status.

Status and close codes: docs/call-flow.md.
"""

import asyncio
import secrets
from contextlib import suppress

import structlog
from fastapi import APIRouter, HTTPException, Response, WebSocket
from starlette.websockets import WebSocketDisconnect

from app.api.deps import CALL_SID, ServicesDep, SignedForm, TwilioForm
from app.clock import utc_now
from app.errors import ProtocolViolation
from app.services.ai_call.types import CallInfo
from app.telephony import stream_token, twiml
from app.telephony.media_stream import MediaStream, Started
from app.telephony.signature import valid_socket_signature
from app.telephony.stream_token import TokenRefused
from app.telephony.twilio_line import CUT_OFF, PEER_LEFT, await_start
from app.wiring import Services

router = APIRouter(prefix="/twilio", tags=["twilio"])
log = structlog.get_logger(__name__)

TOKEN_TTL_S = 60
START_S = 5.0
CLOSE_S = 0.5
NUMBER_CHARS = 64


@router.post("/voice")
async def voice(form: SignedForm, services: ServicesDep) -> Response:
    """Somebody calls: connect the call to our media stream, or decline in words."""
    call = _call_info(form, services)
    with structlog.contextvars.bound_contextvars(call=call.call_sid):
        if services.switchboard.ended(call.call_sid):
            return _xml(twiml.hang_up())  # a webhook repeated after the end opens nothing
        if services.switchboard.draining or services.switchboard.full or services.recognition.full(call.callee):
            services.metrics.webhooks_refused.labels("busy").inc()
            log.warning("x call refused: draining or full")
            return _xml(twiml.reject_busy())
        if not services.readiness.can_talk:
            services.metrics.webhooks_refused.labels("not_ready").inc()
            log.warning("x call declined: not ready; GET /ready says why")
            return _xml(twiml.decline(services.words(call.language).decline, _tag(call.language)))
        log.info("< call rings")
        services.prepare()
        token = await _expect(call, services)
        base = services.settings.base_url
        return _xml(twiml.connect_stream(services.settings.stream_url, token, f"{base}/twilio/after-stream"))


@router.post("/status", status_code=204)
async def status(form: SignedForm, services: ServicesDep) -> None:
    """Twilio reports the call's progress. A call that is over for Twilio is over for us; one unknown here is fine."""
    if form.get("CallStatus") in ("completed", "busy", "failed", "no-answer", "canceled"):
        session = services.switchboard.find(form.get("CallSid"))
        if session is not None:
            session.caller_left()


@router.post("/after-stream")
async def after_stream(form: SignedForm, services: ServicesDep) -> Response:
    """The stream is over but the caller is still there: ended by us, or cut off."""
    call_sid = form.get("CallSid")
    if services.switchboard.ended(call_sid) in (None, "shutdown", *CUT_OFF):
        language = services.settings.lang_hint
        return _xml(twiml.decline(services.words(language).cut_off, _tag(language)))
    return _xml(twiml.hang_up())


@router.websocket("/stream")
@router.websocket("/stream/{rest:path}")
async def stream(socket: WebSocket) -> None:
    """The media stream. Everything that can be refused is, before any provider is asked for anything."""
    services: Services = socket.app.state.services
    if not await _admitted(socket, services):
        return
    codec = MediaStream(on_fault=lambda kind: services.metrics.stream_faults.labels(kind).inc())
    try:
        await socket.accept()
        start = await await_start(socket, codec, START_S)
        call = await _claimed(start, services)
    except ProtocolViolation as violation:
        services.metrics.streams_refused.labels(violation.kind).inc()
        log.warning("x media stream refused", kind=violation.kind, code=violation.close_code)
        codec.close()
        if violation.close_code != PEER_LEFT:
            await _close(socket, violation.close_code)
        return
    with structlog.contextvars.bound_contextvars(call=call.call_sid):
        await services.switchboard.serve(services.new_session(call, socket, codec))


async def _admitted(socket: WebSocket, services: Services) -> bool:
    """Refusals before the handshake is answered."""
    refusal: tuple[int, str] | None = None
    if "origin" in socket.headers:
        refusal = 403, "origin"  # a browser; Twilio sends none
    elif services.signatures_checked and not valid_socket_signature(
        _dialled(socket, services), socket.headers, services.auth_tokens
    ):
        refusal = 403, "signature"
    elif services.switchboard.draining or services.switchboard.full:
        refusal = 503, "busy"
    if refusal is None:
        return True
    status_code, reason = refusal
    services.metrics.streams_refused.labels(reason).inc()
    log.warning("x media stream refused", kind=reason, code=status_code)
    if status_code == 403:
        await socket.close()  # before the handshake that is a 403 without a body
    else:
        await socket.send_denial_response(Response(status_code=status_code, headers={"Retry-After": "5"}))
    return False


def _dialled(socket: WebSocket, services: Services) -> str:
    """The public URL that Twilio must have dialled to come here: ours, with the segments that were added to it."""
    rest: str = socket.path_params.get("rest", "")
    return f"{services.settings.stream_url}/{rest}" if rest else services.settings.stream_url


async def _claimed(start: Started, services: Services) -> CallInfo:
    """The call that this stream belongs to, by its single-use token. Raises ProtocolViolation."""
    now = utc_now().timestamp()
    try:
        nonce = stream_token.verify(services.token_secret, start.parameters.get("token", ""), start.call_sid, now)
    except TokenRefused as refused:
        raise ProtocolViolation(f"token {refused.reason}", close_code=4401, kind="token") from refused
    call = await services.registry.claim(nonce)
    if call is None or call.call_sid != start.call_sid or call.account_sid != start.account_sid:
        raise ProtocolViolation("token used or not for this call", close_code=4401, kind="token")
    if services.switchboard.full or services.switchboard.draining:
        raise ProtocolViolation("full or draining by now", close_code=1013, kind="busy")
    if services.switchboard.find(call.call_sid) is not None:
        raise ProtocolViolation("this call has a stream already", close_code=4409, kind="second_stream")
    return call


async def _expect(call: CallInfo, services: Services) -> str:
    nonce = secrets.token_urlsafe(16)
    expires = int(call.started_at.timestamp()) + TOKEN_TTL_S
    await services.registry.expect(call, nonce, TOKEN_TTL_S)
    return stream_token.mint(services.token_secret, call.call_sid, expires, nonce)


def _call_info(form: TwilioForm, services: Services) -> CallInfo:
    settings = services.settings
    if not CALL_SID.fullmatch(form.get("CallSid")):
        services.metrics.webhooks_refused.labels("call_sid").inc()
        raise HTTPException(400, "CallSid is missing or malformed")
    ours = settings.twilio_account_sid
    if ours and form.get("AccountSid") != ours:
        services.metrics.webhooks_refused.labels("account").inc()
        raise HTTPException(403)
    if settings.twilio_numbers and form.get("To") not in settings.twilio_numbers:
        services.metrics.webhooks_refused.labels("number").inc()
        raise HTTPException(403)
    return CallInfo(
        call_sid=form.get("CallSid"),
        account_sid=form.get("AccountSid"),
        caller=form.get("From")[:NUMBER_CHARS],
        callee=form.get("To")[:NUMBER_CHARS],
        language=settings.lang_hint,
        started_at=utc_now(),
    )


def _tag(language: str) -> str:
    return "en-US" if language == "en" else "ko-KR"


async def _close(socket: WebSocket, code: int) -> None:
    with suppress(RuntimeError, WebSocketDisconnect, OSError):  # the peer was faster, or does not answer
        async with asyncio.timeout(CLOSE_S):
            await socket.close(code)


def _xml(document: str) -> Response:
    return Response(document, media_type="text/xml")
