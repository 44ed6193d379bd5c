"""What a worker holds for one partition number while it is assigned: the window operator and the streams' memories.

The three input topics are co-partitioned, so one number stands for three partitions. Everything in here is dropped
on revocation; whatever is still in flight then sees `epoch` differ and is discarded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from streams.drift import Detector
from streams.windows.operator import PartitionWindows
from streams.windows.types import Output, WindowConfig

_STREAMS_KEPT = 1000  # of a partition; beyond that silent ones are dropped


@dataclass(slots=True)
class Known:
    """The current revision of a window that is stored, or on its way to the store, and not final."""

    revision: int
    content_hash: str
    payload: Mapping[str, Any]


@dataclass(slots=True)
class StreamMemory:
    """One stream's place in its chain of drift states."""

    detector: Detector | None = None  # None: to be restored from `chain`, or new
    chain: Mapping[str, Any] | None = None  # payload of the last scored window, when `detector` is None
    last_start_ms: int | None = None  # start of the last window scored in order
    known: dict[int, Known] = field(default_factory=dict)  # by window start
    sealed_before_ms: int | None = None  # windows that start before this are stored and final


@dataclass(slots=True, eq=False)
class Partition:
    """`resume`: the first offset read of each modality; `handled`: one past the last record worked on, per modality."""

    number: int
    epoch: int
    config: WindowConfig
    resume: tuple[int, int, int]
    operator: PartitionWindows = field(init=False)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    memories: dict[str, StreamMemory] = field(default_factory=dict)
    outbox: deque[Output] = field(default_factory=deque)  # what follows from a tick and found the queue full
    finished: dict[str, int] = field(default_factory=dict)  # start of each stream's last window that was released
    in_hand: list[int] = field(default_factory=lambda: [0, 0, 0])  # batches being worked on, per modality
    handled: list[int] = field(init=False)
    heard_at_ms: list[int] = field(default_factory=lambda: [0, 0, 0])  # on each modality's own caught-up clock
    clock_ms: list[int] = field(default_factory=lambda: [0, 0, 0])  # time spent caught up, per modality
    idle_clock_ms: int = 0  # time spent with all three caught up
    revoked: bool = False

    def forget_silent(self) -> None:
        """Drop streams that are silent and stored, where there are many; what is known of them is read back if need be.

        To be called when all that the released windows depend on is stored.
        """
        if self.operator.streams <= _STREAMS_KEPT or self.lock.locked():
            return
        for stream, start_ms in self.finished.items():
            if self.operator.forget(stream, start_ms):
                self.memories.pop(stream, None)
        self.finished.clear()

    def __post_init__(self) -> None:
        self.operator = PartitionWindows(self.config, self.resume, lookup=True)
        self.handled = list(self.resume)
