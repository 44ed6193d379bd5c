"""Topics of one harness on a real Kafka: made under a prefix of their own, changed as a test asks, and deleted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.errors import for_code

from streams.events.topics import INPUTS
from streams.kafka.admin import SPECS, TopicsError
from streams.kafka.clients import open_admin
from streams.kafka.topic_metadata import fetch_metadata
from streams.settings import Settings

_KNOWN_WITHIN_S = 30.0
# The harness's clock is not the broker's: records of any time are taken, and none is deleted for its age.
_ANY_TIME = {
    "retention.ms": "-1",
    "message.timestamp.before.max.ms": str(2**63 - 1),
    "message.timestamp.after.max.ms": str(2**63 - 1),
}


class HarnessTopics:
    """All topics of `settings`. Outputs have one partition each: the order in it is that of sending."""

    def __init__(self, settings: Settings, bootstrap: str, partitions: int) -> None:
        """`partitions`: of each input."""
        self._settings = settings
        self._bootstrap = bootstrap
        self._partitions = partitions
        self._admin: AIOKafkaAdminClient | None = None

    async def create(self) -> None:
        """Connect, and make all topics. Raises `KafkaUnreachable`, `TopicsError`."""
        self._admin = await open_admin(self._settings, self._bootstrap)
        await self._make([spec.name for spec in SPECS])

    async def delete(self) -> None:
        """Delete all topics, and disconnect."""
        if self._admin is not None:
            try:
                await self._admin.delete_topics([self._settings.topic(spec.name) for spec in SPECS])
            finally:
                await self._admin.close()

    async def recreate(self, name: str) -> None:
        """Delete a topic, and make another one of its name."""
        await self._connected().delete_topics([self._settings.topic(name)])
        await self._until([name], exist=False)
        await self._make([name])

    async def delete_records(self, name: str, number: int, before_offset: int) -> None:
        """Let a partition begin at `before_offset`."""
        tp = TopicPartition(self._settings.topic(name), number)
        await self._connected().delete_records({tp: RecordsToDelete(before_offset)})

    def _connected(self) -> AIOKafkaAdminClient:
        assert self._admin is not None
        return self._admin

    async def _make(self, names: Sequence[str]) -> None:
        largest = {"max.message.bytes": str(self._settings.max_record_bytes + 1_048_576)}
        configs = {
            spec.name: {**spec.config, **(_ANY_TIME if spec.name in INPUTS else {}), **largest} for spec in SPECS
        }
        topics = [
            NewTopic(
                self._settings.topic(name),
                self._partitions if name in INPUTS else 1,
                self._settings.replication,
                topic_configs=configs[name],
            )
            for name in names
        ]
        answer = await self._connected().create_topics(topics)
        for name, code, *why in answer.topic_errors:
            if code:
                raise TopicsError(
                    f"cannot create topic {name} for the harness: {why[0] if why and why[0] else for_code(code)}; "
                    f"check the cluster with: sensorium doctor --kafka {self._bootstrap}"
                )
        await self._until(names, exist=True)

    async def _until(self, names: Sequence[str], *, exist: bool) -> None:
        """Wait until the brokers know what the controller has done."""
        full = [self._settings.topic(name) for name in names]
        deadline = time.monotonic() + _KNOWN_WITHIN_S
        while True:
            found = (await fetch_metadata(self._connected(), full)).topics
            if all(bool(name in found and found[name].partitions) == exist for name in full):
                return
            if time.monotonic() > deadline:
                change = "made" if exist else "deleted"
                raise TopicsError(
                    f"{', '.join(full)} are not {change} after {_KNOWN_WITHIN_S:.0f} s; look at the brokers' logs, "
                    f"and check the cluster with: sensorium doctor --kafka {self._bootstrap}"
                )
            await asyncio.sleep(0.02)
