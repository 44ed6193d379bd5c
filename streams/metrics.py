"""Prometheus metrics of a worker, in one registry of its own so that several workers fit in one process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_WINDOWS = (1, 2, 4, 8, 16, 24, 32, 64)


class Metrics:
    """Names follow Prometheus practice: base units, `_total` for counters."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        outcome = "Events by topic and outcome: windowed, duplicate, late or a reason code"
        self.events = self._counter("events", outcome, "topic", "outcome")
        self.records = self._counter("records", "Kafka records read", "topic")
        cause = "Records that could not be unpacked, by cause: codec, checksum, header_name or structure"
        self.unreadable = self._counter("unreadable_records", cause, "topic", "reason")
        gone = "Records that were deleted from an input before they were read"
        self.lost = self._counter("records_lost", gone, "topic", "partition")
        fate = (
            "Windows by fate: new, revised, recounted (repeats came in), known (stored already), kept (its records are "
            "gone), superseded (a later firing in its batch), stale, failed"
        )
        self.windows = self._counter("windows", fate, "fate")
        self.incident_steps = self._counter("incident_steps", "Steps in incidents' lives", "kind")
        self.silent_streams = self._gauge("silent_streams", "Streams that fell silent")
        delay = "Newest event time read less the inputs' watermark"
        self.watermark_delay = self._gauge("watermark_delay_seconds", delay, "partition")
        self.lag = self._gauge("lag_records", "Records not yet read", "topic", "partition")
        self.pending = self._gauge("pending_records", "Records read and not yet committable", "topic", "partition")
        self.paused = self._gauge("paused", "1 while paused for running ahead in event time", "topic", "partition")
        self.detectors = self._gauge("detectors", "Streams whose detector is held in memory")
        beyond = "Channels beyond the detector's limit per stream, which it does not watch"
        self.unwatched_channels = self._gauge("unwatched_channels", beyond)
        self.store_waiting = self._gauge("store_waiting", "1 while the store is away")
        self.loop_lag = self._gauge("loop_lag_seconds", "How late the event loop's last tick was")
        self.queue = self._gauge("queue_items", "Outputs of the window operator waiting for inference")
        self.stage = self._histogram("stage_seconds", "Time of one batch in a stage", _LATENCIES_S, "stage")
        self.batch = self._histogram("batch_windows", "Windows in an inference batch", _WINDOWS)

    def forget_partitions(self) -> None:
        """Another worker reports them from now on: our last values must not stay."""
        for gauge in (self.watermark_delay, self.lag, self.pending, self.paused):
            gauge.clear()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"sensorium_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"sensorium_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"sensorium_{name}", text, labels, buckets=buckets, registry=self.registry)
