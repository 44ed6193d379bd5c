"""Outputs of a harness on a real Kafka: sent as a worker sends them, and read back from the topics."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaConsumer, TopicPartition

from streams.events.topics import INPUTS
from streams.kafka.admin import SPECS
from streams.kafka.clients import new_consumer, new_producer
from streams.kafka.producer import Headers, KafkaOutputs
from streams.kafka.reader import partitions_of, readable
from streams.settings import Settings
from streams.testing.loop_thread import LoopThread
from streams.testing.outputs import Sent

_FETCH_WAIT_MS = 25  # a question waits for the fetch that is under way


class ReadBackOutputs:
    """`KafkaOutputs`, and what is in the output topics because of them. Its clients live in `thread`."""

    def __init__(self, settings: Settings, bootstrap: str, thread: LoopThread) -> None:
        self._settings = settings
        self._bootstrap = bootstrap
        self._thread = thread
        self._names = {settings.topic(spec.name): spec.name for spec in SPECS if spec.name not in INPUTS}
        self._outputs: KafkaOutputs | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._read: list[Sent] = []

    async def __aenter__(self) -> Self:
        await self._thread.run(self._open())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self._thread.run(self._read_on())  # it can be looked at afterwards, too
        await self._thread.run(self._close())

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        assert self._outputs is not None
        await self._thread.run(
            self._outputs.send(topic, value, key=key, headers=headers, partition=partition, timestamp_ms=timestamp_ms)
        )

    @property
    def sent(self) -> Sequence[Sent]:
        """Read to the end of the output topics; blocks until that is done."""
        if self._consumer is not None:
            self._thread.wait_for(self._read_on())
        return list(self._read)

    async def _open(self) -> None:
        settings, bootstrap = self._settings, self._bootstrap
        outputs = KafkaOutputs(
            new_producer(settings, bootstrap), settings.topic, new=lambda: new_producer(settings, bootstrap)
        )
        await outputs.start()
        self._outputs = outputs
        consumer = new_consumer(settings, bootstrap, fetch_max_wait_ms=_FETCH_WAIT_MS)
        await consumer.start()
        self._consumer = consumer
        partitions = await partitions_of(consumer, list(self._names))
        consumer.assign(partitions)
        for tp in partitions:
            consumer.seek(tp, 0)

    async def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()
        if self._outputs is not None:
            await self._outputs.stop()

    async def _read_on(self) -> None:
        consumer = self._consumer
        assert consumer is not None
        partitions: list[TopicPartition] = list(consumer.assignment())
        ends = await consumer.end_offsets(partitions)
        while left := [tp for tp in partitions if await consumer.position(tp) < ends[tp]]:
            for tp, records in (await consumer.getmany(*left, timeout_ms=500)).items():
                self._read += [
                    Sent(self._names[tp.topic], record.key, record.value, tuple(record.headers or ()))
                    for record in readable(records)
                ]
