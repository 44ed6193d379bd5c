"""Which offsets may be committed: the finished contiguous prefix of each partition, and nothing past it. Pure.

Faust 0.15.3 can commit past an event that is still in flight (its issue 606), so this ledger is the only owner of
offsets. A record is finished when every event in it is: stored in windows that are final, or acknowledged by
`late-events` or `dead-letters`. What was tracked under an older epoch of a partition can change nothing any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence


class _Partition:
    __slots__ = ("done", "end", "epoch", "order", "refs")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.order: deque[int] = deque()  # tracked offsets, ascending, not yet part of the prefix
        self.done: set[int] = set()  # finished offsets that are still behind an unfinished one
        self.refs: dict[int, int] = {}  # offsets that need more than one release
        self.end: int | None = None  # the offset to commit


class OffsetLedger:
    """Tracks records by (partition, epoch, offset). Not thread-safe: one event loop owns it."""

    def __init__(self) -> None:
        self._partitions: dict[Hashable, _Partition] = {}

    def begin(self, tp: Hashable, epoch: int, end: int | None = None) -> None:
        """Start a partition afresh under `epoch`; whatever was tracked before is forgotten.

        `end`: an offset that may be committed right away, because the records before it are gone.
        """
        self._partitions[tp] = _Partition(epoch)
        self._partitions[tp].end = end

    def forget(self, tp: Hashable) -> None:
        """Drop a revoked partition: nothing of it will be committed."""
        self._partitions.pop(tp, None)

    def track(self, tp: Hashable, epoch: int, offsets: Sequence[int]) -> None:
        """Enter records in the order they were read, each to be released once."""
        partition = self._partitions.get(tp)
        if partition is None or partition.epoch != epoch or not offsets:
            return
        if partition.order and offsets[0] <= partition.order[-1]:
            raise ValueError(f"{tp}: offset {offsets[0]} tracked after {partition.order[-1]}")
        partition.order.extend(offsets)

    def expect(self, tp: Hashable, epoch: int, offset: int, releases: int) -> None:
        """A tracked record that holds several events: it is finished after this many releases."""
        partition = self._partitions.get(tp)
        if partition is not None and partition.epoch == epoch and releases > 1:
            partition.refs[offset] = releases

    def release(self, tp: Hashable, epoch: int, offsets: Iterable[int]) -> None:
        """One event of each of these records is finished."""
        partition = self._partitions.get(tp)
        if partition is None or partition.epoch != epoch:
            return
        refs = partition.refs
        if not refs:
            partition.done.update(offsets)
            return
        for offset in offsets:
            left = refs.get(offset, 1) - 1
            if left:
                refs[offset] = left
            else:
                refs.pop(offset, None)
                partition.done.add(offset)

    def committable(self, tp: Hashable) -> int | None:
        """The offset to commit (one past the finished prefix), or None while nothing is finished."""
        partition = self._partitions.get(tp)
        if partition is None:
            return None
        order, done = partition.order, partition.done
        while order and order[0] in done:
            offset = order.popleft()
            done.remove(offset)
            partition.end = offset + 1
        if not order:
            done.clear()  # of whatever was released once too often
        return partition.end

    def pending(self, tp: Hashable) -> int:
        """Records that were read and are not part of the finished prefix."""
        self.committable(tp)
        partition = self._partitions.get(tp)
        return len(partition.order) if partition else 0
