"""What Twilio posts during a call: signed forms with the fields that every webhook has."""

import email.utils
import secrets
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httpx

from app.errors import MalgilError
from app.simulator.options import Parties
from app.telephony.signature import sign

TIMEOUT_S = 15.0
_PLACES = ("City", "State", "Zip", "Country")


class WebhookFailed(MalgilError):
    """Nothing usable came back. `status` is HTTP's, 0 when nobody answered."""

    code = "webhook"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Webhooks:
    """One call's requests, over one HTTP client."""

    def __init__(self, parties: Parties, call_sid: str, url: str) -> None:
        self._parties = parties
        self._fields = _fields(parties, call_sid)
        # Reading the certificates takes 20 ms, which many phones at once would feel.
        self._http = httpx.AsyncClient(
            timeout=TIMEOUT_S,
            trust_env=False,
            verify=url.startswith("https"),
            headers={"User-Agent": "TwilioProxy/1.1"},
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def fetch_twiml(self, url: str, call_status: str) -> str:
        """Ask for instructions. Raises WebhookFailed."""
        response = await self._post(url, {"CallStatus": call_status})
        if response.status_code != 200:
            raise WebhookFailed(f"HTTP {response.status_code} instead of TwiML", response.status_code)
        content_type = response.headers.get("content-type", "").split(";")[0].strip()
        if content_type not in ("text/xml", "application/xml"):
            raise WebhookFailed(f"{content_type or 'no content type'} instead of text/xml", response.status_code)
        return response.text

    async def report_completed(self, url: str, seconds: float) -> None:
        """The status callback that ends every call. Raises WebhookFailed."""
        response = await self._post(
            url,
            {
                "CallStatus": "completed",
                "CallDuration": str(round(seconds)),
                "Timestamp": email.utils.formatdate(),
                "CallbackSource": "call-progress-events",
                "SequenceNumber": "0",
            },
        )
        if not response.is_success:
            raise WebhookFailed(f"HTTP {response.status_code} to the status callback", response.status_code)

    async def _post(self, url: str, more: dict[str, str]) -> httpx.Response:
        form = self._fields | more
        headers = {"I-Twilio-Idempotency-Token": secrets.token_hex(16)}
        if self._parties.auth_token:
            headers["X-Twilio-Signature"] = sign(_signed_url(url), form.items(), self._parties.auth_token)
        try:
            return await self._http.post(url, data=form, headers=headers)
        except httpx.TimeoutException as error:
            raise WebhookFailed(f"no answer within {TIMEOUT_S:.0f} s", 0) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise WebhookFailed(f"{type(error).__name__}: {error}", 0) from error


def _fields(parties: Parties, call_sid: str) -> dict[str, str]:
    fields = {
        "CallSid": call_sid,
        "AccountSid": parties.account_sid,
        "ApiVersion": "2010-04-01",
        "Direction": "inbound",
    }
    for side, number in (
        ("From", parties.caller),
        ("Caller", parties.caller),
        ("To", parties.callee),
        ("Called", parties.callee),
    ):
        fields[side] = number
        fields |= {f"{side}{place}": "" for place in _PLACES}
    return fields


def _signed_url(url: str) -> str:
    """Twilio drops the port of an https URL before it signs, and keeps that of http."""
    parts = urlsplit(url)
    if parts.scheme != "https" or parts.port is None:
        return url
    return parts._replace(netloc=parts.netloc.rsplit(":", 1)[0]).geturl()
