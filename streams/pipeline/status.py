"""The newest window of every stream, as a worker published it: for the live table of `demo`."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from streams.pipeline.payload import WindowPayload

_HISTORY = 24  # scores kept per stream for the sparkline
_STEPS = 50  # incident steps kept
_STREAMS = 10_000  # more are counted, not shown


@dataclass(slots=True)
class StreamStatus:
    """The newest window of one stream."""

    stream: str
    windows: int = 0
    end_ms: int = 0
    status: str = "warming"
    score: float | None = None
    modalities: tuple[str, ...] = ()
    incident: str | None = None
    caption: str = ""
    scores: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))


class StatusTable:
    """Fed by `OutputPublisher(watch=table.update)`."""

    def __init__(self) -> None:
        self.streams: dict[str, StreamStatus] = {}
        self.steps: deque[Mapping[str, Any]] = deque(maxlen=_STEPS)
        self.windows = 0
        self.events = 0

    def update(self, payload: WindowPayload) -> None:
        """Take a published window."""
        self.windows += 1
        self.events += sum(payload.home.values())
        self.steps.extend(payload.steps)
        status = self.streams.get(payload.stream)
        if status is None:
            if len(self.streams) >= _STREAMS:
                return
            status = self.streams[payload.stream] = StreamStatus(payload.stream)
        status.windows += 1
        if payload.end < status.end_ms:
            return
        status.end_ms = payload.end
        status.status = payload.status
        status.score = payload.score
        status.modalities = tuple(payload.modalities)
        status.incident = payload.incident
        status.caption = payload.captions[0] if payload.captions else status.caption
        if status.score is not None:
            status.scores.append(status.score)
