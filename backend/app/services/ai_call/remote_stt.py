"""STT_PROVIDER=remote: our recogniser's service (`malgil asr`) as the ears of a call. The wire: docs/asr-service.md.

One request is one utterance. Its body goes out as the caller speaks, the answer comes in meanwhile, `flush` ends it.
Where something on the way holds the answer back, that costs only the partials; where the service dies, one sentence.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import h11
import structlog

from app.audio import g711
from app.audio.timeline import Timeline
from app.audio.types import AudioFrame, Transcript
from app.errors import SttError
from app.services.ai_call.remote_client import NAME, Exchange, Line, RemoteClient, json_object, nonsense, stt_error

log = structlog.get_logger(__name__)

LINES = "application/x-ndjson"
LONGEST_LINE = 65_536
MULAW_RATE = 8000
_STARTING: frozenset[str] = frozenset({"connect", "reset", "not_loaded", "unavailable"})


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """Bounds are in seconds. `check_s`: one question, with its connection. `patience_s`: so long `open` waits for a
    service that is just starting or has too much to do; 0 where a successor stands ready. With `check_s` it is less
    than the listener waits. `head_s`: the beginning of an answer, where answers are known to begin at once. `guess_s`:
    the words of a pause; then we say that we cannot tell. `final_s`: from the end of an utterance, or from the last
    news of it, to the next; `answer_s`: to the end of the answer. `full_s`: how long a refusal for want of room counts.
    """

    url: str
    api_key: str = field(default="", repr=False)
    connect_s: float = 1.5
    send_s: float = 2.0
    check_s: float = 1.4
    patience_s: float = 1.5
    retry_s: float = 0.1
    head_s: float = 2.0
    guess_s: float = 0.6
    final_s: float = 8.0
    answer_s: float = 30.0
    full_s: float = 2.0


class RemoteStt:
    name = NAME
    hears: Literal["everything", "speech"] = "speech"
    guesses: Literal[True] = True

    def __init__(self, options: RemoteOptions) -> None:
        self._options = options
        self._client = RemoteClient(options.url, options.api_key)
        self._known = _Known()

    @property
    def full(self) -> bool:
        """Whether the service has just refused a call of ours because it has too many."""
        return asyncio.get_running_loop().time() < self._known.full_until

    @asynccontextmanager
    async def open(self, rate: int, language: str) -> AsyncIterator["RemoteStream"]:
        await self._started()
        stream = RemoteStream(self._client, rate, language, self._known, self._options)
        try:
            yield stream
        finally:
            stream.close()

    async def _started(self) -> None:
        """Asks before the caller speaks."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._options.patience_s
        await asyncio.sleep(min(self._known.full_until, until) - loop.time())
        while True:
            try:
                return await self._healthy()
            except SttError as error:
                if error.kind not in _STARTING or loop.time() + self._options.retry_s > until:
                    raise
            await asyncio.sleep(self._options.retry_s)

    async def check(self) -> None:
        """Whether a model is loaded there, and the key is the right one."""
        await self._healthy()
        await self._client.get("/models", self._options.check_s)

    async def _healthy(self) -> None:
        status, body = await self._client.get("/health", self._options.check_s, also=503)
        said = json_object(body).get("status")
        if (status, said) == (200, "ok"):
            return
        if said == "not_loaded":
            raise stt_error("not_loaded", f"the recogniser at {self._client.address} has not loaded its model yet")
        if said == "stuck":
            message = f"the recogniser at {self._client.address} does not come back from a decode: restart it"
            raise stt_error("stuck", message)
        if said == "unavailable":
            message = f"the recogniser at {self._client.address} is starting its model's process again"
            raise stt_error("unavailable", message)
        if status == 503:
            raise stt_error(
                "unavailable", f"what is in front of the recogniser at {self._client.address} cannot reach it"
            )
        raise stt_error("format", f"at {self._client.address} is no recogniser of ours: see ASR_URL", retryable=False)


@dataclass(slots=True)
class _Known:
    """What all calls together learn of the service. `live`: its answers have begun before their requests ended."""

    live: bool = False
    full_until: float = 0.0


class _Utterance:
    """`exchange` is None where nothing was sent. `ended_at` is when it was flushed."""

    def __init__(self, start_ms: int, began_at: float, exchange: Exchange | None) -> None:
        self.exchange = exchange
        self.began_at = began_at
        self.ended_at: float | None = None
        self.answered = False
        self.timeline = Timeline()
        self.start_ms = self.end_ms = self.last_frame_ms = start_ms
        self.finals: list[str] = []
        self.confidences: list[float] = []
        self.unfinished = False  # the last line was a partial
        self.rest = b""  # of the answer: a line that is not whole

    def sent(self, frame: AudioFrame) -> None:
        self.timeline.sent(frame)
        self.last_frame_ms = frame.at_ms
        self.end_ms = round(frame.at_ms + frame.duration_ms)

    def transcript(self, text: str, end_ms: int, *, final: bool = False) -> Transcript:
        words = " ".join(filter(None, (*self.finals, text)))
        confidence = min(self.confidences, default=None) if final else None
        return Transcript(words, final, self.start_ms, end_ms, confidence)


class RemoteStream:
    """Starts no task: `send` writes, the iteration reads."""

    def __init__(self, client: RemoteClient, rate: int, language: str, known: _Known, options: RemoteOptions) -> None:
        self._client = client
        self._mulaw = rate == MULAW_RATE
        self._type = f"audio/x-mulaw;rate={rate}" if self._mulaw else f"audio/L16;rate={rate};endianness=little-endian"
        self._path = f"/transcribe?language={language}"
        self._known = known
        self._options = options
        self._utterances: deque[_Utterance] = deque()  # those without a final
        self._speaking: _Utterance | None = None  # the last of them, until it is flushed
        self._begun = asyncio.Event()
        self._news_at = 0.0
        self._paused_ms = 0
        self._guess_at: float | None = None  # when the words of the present pause must be told
        self._alarm: asyncio.Timeout | None = None  # of the wait that is going on

    # ------------------------------------------------------------ audio in

    async def send(self, frame: AudioFrame) -> None:
        """Once the service has answered for good, nothing: the iteration says what. Raises SttError if it cannot be
        reached or takes no more."""
        utterance = self._speaking or await self._begin(frame.at_ms)
        utterance.sent(frame)
        await self._write(utterance, h11.Data(g711.encode(frame.pcm) if self._mulaw else frame.pcm))

    async def _begin(self, start_ms: int) -> _Utterance:
        """A connection for each: opening it costs nobody time, for words are wanted when the caller has spoken, and
        none can have gone stale since the last one, which a proxy's idle timeout does to those that are kept."""
        exchange = await self._client.connect(self._options.connect_s)
        utterance = self._speaking = _Utterance(start_ms, self._now(), exchange)
        self._put(utterance)
        headers = [("Content-Type", self._type), ("Transfer-Encoding", "chunked"), ("Accept", LINES)]
        await self._write(utterance, self._client.request("POST", self._path, headers))
        return utterance

    async def pause(self, speech_ms: int) -> None:
        """The service hears the silence itself, and decodes on its own guess; here only the wait for it begins. Who
        does not even see the answer begin by now will not see its lines in time: then we cannot tell."""
        if (utterance := self._speaking) is None:
            return
        held_back = utterance is self._utterances[0] and not utterance.answered
        self._paused_ms = utterance.last_frame_ms
        self._guess_at = self._now() + (0 if held_back else self._options.guess_s)
        self._set_alarm()

    async def resume(self) -> None:
        self._guess_at = None

    async def flush(self, speech_ms: int) -> None:
        self._guess_at = None
        utterance, self._speaking = self._speaking, None
        if utterance is None:  # all of its audio was given up
            utterance = _Utterance(0, self._now(), None)
            self._put(utterance)
        utterance.ended_at = self._now()
        self._set_alarm()
        await self._write(utterance, h11.EndOfMessage())

    async def _write(self, utterance: _Utterance, event: h11.Event) -> None:
        if utterance.exchange is not None:
            await utterance.exchange.write(event, self._options.send_s)

    def _put(self, utterance: _Utterance) -> None:
        self._utterances.append(utterance)
        self._begun.set()

    def close(self) -> None:
        """Whatever is under way ends at once."""
        for utterance in self._utterances:
            if utterance.exchange is not None:
                utterance.exchange.close()

    # ------------------------------------------------------------ words out

    async def __aiter__(self) -> AsyncIterator[Transcript]:
        """Raises SttError for whatever cost an utterance its final. One iteration at a time."""
        while True:
            for transcript in await self._next():
                yield transcript

    async def _next(self) -> list[Transcript]:
        """News of the oldest utterance, or what is due because there was none."""
        try:
            async with asyncio.timeout_at(self._due_at()) as self._alarm:
                if not self._utterances:
                    self._begun.clear()
                    await self._begun.wait()
                    return []
                utterance = self._utterances[0]
                event = await utterance.exchange.read() if utterance.exchange else h11.EndOfMessage()
        except TimeoutError as error:
            return self._overdue(error)
        finally:
            self._alarm = None
        self._news_at = self._now()
        return self._understood(utterance, event)

    def _due_at(self) -> float | None:
        due = [] if self._guess_at is None else [self._guess_at]
        if self._utterances and (answer_at := self._answer_due_at(self._utterances[0])) is not None:
            due.append(answer_at)
        return min(due, default=None)

    def _answer_due_at(self, utterance: _Utterance) -> float | None:
        options = self._options
        if utterance.ended_at is not None:
            next_at = max(utterance.ended_at, self._news_at) + options.final_s
            return min(next_at, utterance.ended_at + options.answer_s)
        return utterance.began_at + options.head_s if self._known.live and not utterance.answered else None

    def _set_alarm(self) -> None:
        if self._alarm is not None and not self._alarm.expired():
            self._alarm.reschedule(self._due_at())

    def _overdue(self, timeout: TimeoutError) -> list[Transcript]:
        now = self._now()
        if self._guess_at is not None and self._guess_at <= now:
            self._guess_at = None
            assert self._speaking is not None
            return [Transcript("", False, self._speaking.start_ms, self._speaking.end_ms)]
        due_at = self._answer_due_at(self._utterances[0]) if self._utterances else None
        if due_at is None or due_at > now:
            return []
        if self._utterances[0].answered:
            raise stt_error("stall", "the recogniser's answer does not come to an end") from timeout
        self._known.live = False  # unless something new on the way holds answers back
        raise stt_error("timeout", f"the recogniser at {self._client.address} does not answer") from timeout

    # ------------------------------------------------------------ what the service says

    def _understood(self, utterance: _Utterance, event: h11.Event) -> list[Transcript]:
        match event:
            case h11.Response():
                self._answer_begins(utterance, event)
            case h11.Data():
                *lines, utterance.rest = (utterance.rest + event.data).split(b"\n")
                if max(map(len, (*lines, utterance.rest))) > LONGEST_LINE:
                    raise nonsense("a line without an end")
                return [self._partial(utterance, line) for line in lines]
            case h11.EndOfMessage():
                return [self._final(utterance)]
        return []

    def _answer_begins(self, utterance: _Utterance, response: h11.Response) -> None:
        status = response.status_code
        if status == 503:
            self._known.full_until = self._now() + self._options.full_s
        self._client.accept(response)
        if dict(response.headers).get(b"content-type", b"").partition(b";")[0].strip() != LINES.encode():
            raise stt_error("format", "what answers is no recogniser of ours: see ASR_URL", retryable=False)
        utterance.answered = True
        self._known.live |= utterance.ended_at is None
        self._known.full_until = 0.0

    def _partial(self, utterance: _Utterance, data: bytes) -> Transcript:
        """An utterance may get several finals, for the service finds ends by itself: only together they are ours."""
        line = Line.read(data)
        end_ms = utterance.timeline.media_ms(min(line.end_ms, utterance.timeline.sent_ms))
        transcript = utterance.transcript(line.text, end_ms)
        log.debug("< remote words", final=line.final, text=transcript.text)
        utterance.unfinished = not line.final
        if line.final:
            utterance.finals.append(line.text)
            if line.confidence is not None:
                utterance.confidences.append(line.confidence)
        if utterance is self._speaking and end_ms >= self._paused_ms:
            self._guess_at = None
        return transcript

    def _final(self, utterance: _Utterance) -> Transcript:
        if utterance.ended_at is None or utterance.unfinished or utterance.rest:
            raise stt_error("cut", "the recogniser's answer ended before the utterance had its final")
        self._utterances.popleft()
        if utterance.exchange is not None:
            utterance.exchange.close()
        return utterance.transcript("", utterance.end_ms, final=True)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
