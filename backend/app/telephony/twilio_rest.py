"""TwilioRest: ends a call by Twilio's REST API. Closing the media stream does not: Twilio goes on with the next verb.

httpx and not the vendor's client: that one has its base URL in its code, its asynchronous transport ignores the
time limit it is given, and it logs every URL.
"""

import asyncio
from dataclasses import dataclass
from urllib.parse import quote

import httpx
import structlog

from app.errors import ProviderError

log = structlog.get_logger(__name__)

NOT_FOUND = 20404
NOT_IN_PROGRESS = 21220


@dataclass(frozen=True, slots=True)
class RestOptions:
    """`try_s` bounds one try, `total_s` all of them with the pauses between; one try more than there are pauses."""

    try_s: float = 5.0
    total_s: float = 10.0
    pauses_s: tuple[float, ...] = (0.3, 1.0)


class TwilioRest:
    def __init__(self, account_sid: str, auth_token: str, base_url: str, options: RestOptions = RestOptions()) -> None:
        self._calls = f"{base_url.rstrip('/')}/2010-04-01/Accounts/{quote(account_sid, safe='')}/Calls"
        self._options = options
        self._client = httpx.AsyncClient(
            auth=httpx.BasicAuth(account_sid, auth_token),
            headers={"Accept": "application/json"},
            timeout=options.try_s,
        )

    async def complete(self, call_sid: str) -> None:
        """End the call; a call that is over already is a success. Asking twice does no harm, so failures of the
        network and of Twilio's servers are tried again. Raises ProviderError."""
        failure = _unreachable("it took too long")
        try:
            async with asyncio.timeout(self._options.total_s):
                for pause_s in (*self._options.pauses_s, None):
                    try:
                        await self._complete_once(call_sid)
                        return
                    except ProviderError as error:
                        failure = error
                    if not failure.retryable or pause_s is None:
                        break
                    log.info("x call not ended yet: trying again", kind=failure.kind)
                    await asyncio.sleep(pause_s)
        except TimeoutError:
            pass  # what failed last says why
        raise failure

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _complete_once(self, call_sid: str) -> None:
        url = f"{self._calls}/{quote(call_sid, safe='')}.json"
        log.debug("> end the call")
        try:
            async with asyncio.timeout(self._options.try_s):
                response = await self._client.post(url, data={"Status": "completed"})
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _unreachable("no answer in time") from error
        except httpx.RequestError as error:
            raise _unreachable(type(error).__name__) from error
        if not response.is_success:
            _check_refusal(response.status_code, _error_code(response))


def _check_refusal(status: int, code: int) -> None:
    """Raises ProviderError unless Twilio only says that the call is over."""
    if (status, code) in ((404, NOT_FOUND), (400, NOT_IN_PROGRESS)):
        return
    said = f"Twilio answered {status}" + (f" (error {code})" if code else "")
    if status in (401, 403):
        raise _error(f"{said}: check TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN", kind="auth", retryable=False)
    if status == 429:
        raise _error(f"{said}: too many requests", kind="rate_limit", retryable=True)
    if status >= 500:
        raise _error(said, kind="server", retryable=True)
    raise _error(f"{said}: is TWILIO_API_BASE right?", kind="rejected", retryable=False)


def _error_code(response: httpx.Response) -> int:
    """Twilio's own error number, 0 where there is none: then something else answered in its place."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return 0
    code = body.get("code") if isinstance(body, dict) else None
    return code if isinstance(code, int) else 0


def _unreachable(why: str) -> ProviderError:
    return _error(f"Twilio's REST API cannot be reached: {why}", kind="unreachable", retryable=True)


def _error(message: str, *, kind: str, retryable: bool) -> ProviderError:
    return ProviderError(message, provider="twilio", kind=kind, retryable=retryable)
