"""Google's official speech client, opened the way a telephone call needs it, and its errors in our words.

It is an optional extra and takes most of a second to import, so it is imported when a provider is used first, and
nowhere else. The client's own retries are never used: their deadline is 5,000 s, a caller's patience is not.
"""

import asyncio
import ipaddress
import json
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from app.errors import ConfigError, InvalidState, SttError

if TYPE_CHECKING:
    from google.cloud.speech_v1 import SpeechAsyncClient

PROVIDER = "google"
CREDENTIALS = "GOOGLE_APPLICATION_CREDENTIALS"
ENDPOINT = "GOOGLE_SPEECH_ENDPOINT"
HOST = "speech.googleapis.com"
LANGUAGES: dict[str, tuple[str, ...]] = {"ko": ("ko-KR",), "en": ("en-US",), "auto": ("ko-KR", "en-US")}
"""The language, then its alternatives."""
KEY_TYPES = ("service_account", "authorized_user")
"""Others name programs and addresses of their own, to be asked for a token."""
SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)

CHANNEL_OPTIONS = (
    # A peer that went away without a word is noticed; Google's front ends close on more frequent pings.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC would wait up to 2 minutes before it tries to connect again, and fail every call until then.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 3_000),  # also how long one attempt may take
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
TRUE_STATUS_S = 0.05
NEXT_ATTEMPT_S = 1.3
"""Within it one that failed tries again: the longest backoff and its jitter."""

_MEANING: dict[str, tuple[str, bool, str]] = {
    "UNAUTHENTICATED": ("auth", False, f"Google refuses the key: see {CREDENTIALS}"),
    "PERMISSION_DENIED": (
        "auth",
        False,
        f"the key of {CREDENTIALS} may not use Speech-to-Text: enable the API and billing, and give it a role",
    ),
    "RESOURCE_EXHAUSTED": ("throttled", True, "the project's Speech-to-Text quota is used up for the moment"),
    "DEADLINE_EXCEEDED": ("timeout", True, "Google did not answer in time"),
    "UNAVAILABLE": ("unavailable", True, f"Google's recogniser cannot be reached (see {ENDPOINT} if it is set)"),
    "INTERNAL": ("unavailable", True, "Google's recogniser failed"),
    "UNKNOWN": ("unavailable", True, "Google's recogniser failed"),
    "ABORTED": ("cut", True, "Google ended the stream: it heard no audio for a while"),
    "CANCELLED": ("cut", True, "the stream to Google was broken off"),
    "OUT_OF_RANGE": ("cut", True, "Google ended the stream: the audio did not come close to real time"),
}
_FROM_CORE = "Internal error from Core"
_EXPIRED = ("expired", True, "Google ended the stream: it had lasted 305 seconds")
_NO_TOKEN = ("auth", True, f"the key of {CREDENTIALS} could not be turned into an access token")
_REJECTED = ("rejected", False, "Google rejects the request: see GOOGLE_SPEECH_MODEL, for not every language has each")


@dataclass(frozen=True, slots=True)
class GoogleOptions:
    """`endpoint`: empty, the host of a region (`eu-speech.googleapis.com`), or `http://127.0.0.1:PORT` for tests, which
    is asked in the clear and without credentials. `model`: empty is Google's default for the language."""

    credentials_file: str
    endpoint: str = ""
    model: str = ""
    connect_s: float = 3.0


def require(options: GoogleOptions) -> None:
    """Raises ConfigError where the client could not be opened. Cheap: imports nothing of Google's."""
    try:
        installed = find_spec("google.cloud.speech_v1") is not None
    except ModuleNotFoundError:  # of a parent
        installed = False
    if not installed:
        raise ConfigError("Google's recogniser needs its client: pip install 'malgil[google]'")
    _, loopback = _address(options.endpoint)
    if not loopback:
        _key(options.credentials_file)


async def connect(options: GoogleOptions) -> "SpeechAsyncClient":
    """`open_client` without holding up the calls that run: the import happens beside the loop. Raises SttError."""
    try:
        await asyncio.to_thread(_import)
        return open_client(options)
    except ConfigError as error:
        raise SttError(str(error), provider=PROVIDER, kind="config", retryable=False) from error


async def verify(options: GoogleOptions) -> None:
    """What `require` does, and the key is read as Google's client will: at the start, not in the midst of a call.
    Raises ConfigError."""
    require(options)
    _, loopback = _address(options.endpoint)
    if not loopback:
        await asyncio.to_thread(_credentials, options.credentials_file)


def open_client(options: GoogleOptions) -> "SpeechAsyncClient":
    """A client on one connection, which is made when first needed; Google allows 100 streams on it. To be called
    where a loop runs, and closed with `close_client`. Raises ConfigError."""
    require(options)
    import grpc.aio
    from google.cloud.speech_v1 import SpeechAsyncClient
    from google.cloud.speech_v1.services.speech.transports import SpeechGrpcAsyncIOTransport

    def secure_channel(host: str, **arguments: Any) -> Any:
        arguments["options"] = [*arguments["options"], *CHANNEL_OPTIONS]
        return SpeechGrpcAsyncIOTransport.create_channel(host, **arguments)

    address, loopback = _address(options.endpoint)
    if loopback:  # a proxy of the environment is for the world outside
        plain = grpc.aio.insecure_channel(address, options=[*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)])
        return SpeechAsyncClient(transport=SpeechGrpcAsyncIOTransport(host=address, channel=plain))
    return SpeechAsyncClient(
        transport=SpeechGrpcAsyncIOTransport(
            host=address,
            credentials=_credentials(options.credentials_file),
            always_use_jwt_access=True,  # a service account signs its own tokens: no round trip for one
            channel=secure_channel,
        )
    )


async def close_client(client: "SpeechAsyncClient") -> None:
    transport: Any = client.transport
    await transport.close()


async def reach(client: "SpeechAsyncClient", bound_s: float) -> None:
    """Wait for the connection. Costs nothing at Google and proves the way there, not the key. Raises SttError.

    To be awaited before a stream is opened: a call that is given up while gRPC connects lives on until that ends.
    """
    from grpc import ChannelConnectivity

    transport: Any = client.transport
    channel = transport.grpc_channel
    state = channel.get_state(try_to_connect=True)
    failed_before = state is ChannelConnectivity.TRANSIENT_FAILURE  # says so until it is ready, however often it tries
    try:
        async with asyncio.timeout(min(bound_s, NEXT_ATTEMPT_S) if failed_before else bound_s):
            while state is not ChannelConnectivity.READY:
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
                if state is ChannelConnectivity.TRANSIENT_FAILURE:
                    raise error_of("UNAVAILABLE")
    except TimeoutError as error:
        raise error_of("UNAVAILABLE" if failed_before else "DEADLINE_EXCEEDED") from error


# ---------------------------------------------------------------- errors


@contextmanager
def translated() -> Iterator[None]:
    """What the client raises within comes out as SttError."""
    from google.api_core.exceptions import GoogleAPICallError

    try:
        yield
    except (GoogleAPICallError, TimeoutError) as error:
        raise translate(error) from error


def translate(error: Exception) -> SttError:
    """Ours for one of google.api_core's, or a TimeoutError. The message is free of the vendor's prose, which may
    quote what was said."""
    if isinstance(error, TimeoutError):
        return error_of("DEADLINE_EXCEEDED")
    status = getattr(error, "grpc_status_code", None)
    return error_of(getattr(status, "name", "UNKNOWN"), getattr(error, "message", ""))


def error_of(status: str, details: str = "") -> SttError:
    """`status` is the name of a gRPC status; `details` only tell apart what Google gives one status to."""
    kind, retryable, message = _MEANING.get(status, _REJECTED)
    if status == "OUT_OF_RANGE" and "stream duration" in details:
        kind, retryable, message = _EXPIRED
    elif status == "UNAVAILABLE" and "metadata from plugin" in details:
        kind, retryable, message = _NO_TOKEN
    return SttError(f"{message} ({status})", provider=PROVIDER, kind=kind, retryable=retryable)


def status_name(code: int) -> str:
    """Of a google.rpc.Status, which counts as gRPC does."""
    from grpc import StatusCode

    return next((status.name for status in StatusCode if status.value[0] == code), "UNKNOWN")


class Ending:
    """Why a stream ended, as Google put it. Where something is being written at that moment, gRPC replaces the status
    by an internal error of its own, before or after the true one comes; so it is noted as soon as there is one."""

    def __init__(self, call: Any) -> None:
        self._status: tuple[str, str] | None = None
        call.add_done_callback(self._note)

    def _note(self, call: Any) -> None:
        details = _at_once(call.details()) or ""
        if self._status is None and details != _FROM_CORE:
            self._status = _at_once(call.code()).name, details

    async def error(self) -> SttError | None:
        """To be asked when reading has failed. None: the stream ended well."""
        if self._status is None:
            await asyncio.sleep(TRUE_STATUS_S)
        name, details = self._status or ("UNKNOWN", "")
        return None if name == "OK" else error_of(name, details)


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What it returns without waiting, as gRPC's do once a call is over."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise InvalidState("the call is not over")


# ---------------------------------------------------------------- the way in


def _import() -> None:
    import_module("google.cloud.speech_v1")


def _address(endpoint: str) -> tuple[str, bool]:
    """The target, and whether it is this machine asked in the clear."""
    if not endpoint:
        return HOST, False
    parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
    try:
        port = parts.port
    except ValueError:
        port = None
    plain = parts.scheme == "http"
    wrong = not parts.hostname or parts.path.strip("/") or parts.query or parts.scheme not in ("http", "https")
    if wrong or (plain and not (port and _is_loopback(parts.hostname or ""))):
        raise ConfigError(
            f"{ENDPOINT} must be the name of a host, such as eu-speech.googleapis.com, or http://127.0.0.1:PORT"
        )
    return parts.netloc, plain


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key(file: str) -> dict[str, Any]:
    if not file:
        raise ConfigError(f"{CREDENTIALS} is not set: the file with the key of a Google service account")
    try:
        key = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{CREDENTIALS} names a file that cannot be read: {error.strerror}") from error
    except ValueError:
        key = None
    if not isinstance(key, dict) or key.get("type") not in KEY_TYPES:
        raise ConfigError(f"{CREDENTIALS} names a file that is not the JSON key of a Google service account")
    return key


def _credentials(file: str) -> Any:
    from google.auth.exceptions import GoogleAuthError
    from google.oauth2 import credentials, service_account

    key = _key(file)
    load: dict[str, Any] = {
        "service_account": service_account.Credentials.from_service_account_info,
        "authorized_user": credentials.Credentials.from_authorized_user_info,
    }
    try:
        return load[key["type"]](key, scopes=SCOPES)
    except (GoogleAuthError, ValueError):  # not chained: some quote the file
        raise ConfigError(f"{CREDENTIALS} names a file that holds no usable Google key") from None
