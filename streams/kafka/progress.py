"""Where a consumer begins in one partition of an input, and how far it has got."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Start:
    """Where reading begins in one partition.

    `offset`: the first one that will be read: the committed one, or where the log begins. `committed`: as the group
    has it, None where it has none. Records from `committed` to `offset` are lost: they were deleted before they were
    read. `committed` past `offset`: the log is not the one that was read before.
    """

    offset: int
    committed: int | None

    @property
    def lost(self) -> int:
        """Records that were deleted before they were read."""
        return 0 if self.committed is None else max(0, self.offset - self.committed)


def start_at(committed: int | None, begin: int, end: int) -> Start:
    """Where to begin in a log that holds the offsets from `begin` up to `end`."""
    fits = committed is not None and begin <= committed <= end
    return Start(committed if committed is not None and fits else begin, committed)


@dataclass(frozen=True, slots=True)
class InputProgress:
    """Where the consumer stands in one partition, as the broker last confirmed."""

    position: int  # next offset to be fetched
    highwater: int | None  # first offset that cannot be read yet: of open transactions too
    polled_ms_ago: int | None  # since the broker last answered for this partition
    delivered: int | None = None  # one past the last record handed on; None: not known


def readable_end(state: Any) -> int | None:
    """Where what can be read of a partition ends now, by aiokafka's state of it (private: `TopicPartitionState`).

    Records of an open transaction are below the high-water mark and cannot be read yet.
    """
    end: int | None = state.lso if state.lso is not None and state.lso >= 0 else state.highwater
    return end
