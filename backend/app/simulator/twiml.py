"""TwiML as Twilio reads it: the verbs of a document in order, and what is wrong with its media stream."""

from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree

from app.errors import MalgilError
from app.simulator.wire import Violation

MAX_CHARS = 64_000
MAX_PARAMETER_CHARS = 499
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class TwimlError(MalgilError):
    """The document cannot be run; Twilio would end the call with an error."""

    code = "twiml"


@dataclass(frozen=True, slots=True)
class Stream:
    """`<Connect><Stream>`. `url` is what is dialled: absolute, and without a query, which Twilio strips."""

    url: str
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Redirect:
    url: str
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class Verb:
    """Any other: `Say`, `Play`, `Pause`, `Reject`, `Hangup` … `text` is what is said, or a rejection's reason."""

    name: str
    text: str = ""


Instruction = Stream | Redirect | Verb


def parse(document: str, base_url: str, violations: list[Violation]) -> list[Instruction]:
    """The verbs of a document that came from `base_url`. Breaches that Twilio only reports go to `violations`.

    Raises TwimlError for what it cannot run.
    """
    if len(document) > MAX_CHARS:
        raise TwimlError("the document is longer than 64 kB")
    if "<!DOCTYPE" in document:
        raise TwimlError("the document has a DOCTYPE")
    try:
        root = ElementTree.fromstring(document)
    except ElementTree.ParseError as error:
        raise TwimlError(f"not XML: {error}") from error
    if root.tag != "Response":
        raise TwimlError(f"the root is <{root.tag}>, not <Response>")
    return [_instruction(element, base_url, violations) for element in root]


def _instruction(element: ElementTree.Element, base_url: str, violations: list[Violation]) -> Instruction:
    match element.tag:
        case "Connect":
            return _stream(element, base_url, violations)
        case "Redirect":
            return Redirect(urljoin(base_url, (element.text or "").strip()), element.get("method", "POST"))
        case "Reject":
            return Verb("Reject", element.get("reason", "rejected"))
        case "Say" | "Play" | "Pause" | "Hangup":
            return Verb(element.tag, (element.text or "").strip())
        case other:
            raise TwimlError(f"<{other}> is not a verb that the software phone knows")


def _stream(connect: ElementTree.Element, base_url: str, violations: list[Violation]) -> Stream:
    streams = [child for child in connect if child.tag == "Stream"]
    if len(streams) != 1 or len(connect) != 1:
        raise TwimlError("<Connect> must hold one <Stream> and nothing else")
    element = streams[0]
    if element.get("track", "inbound_track") != "inbound_track":
        violations.append(Violation(31941, "track", "<Connect><Stream> takes the inbound_track only"))
    written = element.get("url", "")
    url = _dialled(written, base_url, violations)
    parameters = {}
    for child in element:
        name, value = child.get("name"), child.get("value")
        if child.tag != "Parameter" or name is None or value is None:
            raise TwimlError("<Stream> takes <Parameter name value> only")
        if len(name) + len(value) > MAX_PARAMETER_CHARS:
            violations.append(Violation(0, "parameter", f"<Parameter {name}> is over 499 characters"))
        parameters[name] = value
    return Stream(url, parameters)


def _dialled(written: str, base_url: str, violations: list[Violation]) -> str:
    url = written.strip()
    if url != written:
        violations.append(Violation(31922, "stream_url", "white space around the stream's URL"))
    if not url:
        raise TwimlError("<Stream> has no url")
    if "://" not in url:
        url = urljoin(base_url, url).replace("http", "ws", 1)
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        violations.append(Violation(31920, "query", "Twilio drops the query of a stream's URL and dials the bare path"))
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise TwimlError(f"a stream cannot be dialled with the scheme {parts.scheme!r}: use wss")
    if parts.scheme == "ws" and parts.hostname not in _LOOPBACK:
        violations.append(Violation(31922, "stream_url", "Twilio dials wss only; ws is for this machine"))
    return parts._replace(query="", fragment="").geturl()
