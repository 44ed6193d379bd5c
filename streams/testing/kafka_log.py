"""The input topics of a harness on a real Kafka: produced to, read and committed as outside clients do it.

Positions, ends and committed offsets are the broker's. Reading is by a consumer with manual assignment, a new one
after every crash and rebalance; it makes no use of a group but for its committed offsets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from streams.events.topics import INPUTS
from streams.kafka.admin import topic_ids
from streams.kafka.clients import new_consumer, new_producer
from streams.kafka.progress import InputProgress, Start, start_at
from streams.kafka.reader import partitions_of, read_all
from streams.settings import Settings
from streams.testing.kafka_topics import HarnessTopics
from streams.testing.logs import Input, LogRecord
from streams.testing.loop_thread import LoopThread

_FETCH_WAIT_MS = 25  # a record waits so long for a fetch of another partition that found nothing


class KafkaLog:
    """An `InputLog` on the topics of `settings`, which are made on entering and deleted on leaving."""

    def __init__(self, settings: Settings, bootstrap: str, partitions: int, thread: LoopThread) -> None:
        self._settings = settings
        self._bootstrap = bootstrap
        self._partitions = partitions
        self._thread = thread
        self._topics = HarnessTopics(settings, bootstrap, partitions)
        self._group = settings.topic_prefix + settings.group
        self._producer: AIOKafkaProducer | None = None
        self._consumer: AIOKafkaConsumer | None = None
        # for questions: a broker answers a connection in order, and the reader's waits in a fetch most of the time
        self._asking: AIOKafkaConsumer | None = None
        self._positions: dict[Input, int] = {}
        self._delivered: dict[Input, int] = {}  # one past the last record read, control records not counted
        self._ends: dict[Input, int] = {}

    async def __aenter__(self) -> Self:
        try:
            await self._thread.run(self._open())
        except BaseException:
            await self._thread.run(self._close())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._thread.run(self._close())

    # -- what others do to the topics ----------------------------------------------------------------------------

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
        producer, full = self._producer, self._settings.topic(topic)
        assert producer is not None
        sent = await self._thread.run(
            producer.send_and_wait(
                full, value, key=key, partition=number, timestamp_ms=timestamp_ms, headers=list(headers)
            )
        )
        return LogRecord(full, number, sent.offset, timestamp_ms, key, value, tuple(headers))

    def delete_records(self, topic: str, number: int, before_offset: int) -> None:
        self._thread.wait_for(self._delete_records(topic, number, before_offset))

    def recreate_topic(self, topic: str) -> None:
        self._thread.wait_for(self._recreate_topic(topic))

    def records(self, topic: str, number: int) -> list[LogRecord]:
        return self._thread.wait_for(self._records(topic, number))

    async def topic_ids(self) -> dict[str, str]:
        found = await self._thread.run(topic_ids(self._settings, self._bootstrap))
        return {topic: found[self._settings.topic(topic)] for topic in INPUTS}

    # -- reading -------------------------------------------------------------------------------------------------

    async def assign(self, numbers: Iterable[int]) -> dict[Input, Start]:
        return await self._thread.run(self._assign(list(numbers)))

    async def look(self) -> None:
        await self._thread.run(self._look())

    def unread(self) -> list[Input]:
        return [tp for tp, position in self._positions.items() if position < self._ends[tp]]

    async def read(self, topic: str, number: int, most: int) -> Sequence[Any]:
        return await self._thread.run(self._read((topic, number), most))

    def progress(self, topic: str, number: int) -> InputProgress | None:
        tp = (topic, number)
        position = self._positions.get(tp)
        return None if position is None else InputProgress(position, self._ends[tp], 0, self._delivered[tp])

    # -- offsets -------------------------------------------------------------------------------------------------

    def commit(self, offsets: Mapping[Input, int]) -> None:
        if offsets:
            self._thread.wait_for(self._commit(offsets))

    def committed(self) -> dict[Input, int]:
        return self._thread.wait_for(self._committed())

    def ends(self) -> dict[Input, int]:
        return self._thread.wait_for(self._end_offsets(self._inputs()))

    # -- in the thread -------------------------------------------------------------------------------------------

    def _inputs(self) -> list[Input]:
        return [(topic, number) for number in range(self._partitions) for topic in INPUTS]

    def _tp(self, tp: Input) -> TopicPartition:
        return TopicPartition(self._settings.topic(tp[0]), tp[1])

    def _reader(self) -> AIOKafkaConsumer:
        assert self._consumer is not None
        return self._consumer

    def _asker(self) -> AIOKafkaConsumer:
        assert self._asking is not None
        return self._asking

    async def _open(self) -> None:
        await self._topics.create()
        await self._new_producer()
        self._asking = new_consumer(self._settings, self._bootstrap, group_id=self._group)
        await self._asking.start()
        await partitions_of(self._asking, [self._settings.topic(topic) for topic in INPUTS])  # it must know them

    async def _new_producer(self) -> None:
        """One that knows nothing of topics that were there before."""
        if self._producer is not None:
            await self._producer.stop()
        self._producer = new_producer(self._settings, self._bootstrap, linger_ms=0)
        await self._producer.start()

    async def _close(self) -> None:
        for client in (self._consumer, self._asking, self._producer):
            if client is not None:
                await client.stop()
        await self._topics.delete()

    async def _delete_records(self, topic: str, number: int, before_offset: int) -> None:
        await self._topics.delete_records(topic, number, before_offset)
        tp = (topic, number)
        if self._positions.get(tp, before_offset) < before_offset:  # what was fetched of them is gone, too
            self._reader().seek(self._tp(tp), before_offset)
            self._positions[tp] = before_offset

    async def _recreate_topic(self, topic: str) -> None:
        await self._topics.recreate(topic)
        await self._new_producer()

    async def _records(self, topic: str, number: int) -> list[LogRecord]:
        full = self._settings.topic(topic)
        return [
            LogRecord(full, number, r.offset, r.timestamp, r.key, r.value, tuple(r.headers or ()))
            async for r in read_all(self._settings, self._bootstrap, [full])
            if r.partition == number
        ]

    async def _assign(self, numbers: Sequence[int]) -> dict[Input, Start]:
        self._positions, self._ends = {}, {}
        if self._consumer is not None:
            await self._consumer.stop()
        consumer = self._consumer = new_consumer(
            self._settings, self._bootstrap, group_id=self._group, fetch_max_wait_ms=_FETCH_WAIT_MS
        )
        await consumer.start()
        assigned = [(topic, number) for number in numbers for topic in INPUTS]
        committed = await self._committed()
        begins = await self._asker().beginning_offsets([self._tp(tp) for tp in assigned])
        ends = await self._end_offsets(assigned)
        starts = {tp: start_at(committed.get(tp), begins[self._tp(tp)], ends[tp]) for tp in assigned}
        consumer.assign([self._tp(tp) for tp in assigned])
        for tp, start in starts.items():
            consumer.seek(self._tp(tp), start.offset)
        self._positions, self._ends = {tp: start.offset for tp, start in starts.items()}, ends
        self._delivered = dict(self._positions)
        return starts

    async def _look(self) -> None:
        self._ends = await self._end_offsets(list(self._positions))

    async def _end_offsets(self, inputs: Sequence[Input]) -> dict[Input, int]:
        ends = await self._asker().end_offsets([self._tp(tp) for tp in inputs])
        return {tp: ends[self._tp(tp)] for tp in inputs}

    async def _read(self, tp: Input, most: int) -> Sequence[Any]:
        asked = self._tp(tp)
        found = await self._reader().getmany(asked, timeout_ms=1_000, max_records=most)
        self._positions[tp] = await self._reader().position(asked)
        records: Sequence[Any] = found.get(asked, [])
        if records:
            self._delivered[tp] = records[-1].offset + 1
        return records

    async def _commit(self, offsets: Mapping[Input, int]) -> None:
        await self._reader().commit({self._tp(tp): OffsetAndMetadata(offset, "") for tp, offset in offsets.items()})

    async def _committed(self) -> dict[Input, int]:
        found = {tp: await self._asker().committed(self._tp(tp)) for tp in self._inputs()}
        return {tp: offset for tp, offset in found.items() if offset is not None}
