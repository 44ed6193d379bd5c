"""What the window operator takes and gives: records, fired windows, final panes, late events, idle streams. Pure.

Events are kept in panes of one hop. The *home* window of a pane is the last one that holds it, the one that starts
with it: an event is final when its home window is final, and counts in that window's totals only.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from streams.events.types import Caption, Clip, Event, Reading, Reason

_NAMESPACE = uuid.UUID("5e450b1a-0f1c-5d2e-9c55-ba5e0d0c0de5")
_encode = msgspec.msgpack.Encoder(order="deterministic").encode  # keys of dicts in order


def window_id(stream: str, start_ms: int, size_ms: int, model_version: str) -> str:
    """The id of a window, and of its point in the store: the same for every replay."""
    return str(uuid.uuid5(_NAMESPACE, f"{stream}\x1f{start_ms}\x1f{size_ms}\x1f{model_version}"))


@dataclass(frozen=True, slots=True)
class WindowConfig:
    """Times in milliseconds; tuples are in the order of `events.types.MODALITIES`. `hop_ms` divides `size_ms`."""

    size_ms: int = 10_000
    hop_ms: int = 10_000
    disorder_ms: tuple[int, int, int] = (2_000, 2_000, 2_000)
    allowed_lateness_ms: int = 30_000
    idle_timeout_ms: int = 10_000
    max_wait_ms: tuple[int, int, int] = (2_000, 2_000, 2_000)
    max_jump_ms: int = 60_000
    modality_memory_ms: int = 600_000
    max_stream_lag_ms: int = 600_000
    max_pane_events: int = 100_000
    bounds_ms: tuple[tuple[int, int], ...] = field(init=False)  # (disorder, longest wait) per modality
    least_disorder_ms: int = field(init=False)

    def __post_init__(self) -> None:
        pairs = zip(self.disorder_ms, self.max_wait_ms, strict=True)
        object.__setattr__(self, "bounds_ms", tuple((disorder, max(wait, disorder)) for disorder, wait in pairs))
        object.__setattr__(self, "least_disorder_ms", min(self.disorder_ms))


class Record(msgspec.Struct, frozen=True, gc=False):
    """An event with its origin: the offset of its Kafka record in the modality's partition."""

    offset: int
    stream: str
    event: Event


@dataclass(frozen=True, slots=True)
class StoredWindow:
    """What the store knows of a window: enough to recognise it, and to tell its events from late ones."""

    start_ms: int
    revision: int
    content_hash: str
    members: tuple[frozenset[int], ...]  # offsets per modality of the events of its home pane, repeats included
    payload: Any = None  # the caller's own
    foreign: bool = False  # made of records that are not in this partition of these topics: it cannot be rebuilt
    ahead: bool = False  # as in `Fired`


@dataclass(slots=True, eq=False)
class Fired:
    """A window to be embedded and stored. Contents are in canonical order and free of repeats."""

    stream: str
    start_ms: int
    end_ms: int
    firing: int  # 0 for the first firing by this operator, then 1, 2, ...
    readings: list[Reading]
    clips: list[Clip]
    captions: list[Caption]
    home_events: tuple[int, int, int]  # events of the home pane per modality: each event counts in one window
    duplicates: int  # repeats in the home pane
    members: tuple[tuple[int, ...], ...]  # offsets of the home pane's records per modality, repeats included
    stored: StoredWindow | None  # the same window as found in the store after a restart
    interval_ms: int | None = None  # the stream's usual interval between events, as known when the window fired
    ahead: bool = (
        False  # it begins ahead of the stream's own clock: only unconfirmed readings from the future are in it
    )

    def content_hash(self) -> str:
        """SHA-256 over the canonical content: equal for equal windows, whatever the order of arrival."""
        content = (
            self.stream,
            self.start_ms,
            self.end_ms,
            [(reading.time_ms, reading.values, reading.units or {}) for reading in self.readings],
            [(clip.time_ms, clip.sha256) for clip in self.clips],
            [(caption.time_ms, caption.text, caption.source or "", caption.lang or "") for caption in self.captions],
        )
        return hashlib.sha256(_encode(content)).hexdigest()


class PaneFinal(NamedTuple):
    """A pane's home window is final: its records may be released once all that was fired before it is stored."""

    stream: str
    start_ms: int
    offsets: tuple[tuple[int, ...], ...]  # per modality
    ahead: bool = False  # it begins ahead of the stream's own clock: those before it are not final by that


class Late(NamedTuple):
    """An event whose last window is final. `late_ms`: how far the watermark was past that window's end, at least."""

    modality: int
    record: Record
    late_ms: int


class Refused(NamedTuple):
    """An event that the operator has no room for: too many streams, or too many events in one pane."""

    modality: int
    record: Record
    reason: Reason
    detail: str


class StreamIdle(NamedTuple):
    """A stream stopped (`active` False: nothing came for several of its usual intervals), or resumed.

    `event_ms`: event time of its newest event when it stopped, or of the event that ended the silence.
    """

    stream: str
    event_ms: int
    active: bool


Output = Fired | PaneFinal | Late | Refused | StreamIdle
