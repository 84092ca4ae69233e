"""The messages of a media stream from Twilio's side: builds what Twilio sends, checks what it is sent.

Sans-IO. Twilio takes exactly its documented messages and drops any other with a warning (31950 for a binary frame,
31951 for the rest, an unknown field included). So does this one, but it notes every breach, not only the first.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

UNDECODABLE = 31950
INVALID = 31951

FRAME_BYTES = 160
FRAME_MS = 20

_FIELDS = {
    "media": {"event", "streamSid", "media"},
    "mark": {"event", "streamSid", "mark"},
    "clear": {"event", "streamSid"},
}


@dataclass(frozen=True, slots=True)
class Violation:
    """The server broke the protocol. `code` is Twilio's, 0 where Twilio has none; `kind` is one word to test for.

    `detail` holds no audio and no words of the call.
    """

    code: int
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.code or '-'} {self.kind}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Audio:
    mulaw: bytes


@dataclass(frozen=True, slots=True)
class Mark:
    name: str


@dataclass(frozen=True, slots=True)
class Clear:
    pass


class Wire:
    """One media stream. `violations` is shared by all streams of a call."""

    def __init__(
        self,
        *,
        account_sid: str,
        call_sid: str,
        stream_sid: str,
        parameters: Mapping[str, str],
        violations: list[Violation],
    ) -> None:
        self._account_sid = account_sid
        self._call_sid = call_sid
        self._stream_sid = stream_sid
        self._parameters = dict(parameters)
        self._violations = violations
        self._sequence = 0
        self._chunk = 0
        self._piece_begins = True
        self._over = False

    # ------------------------------------------------------------ what Twilio sends

    def connected(self) -> str:
        return '{"event":"connected","protocol":"Call","version":"1.0.0"}'

    def start(self) -> str:
        return self._message(
            "start",
            {
                "accountSid": self._account_sid,
                "streamSid": self._stream_sid,
                "callSid": self._call_sid,
                "tracks": ["inbound"],
                "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
                "customParameters": self._parameters,
            },
        )

    def media(self, mulaw: bytes, at_ms: int) -> str:
        """`at_ms` is the audio's time since the stream began. Written by hand: it is built fifty times a second."""
        self._sequence += 1
        self._chunk += 1
        payload = binascii.b2a_base64(mulaw, newline=False).decode("ascii")
        return (
            f'{{"event":"media","sequenceNumber":"{self._sequence}","streamSid":"{self._stream_sid}",'
            f'"media":{{"track":"inbound","chunk":"{self._chunk}","timestamp":"{at_ms}","payload":"{payload}"}}}}'
        )

    def dtmf(self, digit: str) -> str:
        return self._message("dtmf", {"track": "inbound_track", "digit": digit})

    def mark(self, name: str) -> str:
        return self._message("mark", {"name": name})

    def stop(self) -> str:
        return self._message("stop", {"accountSid": self._account_sid, "callSid": self._call_sid})

    def _message(self, event: str, body: Mapping[str, Any]) -> str:
        self._sequence += 1
        message = {
            "event": event,
            "sequenceNumber": str(self._sequence),
            "streamSid": self._stream_sid,
            event: body,
        }
        return json.dumps(message, ensure_ascii=False, separators=(",", ":"))

    # ------------------------------------------------------------ what Twilio is sent

    def over(self) -> None:
        """From here on the server knows that the stream has ended: whatever comes is a breach."""
        self._over = True

    def receive(self, message: str | bytes) -> Audio | Mark | Clear | None:
        """The meaning of a message, or None when it breaks the protocol and is ignored."""
        try:
            return self._read(message)
        except _Breach as breach:
            self._violations.append(breach.violation)
            return None

    def _read(self, message: str | bytes) -> Audio | Mark | Clear:
        if self._over:
            raise _Breach("after_stop", "a message came after the stream had ended", code=0)
        if isinstance(message, bytes):
            raise _Breach("binary", "a binary frame; only text frames are messages", code=UNDECODABLE)
        try:
            fields = orjson.loads(message)
        except ValueError as error:
            raise _Breach("json", "not JSON") from error
        if not isinstance(fields, dict):
            raise _Breach("json", "not a JSON object")
        event = fields.get("event")
        names = _FIELDS.get(event) if isinstance(event, str) else None
        if names is None:
            raise _Breach("event", "`event` is none of media, mark and clear")
        if fields.keys() != names:
            raise _Breach("fields", f"the fields of `{event}` must be {sorted(names)}")
        if fields["streamSid"] != self._stream_sid:
            raise _Breach("stream_sid", f"`{event}` is for another stream")
        if event == "media":
            return self._audio(_only(fields, "media", "payload"))
        self._piece_begins = True
        return Clear() if event == "clear" else Mark(_only(fields, "mark", "name"))

    def _audio(self, payload: str) -> Audio:
        try:
            mulaw = base64.b64decode(payload, validate=True)
        except ValueError as error:
            raise _Breach("payload", "the payload is not base64") from error
        if not mulaw:
            raise _Breach("payload", "the payload is empty")
        if self._piece_begins and _has_header(mulaw):
            raise _Breach("header", "the audio begins with a file's header, which is played as noise", code=0)
        self._piece_begins = False
        return Audio(mulaw)


class _Breach(Exception):
    def __init__(self, kind: str, detail: str, *, code: int = INVALID) -> None:
        super().__init__(detail)
        self.violation = Violation(code, kind, detail)


def _only(fields: Mapping[str, Any], event: str, name: str) -> str:
    """The one string that the event's own object must hold."""
    body = fields[event]
    if not isinstance(body, dict) or body.keys() != {name} or not isinstance(body[name], str):
        raise _Breach("fields", f"`{event}` must hold a string `{name}` and nothing else")
    return str(body[name])


def _has_header(audio: bytes) -> bool:
    """RIFF, ID3 or an MPEG frame. Two bytes of quiet mu-law can look like the last, so its third is read too."""
    if audio.startswith((b"RIFF", b"ID3")):
        return True
    mpeg = len(audio) > 2 and audio[0] == 0xFF and audio[1] in (0xFA, 0xFB, 0xF2, 0xF3)
    return mpeg and audio[2] >> 4 not in (0, 15) and (audio[2] >> 2) & 3 != 3
