"""One call, from Twilio's side: webhooks, media streams, and a caller who follows a script."""

import asyncio
import secrets
from collections.abc import Sequence

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus, WebSocketException

from app.audio.g711 import SILENCE
from app.simulator.line import Line, Track
from app.simulator.options import PhoneOptions
from app.simulator.playout import BYTES_PER_S, Playout
from app.simulator.report import CallReport, Refusal, greeting_of, turns_of
from app.simulator.script import Caller, HangUp, Step
from app.simulator.twiml import Instruction, Redirect, Stream, TwimlError, Verb, parse
from app.simulator.webhooks import WebhookFailed, Webhooks
from app.simulator.wire import Violation, Wire
from app.telephony.signature import sign

OPEN_S = 10.0
CLOSE_S = 2.0
MAX_DOCUMENTS = 10


class Phone:
    def __init__(self, options: PhoneOptions, script: Sequence[Step], *, call_sid: str = "") -> None:
        self._options = options
        self._playout = Playout()
        self._caller = Caller(script, self._playout)
        self._report = CallReport(call_sid or "CA" + secrets.token_hex(16))
        self._track = Track()
        self._told: list[str] = []  # what Twilio itself said to the caller
        self._hung_up = False

    def hang_up(self, *, abrupt: bool = False) -> None:
        """From outside of the script, as when the call is ended by REST. Takes effect with the next frame."""
        self._caller.leaving = HangUp(abrupt)

    async def call(self) -> CallReport:
        """The whole call. A server that refuses or misbehaves raises nothing: the report says so."""
        began = asyncio.get_running_loop().time()
        if self._options.stream_url:
            await self._stream(Stream(self._options.stream_url))
            return self._finish()
        base = self._options.url.rstrip("/")
        async with Webhooks(self._options.parties, self._report.call_sid, base) as webhooks:
            try:
                await self._follow(webhooks, f"{base}/twilio/voice")
                self._judge_answer()
            except (WebhookFailed, TwimlError) as error:
                status = error.status if isinstance(error, WebhookFailed) else 200
                if self._report.stream_sid:  # what was to come after the stream
                    self._violate(11200, "webhook", str(error))
                else:
                    self._report.refusal = Refusal("voice", status, str(error))
            if self._report.refusal is None or self._report.refusal.stage == "stream":
                await self._complete(webhooks, base, began)
        return self._finish()

    # ------------------------------------------------------------ instructions

    async def _follow(self, webhooks: Webhooks, url: str) -> None:
        """Run documents until one is over or the caller has hung up."""
        call_status = "ringing"
        for _ in range(MAX_DOCUMENTS):
            document = await webhooks.fetch_twiml(url, call_status)
            redirect = await self._run_document(parse(document, url, self._report.violations))
            if redirect is None:
                return
            url, call_status = redirect.url, "in-progress"
        raise TwimlError(f"more than {MAX_DOCUMENTS} redirects")

    async def _run_document(self, instructions: Sequence[Instruction]) -> Redirect | None:
        for instruction in instructions:
            match instruction:
                case Stream():
                    self._report.verbs.append("Connect")
                    await self._stream(instruction)
                    if self._hung_up or self._report.refusal:
                        return None
                case Redirect():
                    self._report.verbs.append("Redirect")
                    return instruction
                case Verb(name, text):
                    self._report.verbs.append(name)
                    self._told.append(text)
                    if name in ("Reject", "Hangup"):
                        return None
        return None

    def _judge_answer(self) -> None:
        """Instructions that never led to a media stream were a refusal."""
        report = self._report
        if not (report.stream_sid or report.refusal or self._hung_up):
            what = "rejected" if "Reject" in report.verbs else "declined"
            report.refusal = Refusal("voice", 200, f"the call was {what}: {' '.join(self._told).strip() or 'no words'}")

    async def _complete(self, webhooks: Webhooks, base: str, began: float) -> None:
        seconds = asyncio.get_running_loop().time() - began
        try:
            await webhooks.report_completed(f"{base}/twilio/status", seconds)
        except WebhookFailed as error:
            self._violate(11200, "status_callback", str(error))

    # ------------------------------------------------------------ the media stream

    async def _stream(self, stream: Stream) -> None:
        if self._options.leave_before == "dial":
            self._hung_up = True
            return
        token = self._options.parties.auth_token
        headers = {"X-Twilio-Signature": sign(stream.url, (), token)} if token else {}
        try:
            socket = await connect(
                stream.url,
                additional_headers=headers,
                user_agent_header="Twilio.TmeWs/1.0",
                compression=None,
                open_timeout=OPEN_S,
                close_timeout=CLOSE_S,
                ping_interval=None,
                proxy=None,
            )
        except InvalidStatus as error:
            status = error.response.status_code
            self._report.refusal = Refusal("stream", status, f"HTTP {status} to the handshake")
            return
        except (OSError, TimeoutError, WebSocketException) as error:
            self._report.refusal = Refusal("stream", 0, f"{type(error).__name__}: {error}")
            return
        self._report.stream_sid = "MZ" + secrets.token_hex(16)
        wire = Wire(
            account_sid=self._options.parties.account_sid,
            call_sid=self._report.call_sid,
            stream_sid=self._report.stream_sid,
            parameters=stream.parameters,
            violations=self._report.violations,
        )
        line = Line(socket, wire, self._playout, self._caller, self._track, self._options, self._report)
        try:
            self._hung_up = await line.run()
        finally:
            socket.transport.abort()  # closed by now, unless we were cancelled
        self._report.ended_by = "caller" if self._hung_up else "bot"
        if not self._hung_up:
            self._report.close_code, self._report.close_reason = socket.close_code, socket.close_reason or ""

    def _violate(self, code: int, kind: str, detail: str) -> None:
        self._report.violations.append(Violation(code, kind, detail))

    def _finish(self) -> CallReport:
        report, track = self._report, self._track
        if track.began is not None:
            report.turns = turns_of(self._caller.said, self._playout, track.began)
            report.greeting_ms = greeting_of(self._caller.said, self._playout, track.began)
            report.caller, report.bot = _aligned(track, self._playout)
            report.underruns = self._playout.underruns
        return report


def _aligned(track: Track, playout: Playout) -> tuple[bytes, bytes]:
    """Both sides' mu-law from the first stream's beginning on, of one length."""
    assert track.began is not None
    bot = bytearray()
    for run in playout.runs:
        at = round((run.at - track.began) * BYTES_PER_S)
        bot += bytes([SILENCE]) * (at - len(bot))
        bot += run.audio
    length = max(len(track.audio), len(bot))
    silence = bytes([SILENCE])
    return bytes(track.audio).ljust(length, silence), bytes(bot).ljust(length, silence)
