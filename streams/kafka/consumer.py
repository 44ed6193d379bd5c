"""Kafka in batches for Faust agents, with offsets that the ledger owns.

Faust's consumer starts four asyncio tasks for each message and keeps a gap list that commits past events in flight
(its issue 606). Here one agent message is up to 500 consecutive records of one partition, nothing is ever acked
through Faust, and what is committed is what the ledger says. Private names of Faust 0.15.3 that this relies on:
`_wait_next_records`, `_to_message`, `_add_gap`, `_read_offset`, `_thread`, `_new_transport`; tests on a real broker
guard them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import faust
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata
from faust.app.base import BootStrategy
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams.kafka.ledger import OffsetLedger
from streams.kafka.progress import InputProgress

_LEAVING_COMMIT_S = 3.0
_logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """The value of one agent message. `epoch`: of the assignment in which its records were asked for."""

    topic: str
    partition: int
    epoch: int
    records: Sequence[ConsumerRecord]


class Assignee(Protocol):
    """Who works on partitions: told of every new start from committed offsets, and of every loss."""

    async def assigned(self, resume: Mapping[tuple[str, int], int]) -> None:
        """Partitions will be read from these offsets on; whatever was read before is void."""
        ...

    async def revoked(self) -> None:
        """All partitions are gone; what is in flight is void."""
        ...


class BatchConsumer(driver.Consumer):
    """Faust's consumer, but: batches, the ledger's offsets, and commits that outlive a broker's absence."""

    app: BatchApp

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.epoch = 0
        self._expected: dict[TP, int] = {}  # next offset to hand on, per partition of this epoch
        self._unread: set[TP] = set()  # nothing handed on yet in this epoch
        self._sent: dict[TP, int] = {}  # last committed
        self._commit_failing_since: float | None = None

    # -- reading -------------------------------------------------------------------------------------------------

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        epoch = self.epoch
        records, active = await self._wait_next_records(timeout)
        if records is None or self.should_stop:
            return
        for key, batch in records.items():
            tp = TP(key.topic, key.partition)
            if not batch:
                continue
            if not self.flow_active or epoch != self.epoch:
                await self._put_back(tp)
                continue
            if active is not None and tp not in active and tp not in self._buffered_partitions:
                await self._put_back(tp)
                continue
            if tp in self._unread:
                self._unread.remove(tp)
                if batch[0].offset > self._expected.get(tp, batch[0].offset):
                    # a hole in the log, or records that a fetch from before took with it: looking twice tells
                    await self._put_back(tp)
                    continue
            self._expected[tp] = batch[-1].offset + 1
            message = self._to_message(tp, batch[-1])
            message.key = None
            message.value = Batch(tp.topic, tp.partition, epoch, batch)
            # Faust drops what is before the offset that it noted last, and may note one of the last assignment late
            self._read_offset[tp] = None
            yield tp, message

    async def _put_back(self, tp: TP) -> None:
        """Records that were fetched for nobody: go back to where this epoch stands, or they would be skipped."""
        expected = self._expected.get(tp)
        if expected is not None and tp in self.assignment():
            with contextlib.suppress(KafkaError, AssertionError):  # revoked again in between: a new start follows
                await self._thread.call_thread(self._seek_in_thread, tp, expected)

    async def _seek_in_thread(self, tp: TP, offset: int) -> None:
        self._thread._ensure_consumer().seek(TopicPartition(tp.topic, tp.partition), offset)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Faust would commit over gaps by this list; the ledger knows better."""

    # -- assignment ----------------------------------------------------------------------------------------------

    async def perform_seek(self) -> None:
        """Everything starts afresh from the committed offsets: after an assignment, and when Faust rewinds."""
        await self._revoke()
        await super().perform_seek()
        resume: dict[TP, int] = {}
        unknown = []
        for tp in self.assignment():
            committed = self._read_offset.get(tp)
            if committed is None:
                unknown.append(tp)
            else:
                resume[tp] = committed
        if unknown:
            resume.update({TP(*tp): offset for tp, offset in (await self._thread.earliest_offsets(*unknown)).items()})
        self._expected = dict(resume)
        self._unread = set(resume)
        self._sent = {}
        # A fetch that was under way may have been answered since Faust's seek, and its records been dropped as those of
        # the last assignment: without a second seek the position would stay behind them, and they would be lost.
        for tp in resume:
            await self._put_back(tp)
        await self.app.assignee.assigned({(tp.topic, tp.partition): offset for tp, offset in resume.items()})

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        if not self.should_stop and revoked:
            # what is finished need not be read again by whoever comes next
            with contextlib.suppress(TimeoutError, KafkaError):
                await asyncio.wait_for(self.force_commit(), _LEAVING_COMMIT_S)
        await self._revoke()
        await super().on_partitions_revoked(revoked)

    async def _revoke(self) -> None:
        self.epoch += 1
        self._expected = {}
        await self.app.assignee.revoked()

    # -- commits -------------------------------------------------------------------------------------------------

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit the finished prefix of every partition. A failure is tried again at the next interval."""
        if self._thread._consumer is None:
            return False  # told to stop before it began
        offsets: dict[TP, int] = {}
        for tp in self.assignment():
            offset = self.app.ledger.committable((tp.topic, tp.partition))
            if offset is not None and offset > self._sent.get(tp, -1):
                offsets[tp] = offset
        if not offsets:
            return False
        try:
            await self._thread.call_thread(self._commit_in_thread, offsets)
        except KafkaError as error:
            if self._commit_failing_since is None:
                self._commit_failing_since = time.monotonic()
                _logger.warning("cannot commit now, will try again: %r", error)
            return False
        if self._commit_failing_since is not None:
            _logger.warning("commits work again after %.0f s", time.monotonic() - self._commit_failing_since)
            self._commit_failing_since = None
        self._sent.update(offsets)
        return True

    async def _commit_in_thread(self, offsets: Mapping[TP, int]) -> None:
        consumer = self._thread._ensure_consumer()
        assigned = consumer.assignment()
        mine = {
            TopicPartition(tp.topic, tp.partition): OffsetAndMetadata(offset, "")
            for tp, offset in offsets.items()
            if TopicPartition(tp.topic, tp.partition) in assigned
        }
        if mine:
            await consumer.commit(mine)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's watchdog looks at acks, which we do not make; `health` tells stuck from quiet instead."""

    # -- progress ------------------------------------------------------------------------------------------------

    def progress(self) -> dict[tuple[str, int], InputProgress]:
        """Where we stand in each assigned partition, as the broker last confirmed."""
        consumer = self._thread._consumer
        if consumer is None:
            return {}
        now_ms = int(time.time() * 1000)
        found: dict[tuple[str, int], InputProgress] = {}
        for tp in consumer.assignment():
            try:
                state = consumer._subscription.subscription.assignment.state_value(tp)
            except (AttributeError, KeyError):
                continue  # revoked at this moment
            if state is None or not state.has_valid_position:
                continue
            polled_ms_ago = None if state.timestamp is None else now_ms - state.timestamp
            delivered = self._expected.get(TP(tp.topic, tp.partition), state.position)
            found[tp.topic, tp.partition] = InputProgress(state.position, state.highwater, polled_ms_ago, delivered)
        return found


class BatchTransport(driver.Transport):
    Consumer = BatchConsumer


class _Boot(BootStrategy):
    enable_web = False


class BatchApp(faust.App):
    """A Faust app whose agents are given `Batch`es."""

    BootStrategy = _Boot
    ledger: OffsetLedger
    assignee: Assignee

    def _create_directories(self) -> None:
        """Faust would leave folders for its tables wherever it is started; there are no tables."""

    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_consumer, self, loop=self.loop)

    def pause(self, paused: Iterable[tuple[str, int]], resumed: Iterable[tuple[str, int]]) -> None:
        """Stop and go on fetching from partitions; repeats do no harm."""
        consumer = self.consumer
        stop, go = {TP(*tp) for tp in paused}, {TP(*tp) for tp in resumed}
        if stop:
            consumer.pause_partitions(stop)
        if go & consumer._paused_partitions:
            consumer.resume_partitions(go & consumer._paused_partitions)
