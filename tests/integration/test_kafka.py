"""The service on a real Kafka: commits, bad input, restarts of the broker, rebalances."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition

from streams.events.topics import TOPICS
from streams.kafka.clients import new_consumer, new_producer
from streams.kafka.dlq import read_letters, retry_letters
from streams.kafka.embedded import Broker
from streams.settings import Settings
from tests.bad_inputs import AUDIO, BAD_INPUTS
from tests.integration.support import QUICK, service, settings_for, until

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="session")]


async def committed(settings: Settings, name: str) -> dict[int, int]:
    """Committed offsets of an input topic, by partition."""
    assert settings.kafka is not None
    consumer = new_consumer(settings, settings.kafka, group_id=settings.topic_prefix + settings.group)
    await consumer.start()
    try:
        tps = [TopicPartition(settings.topic(name), n) for n in range(settings.partitions)]
        return {tp.partition: await consumer.committed(tp) or 0 for tp in tps}
    finally:
        await consumer.stop()


async def send_readings(settings: Settings, seconds: range, streams: int = 5) -> int:
    """One reading a second for each stream; returns how many."""
    assert settings.kafka is not None
    base = int(time.time() * 1000) // 10_000 * 10_000 - 3_600_000
    producer = new_producer(settings, settings.kafka)
    await producer.start()
    try:
        for second in seconds:
            for stream in range(streams):
                value = {"time": base + second * 1000, "values": {"flow": 3.0 + second % 7 / 10, "temp": 50.0}}
                topic = settings.topic("sensor-readings")
                await producer.send(topic, json.dumps(value).encode(), key=f"pump-{stream}".encode())
        await producer.flush()
    finally:
        await producer.stop()
    return len(seconds) * streams


async def test_everything_is_windowed_and_committed_to_the_end(tmp_path: Path, broker: Broker) -> None:
    settings = settings_for(tmp_path, broker)
    async with service(settings) as running:
        sent = await send_readings(settings, range(300))
        await until(lambda: running.worker.status.events == sent, "all events in windows")

        async def all_committed() -> bool:
            return sum((await committed(settings, "sensor-readings")).values()) == sent

        await until(all_committed, "every offset committed: has Faust changed what the transport relies on?")


async def test_every_kind_of_bad_input_is_set_aside_with_its_reason_and_harms_nothing(
    tmp_path: Path, broker: Broker
) -> None:
    settings = settings_for(tmp_path, broker, audio=AUDIO, window=QUICK | {"max_clock_skew_ms": 10**11})
    assert settings.kafka is not None
    async with service(settings) as running:
        sent = await send_readings(settings, range(60))
        producer = new_producer(settings, settings.kafka, max_request_size=70_000_000)
        await producer.start()
        for bad in BAD_INPUTS:
            value = bad.value() if callable(bad.value) else bad.value
            await producer.send_and_wait(settings.topic(bad.topic), value, key=bad.key, headers=list(bad.headers))
        await producer.stop()
        sent += await send_readings(settings, range(60, 120))

        async def all_aside() -> bool:
            return len(await read_letters(settings, late=False)) == len(BAD_INPUTS)

        await until(all_aside, "one dead letter for each bad input", 120)
        await until(lambda: running.worker.status.events >= sent, "the rest of the traffic in windows")
        letters = await read_letters(settings, late=False)
        assert sorted(letter.reason for letter in letters) == sorted(bad.reason.value for bad in BAD_INPUTS)
        originals = {bad.value() if callable(bad.value) else bad.value for bad in BAD_INPUTS}
        assert {letter.value for letter in letters} == originals

        async def moved_on() -> bool:
            ends = [sum((await committed(settings, name)).values()) for name in TOPICS.values()]
            return sum(ends) == sent + len(BAD_INPUTS)

        await until(moved_on, "commits past everything that was set aside")


async def test_a_letter_that_is_retried_comes_round_again(tmp_path: Path, broker: Broker) -> None:
    settings = settings_for(tmp_path, broker)
    assert settings.kafka is not None
    async with service(settings):
        producer = new_producer(settings, settings.kafka)
        await producer.start()
        await producer.send_and_wait(settings.topic("captions"), b'{"text": 5}', key=b"pump")
        await producer.stop()

        async def letters(count: int) -> bool:
            return len(await read_letters(settings, late=False)) == count

        await until(lambda: letters(1), "the dead letter")
        (letter,) = await read_letters(settings, late=False)
        assert await retry_letters(settings, origin=letter.origin, reason=None, late=False) == 1
        await until(lambda: letters(2), "the same record refused again")
        again = (await read_letters(settings, late=False))[-1].letter
        assert (again.value, again.retries, again.first_seen_ms) == (
            letter.value,
            1,
            letter.letter.first_seen_ms,
        )


async def test_a_worker_that_comes_takes_partitions_over_and_nothing_is_lost(tmp_path: Path, broker: Broker) -> None:
    first = settings_for(tmp_path, broker)
    second = first.model_copy(update={"state": tmp_path / "second", "store": f"edge:{tmp_path / 'second-store'}"})
    async with service(first) as one:
        sent = await send_readings(first, range(100), streams=12)
        await until(lambda: one.worker.status.events > 0, "the first windows")
        async with service(second) as two:
            await until(lambda: two.worker.pipeline.ingest.partitions, "partitions of its own")
            await until(lambda: len(one.worker.pipeline.ingest.partitions) == 2, "two partitions left for the first")
            sent += await send_readings(first, range(100, 200), streams=12)
            await until(lambda: one.worker.status.events + two.worker.status.events >= sent, "everything in windows")
        await until(lambda: len(one.worker.pipeline.ingest.partitions) == 4, "all partitions back")

        async def all_committed() -> bool:
            return sum((await committed(first, "sensor-readings")).values()) == sent

        await until(all_committed, "everything committed")


async def test_the_service_outlives_a_broker_that_is_killed_twice(
    kafka_jars: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Broker(tmp_path / "own") as own:
        settings = settings_for(tmp_path, own)
        async with service(settings) as running:
            sent = await send_readings(settings, range(50))
            await until(lambda: running.worker.status.events == sent, "windows before")
            with caplog.at_level(logging.WARNING):
                for round in (1, 2):
                    own.kill()
                    await own.start()
                    sent += await send_readings(settings, range(50 * round, 50 * round + 50))
                    await until(lambda sent=sent: running.worker.status.events == sent, "windows after a restart", 90)

            async def all_committed() -> bool:
                return sum((await committed(settings, "sensor-readings")).values()) == sent

            await until(all_committed, "everything committed")


async def test_a_worker_reports_whether_it_is_ready_and_what_it_did(tmp_path: Path, broker: Broker) -> None:
    import httpx

    settings = settings_for(tmp_path, broker)
    async with service(settings) as running, httpx.AsyncClient(base_url=running.url, trust_env=False) as http:

        async def ready() -> bool:
            return (await http.get("/readyz")).status_code == 200

        await until(ready, "readiness")
        sent = await send_readings(settings, range(30))
        await until(lambda: running.worker.status.events == sent, "windows")
        assert (await http.get("/healthz")).status_code == 200
        metrics = (await http.get("/metrics")).text
        topic = settings.topic("sensor-readings")
        assert f'sensorium_events_total{{outcome="windowed",topic="{topic}"}} {float(sent)}' in metrics
        streams: list[dict[str, Any]] = (await http.get("/v1/streams")).json()
        assert [row["windows"] for row in streams] == [3] * 5
        found = (await http.get("/v1/search", params={"text": "pump"})).json()
        assert len(found) == 10
