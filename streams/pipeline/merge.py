"""The three inputs of one partition number, read in one order: that of production. Pure.

Topics are fetched independently: without this, a batch of readings could move a stream's clock on by hours before the
sounds of that time are read. Records wait here until every other input has been read as far as they are in production
order, by the records' Kafka timestamps, or is known to have nothing more: the broker confirmed, after these records
had arrived, that all of it was delivered. The order within an input stays that of its offsets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from streams.events.types import MODALITIES
from streams.windows.types import Record
from streams.windows.watermark import LONG_AGO

_NEWEST = 3  # timestamps that tell how far an input has been read: the least of them, so that no single one is believed
_TOLERANCE_MS = 20  # partitions of one fetch response are noted within this time
MOST_HELD = (20_000, 128, 20_000)  # events per input; beyond that its partition is to be paused (clips are decoded)
_N = len(MODALITIES)


class Run(NamedTuple):
    """Consecutive events of one modality. `read_ms`: Kafka timestamp of the last.

    `raws`: the Kafka record that each event came in (for late and dead letters).
    """

    modality: int
    events: list[Record]
    raws: list[Any]
    read_ms: int


class _Input:
    __slots__ = ("arrived_ms", "held", "newest", "raws", "start", "times")

    def __init__(self) -> None:
        self.held: list[Record] = []
        self.raws: list[Any] = []  # beside `held`: no object of its own for every event that passes
        self.times: list[int] = []  # Kafka timestamps of `held`, never falling: the least of what follows
        self.start = 0  # those before are given out
        self.arrived_ms = 0  # when the newest of them arrived
        self.newest: list[int] = []

    def __len__(self) -> int:
        return len(self.held) - self.start

    @property
    def read_ms(self) -> int | None:
        """Kafka timestamp that the input has been read past; None before the first record."""
        return min(self.newest) if self.newest else None

    def take(self, end: int) -> tuple[list[Record], list[Any]]:
        taken = self.held[self.start : end], self.raws[self.start : end]
        self.start = end
        if self.start == len(self.held):
            self.held, self.raws, self.times, self.start = [], [], [], 0
        elif self.start > 4096:
            del self.held[: self.start], self.raws[: self.start], self.times[: self.start]
            self.start = 0
        return taken


class InputMerge:
    """Merges the inputs of one partition number."""

    def __init__(self, most: Sequence[int] = MOST_HELD) -> None:
        self._inputs = tuple(_Input() for _ in range(_N))
        self._most = tuple(most)

    @property
    def held(self) -> int:
        """Events that wait."""
        return sum(len(one) for one in self._inputs)

    def is_full(self, modality: int) -> bool:
        """Whether an input runs so far ahead of the others that its partition should be paused."""
        return len(self._inputs[modality]) >= self._most[modality]

    def add(
        self, modality: int, events: Sequence[Record], raws: Sequence[Any], times_ms: Sequence[int], arrived_ms: int
    ) -> None:
        """Take events of one input in the order of its offsets.

        `raws`: the Kafka record of each; `times_ms`: the timestamps of these.
        """
        if not events:
            return
        one = self._inputs[modality]
        before = len(one.times)
        one.held += events
        one.raws += raws
        one.times += times_ms
        one.arrived_ms = arrived_ms
        one.newest = (one.newest + list(times_ms[-_NEWEST:]))[-_NEWEST:]
        new = list(times_ms)
        if new != sorted(new) or (before > one.start and one.times[before - 1] > new[0]):  # rare, and costs more
            self._level(one, before)

    @staticmethod
    def _level(one: _Input, first_new: int) -> None:
        """Make times never fall: a timestamp ahead of those that follow is of no use."""
        times, i = one.times, len(one.times) - 1
        least = times[i]
        while i > one.start:
            i -= 1
            if times[i] <= least:
                if i < first_new:
                    break
                least = times[i]
            else:
                times[i] = least

    def release(self, confirmed_ms: Sequence[int | None]) -> Iterator[Run]:
        """What may be windowed now, in order.

        `confirmed_ms`: per input, when the broker last confirmed that all it has was delivered; None where it was not.
        """
        inputs = self._inputs
        while True:
            heads = [one.times[one.start] if len(one) else None for one in inputs]
            known = [head for head in heads if head is not None]
            if not known:
                return
            time_ms = min(known)
            first = [m for m, head in enumerate(heads) if head == time_ms]
            if len(first) == 1:
                run = self._run(first[0], heads, confirmed_ms)
                if run is None:
                    return
                yield run
            else:
                if not all(self._passed(m, time_ms, self._arrived(first), confirmed_ms) for m in range(_N)):
                    return
                yield from self._tied(first, time_ms)

    def _arrived(self, modalities: Sequence[int]) -> int:
        return max(self._inputs[m].arrived_ms for m in modalities)

    def _passed(self, modality: int, time_ms: int, arrived_ms: int, confirmed_ms: Sequence[int | None]) -> bool:
        """Whether an input holds nothing more that was produced up to `time_ms`."""
        confirmed, read = confirmed_ms[modality], self._inputs[modality].read_ms
        return (
            (confirmed is not None and confirmed >= arrived_ms - _TOLERANCE_MS)
            or (read is not None and read > time_ms)
            or self.is_full(modality)
        )

    def _run(self, modality: int, heads: Sequence[int | None], confirmed_ms: Sequence[int | None]) -> Run | None:
        """As much of one input as comes before the heads of the others, and as they have been read past."""
        one = self._inputs[modality]
        end = len(one.held)
        for other in range(_N):
            if other == modality:
                continue
            head = heads[other]
            if head is not None:
                end = min(end, bisect_right(one.times, head - 1, one.start, end))
            confirmed, read = confirmed_ms[other], self._inputs[other].read_ms
            if (confirmed is not None and confirmed >= one.arrived_ms - _TOLERANCE_MS) or self.is_full(other):
                continue
            if read is None:
                return None
            end = min(end, bisect_right(one.times, read - 1, one.start, end))
        if end <= one.start:
            return None
        read_ms = one.times[end - 1]
        return Run(modality, *one.take(end), read_ms)

    def _tied(self, modalities: Sequence[int], time_ms: int) -> Iterator[Run]:
        """Events of several inputs with one timestamp: each stream's are aligned by their event times."""
        streams: dict[str, list[tuple[int, int, int, Record, Any]]] = {}
        for modality in modalities:
            one = self._inputs[modality]
            by_stream: dict[str, list[tuple[Record, Any]]] = {}
            for record, raw in zip(*one.take(bisect_right(one.times, time_ms, one.start)), strict=True):
                by_stream.setdefault(record.stream, []).append((record, raw))
            for stream, own in by_stream.items():
                place, aligned = LONG_AGO, streams.setdefault(stream, [])
                times = [record.event.time_ms for record, _ in own]
                following = times[:]  # the next event time that is another one
                for i in range(len(own) - 2, -1, -1):
                    following[i] = times[i + 1] if times[i + 1] != times[i] else following[i + 1]
                for i, (record, raw) in enumerate(own):
                    # events keep their order within an input; a single time from the future draws none along
                    place = max(place, min(times[i], following[i]))
                    aligned.append((place, modality, i, record, raw))
        for aligned in streams.values():
            aligned.sort(key=lambda entry: entry[:3])
            start = 0
            for i in range(1, len(aligned) + 1):
                if i == len(aligned) or aligned[i][1] != aligned[start][1]:
                    part = aligned[start:i]
                    yield Run(part[0][1], [entry[3] for entry in part], [entry[4] for entry in part], time_ms)
                    start = i
