"""Records as large as the cluster takes, on a real Kafka: their letters are cut, and no other letter suffers."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka.admin import NewTopic

from streams.kafka.clients import new_producer, open_admin
from streams.kafka.dlq import LetterError, read_letters, retry_letters
from streams.kafka.embedded import Broker
from tests.integration.support import service, settings_for, until
from tests.integration.test_kafka import committed, send_readings

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="session")]


async def test_a_key_as_large_as_a_record_may_be_costs_its_own_record_only(tmp_path: Path, broker: Broker) -> None:
    settings = settings_for(tmp_path, broker, partitions=1)
    assert settings.kafka is not None
    admin = await open_admin(settings, settings.kafka)
    limit = {"max.message.bytes": "1048588"}  # as clusters have it by default
    await admin.create_topics([NewTopic(settings.topic("dead-letters"), 1, 1, topic_configs=limit)])
    await admin.close()
    async with service(settings) as running:
        producer = new_producer(settings, settings.kafka)
        await producer.start()
        captions = settings.topic("captions")
        await producer.send_and_wait(captions, b'{"text": 5}', key=b"before")
        await producer.send_and_wait(captions, b"belt slips", key=b"k" * 1_048_400)
        await producer.send_and_wait(captions, b"\xff" * 1_040_000, key=b"pump", headers=[("trace", b"t" * 9_000)])
        await producer.send_and_wait(captions, b'{"text": 5}', key=b"after")
        await producer.stop()
        sent = await send_readings(settings, range(20))
        await until(lambda: running.worker.status.events == sent, "the other traffic in windows")

        async def all_committed() -> bool:
            return (await committed(settings, "captions"))[0] == 4

        await until(all_committed, "commits past the large records")
    letters = [shown.letter for shown in await read_letters(settings, late=False)]
    letters.sort(key=lambda letter: letter.offset)
    assert [(letter.origin, letter.truncated is not None) for letter in letters] == [
        ((captions, 0, 0), False),
        ((captions, 0, 1), True),
        ((captions, 0, 2), True),
        ((captions, 0, 3), False),
    ]
    assert letters[1].truncated == "value=10 key=1048400 headers=0"
    assert (letters[1].value, (letters[1].key or b"")[:8]) == (b"belt slips", b"kkkkkkkk")
    assert letters[2].truncated == "value=1040000 key=4 headers=9005"
    assert (letters[2].key, (letters[2].value or b"")[:2]) == (b"pump", b"\xff\xff")
    with pytest.raises(LetterError, match="is an excerpt"):
        await retry_letters(settings, origin=f"{captions}/0/1", reason=None, late=False)
