"""Where results go: a producer protocol that the service fills with Kafka and the test harness with a list."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import structlog
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, UnknownTopicOrPartitionError

from streams.events.dead_letter import Produced, excerpts
from streams.kafka.failures import UNKNOWN_TOPIC_AFTER_S, RecordTooLarge, out_of_step, passes, refused

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer

log = structlog.get_logger(__name__)
Headers = Sequence[tuple[str, bytes]]
_RETRY_AFTER_S = (0.2, 0.5, 1.0, 2.0)
_LETTERS = ("dead-letters", "late-events")


class Outputs(Protocol):
    """Sends records and awaits their acknowledgement; waits (never drops) while the broker is away."""

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """Returns when the record is acknowledged by all in-sync replicas. `topic` is the short name.

        `partition`: None leaves it to the partitioner; `timestamp_ms`: None is the time of sending.
        """
        ...


class KafkaOutputs:
    """Outputs over an idempotent aiokafka producer with `acks=all`.

    Errors that pass are waited out. A letter (of `dead-letters` or `late-events`) that is too large for the cluster is
    cut and sent again. What no waiting mends raises `KafkaRefused`.
    """

    def __init__(
        self,
        producer: AIOKafkaProducer,
        topic: Callable[[str], str],
        *,
        new: Callable[[], AIOKafkaProducer] | None = None,
    ) -> None:
        """`topic` gives full names; `new` makes a producer (not started) in place of one that the broker refuses."""
        self._producer = producer
        self._topic = topic
        self._new = new
        self._renewing = asyncio.Lock()
        self._too_large: dict[str, int] = {}  # sizes that the broker refused, the least of each topic
        self._closing: set[asyncio.Task[None]] = set()
        self.waiting_since: float | None = None  # monotonic; readiness reports by it that the broker is away

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """Returns when the record is acknowledged. Raises `KafkaRefused`, `RecordTooLarge`."""
        message: Produced = (key, value, list(headers))
        smaller = excerpts(*message) if topic in _LETTERS else iter(())
        while _size(message) >= self._too_large.get(topic, 2**63):
            message = self._next(topic, smaller, _size(message))
        started, attempt, renewed = time.monotonic(), 0, False
        while True:
            producer, at_broker = self._producer, False
            try:
                sent = await producer.send(
                    self._topic(topic),
                    message[1],
                    key=message[0],
                    partition=partition,
                    timestamp_ms=timestamp_ms,
                    headers=message[2],
                )
                at_broker = True
                await sent
            except MessageSizeTooLargeError:
                size = _size(message)
                self._too_large[topic] = min(size, self._too_large.get(topic, size))
                message = self._next(topic, smaller, size)
                if at_broker:
                    # the refused record took a sequence number with it: the broker takes no other in that partition
                    await self._renew(producer)
            except KafkaError as error:
                if out_of_step(error) and (producer is not self._producer or not renewed) and self._new is not None:
                    renewed = producer is self._producer
                    await self._renew(producer)
                    continue
                if not await self._passes(producer, error, time.monotonic() - started):
                    raise refused(error, f"writing to {self._topic(topic)}") from None
                if self.waiting_since is None:
                    self.waiting_since = time.monotonic()
                    log.warning("waiting for Kafka", topic=topic, error=repr(error))
                await asyncio.sleep(_RETRY_AFTER_S[min(attempt, len(_RETRY_AFTER_S) - 1)])
                attempt += 1
            else:
                if self.waiting_since is not None:
                    log.info("Kafka is back", away_s=round(time.monotonic() - self.waiting_since, 1))
                    self.waiting_since = None
                return

    async def start(self) -> None:
        """Start the producer. Raises `KafkaRefused`, or the `KafkaError` of a broker that is away."""
        try:
            await self._producer.start()
        except KafkaError as error:
            if passes(error):
                raise
            raise refused(error, "writing") from None

    async def stop(self) -> None:
        """Stop the producer, and those that were replaced."""
        await asyncio.gather(self._producer.stop(), *self._closing, return_exceptions=True)

    def _next(self, topic: str, smaller: Iterator[Produced], size: int) -> Produced:
        message = next(smaller, None)
        if message is None:
            raise RecordTooLarge(
                f"a record of {size} bytes for {self._topic(topic)} is larger than the cluster takes; raise "
                "max.message.bytes of the topic, then check with: sensorium topics describe"
            )
        return message

    async def _passes(self, producer: AIOKafkaProducer, error: KafkaError, waited_s: float) -> bool:
        """Whether to wait and try again. A topic is missing only if a broker that answers has said so for long."""
        if not isinstance(error, UnknownTopicOrPartitionError) or waited_s < UNKNOWN_TOPIC_AFTER_S:
            return passes(error)
        return not await producer.client.force_metadata_update()

    async def _renew(self, refused_one: AIOKafkaProducer) -> None:
        """Put a new producer in the place of one that the broker no longer takes records from."""
        async with self._renewing:
            if refused_one is not self._producer or self._new is None:
                return
            producer = self._new()
            while True:
                try:
                    await producer.start()
                    break
                except KafkaError as error:
                    if not passes(error):
                        raise refused(error, "writing") from None
                    await asyncio.sleep(_RETRY_AFTER_S[-1])
            self._producer = producer
            closing = asyncio.create_task(_close(refused_one))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


async def _close(producer: AIOKafkaProducer) -> None:
    with contextlib.suppress(KafkaError):
        await producer.stop()


def _size(message: Produced) -> int:
    """Bytes of a record, without the few of its framing."""
    key, value, headers = message
    return len(key or b"") + len(value or b"") + sum(len(name) + len(content or b"") for name, content in headers)
