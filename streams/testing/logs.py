"""The input topics of a harness: what it asks of them, and logs in memory that do it as Kafka would."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from streams.events.topics import INPUTS
from streams.kafka.progress import InputProgress, Start, start_at
from streams.testing.outputs import Sent

Input = tuple[str, int]  # short name of an input topic, partition number


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A record of an input topic, with the attributes of an aiokafka record. `topic`: the full name."""

    topic: str
    partition: int
    offset: int
    timestamp: int  # ms
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class InputLog(Protocol):
    """Input topics and one group's committed offsets. What is not a coroutine may block until the broker answers."""

    async def append(
        self,
        topic: str,
        number: int,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]],
        timestamp_ms: int,
    ) -> LogRecord:
        """Returns when the record is acknowledged."""
        ...

    async def topic_ids(self) -> Mapping[str, str]:
        """By short name: what tells a topic from another one that had its name before."""
        ...

    async def assign(self, numbers: Iterable[int]) -> dict[Input, Start]:
        """Read these partition numbers of every input from now on, from the committed offsets, and no other."""
        ...

    async def look(self) -> None:
        """Ask where the assigned inputs end now; `unread` and `progress` go by the last answer."""
        ...

    def unread(self) -> list[Input]:
        """Assigned inputs that hold more than was read."""
        ...

    async def read(self, topic: str, number: int, most: int) -> Sequence[Any]:
        """The next records, up to so many. None of them: what was there is nothing that a consumer is given."""
        ...

    def progress(self, topic: str, number: int) -> InputProgress | None:
        """Where reading stands; None: not assigned."""
        ...

    def commit(self, offsets: Mapping[Input, int]) -> None:
        """Commit offsets of assigned inputs."""
        ...

    def committed(self) -> dict[Input, int]:
        """Of every input that has a committed offset."""
        ...

    def ends(self) -> dict[Input, int]:
        """One past the last record of every input."""
        ...

    def records(self, topic: str, number: int) -> list[LogRecord]:
        """All that an input holds now."""
        ...

    def delete_records(self, topic: str, number: int, before_offset: int) -> None:
        """What retention does."""
        ...

    def recreate_topic(self, topic: str) -> None:
        """Delete a topic and make it anew, empty."""
        ...


class MemoryLog:
    """Logs in memory, by the semantics of Kafka that the service relies on."""

    def __init__(self, partitions: int, now_ms: Callable[[], int], full_name: Callable[[str], str] = str) -> None:
        """`now_ms`: the timestamp of records that come without one."""
        self._partitions = partitions
        self._now_ms = now_ms
        self._full_name = full_name
        self._logs: dict[Input, list[LogRecord]] = {
            (topic, number): [] for topic in INPUTS for number in range(partitions)
        }
        self._begins = dict.fromkeys(self._logs, 0)  # the first offset that is left
        self._versions = dict.fromkeys(INPUTS, 1)
        self._committed: dict[Input, int] = {}
        self._positions: dict[Input, int] = {}

    async def append(
        self,
        topic: str,
        number: int,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]],
        timestamp_ms: int,
    ) -> LogRecord:
        return self._append(topic, number, timestamp_ms, key, value, headers)

    def reproduced(self, sent: Sent, number: int, timestamp_ms: int | None) -> None:
        """A record that the service itself sent to an input."""
        timestamp = self._now_ms() if timestamp_ms is None else timestamp_ms
        self._append(sent.topic, number, timestamp, sent.key, sent.value, sent.headers)

    def _append(
        self,
        topic: str,
        number: int,
        timestamp_ms: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]],
    ) -> LogRecord:
        log = self._logs[topic, number]
        record = LogRecord(self._full_name(topic), number, len(log), timestamp_ms, key, value, tuple(headers))
        log.append(record)
        return record

    async def topic_ids(self) -> dict[str, str]:
        return {topic: f"{topic}-{version}" for topic, version in self._versions.items()}

    async def assign(self, numbers: Iterable[int]) -> dict[Input, Start]:
        assigned = [(topic, number) for number in numbers for topic in INPUTS]
        starts = {tp: start_at(self._committed.get(tp), self._begins[tp], len(self._logs[tp])) for tp in assigned}
        self._positions = {tp: start.offset for tp, start in starts.items()}
        return starts

    async def look(self) -> None:
        return

    def unread(self) -> list[Input]:
        return [tp for tp, position in self._positions.items() if position < len(self._logs[tp])]

    async def read(self, topic: str, number: int, most: int) -> list[LogRecord]:
        tp = (topic, number)
        position = max(self._positions[tp], self._begins[tp])
        batch = self._logs[tp][position : position + most]
        self._positions[tp] = position + len(batch)
        return batch

    def progress(self, topic: str, number: int) -> InputProgress | None:
        position = self._positions.get((topic, number))
        return None if position is None else InputProgress(position, len(self._logs[topic, number]), 0, position)

    def commit(self, offsets: Mapping[Input, int]) -> None:
        self._committed.update(offsets)

    def committed(self) -> dict[Input, int]:
        return dict(self._committed)

    def ends(self) -> dict[Input, int]:
        return {tp: len(log) for tp, log in self._logs.items()}

    def records(self, topic: str, number: int) -> list[LogRecord]:
        return self._logs[topic, number][self._begins[topic, number] :]

    def delete_records(self, topic: str, number: int, before_offset: int) -> None:
        self._begins[topic, number] = max(self._begins[topic, number], before_offset)

    def recreate_topic(self, topic: str) -> None:
        self._versions[topic] += 1
        for number in range(self._partitions):
            self._logs[topic, number].clear()
            self._begins[topic, number] = 0
            self._committed.pop((topic, number), None)
