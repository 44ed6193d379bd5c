"""What a worker publishes: windows, incidents, streams that stop or resume, and windows that could not be embedded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
import structlog

from streams.events.dead_letter import dead_letter
from streams.events.topics import TOPICS
from streams.events.types import MODALITIES, CloudEvent, IncidentEvent, RawRecord, Reason, Rejection
from streams.kafka.producer import Outputs
from streams.metrics import Metrics
from streams.pipeline.payload import WindowPayload, window_record
from streams.windows.types import Fired, StreamIdle

log = structlog.get_logger(__name__)
_CLOUD_EVENT = (("content-type", b"application/cloudevents+json"),)


class Publisher(Protocol):
    """Writes the output topics; every call returns when the broker has acknowledged."""

    async def window(self, id: str, payload: WindowPayload) -> None: ...
    async def incidents(self, steps: Sequence[Mapping[str, Any]], *, again: bool) -> None: ...
    async def idle(self, output: StreamIdle) -> None: ...
    async def failure(self, id: str, window: Fired, partition: int, detail: str) -> None: ...


class OutputPublisher:
    """Publishes to Kafka."""

    def __init__(
        self,
        outputs: Outputs,
        metrics: Metrics,
        topic: Callable[[str], str] = str,
        watch: Callable[[WindowPayload], None] | None = None,
    ) -> None:
        """`watch` is called with the payload of every window that was published (for the live table)."""
        self._watch = watch
        self._outputs = outputs
        self._metrics = metrics
        self._topic = topic

    async def window(self, id: str, payload: WindowPayload) -> None:
        """The message on `windows` for a window that is stored."""
        record = msgspec.json.encode(window_record(id, payload))
        await self._outputs.send("windows", record, key=payload.stream.encode())
        if self._watch is not None:
            self._watch(payload)

    async def incidents(self, steps: Sequence[Mapping[str, Any]], *, again: bool) -> None:
        """Steps in incidents' lives, in order. `again`: published before a restart already; the ids are the same."""
        for step in steps:
            incident = msgspec.convert(step, IncidentEvent)
            event = CloudEvent(
                id=incident.step_id,
                source=f"/sensorium/streams/{incident.stream}",
                type=f"sensorium.incident.{incident.kind}",
                time=_rfc3339(incident.time_ms),
                subject=incident.id,
                data=incident,
            )
            await self._send_event(event, key=incident.id)
            if not again:
                self._metrics.incident_steps.labels(incident.kind).inc()
                log.info(f"incident {incident.kind}", stream=incident.stream, id=incident.id, text=incident.text)

    async def idle(self, output: StreamIdle) -> None:
        """A stream stopped, or resumed."""
        kind = "resumed" if output.active else "silent"
        log.info(f"stream {kind}", stream=output.stream)
        event = CloudEvent(
            id=f"{output.stream}/{kind}/{output.event_ms}",
            source=f"/sensorium/streams/{output.stream}",
            type=f"sensorium.stream.{kind}",
            time=_rfc3339(output.event_ms),
            subject=output.stream,
            data={"stream": output.stream, "last_event_ms": output.event_ms},
        )
        await self._send_event(event, key=f"stream/{output.stream}")

    async def failure(self, id: str, window: Fired, partition: int, detail: str) -> None:
        """A window that no model can take: its records are named in dead letters; their bytes stay where they are."""
        rejection = Rejection(Reason.EMBED_FAILED, f"window {id} of {window.stream} could not be embedded: {detail}")
        for modality, offsets in zip(MODALITIES, window.members, strict=True):
            for offset in offsets:
                topic = self._topic(TOPICS[modality])
                origin = RawRecord(topic, partition, offset, window.start_ms, window.stream.encode(), None)
                key, value, headers = dead_letter(origin, rejection, stage="embed")
                await self._outputs.send("dead-letters", value, key=key, headers=headers)

    async def _send_event(self, event: CloudEvent, key: str) -> None:
        await self._outputs.send("incidents", msgspec.json.encode(event), key=key.encode(), headers=_CLOUD_EVENT)


class NullPublisher:
    """Publishes nothing and counts windows: a candidate version only stores."""

    def __init__(self) -> None:
        self.windows = 0

    async def window(self, id: str, payload: WindowPayload) -> None:
        self.windows += 1

    async def incidents(self, steps: Sequence[Mapping[str, Any]], *, again: bool) -> None:
        return

    async def idle(self, output: StreamIdle) -> None:
        return

    async def failure(self, id: str, window: Fired, partition: int, detail: str) -> None:
        return


def _rfc3339(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
