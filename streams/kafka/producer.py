"""Where results go: a producer seam that the service fills with Kafka and the test harness with a list."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import structlog
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer

log = structlog.get_logger(__name__)
Headers = Sequence[tuple[str, bytes]]
_PATIENCE_S = (0.2, 0.5, 1.0, 2.0)
_EXCERPT_BYTES = 65_536


class Outputs(Protocol):
    """Sends records and awaits their acknowledgement; waits (never drops) while the broker is away."""

    async def send(self, topic: str, value: bytes | None, *, key: bytes | None, headers: Headers = ()) -> None:
        """Returns when the record is acknowledged by all in-sync replicas. `topic` is the short name."""
        ...


class KafkaOutputs:
    """Outputs over one aiokafka producer with `acks=all`."""

    def __init__(self, producer: AIOKafkaProducer, topic: Callable[[str], str]) -> None:
        self._producer = producer
        self._topic = topic
        self.waiting_since: float | None = None  # monotonic; readiness tells by it that the broker is away

    async def send(self, topic: str, value: bytes | None, *, key: bytes | None, headers: Headers = ()) -> None:
        attempt = 0
        while True:
            try:
                sent = await self._producer.send(self._topic(topic), value, key=key, headers=list(headers))
                await sent
            except MessageSizeTooLargeError:
                # the cluster's limit is below ours: the origin named in the headers still holds all of it
                if value is None or len(value) <= _EXCERPT_BYTES:
                    raise
                headers = [*headers, ("sensorium-truncated", str(len(value)).encode())]
                value = value[:_EXCERPT_BYTES]
            except KafkaError as error:
                if self.waiting_since is None:
                    self.waiting_since = time.monotonic()
                    log.warning("waiting for Kafka", topic=topic, error=repr(error))
                await asyncio.sleep(_PATIENCE_S[min(attempt, len(_PATIENCE_S) - 1)])
                attempt += 1
            else:
                if self.waiting_since is not None:
                    log.info("Kafka is back", away_s=round(time.monotonic() - self.waiting_since, 1))
                    self.waiting_since = None
                return
