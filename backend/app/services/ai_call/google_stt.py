"""STT_PROVIDER=google: Google's streaming recognition (Speech-to-Text v1), through the official client.

It is sent everything, silence too: Google ends utterances itself, and ends a stream that brings no audio. It also
ends every stream after 305 seconds, so each is followed by another before that, as soon as no words are pending. What
no final has covered is sent again into the new one, while the old one is left and no longer listened to: no word is
lost and none comes twice. Who listens sees one stream.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import structlog

from app.audio.timeline import Timeline
from app.audio.types import SAMPLE_BYTES, AudioFrame, Transcript
from app.services.ai_call.google_client import (
    LANGUAGES,
    PROVIDER,
    Ending,
    GoogleOptions,
    close_client,
    connect,
    error_of,
    reach,
    require,
    status_name,
    translate,
    translated,
)

if TYPE_CHECKING:
    from google.cloud.speech_v1 import SpeechAsyncClient, StreamingRecognizeRequest, StreamingRecognizeResponse

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class GoogleSttOptions:
    """A stream is renewed from `renew_after_s` on when no words are pending, at `renew_at_latest_s` in any case; both
    count its audio, or its life where that is longer. `keep_ms` and `idle_keep_ms` of audio, with words pending and
    without, are sent again at most. Bounds are in seconds."""

    renew_after_s: float = 240.0
    renew_at_latest_s: float = 290.0
    keep_ms: int = 30_000
    idle_keep_ms: int = 5_000
    chunk_ms: int = 100
    pace: float = 4.0  # times real time, which Google wants the audio to be close to
    write_s: float = 5.0
    rough_ms: int = 500  # a final's end may lie so far before the end of what was spoken

    def __post_init__(self) -> None:
        if self.idle_keep_ms >= self.renew_after_s * 1000 or self.keep_ms >= self.renew_at_latest_s * 1000:
            raise ValueError("what is sent again would be enough for the next renewal")


class GoogleStt:
    """Owns its connection until `aclose`; opens it when first used. Raises ConfigError."""

    name = PROVIDER
    hears: Literal["everything", "speech"] = "everything"

    def __init__(self, google: GoogleOptions, options: GoogleSttOptions | None = None) -> None:
        require(google)
        self._google = google
        self._options = options or GoogleSttOptions()
        self._opening = asyncio.Lock()
        self._client: SpeechAsyncClient | None = None

    async def aclose(self) -> None:
        if self._client is not None:
            await close_client(self._client)

    async def check(self) -> None:
        """That Google can be reached. The key is proven by a stream only: asking anything of it may cost."""
        await reach(await self._connected(), self._google.connect_s)

    @asynccontextmanager
    async def open(self, rate: int, language: str) -> AsyncIterator["GoogleSttStream"]:
        client = await self._connected()
        stream = GoogleSttStream(client, self._google, rate, language, self._options)
        try:
            await stream.start()
            yield stream
        finally:
            stream.close()

    async def _connected(self) -> "SpeechAsyncClient":
        async with self._opening:
            if self._client is None:
                self._client = await connect(self._google)
            return self._client


@dataclass(slots=True)
class _Leg:
    """One stream of Google's: `call` is the client's, written and read at the same time."""

    call: Any
    ending: Ending
    opened_at: float
    timeline: Timeline = field(default_factory=Timeline)


class GoogleSttStream:
    """Starts no task. Sending is done by one task, which also renews; reading by another."""

    def __init__(
        self, client: "SpeechAsyncClient", google: GoogleOptions, rate: int, language: str, options: GoogleSttOptions
    ) -> None:
        self._client = client
        self._google = google
        self._rate = rate
        self._languages = LANGUAGES[language]
        self._options = options
        self._leg: _Leg | None = None
        self._chunk = bytearray()
        self._free_at = 0.0  # when, at our pace, the audio sent so far may have been sent
        self._uncovered: deque[AudioFrame] = deque()
        self._uncovered_ms = 0.0
        self._covered_ms = -1  # before the first audio
        self._pending = False
        """Whether words were heard that no final has confirmed."""
        self._silent_from_ms: int | None = None
        """Where our own endpointer last found the end of speech."""

    async def start(self) -> None:
        """Raises SttError."""
        self._leg = await self._open_leg()

    def close(self) -> None:
        """The iteration ends."""
        leg, self._leg = self._leg, None
        if leg is not None:
            leg.call.cancel()

    async def _open_leg(self) -> _Leg:
        from google.cloud.speech_v1 import StreamingRecognizeRequest

        await reach(self._client, self._google.connect_s)
        with translated():
            async with asyncio.timeout(self._google.connect_s):
                # Written to, instead of giving it a generator: that would wait for audio for ever when the stream
                # has ended. A retry could not send the audio again.
                call: Any = await self._client.streaming_recognize(None, retry=None, timeout=None)
        leg = _Leg(call, Ending(call), asyncio.get_running_loop().time())
        try:
            await self._write(leg, StreamingRecognizeRequest(streaming_config=self._config()))
        except BaseException:
            call.cancel()
            raise
        return leg

    def _config(self) -> Any:
        from google.cloud.speech_v1 import RecognitionConfig, StreamingRecognitionConfig

        language, *alternatives = self._languages
        return StreamingRecognitionConfig(
            config=RecognitionConfig(
                encoding=RecognitionConfig.AudioEncoding.LINEAR16,
                sample_rate_hertz=self._rate,
                language_code=language,
                alternative_language_codes=alternatives,
                model=self._google.model,
                enable_automatic_punctuation=True,
            ),
            interim_results=True,
        )

    # ------------------------------------------------------------ audio in

    async def send(self, frame: AudioFrame) -> None:
        """Waits where the audio comes faster than Google may be sent it: what is sent again."""
        leg = self._open()
        if self._covered_ms < 0:
            self._covered_ms = frame.at_ms
        self._uncovered.append(frame)
        self._uncovered_ms += frame.duration_ms
        self._trim()
        if self._renewal_is_due(leg):
            await self._renew(leg)
        else:
            await self._tell(leg, frame)

    async def pause(self, speech_ms: int) -> None:
        if self._uncovered:
            self._silent_from_ms = _end_ms(self._uncovered[-1])

    async def resume(self) -> None:
        self._silent_from_ms = None

    async def flush(self, speech_ms: int) -> None:
        """Google ends the utterance."""

    def _open(self) -> _Leg:
        if self._leg is None:
            raise error_of("CANCELLED")
        return self._leg

    async def _tell(self, leg: _Leg, frame: AudioFrame) -> None:
        from google.cloud.speech_v1 import StreamingRecognizeRequest

        leg.timeline.sent(frame)
        self._chunk += frame.pcm
        size = self._rate * self._options.chunk_ms // 1000 * SAMPLE_BYTES
        while len(self._chunk) >= size:
            audio = bytes(self._chunk[:size])
            del self._chunk[:size]
            await self._keep_pace()
            await self._write(leg, StreamingRecognizeRequest(audio_content=audio))

    async def _keep_pace(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)
        self._free_at = max(self._free_at, now) + self._options.chunk_ms / 1000 / self._options.pace

    async def _write(self, leg: _Leg, request: "StreamingRecognizeRequest") -> None:
        from google.api_core.exceptions import GoogleAPICallError

        try:
            async with asyncio.timeout(self._options.write_s):
                await leg.call.write(request)
        except TimeoutError as error:
            raise translate(error) from error
        except (asyncio.InvalidStateError, GoogleAPICallError):
            pass  # it has ended: who reads learns why

    # ------------------------------------------------------------ renewal

    def _renewal_is_due(self, leg: _Leg) -> bool:
        lived_s = asyncio.get_running_loop().time() - leg.opened_at
        age_s = max(leg.timeline.sent_ms / 1000, lived_s)
        if age_s >= self._options.renew_at_latest_s:
            return True
        return age_s >= self._options.renew_after_s and not self._pending

    async def _renew(self, old: _Leg) -> None:
        """The old leg still hears until the new one is open. From then on nothing of it is believed."""
        leg = await self._open_leg()
        log.debug("- google stream renewed", pending=self._pending, again_ms=round(self._uncovered_ms))
        self._leg = leg
        self._pending = False
        self._chunk.clear()
        old.call.cancel()
        for frame in list(self._uncovered):
            await self._tell(leg, frame)

    def _trim(self) -> None:
        """Silence is never covered by a final."""
        keep_ms = self._options.keep_ms if self._pending else self._options.idle_keep_ms
        while self._uncovered_ms > keep_ms:
            self._uncovered_ms -= self._uncovered.popleft().duration_ms

    def _cover(self, end_ms: int) -> None:
        """A final came. Where speech had ended by our own count a little later, it ended there: the last syllable
        must not be heard again."""
        silent_ms = self._silent_from_ms
        if silent_ms is not None and end_ms < silent_ms <= end_ms + self._options.rough_ms:
            end_ms = silent_ms
        self._covered_ms = end_ms
        while self._uncovered and _end_ms(self._uncovered[0]) <= end_ms:
            self._uncovered_ms -= self._uncovered.popleft().duration_ms

    # ------------------------------------------------------------ words out

    async def __aiter__(self) -> AsyncIterator[Transcript]:
        """Ends when Google ends the stream of its own accord. Raises SttError."""
        while (leg := self._leg) is not None:
            response = await self._read(leg)
            if leg is not self._leg:
                continue  # left in the meantime
            if response is None:
                return
            for transcript in self._heard(leg, response):
                yield transcript

    async def _read(self, leg: _Leg) -> "StreamingRecognizeResponse | None":
        """None at the end of the leg, and when we left it."""
        from google.api_core.exceptions import GoogleAPICallError
        from google.cloud.speech_v1 import StreamingRecognizeResponse

        task = asyncio.current_task()
        try:
            response = await leg.call.read()
        except asyncio.CancelledError:
            # gRPC raises it, too, in whoever reads when somebody else cancels the call
            if task is None or task.cancelling():
                raise
            if leg is self._leg:
                raise error_of("CANCELLED") from None
            return None
        except GoogleAPICallError as error:
            if leg is self._leg and (reason := await leg.ending.error()) is not None:
                raise reason from error
            return None
        return response if isinstance(response, StreamingRecognizeResponse) else None

    def _heard(self, leg: _Leg, response: "StreamingRecognizeResponse") -> Iterator[Transcript]:
        if response.error.code:
            raise error_of(status_name(response.error.code), response.error.message)
        words, end_ms = "", 0
        for result in response.results:
            if not result.alternatives:
                continue
            best = result.alternatives[0]
            # Some models tell no time: then it is all that was sent.
            vendor_ms = result.result_end_time.total_seconds() * 1000 or leg.timeline.sent_ms
            end_ms = leg.timeline.media_ms(vendor_ms)
            if result.is_final:
                yield from self._final(best.transcript.strip(), end_ms, best.confidence)
            else:
                words += best.transcript  # first what it is sure of, then the rest, with its own space in front
        if words.strip() and end_ms > self._covered_ms:  # else it comes after its final
            self._pending = True
            yield Transcript(words.strip(), False, self._covered_ms, end_ms)

    def _final(self, text: str, end_ms: int, confidence: float) -> Iterator[Transcript]:
        """Nothing for one that came before, or that has no words."""
        if end_ms <= self._covered_ms:
            log.debug("x google final dropped", end_ms=end_ms, covered_ms=self._covered_ms)
            return
        start_ms = self._covered_ms
        self._pending = False
        self._cover(end_ms)
        if text:
            yield Transcript(text, True, start_ms, self._covered_ms, confidence or None)


def _end_ms(frame: AudioFrame) -> int:
    return round(frame.at_ms + frame.duration_ms)
