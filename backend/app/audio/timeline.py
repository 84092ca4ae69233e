"""A vendor's clock and ours: it counts the audio that it was sent, we count the audio of the call.

The two differ as soon as a stream begins in the middle of a call, or a stretch is left out.
"""

from collections import deque

from app.audio.types import AudioFrame

KEPT = 64


class Timeline:
    """Of one stream of one vendor. Stretches sent without a gap are one entry, so it stays short."""

    def __init__(self) -> None:
        self.sent_ms = 0.0
        """Audio sent so far: the vendor's now."""
        self._stretches: deque[tuple[float, float]] = deque(maxlen=KEPT)  # began at: the vendor's clock, ours

    def sent(self, frame: AudioFrame) -> None:
        gap_ms = 0.0
        if self._stretches:
            vendor_ms, media_ms = self._stretches[-1]
            gap_ms = frame.at_ms - (media_ms + self.sent_ms - vendor_ms)
        if not self._stretches or abs(gap_ms) >= 1:
            self._stretches.append((self.sent_ms, frame.at_ms))
        self.sent_ms += frame.duration_ms

    def media_ms(self, vendor_ms: float) -> int:
        """The moment of the call that the vendor means. A moment at a seam is the end of what came before it."""
        found = None
        for began_ms, media_ms in self._stretches:
            if found is None or began_ms < vendor_ms:
                found = (began_ms, media_ms)
        if found is None:
            return round(vendor_ms)
        began_ms, media_ms = found
        return round(media_ms + vendor_ms - began_ms)
