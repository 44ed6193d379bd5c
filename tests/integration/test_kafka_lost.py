"""Records that are deleted before they are read, on a real Kafka: named and counted, and reading goes on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import pytest_asyncio
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete

from streams.kafka.admin import create_topics, describe_topics
from streams.kafka.embedded import Broker
from streams.kafka.progress import Start
from streams.serving.doctor import examine
from streams.settings import Settings
from tests.integration.support import service, settings_for, until
from tests.integration.test_kafka import committed, send_readings

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(loop_scope="session")
async def settings(tmp_path: Path, broker: Broker) -> Settings:
    return settings_for(tmp_path, broker, partitions=1)


async def delete_before(settings: Settings, admin: AIOKafkaAdminClient, offset: int) -> None:
    tp = TopicPartition(settings.topic("sensor-readings"), 0)
    await admin.delete_records({tp: RecordsToDelete(before_offset=offset)})


async def all_committed(settings: Settings, offset: int) -> bool:
    return (await committed(settings, "sensor-readings"))[0] == offset


async def test_what_was_deleted_while_no_worker_ran_is_named_and_counted(
    settings: Settings, admin: AIOKafkaAdminClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streams.serving.worker import Worker

    async with service(settings):
        await send_readings(settings, range(13), streams=1)
        await until(lambda: all_committed(settings, 13), "commits of what was read")
    await send_readings(settings, range(13, 130), streams=1)
    await delete_before(settings, admin, 120)
    given: list[Mapping[tuple[str, int], Start]] = []
    assigned = Worker.assigned

    async def noted(worker: Worker, starts: Mapping[tuple[str, int], Start]) -> None:
        given.append(starts)
        await assigned(worker, starts)

    monkeypatch.setattr(Worker, "assigned", noted)
    topic = settings.topic("sensor-readings")
    with caplog.at_level(logging.WARNING):
        async with service(settings) as running:
            await until(lambda: all_committed(settings, 130), "commits of what was left")
            assert running.worker.metrics.lost.labels(topic, "0")._value.get() == 107
            assert running.worker.status.events == 10
    assert given[0][topic, 0] == Start(offset=120, committed=13)
    assert given[0][settings.topic("captions"), 0] == Start(offset=0, committed=None)
    (line,) = [line for line in caplog.messages if "are lost" in line]
    assert line.startswith(f"107 records of {topic}/0 are lost")
    assert "offsets 13 to 119" in line


async def test_what_is_deleted_under_a_worker_that_is_behind_is_named_and_counted(
    settings: Settings, admin: AIOKafkaAdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    topic = settings.topic("sensor-readings")
    with caplog.at_level(logging.WARNING):
        async with service(settings) as running:
            await send_readings(settings, range(20), streams=1)
            await until(lambda: all_committed(settings, 20), "commits of what was read")
            # held back, as in a replay; what aiokafka has fetched by now is the last that it can have
            running.worker._pause = lambda: None  # type: ignore[method-assign]
            running.worker.app.pause([(topic, 0)], [])
            await send_readings(settings, range(20, 40), streams=1)
            fetched = running.worker.app.consumer._thread._consumer._fetcher._records
            await until(lambda: TopicPartition(topic, 0) in fetched, "the last fetch")
            await send_readings(settings, range(40, 80), streams=1)
            await delete_before(settings, admin, 60)
            running.worker.app.pause([], [(topic, 0)])
            await until(lambda: all_committed(settings, 80), "commits of what was left")
            lost = int(running.worker.metrics.lost.labels(topic, "0")._value.get())
            assert 20 <= lost < 40
            assert running.worker.status.events == 80 - lost
    (line,) = [line for line in caplog.messages if "are lost" in line]
    assert line.startswith(f"{lost} records of {topic}/0 are lost")
    assert f"offsets {60 - lost} to 59" in line


async def test_topics_that_forget_what_is_not_read_yet_are_warned_of(
    settings: Settings, admin: AIOKafkaAdminClient
) -> None:
    assert settings.kafka is not None
    policies = {"sensor-readings": {"cleanup.policy": "compact"}, "captions": {"retention.ms": "60000"}}
    await admin.create_topics(
        [NewTopic(settings.topic(name), 1, 1, topic_configs=config) for name, config in policies.items()]
    )
    await create_topics(settings, settings.kafka)
    warnings = {s.spec.name: s.warning for s in await describe_topics(settings, settings.kafka) if s.warning}
    assert warnings.keys() == policies.keys()
    assert "cleanup.policy=compact" in warnings["sensor-readings"]
    assert "retention.ms=60000" in warnings["captions"]
    (finding,) = [finding for finding in await examine(settings) if finding.part == "topics"]
    assert finding.level == "warning"
    assert "cleanup.policy=compact" in finding.text
    assert "retention.ms=60000" in finding.text
