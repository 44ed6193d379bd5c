"""Streams that lag, end and glitch, on a real Kafka: each gets what it gets alone, and commits reach the end."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition

from streams.events.topics import INPUTS
from streams.kafka.admin import create_topics
from streams.kafka.clients import new_consumer, new_producer
from streams.kafka.embedded import Broker
from streams.kafka.reader import end_offsets, read_all
from streams.settings import Settings
from tests.integration.support import QUICK, service, settings_for, until

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="session")]
SENSORS, _, CAPTIONS = INPUTS


@dataclass(frozen=True, order=True)
class Produced:
    """A record as its producer writes it. Kafka's timestamp is the time of production, not that of the event."""

    produced_ms: int
    topic: str
    stream: str
    value: bytes

    @property
    def time_ms(self) -> int:
        return int(json.loads(self.value)["time"])


def records(
    stream: str, base_ms: int, seconds: range, lag_ms: int, *, reading_s: int, caption_s: int
) -> list[Produced]:
    found = []
    for second in seconds:
        produced_ms = base_ms + second * 1000
        time_ms = produced_ms - lag_ms
        if second % reading_s == 0:
            value: dict[str, Any] = {"time": time_ms, "values": {"flow": 3.0 + second % 7 / 10, "temp": 50.0}}
            found.append(Produced(produced_ms, SENSORS, stream, json.dumps(value).encode()))
        if second % caption_s == 0:
            value = {"time": time_ms, "text": "all quiet" if second % 2 else "valve open"}
            found.append(Produced(produced_ms, CAPTIONS, stream, json.dumps(value).encode()))
    return found


def three_streams(base_ms: int) -> dict[str, list[Produced]]:
    """One on time with a reading from the future, one a minute behind, one two hours behind that ends early."""
    prompt = records("prompt", base_ms, range(300), 0, reading_s=1, caption_s=5)
    glitch_ms = base_ms + 60_500
    glitch = {"time": glitch_ms + 200_000, "values": {"flow": 3.1, "temp": 50.0}}
    prompt.append(Produced(glitch_ms, SENSORS, "prompt", json.dumps(glitch).encode()))
    return {
        "prompt": prompt,
        "behind": records("behind", base_ms, range(300), 60_000, reading_s=1, caption_s=1_000),
        "far": records("far", base_ms, range(150), 7_200_000, reading_s=2, caption_s=15),
    }


async def send(settings: Settings, produced: Iterable[Produced]) -> None:
    assert settings.kafka is not None
    producer = new_producer(settings, settings.kafka)
    await producer.start()
    try:
        for record in sorted(produced):
            await producer.send(
                settings.topic(record.topic), record.value, key=record.stream.encode(), timestamp_ms=record.produced_ms
            )
        await producer.flush()
    finally:
        await producer.stop()


async def lag(settings: Settings) -> dict[TopicPartition, int]:
    """Records that are not committed, of every input partition that has some."""
    assert settings.kafka is not None
    ends = await end_offsets(settings, settings.kafka, [settings.topic(name) for name in INPUTS])
    consumer = new_consumer(settings, settings.kafka, group_id=settings.topic_prefix + settings.group)
    await consumer.start()
    try:
        left = {tp: end - (await consumer.committed(tp) or 0) for tp, end in ends.items()}
        return {tp: count for tp, count in left.items() if count}
    finally:
        await consumer.stop()


async def published(settings: Settings, topic: str) -> list[bytes]:
    assert settings.kafka is not None
    return [r.value or b"" async for r in read_all(settings, settings.kafka, [settings.topic(topic)])]


@dataclass(frozen=True)
class Outcome:
    """By stream: the newest message of each window, and incident steps in order; and all that was set aside."""

    windows: dict[str, dict[int, bytes]]
    steps: dict[str, list[bytes]]
    aside: list[bytes]


async def prepared(settings: Settings, streams: dict[str, list[Produced]]) -> Settings:
    """Topics with everything in them, before any worker reads."""
    assert settings.kafka is not None
    await create_topics(settings, settings.kafka)
    await send(settings, [record for produced in streams.values() for record in produced])
    return settings


async def closed(settings: Settings, streams: Iterable[str]) -> Outcome:
    """What there is when everything is committed."""
    async with service(settings):

        async def all_committed() -> bool:
            return await lag(settings) == {}

        await until(all_committed, "commits at the end of every input", 120)
    windows: dict[str, dict[int, bytes]] = {name: {} for name in streams}
    for value in await published(settings, "windows"):
        window = json.loads(value)
        windows[window["stream"]][window["start_ms"]] = value
    steps: dict[str, list[bytes]] = {name: [] for name in streams}
    for value in await published(settings, "incidents"):
        event = json.loads(value)
        if event["type"].startswith("sensorium.incident."):
            steps[event["data"]["stream"]].append(value)
    aside = [*await published(settings, "late-events"), *await published(settings, "dead-letters")]
    return Outcome(windows, steps, aside)


def passed_by_own_clock(produced: list[Produced], glitch_ms: int) -> set[int]:
    """Starts of the windows whose end the newest of a stream's events has passed by its disorder of 2 s."""
    times = [record.time_ms for record in produced if record.time_ms != glitch_ms]
    return {time_ms // 10_000 * 10_000 for time_ms in times if time_ms // 10_000 * 10_000 + 12_000 <= max(times)}


async def test_every_stream_among_others_is_what_it_is_alone(tmp_path: Path, broker: Broker) -> None:
    base_ms = int(time.time() * 1000) // 10_000 * 10_000 - 3_600_000
    streams = three_streams(base_ms)
    nothing_is_quiet = {"idle_timeout_ms": 600_000}
    settings = await prepared(settings_for(tmp_path, broker, partitions=1, window=nothing_is_quiet), streams)
    passed = {name: passed_by_own_clock(produced, base_ms + 260_500) for name, produced in streams.items()}
    async with service(settings):

        async def fired() -> bool:
            found: dict[str, set[int]] = {name: set() for name in streams}
            for value in await published(settings, "windows"):
                found[json.loads(value)["stream"]].add(json.loads(value)["start_ms"])
            return found == passed

        await until(fired, "every window that its own stream's clock has passed, and no other", 120)

    quick = settings.window.model_copy(update=QUICK)
    together = await closed(settings.model_copy(update={"window": quick}), streams)
    assert together.aside == []
    for name, produced in streams.items():
        expected = Counter((record.time_ms // 10_000 * 10_000, record.topic) for record in produced)
        windows = {start: json.loads(value) for start, value in together.windows[name].items()}
        assert set(windows) == {start for start, _ in expected}
        for start, window in windows.items():
            counts = {"sensor": expected[start, SENSORS], "caption": expected[start, CAPTIONS]}
            assert window["events"] == {modality: count for modality, count in counts.items() if count}
            assert window["revision"] == 0
        of_its_own = settings_for(tmp_path / name, broker, partitions=1)
        alone = await closed(await prepared(of_its_own, {name: produced}), [name])
        assert together.windows[name] == alone.windows[name]
        assert together.steps[name] == alone.steps[name]
