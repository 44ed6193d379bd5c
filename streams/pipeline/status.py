"""What a worker saw last of every stream: for the live table of `demo` and the local API's status."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_HISTORY = 24  # scores kept per stream for the sparkline
_STEPS = 50  # incident steps kept


@dataclass(slots=True)
class StreamState:
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


class Board:
    """Fed by `Announcer(watch=board.see)`; bounded by the number of streams."""

    def __init__(self) -> None:
        self.streams: dict[str, StreamState] = {}
        self.steps: deque[Mapping[str, Any]] = deque(maxlen=_STEPS)
        self.windows = 0
        self.events = 0

    def see(self, payload: Mapping[str, Any]) -> None:
        """Take note of an announced window."""
        state = self.streams.setdefault(payload["stream"], StreamState(payload["stream"]))
        state.windows += 1
        self.windows += 1
        self.events += sum(payload["home"].values())
        self.steps.extend(payload["steps"])
        if payload["end"] < state.end_ms:
            return
        state.end_ms = payload["end"]
        state.status = payload["status"]
        state.score = payload["score"]
        state.modalities = tuple(payload["modalities"])
        state.incident = payload["incident"]
        state.caption = payload["captions"][0] if payload["captions"] else state.caption
        if state.score is not None:
            state.scores.append(state.score)
