"""Input topics that change under a running worker, on a real Kafka: no restart is needed, and nothing ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka.admin import NewPartitions

from streams.events.topics import INPUTS
from streams.kafka.admin import create_topics, describe_topics
from streams.kafka.clients import open_admin
from streams.kafka.embedded import Broker
from tests.integration.support import service, settings_for, until
from tests.integration.test_kafka import committed, send_readings

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="session")]


async def test_partitions_that_are_added_are_read_within_a_minute(tmp_path: Path, broker: Broker) -> None:
    settings = settings_for(tmp_path, broker)
    async with service(settings) as running:
        await until(lambda: len(running.worker.pipeline.ingest.partitions) == 4, "the partitions there are")
        admin = await open_admin(settings, broker.bootstrap)
        await admin.create_partitions({settings.topic(name): NewPartitions(6) for name in INPUTS})
        await admin.close()
        await until(lambda: len(running.worker.pipeline.ingest.partitions) == 6, "the partitions that were added", 60)
        sent = await send_readings(settings, range(20), streams=12)
        await until(lambda: running.worker.status.events == sent, "readings of all partitions in windows")


async def test_an_input_that_is_deleted_and_made_anew_does_not_end_the_worker(tmp_path: Path, broker: Broker) -> None:
    settings = settings_for(tmp_path, broker)
    async with service(settings) as running:
        sent = await send_readings(settings, range(20))
        await until(lambda: running.worker.status.events == sent, "windows before")
        admin = await open_admin(settings, broker.bootstrap)
        await admin.delete_topics([settings.topic("captions")])
        await admin.close()
        await until(
            lambda: not running.worker.pipeline.ingest.partitions, "partitions that cannot be read are given up"
        )
        await create_topics(settings, broker.bootstrap)
        await until(lambda: len(running.worker.pipeline.ingest.partitions) == 4, "the partitions again")
        sent += await send_readings(settings, range(20, 40))

        async def all_committed() -> bool:
            return sum((await committed(settings, "sensor-readings")).values()) == sent

        await until(all_committed, "commits of everything")
        assert all(state.partitions for state in await describe_topics(settings, broker.bootstrap))
