"""Reading topics from the side: everything that is in them now, or everything from here on. No group, no commits.

Records that cannot be unpacked are named in the log, one line each, and left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from streams.events.types import RawRecord
from streams.kafka.clients import new_consumer
from streams.kafka.unpacking import UnreadableRecord
from streams.settings import Settings

log = structlog.get_logger(__name__)


async def partitions_of(consumer: AIOKafkaConsumer, topics: Sequence[str]) -> list[TopicPartition]:
    """All partitions of topics that exist."""
    await consumer._client.set_topics(topics)
    found = []
    for topic in topics:
        numbers = consumer.partitions_for_topic(topic) or set()
        found += [TopicPartition(topic, number) for number in sorted(numbers)]
    return found


async def end_offsets(settings: Settings, bootstrap: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
    """Where each partition ends now."""
    consumer = new_consumer(settings, bootstrap)
    await consumer.start()
    try:
        offsets: dict[TopicPartition, int] = await consumer.end_offsets(await partitions_of(consumer, topics))
        return offsets
    finally:
        await consumer.stop()


async def read_all(
    settings: Settings, bootstrap: str, topics: Sequence[str], until: Mapping[TopicPartition, int] | None = None
) -> AsyncIterator[ConsumerRecord]:
    """Every record that is in the topics now (or before `until`), partition by partition as they come, then the end."""
    consumer = new_consumer(settings, bootstrap)
    await consumer.start()
    try:
        partitions = await partitions_of(consumer, topics)
        ends = await consumer.end_offsets(partitions) if until is None else until
        begins = await consumer.beginning_offsets(partitions)
        consumer.assign(partitions)
        left = {tp for tp in partitions if ends[tp] > begins[tp]}
        while left:
            for records in (await consumer.getmany(*left, timeout_ms=500)).values():
                for record in readable(records):
                    if record.offset < ends[tp_of(record)]:
                        yield record
            for tp in list(left):
                # what is last may be compacted away or a control record: the position decides
                if await consumer.position(tp) >= ends[tp]:
                    left.discard(tp)
    finally:
        await consumer.stop()


def readable(records: Sequence[ConsumerRecord | UnreadableRecord]) -> list[ConsumerRecord]:
    """Those that could be unpacked; the others are logged."""
    found = []
    for record in records:
        if isinstance(record, UnreadableRecord):
            log.warning(
                "unreadable record",
                topic=record.topic,
                partition=record.partition,
                offset=record.first_offset,
                detail=record.detail,
            )
        else:
            found.append(record)
    return found


def tp_of(record: ConsumerRecord) -> TopicPartition:
    """The partition that a record is in."""
    return TopicPartition(record.topic, record.partition)


async def follow(
    settings: Settings, bootstrap: str, start: Mapping[TopicPartition, int], stop: asyncio.Event
) -> AsyncIterator[list[ConsumerRecord]]:
    """Batches of records from `start` on, until `stop`."""
    consumer = new_consumer(settings, bootstrap)
    await consumer.start()
    try:
        consumer.assign(list(start))
        for tp, offset in start.items():
            consumer.seek(tp, offset)
        while not stop.is_set():
            for records in (await consumer.getmany(timeout_ms=250)).values():
                yield readable(records)
    finally:
        await consumer.stop()


def raw_record(record: Any) -> RawRecord:
    """An aiokafka record (or a `RawRecord`) as ours; of an `UnreadableRecord` what could be obtained of it."""
    if isinstance(record, RawRecord):
        return record
    if isinstance(record, UnreadableRecord):
        return record.raw
    return RawRecord(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp,
        key=record.key,
        value=record.value,
        headers=tuple(record.headers or ()),
    )
