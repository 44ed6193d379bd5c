"""Transactions on a real Kafka: only committed records are data, and control records hold nothing open."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from streams.kafka.admin import create_topics
from streams.kafka.clients import client_options
from streams.kafka.embedded import Broker
from streams.kafka.reader import end_offsets, read_all
from streams.settings import Settings
from tests.integration.support import service, settings_for, until

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="session")]


async def send_transactions(settings: Settings) -> None:
    """10 readings that are committed, 10 that are aborted for the same times, 20 that are committed."""
    assert settings.kafka is not None
    base = int(time.time() * 1000) // 10_000 * 10_000 - 3_600_000
    producer = AIOKafkaProducer(
        transactional_id=f"gateway-{uuid.uuid4().hex}", **client_options(settings, settings.kafka)
    )
    await producer.start()
    try:
        for seconds, flow, commit in ((range(10), 3.0, True), (range(10), 999.0, False), (range(10, 30), 3.0, True)):
            await producer.begin_transaction()
            for second in seconds:
                value = {"time": base + second * 1000, "values": {"flow": flow}}
                await producer.send(settings.topic("sensor-readings"), json.dumps(value).encode(), key=b"pump")
            await (producer.commit_transaction() if commit else producer.abort_transaction())
    finally:
        await producer.stop()


async def test_records_of_aborted_transactions_are_no_data_and_markers_hold_nothing_open(
    tmp_path: Path, broker: Broker
) -> None:
    settings = settings_for(tmp_path, broker)
    async with service(settings) as running:
        await send_transactions(settings)
        await until(lambda: running.worker.status.events >= 30, "the last windows, which only idleness closes")
        progress = running.worker.progress()
        ends = [(at.position, at.highwater) for at in progress.values() if at.position]
        assert [position for position, end in ends if position != end] == []
        assert sum(position for position, _ in ends) == 40 + 3  # with the markers
        assert running.worker.status.events == 30


async def test_the_reader_sees_committed_records_only(tmp_path: Path, broker: Broker) -> None:
    settings = settings_for(tmp_path, broker)
    assert settings.kafka is not None
    await create_topics(settings, settings.kafka)
    await send_transactions(settings)
    topic = settings.topic("sensor-readings")
    flows = [json.loads(r.value)["values"]["flow"] async for r in read_all(settings, settings.kafka, [topic])]
    assert flows == [3.0] * 30
    assert sum((await end_offsets(settings, settings.kafka, [topic])).values()) == 43
