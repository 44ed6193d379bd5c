"""What a worker tells the world: windows, incidents, silent streams, and windows that could not be embedded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from streams.events.dead_letter import dead_letter
from streams.events.topics import TOPICS
from streams.events.types import MODALITIES, CloudEvent, IncidentEvent, RawRecord, Reason, Rejection
from streams.kafka.producer import Outputs
from streams.metrics import Metrics
from streams.pipeline.payload import window_record
from streams.windows.types import Fired, StreamIdle

log = structlog.get_logger(__name__)
_CLOUD_EVENT = (("content-type", b"application/cloudevents+json"),)


class Announcer:
    """Writes the output topics; every call returns when the broker has acknowledged."""

    def __init__(
        self,
        outputs: Outputs,
        metrics: Metrics,
        topic: Callable[[str], str] = str,
        watch: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """`watch` is called with the payload of every window that was announced (for the live table)."""
        self._watch = watch
        self._outputs = outputs
        self._metrics = metrics
        self._topic = topic

    async def window(self, id: str, payload: Mapping[str, Any]) -> None:
        """The message on `windows` for a window that is stored."""
        record = msgspec.json.encode(window_record(id, payload))
        await self._outputs.send("windows", record, key=payload["stream"].encode())
        if self._watch is not None:
            self._watch(payload)

    async def incidents(self, steps: Sequence[Mapping[str, Any]], *, again: bool) -> None:
        """Steps in incidents' lives, in order. `again`: said before a restart already; the ids are the same."""
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

    async def silence(self, output: StreamIdle) -> None:
        """A stream fell silent, or spoke again."""
        kind = "silent" if output.silent else "resumed"
        self._metrics.silent_streams.inc(1 if output.silent else -1)
        log.info(f"stream {kind}", stream=output.stream)
        event = CloudEvent(
            id=f"{output.stream}/{kind}/{output.last_event_ms}",
            source=f"/sensorium/streams/{output.stream}",
            type=f"sensorium.stream.{kind}",
            time=_rfc3339(output.last_event_ms),
            subject=output.stream,
            data={"stream": output.stream, "last_event_ms": output.last_event_ms},
        )
        await self._send_event(event, key=f"stream/{output.stream}")

    async def failure(self, id: str, window: Fired, partition: int) -> None:
        """A window that no model can take: its records are named in dead letters; their bytes stay where they are."""
        rejection = Rejection(Reason.EMBED_FAILED, f"window {id} of {window.stream} could not be embedded")
        for modality, offsets in zip(MODALITIES, window.members, strict=True):
            for offset in offsets:
                topic = self._topic(TOPICS[modality])
                origin = RawRecord(topic, partition, offset, window.start_ms, window.stream.encode(), None)
                key, value, headers = dead_letter(origin, rejection, stage="embed")
                await self._outputs.send("dead-letters", value, key=key, headers=headers)

    async def _send_event(self, event: CloudEvent, key: str) -> None:
        await self._outputs.send("incidents", msgspec.json.encode(event), key=key.encode(), headers=_CLOUD_EVENT)


def _rfc3339(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
