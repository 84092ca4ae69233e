"""What is counted, for Prometheus. One Metrics object per application, so that tests never share counters.

Labels are closed sets: never a call, a number or a word of a caller.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TURN_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.live_calls = Gauge("malgil_live_calls", "Calls with an open media stream.", registry=registry)
        self.calls_ended = Counter("malgil_calls_ended", "Ended calls.", ["reason"], registry=registry)
        self.webhooks_refused = Counter(
            "malgil_webhooks_refused", "Webhook requests refused or declined.", ["reason"], registry=registry
        )
        self.streams_refused = Counter(
            "malgil_streams_refused", "Media streams refused or cut.", ["reason"], registry=registry
        )
        self.stream_faults = Counter(
            "malgil_stream_faults",
            "Messages of the peer that were out of order.",
            ["kind"],
            registry=registry,
        )
        self.provider_faults = Counter(
            "malgil_provider_faults",
            "Failures of outside services.",
            ["component", "kind"],
            registry=registry,
        )
        self.recogniser_faults = Counter(
            "malgil_recogniser_faults",
            "Streams of a recogniser that failed or ended before their time.",
            ["recogniser", "kind"],
            registry=registry,
        )
        self.final_seconds = Histogram(
            "malgil_final_seconds",
            "End of speech to its final words, by recogniser.",
            ["recogniser"],
            buckets=TURN_BUCKETS,
            registry=registry,
        )
        self.engine = Gauge(
            "malgil_recogniser_engine",
            "Of our own recogniser: decodes, batches, redecodes, refused since the start; queued now.",
            ["figure"],
            registry=registry,
        )
        self.audio_dropped = Counter(
            "malgil_audio_dropped_ms", "Audio given up, in milliseconds.", ["direction"], registry=registry
        )
        self.store_faults = Counter("malgil_store_faults", "Writes to the store that failed.", registry=registry)
        self.turn_seconds = Histogram(
            "malgil_turn_seconds",
            "End of speech to: final words, first token, first audio.",
            ["until"],
            buckets=TURN_BUCKETS,
            registry=registry,
        )

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
