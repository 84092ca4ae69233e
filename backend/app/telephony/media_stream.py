"""MediaStream: Twilio Media Streams without a socket. One text message in, at most one event out.

Twilio sends `connected`, `start`, then `media`, `dtmf` and `mark` in any order, then `stop`; we send `media`, `mark`
and `clear` with exactly the documented fields, because Twilio drops a message that has one more.
Source: www.twilio.com/docs/voice/media-streams/websocket-messages.

A bad message is dropped and counted; a peer that cannot be understood, or that floods us, is a ProtocolViolation
with the close code to use (the table in docs/call-flow.md). A violation leaves the state as it is: whoever owns the
socket closes both.
"""

from binascii import a2b_base64, b2a_base64
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from math import inf
from types import MappingProxyType
from typing import Any, Literal, NoReturn, TypeGuard

import orjson
import structlog

from app.errors import InvalidState, ProtocolViolation
from app.services.ai_call.types import KeyPressed

log = structlog.get_logger(__name__)

MAX_MESSAGE_BYTES = 64 * 1024
MAX_PAYLOAD_BYTES = 8_000
MAX_PAYLOAD_CHARS = (MAX_PAYLOAD_BYTES + 2) // 3 * 4
MAX_MALFORMED = 20
MAX_EARLY_MEDIA = 50
MAX_NAME_CHARS = 128
BYTES_PER_MS = 8

# The flood guard. Real calls send 50 messages and 17 kB a second.
MAX_MESSAGES_PER_S = 200
MAX_CHARS_PER_S = 100_000
BUSY_SECONDS = 2
HEAVY_SECONDS = 5

NOT_COUNTING = 10
"""So many sequence numbers in a row that do not grow, and the peer is taken not to count at all."""

KEYS = frozenset("0123456789*#ABCD")

FaultKind = Literal[
    "bad_dtmf",
    "bad_format",  # not mu-law, 8 kHz, one channel
    "bad_json",  # not JSON, or not the documented shape
    "bad_payload",  # not base64, or more than a second of audio
    "bad_start",
    "binary",
    "media_before_start",
    "out_of_order",  # a second `connected`; a key or mark before `start`
    "second_start",
    "seq_gap",
    "seq_repeat",
    "too_fast",
    "too_large",
    "unknown_event",
    "wrong_first",
    "wrong_stream",
    "wrong_track",
]


class StreamState(Enum):
    CONNECTING = auto()
    OPEN = auto()
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class Started:
    """`parameters` are the `<Parameter>`s of our TwiML; nothing in here is proven yet."""

    stream_sid: str
    call_sid: str
    account_sid: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Media:
    """What the caller said, 8 kHz mu-law. `at_ms` counts the audio before it: Twilio's timestamps may jump."""

    mulaw: bytes
    at_ms: int


@dataclass(frozen=True, slots=True)
class Marked:
    """A mark of ours came back: heard, or cleared."""

    name: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The call ended, or it was redirected: not ours to hang up."""


class _Malformed(Exception):
    """This message cannot be read; a few of them are forgiven."""

    def __init__(self, kind: FaultKind) -> None:
        super().__init__(kind)
        self.kind = kind


StreamEvent = Started | Media | Marked | KeyPressed | Stopped


class MediaStream:
    """`on_fault` is called with a FaultKind for every message that was out of order; `faults` counts the same."""

    def __init__(self, on_fault: Callable[[str], None] | None = None) -> None:
        self.faults: Counter[str] = Counter()
        self._on_fault = on_fault
        self._state = StreamState.CONNECTING
        self._started: Started | None = None
        self._stream_sid = ""
        self._connected = False
        self._malformed = 0
        self._bytes_heard = 0
        self._sequence = 0
        self._not_growing = 0
        # Outbound messages up to the part that changes.
        self._media_head = self._mark_head = self._clear_text = ""
        # The flood guard's present second.
        self._second = -inf
        self._messages = self._chars = 0
        self._busy_seconds = self._heavy_seconds = 0

    @property
    def state(self) -> StreamState:
        return self._state

    @state.setter
    def state(self, new: StreamState) -> None:
        if new is not self._state:
            log.debug("- media stream", was=self._state.name, now=new.name)
            self._state = new

    def close(self) -> None:
        """Nothing is understood and nothing may be built any more."""
        self.state = StreamState.CLOSED

    # ------------------------------------------------------------ what Twilio sends

    def receive(self, text: str, now: float) -> StreamEvent | None:
        """Take in one text message; `now` is a monotonic clock in seconds. Raises ProtocolViolation."""
        if self._state is StreamState.CLOSED:
            return None
        size = len(text)
        if size * 4 > MAX_MESSAGE_BYTES and len(text.encode(errors="surrogatepass")) > MAX_MESSAGE_BYTES:
            self._violate("too_large", 1009, "a message over 64 KiB")
        if now - self._second >= 1.0:
            self._next_second(now)
        self._messages += 1
        self._chars += size
        try:
            return self._read(text)
        except _Malformed as malformed:
            self._fault(malformed.kind)
            self._malformed += 1
            if self._malformed > MAX_MALFORMED:
                raise ProtocolViolation(
                    "too many malformed messages", close_code=4400, kind=malformed.kind
                ) from malformed
            return None

    def binary(self) -> NoReturn:
        """A binary message came; the protocol has none."""
        self._violate("binary", 1003, "a binary message")

    def _read(self, text: str) -> StreamEvent | None:
        try:
            message = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise _Malformed("bad_json") from error
        if type(message) is not dict or type(event := message.get("event")) is not str:
            raise _Malformed("bad_json")
        if self._state is StreamState.CONNECTING:
            return self._read_before_start(event, message)
        if event == "media":
            return self._media(message) if self._ours(message) and self._new(message) else None
        return self._read_other(event, message)

    def _read_before_start(self, event: str, message: dict[str, Any]) -> StreamEvent | None:
        if event == "start":
            return self._start(message)
        if event == "media":
            self._fault("media_before_start")
            if self.faults["media_before_start"] > MAX_EARLY_MEDIA:
                raise ProtocolViolation("media instead of start", close_code=4400, kind="media_before_start")
            return None
        if event == "connected" and not self._connected:
            self._connected = True
            return None
        if not self._connected:
            self._violate("wrong_first", 4400, "the first message is neither connected nor start")
        if event == "stop":
            return self._stop()
        self._fault("out_of_order" if event in ("connected", "dtmf", "mark") else "unknown_event")
        return None

    def _read_other(self, event: str, message: dict[str, Any]) -> StreamEvent | None:
        """Everything but media, once the stream is open."""
        if event == "start":
            self._second_start(message)
            return None
        if event == "connected":
            self._fault("out_of_order")
            return None
        if event not in ("mark", "dtmf", "stop"):
            self._new(message)
            if not self.faults["unknown_event"]:
                log.info("x media stream: unknown event ignored", name=event[:32])
            self._fault("unknown_event")
            return None
        if not self._ours(message):
            return None
        # A mark or stop counts even when its number does not: a mark twice does no harm, a missed stop does.
        new = self._new(message)
        if event == "stop":
            return self._stop()
        body = message.get(event)
        if type(body) is not dict:
            raise _Malformed("bad_json")
        if event == "mark":
            if type(name := body.get("name")) is not str:
                raise _Malformed("bad_json")
            return Marked(name)
        return self._key(body.get("digit")) if new else None

    def _key(self, digit: object) -> KeyPressed | None:
        if isinstance(digit, str) and digit in KEYS:
            return KeyPressed(digit)
        self._fault("bad_dtmf")
        return None

    def _media(self, message: dict[str, Any]) -> Media | None:
        body = message.get("media")
        if type(body) is not dict:
            raise _Malformed("bad_json")
        if body.get("track", "inbound") != "inbound":
            self._fault("wrong_track")  # our own voice: heard, it would be answered
            return None
        payload = body.get("payload")
        if type(payload) is not str or len(payload) > MAX_PAYLOAD_CHARS or len(payload) % 4:
            raise _Malformed("bad_payload")
        try:
            mulaw = a2b_base64(payload, strict_mode=True)
        except ValueError as error:
            raise _Malformed("bad_payload") from error
        if len(mulaw) > MAX_PAYLOAD_BYTES:
            raise _Malformed("bad_payload")
        if not mulaw:
            return None
        at_ms = self._bytes_heard // BYTES_PER_MS
        self._bytes_heard += len(mulaw)
        return Media(mulaw, at_ms)

    def _start(self, message: dict[str, Any]) -> Started:
        started = self._parse_start(message)
        sid = orjson.dumps(started.stream_sid).decode()
        self._media_head = f'{{"event":"media","streamSid":{sid},"media":{{"payload":"'
        self._mark_head = f'{{"event":"mark","streamSid":{sid},"mark":{{"name":'
        self._clear_text = f'{{"event":"clear","streamSid":{sid}}}'
        self._stream_sid = started.stream_sid
        self._sequence = _number(message.get("sequenceNumber")) or 0
        self._started = started
        self.state = StreamState.OPEN
        return started

    def _second_start(self, message: dict[str, Any]) -> None:
        if self._parse_start(message) != self._started:
            self._violate("second_start", 4400, "a second start that is not the first")
        self._fault("second_start")

    def _parse_start(self, message: dict[str, Any]) -> Started:
        start = message.get("start")
        if type(start) is not dict:
            self._violate("bad_start", 4400, "start has no start object")
        if not _is_mulaw(start.get("mediaFormat")):
            self._violate("bad_format", 4400, "the media is not audio/x-mulaw, 8000 Hz, one channel")
        stream_sid, call_sid, account_sid = message.get("streamSid"), start.get("callSid"), start.get("accountSid")
        parameters = start.get("customParameters", {})
        if not (
            _is_name(stream_sid)
            and _is_name(call_sid)
            and _is_name(account_sid)
            and start.get("streamSid", stream_sid) == stream_sid
            and type(parameters) is dict
            and all(type(value) is str for value in parameters.values())
        ):
            self._violate("bad_start", 4400, "start lacks a field, or has one of the wrong kind")
        return Started(stream_sid, call_sid, account_sid, MappingProxyType(parameters))

    def _stop(self) -> Stopped:
        self.close()
        return Stopped()

    # ------------------------------------------------------------ what we send

    def media(self, mulaw: bytes) -> str:
        """Audio to play after what was sent before, 8 kHz mu-law without any header."""
        self._require_open()
        return f'{self._media_head}{b2a_base64(mulaw, newline=False).decode()}"}}}}'

    def mark(self, name: str) -> str:
        """Comes back as Marked when all audio before it was played or cleared; at once when there is none."""
        self._require_open()
        return f"{self._mark_head}{orjson.dumps(name).decode()}}}}}"

    def clear(self) -> str:
        """Throw away all audio that was not played yet."""
        self._require_open()
        return self._clear_text

    def _require_open(self) -> None:
        if self._state is not StreamState.OPEN:
            raise InvalidState(f"nothing can be sent on a stream that is {self._state.name}")

    # ------------------------------------------------------------ what is wrong with it

    def _ours(self, message: dict[str, Any]) -> bool:
        if message.get("streamSid") == self._stream_sid:
            return True
        self._fault("wrong_stream")
        return False

    def _new(self, message: dict[str, Any]) -> bool:
        """Whether the message's number is above all before it. Nothing waits for a missing one: it will not come."""
        number = _number(message.get("sequenceNumber"))
        if number is None or self._not_growing >= NOT_COUNTING:
            return True
        if number <= self._sequence:
            self._not_growing += 1
            self._fault("seq_repeat")
            return False
        if number != self._sequence + 1:
            self._fault("seq_gap")
        self._sequence = number
        self._not_growing = 0
        return True

    def _next_second(self, now: float) -> None:
        """Close the guard's second and open the next at this message, so that the burst after a stall is one second.

        Raises ProtocolViolation when too many seconds in a row were over the limit.
        """
        unbroken = now - self._second < 2.0
        self._busy_seconds = self._busy_seconds + 1 if self._messages > MAX_MESSAGES_PER_S else 0
        self._heavy_seconds = self._heavy_seconds + 1 if self._chars > MAX_CHARS_PER_S else 0
        if self._busy_seconds >= BUSY_SECONDS or self._heavy_seconds >= HEAVY_SECONDS:
            self._violate("too_fast", 4429, "far more messages than a call makes")
        if not unbroken:
            self._busy_seconds = self._heavy_seconds = 0
        self._second = now
        self._messages = self._chars = 0

    def _violate(self, kind: FaultKind, close_code: int, message: str) -> NoReturn:
        self._fault(kind)
        raise ProtocolViolation(message, close_code=close_code, kind=kind)

    def _fault(self, kind: FaultKind) -> None:
        self.faults[kind] += 1
        if self._on_fault is not None:
            self._on_fault(kind)


def _number(value: object) -> int | None:
    """A counter: Twilio writes it as a string, others as a number. None for what is neither."""
    if isinstance(value, (str, int)):
        try:
            return int(value)
        except ValueError:
            pass
    return None


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isascii() and value.isprintable()


def _is_mulaw(media_format: object) -> bool:
    """Rate and channels are numbers in Twilio's documents; a peer that writes them as strings means the same."""
    return (
        isinstance(media_format, dict)
        and media_format.get("encoding") == "audio/x-mulaw"
        and str(media_format.get("sampleRate")) == "8000"
        and str(media_format.get("channels")) == "1"
    )
