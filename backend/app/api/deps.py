"""What every route builds on: the application's services, the admin's key, and Twilio's signed forms."""

import asyncio
import hmac
import re
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import ClientDisconnect

from app.telephony.signature import valid_signature
from app.wiring import Services

MAX_BODY = 64 * 1024
MAX_FIELDS = 200
BODY_S = 5.0
CALL_SID = re.compile(r"CA[0-9a-f]{32}")

_bearer = HTTPBearer(auto_error=False, description="ADMIN_API_KEY")


def get_services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]


def is_admin(
    services: ServicesDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> bool:
    """Whether the request shows the admin key. Development on loopback without a key set is open."""
    key = services.settings.admin_api_key.get_secret_value()
    if not key:
        return services.settings.development
    shown = credentials.credentials if credentials else ""
    return hmac.compare_digest(shown.encode(), key.encode())


def require_admin(
    admin: Annotated[bool, Depends(is_admin)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> None:
    if admin:
        return
    if credentials is None:
        raise HTTPException(
            401,
            "this needs the admin key: send the header Authorization: Bearer ADMIN_API_KEY",
            {"WWW-Authenticate": "Bearer"},
        )
    raise HTTPException(403, "that is not the admin key (ADMIN_API_KEY)")


@dataclass(frozen=True, slots=True)
class TwilioForm:
    """A webhook's fields, signature checked."""

    fields: dict[str, str]

    def get(self, name: str) -> str:
        return self.fields.get(name, "")


async def signed_form(request: Request, services: ServicesDep) -> TwilioForm:
    """Read a webhook's form and check its signature over the configured public URL, before anything is spent.

    415 for another content type, 413 for a body over 64 KiB, 408 for one that takes 5 s, 400 for more than 200
    fields, 403 for a signature that is missing or wrong.
    """
    refused = services.metrics.webhooks_refused
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/x-www-form-urlencoded":
        refused.labels("content_type").inc()
        raise HTTPException(415)
    try:
        async with asyncio.timeout(BODY_S):
            body = await _body(request)
    except TimeoutError as error:
        refused.labels("slow").inc()
        raise HTTPException(408) from error
    except ClientDisconnect as error:
        refused.labels("left").inc()
        raise HTTPException(400) from error
    if body is None:
        refused.labels("body").inc()
        raise HTTPException(413)
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError as error:
        refused.labels("fields").inc()
        raise HTTPException(400) from error
    if services.signatures_checked and not _signed(request, services, pairs):
        refused.labels("signature").inc()
        raise HTTPException(403)
    return TwilioForm(dict(pairs))


async def _body(request: Request) -> bytes | None:
    """None when it is too large; no more than that is ever held."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            return None
    return bytes(body)


def _signed(request: Request, services: Services, pairs: list[tuple[str, str]]) -> bool:
    query = f"?{request.url.query}" if request.url.query else ""
    url = f"{services.settings.base_url}{request.url.path}{query}"
    return valid_signature(url, pairs, request.headers, services.auth_tokens)


SignedForm = Annotated[TwilioForm, Depends(signed_form)]
AdminDep = Annotated[bool, Depends(is_admin)]
