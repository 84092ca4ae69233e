"""Who calls, what, and when the call ends if not by the script."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Parties:
    """Who calls whom, on which account. An empty token leaves webhooks and streams unsigned."""

    account_sid: str
    auth_token: str
    caller: str
    callee: str


# Twilio's own numbers for tests, and an account that nobody has.
DEFAULT_PARTIES = Parties("AC" + "0" * 32, "", "+15005550006", "+15005550001")


@dataclass(frozen=True, slots=True)
class PhoneOptions:
    """`url` is the server's, without a path; `stream_url` dials a media stream directly, without webhooks.

    `hang_up_at_s` counts from `start`, and comes over the script. `leave_before`: the caller hangs up before the
    socket is dialled, or between `connected` and `start`. `listen_on_s`: how long the phone listens after its `stop`
    for messages that must not come any more. `max_s` bounds a media stream.
    """

    url: str = "http://127.0.0.1:8000"
    stream_url: str = ""
    parties: Parties = DEFAULT_PARTIES
    hang_up_at_s: float | None = None
    abrupt: bool = False
    leave_before: Literal["dial", "start"] | None = None
    listen_on_s: float = 0.2
    max_s: float = 600.0
