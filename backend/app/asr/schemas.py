"""What the recogniser's service says on the wire: lines of /transcribe, answers of the rest, refusals."""

from dataclasses import dataclass
from typing import Literal

import orjson

from app.errors import MalgilError

_CODES = (
    "af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi hr ht hu hy id "
    "is it ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl ps pt ro ru sa sd si "
    "sk sl sn so sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo yue zh"
)
LANGUAGES = frozenset(_CODES.split())
"""What Whisper has a token for; another code makes faster_whisper raise in the middle of a decode."""


class Refused(MalgilError):
    """A request that is not served, or no longer. Before the answer began it has a status, after that a last line.

    `kind` is the code on the wire, stable; the message is for people.
    """

    code = "refused"

    def __init__(self, status: int, kind: str, message: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.headers = headers or {}


def busy(message: str, kind: str = "busy") -> Refused:
    """503; the same request may be served a moment later."""
    return Refused(503, kind, message, headers={"Retry-After": "2"})


def shutdown() -> Refused:
    """503; elsewhere, or when we are back, the same request may be served."""
    return Refused(503, "shutdown", "the recogniser is being shut down")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of /transcribe. Milliseconds of audio since the body began."""

    text: str
    final: bool
    start_ms: int
    end_ms: int
    confidence: float | None


@dataclass(frozen=True, slots=True)
class Segment:
    text: str
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class Transcription:
    """The answer of /transcribe-sync. `took_ms` counts from the last byte of the upload."""

    text: str
    segments: list[Segment]
    language: str
    duration_s: float
    took_ms: int


@dataclass(frozen=True, slots=True)
class Health:
    status: Literal["ok", "not_loaded", "stuck", "unavailable"]
    model: str
    device: str
    compute_type: str
    queue_depth: int
    loaded: bool


@dataclass(frozen=True, slots=True)
class Models:
    """`available`: those that MODEL_NAME can name without a download."""

    available: list[str]
    current: str


ErrorBody = dict[str, dict[str, str]]


def error_body(kind: str, message: str) -> ErrorBody:
    return {"error": {"code": kind, "message": message}}


def to_json(value: Line | Transcription | ErrorBody) -> bytes:
    return orjson.dumps(value)
