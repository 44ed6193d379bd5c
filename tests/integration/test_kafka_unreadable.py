"""Compressed batches are read everywhere; what cannot be unpacked is set aside and stops nothing, on a real Kafka."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from pathlib import Path
from typing import Any

import aiokafka.codec
import pytest
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from streams.kafka.admin import create_topics
from streams.kafka.clients import client_options, new_producer, open_admin
from streams.kafka.dlq import LetterError, read_letters, retry_letters
from streams.kafka.embedded import Broker
from streams.kafka.reader import end_offsets, read_all
from streams.pipeline.reroute import partition_of
from streams.settings import Settings
from tests.integration.support import service, settings_for, until
from tests.integration.test_kafka import committed, send_readings

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="session")]

CODECS = ("gzip", "snappy", "lz4", "zstd")


def reading(second: int, flow: float = 3.0) -> bytes:
    base = int(time.time() * 1000) // 10_000 * 10_000 - 3_600_000
    return json.dumps({"time": base + second * 1000, "values": {"flow": flow}}).encode()


NAMED = partition_of(b"named-pump", 4)  # the default number of partitions


async def send_compressed(settings: Settings, codec: str, count: int, partition: int | None = None) -> None:
    assert settings.kafka is not None
    producer = new_producer(settings, settings.kafka, compression_type=codec, linger_ms=50)
    await producer.start()
    try:
        sent = [
            await producer.send(
                settings.topic("sensor-readings"), reading(n), key=f"{codec}-pump".encode(), partition=partition
            )
            for n in range(count)
        ]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


async def send_bad_header_name(settings: Settings, names: list[bytes | None]) -> None:
    """One batch, a record for each name; None: no header. As clients send that take names as bytes."""
    assert settings.kafka is not None

    class Name(str):
        raw: bytes

        def encode(self, *_: Any) -> bytes:
            return self.raw

    producer = AIOKafkaProducer(**client_options(settings, settings.kafka))  # no idempotent one sends batches
    await producer.start()
    builder = producer.create_batch()
    builder._builder = _DefaultRecordBatchBuilderPy(2, 0, False, -1, -1, -1, 65_536)
    for n, raw in enumerate(names):
        headers = []
        if raw is not None:
            name = Name("x")
            name.raw = raw
            headers.append((name, b"1"))
        assert builder.append(key=b"named-pump", value=reading(n), timestamp=None, headers=headers) is not None
    try:
        await (await producer.send_batch(builder, settings.topic("sensor-readings"), partition=NAMED))
    finally:
        await producer.stop()


async def all_committed(settings: Settings, sent: int) -> bool:
    return sum((await committed(settings, "sensor-readings")).values()) == sent


async def test_batches_of_every_codec_are_windowed(tmp_path: Path, broker: Broker) -> None:
    settings = settings_for(tmp_path, broker)
    async with service(settings) as running:
        for codec in CODECS:
            await send_compressed(settings, codec, 20)
        await until(lambda: running.worker.status.events == 20 * len(CODECS), "the readings of all codecs in windows")
        assert await read_letters(settings, late=False) == []


async def test_topics_that_compress_are_read_by_worker_dlq_and_reader(tmp_path: Path, broker: Broker) -> None:
    settings = settings_for(tmp_path, broker)
    assert settings.kafka is not None
    admin = await open_admin(settings, settings.kafka)
    compressing = {"sensor-readings": "zstd", "captions": "snappy", "dead-letters": "lz4", "windows": "gzip"}
    await admin.create_topics(
        [
            NewTopic(settings.topic(name), settings.partitions, 1, topic_configs={"compression.type": codec})
            for name, codec in compressing.items()
        ]
    )
    await admin.close()
    async with service(settings) as running:
        sent = await send_readings(settings, range(20))
        producer = new_producer(settings, settings.kafka)
        await producer.start()
        await producer.send_and_wait(settings.topic("captions"), b'{"text": 5}', key=b"pump")
        await producer.stop()
        await until(lambda: running.worker.status.events == sent, "all readings in windows")

        async def refused() -> bool:
            return [letter.reason for letter in await read_letters(settings, late=False)] == ["bad_schema"]

        await until(refused, "the dead letter, read from a topic that compresses")
        windows = [record async for record in read_all(settings, settings.kafka, [settings.topic("windows")])]
        assert len(windows) >= 10


async def test_a_batch_whose_codec_is_missing_is_set_aside_and_harms_nothing(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path, broker)
    assert settings.kafka is not None
    await create_topics(settings, settings.kafka)
    await send_compressed(settings, "lz4", 10, partition=1)
    monkeypatch.setattr(aiokafka.codec, "has_lz4", lambda: False)
    with structlog.testing.capture_logs() as lines:
        async with service(settings) as running:
            sent = await send_readings(settings, range(40))
            await until(lambda: running.worker.status.events == sent, "the other traffic in windows")
            await until(lambda: all_committed(settings, sent + 10), "commits past the batch")
            counted = running.worker.metrics.unreadable
    (line,) = [line for line in lines if line["log_level"] != "info"]
    assert (line["reason"], line["topic"], line["partition"]) == ("unreadable", settings.topic("sensor-readings"), 1)
    (letter,) = await read_letters(settings, late=False)
    topic = settings.topic("sensor-readings")
    assert (letter.reason, letter.origin) == ("unreadable", f"{topic}/1/0")
    assert "offsets 0 to 9" in letter.detail
    assert "lz4" in letter.detail
    assert struct.unpack_from(">b", letter.value or b"", 16) == (2,)  # the batch as it came: its magic byte
    assert counted.labels(topic, "codec")._value.get() == 10
    with pytest.raises(LetterError, match="sensorium doctor"):
        await retry_letters(settings, origin=letter.origin, reason=None, late=False)
    # started again, it does not stumble over the batch a second time; with the codec the batch can be sent again
    async with service(settings) as again:
        more = await send_readings(settings, range(60, 80))
        await until(lambda: again.worker.status.events == more, "windows after the restart")
        assert len(await read_letters(settings, late=False)) == 1
        monkeypatch.setattr(aiokafka.codec, "has_lz4", lambda: True)
        assert await retry_letters(settings, origin=None, reason="unreadable", late=False) == 1
        await until(lambda: again.worker.status.events == more + 10, "the records of the batch in windows")


async def test_a_header_name_that_is_not_utf8_costs_its_record_only(tmp_path: Path, broker: Broker) -> None:
    settings = settings_for(tmp_path, broker)
    async with service(settings) as running:
        await send_bad_header_name(settings, [None, b"\xff\xfe", "größe".encode(), b"\xff", None])
        sent = 5 + await send_readings(settings, range(20))
        await until(lambda: all_committed(settings, sent), "commits past the records")
        await until(lambda: running.worker.status.events == sent - 2, "all others in windows")
        letters = [letter.letter for letter in await read_letters(settings, late=False)]
        assert [(x.reason, x.partition, x.offset, x.key) for x in letters] == [
            ("unreadable", NAMED, 1, b"named-pump"),
            ("unreadable", NAMED, 3, b"named-pump"),
        ]
        assert [json.loads(x.value or b"")["values"] for x in letters] == [{"flow": 3.0}] * 2
        assert letters[0].headers == (("\\xff\\xfe", b"1"),)


async def test_a_batch_that_rotted_on_the_brokers_disk_is_stepped_over_by_worker_and_reader(
    kafka_jars: None, tmp_path: Path
) -> None:
    own = Broker(tmp_path / "own")
    await own.start()
    try:
        settings = settings_for(tmp_path, own, partitions=1)
        assert settings.kafka is not None
        await create_topics(settings, settings.kafka)
        for codec in ("gzip", "snappy", "zstd"):
            await send_compressed(settings, codec, 10, partition=0)
        await own.stop()
        topic = settings.topic("sensor-readings")
        (log,) = (own.folder / "data" / f"{topic}-0").glob("*.log")
        content = bytearray(log.read_bytes())
        first = 12 + struct.unpack_from(">i", content, 8)[0]
        assert struct.unpack_from(">q", content, first) == (10,)  # base offset of the second batch
        content[first + 12 + struct.unpack_from(">i", content, first + 8)[0] - 1] ^= 0xFF
        log.write_bytes(content)
        await own.start()
        assert sum((await end_offsets(settings, settings.kafka, [topic])).values()) == 30
        offsets = [record.offset async for record in read_all(settings, settings.kafka, [topic])]
        assert offsets == [*range(10), *range(20, 30)]
        async with service(settings) as running:
            await until(lambda: running.worker.status.events == 20, "the other batches in windows")
            await until(lambda: all_committed(settings, 30), "commits past the batch")
            (letter,) = await read_letters(settings, late=False)
            assert (letter.reason, letter.origin) == ("unreadable", f"{topic}/0/10")
            assert "offsets 10 to 19" in letter.detail
            assert running.worker.metrics.unreadable.labels(topic, "checksum")._value.get() == 10
    finally:
        await own.stop()


async def test_dead_letters_that_cannot_be_unpacked_do_not_hide_the_others(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path, broker)
    assert settings.kafka is not None
    async with service(settings):
        producer = new_producer(settings, settings.kafka)
        await producer.start()
        await producer.send_and_wait(settings.topic("captions"), b'{"text": 5}', key=b"pump")
        await producer.stop()

        async def refused() -> bool:
            return len(await read_letters(settings, late=False)) == 1

        await until(refused, "the dead letter")
    compressed = new_producer(settings, settings.kafka, compression_type="zstd")
    await compressed.start()
    await compressed.send_and_wait(settings.topic("dead-letters"), b"x", key=b"y")
    await compressed.stop()
    monkeypatch.setattr(aiokafka.codec, "has_zstd", lambda: False)
    assert [letter.reason for letter in await read_letters(settings, late=False)] == ["bad_schema"]
