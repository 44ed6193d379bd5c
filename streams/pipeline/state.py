"""What a worker holds for one partition number while it is assigned: the window operator and the streams' states.

The three input topics are co-partitioned, so one number stands for three partitions. Everything in here is dropped
on revocation; whatever is still in flight then sees `revoked` and is discarded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from streams.drift import Detector
from streams.pipeline.merge import InputMerge
from streams.pipeline.payload import WindowPayload
from streams.windows.operator import PartitionWindows, StreamLimit
from streams.windows.types import Output, WindowConfig

_STREAMS_KEPT = 1000  # of a partition; beyond that quiet ones are dropped


@dataclass(slots=True)
class WindowRevision:
    """The current revision of a window that is stored, or on its way to the store, and not final."""

    revision: int
    content_hash: str
    payload: WindowPayload


@dataclass(slots=True)
class StreamState:
    """One stream's place in its chain of drift states."""

    detector: Detector | None = None  # None: to be restored from `last_scored`, or new
    bank: frozenset[int] | None = None  # `detector.bank` after the last window; None: to be asked for
    last_scored: WindowPayload | None = None  # payload of the last window scored in order, when `detector` is None
    last_start_ms: int | None = None  # start of the last window scored in order
    newest_start_ms: int | None = None  # start of the newest stored window
    revisions: dict[int, WindowRevision] = field(default_factory=dict)  # by window start
    final_before_ms: int | None = None  # windows that start before this are stored and final


@dataclass(slots=True, eq=False)
class PartitionState:
    """`resume`: the first offset that will be read of each modality; `read`: one past the last one taken in."""

    number: int
    epoch: int
    config: WindowConfig
    resume: tuple[int, int, int]
    limit: StreamLimit = field(default_factory=StreamLimit)
    operator: PartitionWindows = field(init=False)
    merge: InputMerge = field(default_factory=InputMerge)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    streams: dict[str, StreamState] = field(default_factory=dict)
    outbox: deque[Output] = field(default_factory=deque)  # what follows from a tick and found the queue full
    finished: dict[str, int] = field(default_factory=dict)  # start of each stream's last pane that was released
    in_hand: list[int] = field(default_factory=lambda: [0, 0, 0])  # batches being decoded, per modality
    read: list[int] = field(init=False)
    looks_at_end: list[int] = field(default_factory=lambda: [0, 0, 0])  # see `idleness.look`
    input_clocks_ms: list[int] = field(default_factory=lambda: [0, 0, 0])  # time spent caught up, per modality
    idle_clock_ms: int = 0  # time spent with all three caught up
    revoked: bool = False

    def __post_init__(self) -> None:
        self.operator = PartitionWindows(self.config, self.resume, lookup=True, limit=self.limit)
        self.read = list(self.resume)

    def revoke(self) -> None:
        """Another worker may have it from now on."""
        self.revoked = True
        self.operator.release()

    def forget_quiet(self) -> None:
        """Drop streams that are quiet and stored, where there are many; they are read back from the store if need be.

        To be called when all that the released windows depend on is stored.
        """
        if self.operator.streams <= _STREAMS_KEPT or self.lock.locked():
            return
        for stream, start_ms in self.finished.items():
            if self.operator.forget(stream, start_ms):
                self.streams.pop(stream, None)
        self.finished.clear()
