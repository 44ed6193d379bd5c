"""Kafka in batches for Faust agents, with offsets that the ledger owns.

Faust's consumer starts four asyncio tasks for each message and keeps a gap list that commits past events in flight
(its issue 606). Here one agent message is up to 500 consecutive records of one partition, nothing is ever acked
through Faust, and what is committed is what the ledger says. Only committed records are read; what aiokafka cannot
unpack comes as `UnreadableRecord`s (`unpacking`), and records that are deleted before they are read are counted.

Private names of Faust 0.15.3 that this relies on: of the consumer `_wait_next_records`, `_to_message`, `_add_gap`,
`_read_offset`, `_buffered_partitions`, `_paused_partitions`, `_thread`, `_new_consumer_thread`; of its thread
`_consumer`, `_ensure_consumer`, `_create_worker_consumer`; of the app `_new_transport`, `_create_directories`. Of
aiokafka 0.14: `AIOKafkaConsumer._isolation_level`, `_auto_offset_reset` (read when it starts),
`_coordinator.check_errors` and `_subscription.subscription.assignment.state_value`. Tests on a real broker guard them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import faust
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from aiokafka.structs import OffsetAndMetadata
from faust.app.base import BootStrategy
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams.kafka import unpacking
from streams.kafka.failures import passes, refused
from streams.kafka.ledger import OffsetLedger
from streams.kafka.progress import InputProgress, Start, readable_end, start_at
from streams.kafka.unpacking import UnreadableRecord
from streams.metrics import Metrics

_METADATA_MAX_AGE_MS = 15_000  # partitions that are added are noticed within this time
_RETRY_S = 1.0
_ANSWER_S = 5.0
_LEAVING_COMMIT_S = 3.0
_logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """The value of one agent message. `epoch`: of the assignment in which its records were asked for."""

    topic: str
    partition: int
    epoch: int
    records: Sequence[ConsumerRecord | UnreadableRecord]


class Assignee(Protocol):
    """What works on partitions: called at every new start from committed offsets, and at every loss of them."""

    async def assigned(self, starts: Mapping[tuple[str, int], Start]) -> None:
        """Partitions, by topic and number, will be read from there on; whatever was read before is void."""
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
        self._fetched: dict[TP, int] = {}  # one past the last record fetched, handed on or not
        self._unread: set[TP] = set()  # nothing handed on yet in this epoch
        self._sent: dict[TP, int] = {}  # last committed
        self._commit_failing_since: float | None = None
        self._failing_since: float | None = None
        self._lost_to: dict[TP, int] = {}  # lost records are reported up to there, also across rebalances

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # -- reading -------------------------------------------------------------------------------------------------

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        epoch = self.epoch
        try:
            records, active = await self._wait_next_records(timeout)
        except OffsetOutOfRangeError as error:
            await self._out_of_range(error.args[0])
            return
        except NoOffsetForPartitionError:
            return  # asked for before `perform_seek` has set the position
        except KafkaError as error:
            await self._reading_failed(error)
            return
        self._failing_since = None
        if records is None or self.should_stop:
            return
        for key, batch in records.items():
            if batch:  # handed on one after another: until then they are on their way
                self._fetched[TP(key.topic, key.partition)] = batch[-1].offset + 1
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
                    # a hole in the log, or records that a fetch from before took with it: a second fetch decides
                    await self._put_back(tp)
                    continue
            self._expected[tp] = batch[-1].offset + 1
            self._count_unreadable(batch)
            last = ConsumerRecord(*tp, batch[-1].offset, batch[-1].timestamp, 0, None, None, None, -1, -1, ())
            message = self._to_message(tp, last)
            message.value = Batch(tp.topic, tp.partition, epoch, batch)
            # Faust drops what is before the offset that it noted last, and may note one of the last assignment late
            self._read_offset[tp] = None
            yield tp, message

    def _count_unreadable(self, batch: Sequence[ConsumerRecord | UnreadableRecord]) -> None:
        for record in batch:
            if type(record) is UnreadableRecord:
                self.app.metrics.unreadable.labels(record.topic, record.cause).inc(record.count)

    async def _out_of_range(self, positions: Mapping[TopicPartition, int]) -> None:
        """The log no longer holds the positions: go on where it begins, and count what was missed."""
        mine = {TP(*tp): position for tp, position in positions.items() if TP(*tp) in self._expected}
        begins, ends = await self._log_bounds(mine)
        for tp, position in mine.items():
            if tp not in begins:
                continue
            if position > ends[tp]:
                _logger.warning(
                    "%s/%d ends at offset %d, before our position %d: it was made anew; reading it from its begin",
                    *tp,
                    ends[tp],
                    position,
                )
                await self.perform_seek()
                return
            self._report_lost(tp, position, begins[tp])
            self._expected[tp] = max(position, begins[tp])
            await self._put_back(tp)

    @faust.Service.task  # type: ignore[untyped-decorator]  # mode is not followed by mypy
    async def _watch_group(self) -> None:
        """aiokafka holds an error of its group membership, and the membership with it, until somebody asks for it.

        Faust does not.
        """
        while not self.should_stop:
            await self.sleep(_RETRY_S)
            try:
                await self._thread.call_thread(self._check_in_thread)
            except KafkaError as error:
                await self._reading_failed(error)

    async def _check_in_thread(self) -> None:
        consumer = self._thread._consumer
        if consumer is not None and consumer._coordinator is not None:
            consumer._coordinator.check_errors()

    async def _reading_failed(self, error: KafkaError) -> None:
        """Wait where that mends the error; end the worker with one line where it does not."""
        if not passes(error):
            self.app.fail(refused(error, "reading the input topics"))
        elif self._failing_since is None:
            self._failing_since = time.monotonic()
            _logger.warning("cannot read now, will try again: %r", error)
        await asyncio.sleep(_RETRY_S)

    def _report_lost(self, tp: TP, position: int, begin: int) -> None:
        """Records between our position and the begin of the log were deleted before they were read."""
        first = max(position, self._lost_to.get(tp, 0))
        if begin > first:
            self._lost_to[tp] = begin
            self.app.metrics.lost.labels(tp.topic, str(tp.partition)).inc(begin - first)
            _logger.warning(
                "%d records of %s/%d are lost: they were deleted before they were read (offsets %d to %d); check "
                "retention.ms and cleanup.policy of the topic with: sensorium topics describe",
                begin - first,
                *tp,
                first,
                begin - 1,
            )

    async def _log_bounds(self, tps: Iterable[TP]) -> tuple[dict[TP, int], dict[TP, int]]:
        """Where each log begins, and where what can be read of it ends; of the partitions that exist.

        Waits for a broker that is away. A refusal ends the worker; nothing is known then.
        """
        asked = [TopicPartition(*tp) for tp in tps]
        while not self.should_stop:
            try:
                begins, ends = await self._thread.call_thread(self._bounds_in_thread, asked)
            except (KafkaError, TimeoutError) as error:
                if isinstance(error, KafkaError) and not passes(error):
                    self.app.fail(refused(error, "reading the input topics"))
                    break
                await asyncio.sleep(_RETRY_S)
            else:
                return {TP(*tp): at for tp, at in begins.items()}, {TP(*tp): at for tp, at in ends.items()}
        return {}, {}

    async def _bounds_in_thread(self, asked: Iterable[TopicPartition]) -> tuple[Mapping[Any, int], Mapping[Any, int]]:
        consumer = self._thread._ensure_consumer()
        there = [tp for tp in asked if tp.partition in (consumer.partitions_for_topic(tp.topic) or ())]
        if not there:
            return {}, {}
        # aiokafka asks again and again for partitions of a topic that was just deleted
        async with asyncio.timeout(_ANSWER_S):
            return await consumer.beginning_offsets(there), await consumer.end_offsets(there)

    async def _put_back(self, tp: TP) -> None:
        """Records were fetched that are not handed on: back to where this epoch stands, or they would be skipped."""
        expected = self._expected.get(tp)
        self._fetched.pop(tp, None)
        if expected is not None and tp in self.assignment():
            with contextlib.suppress(KafkaError, AssertionError):  # revoked again in between: a new start follows
                await self._thread.call_thread(self._seek_in_thread, tp, expected)

    async def _seek_in_thread(self, tp: TP, offset: int) -> None:
        self._thread._ensure_consumer().seek(TopicPartition(tp.topic, tp.partition), offset)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Faust would commit over gaps by this list; here the ledger alone decides."""

    # -- assignment ----------------------------------------------------------------------------------------------

    async def perform_seek(self) -> None:
        """Everything starts afresh from the committed offsets: after an assignment, and when Faust rewinds."""
        await self._revoke()
        await super().perform_seek()
        committed = {tp: self._read_offset.get(tp) for tp in self.assignment()}
        begins, ends = await self._log_bounds(committed)
        starts = {tp: start_at(offset, begins[tp], ends[tp]) for tp, offset in committed.items() if tp in begins}
        for tp, start in starts.items():
            if start.lost and start.committed is not None:
                self._report_lost(tp, start.committed, start.offset)
        self._expected = {tp: start.offset for tp, start in starts.items()}
        self._fetched = {}
        self._unread = set(starts)
        self._sent = {}
        # A fetch that was under way may have been answered since Faust's seek, and its records been dropped as those of
        # the last assignment: without a second seek the position would stay behind them, and they would be lost.
        for tp in starts:
            await self._put_back(tp)
        await self.app.assignee.assigned({(tp.topic, tp.partition): start for tp, start in starts.items()})

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        if not self.should_stop and revoked:
            # what is finished need not be read again by the next owner
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
            return False  # stopped before it began
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
            if not passes(error):
                self.app.fail(refused(error, "committing offsets"))
            elif self._commit_failing_since is None:
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
        """Faust's watchdog looks at acks, which we do not make; `health` does it instead."""

    # -- progress ------------------------------------------------------------------------------------------------

    def progress(self) -> dict[tuple[str, int], InputProgress]:
        """Where we stand in each assigned partition, as the broker last confirmed."""
        consumer = self._thread._consumer
        if consumer is None:
            return {}
        found: dict[tuple[str, int], InputProgress] = {}
        for tp in consumer.assignment():
            progress = self.progress_of(tp.topic, tp.partition)
            if progress is not None:
                found[tp.topic, tp.partition] = progress
        return found

    def progress_of(self, topic: str, number: int) -> InputProgress | None:
        """Where we stand in one partition; None where nothing is known, or it is not ours."""
        consumer = self._thread._consumer
        if consumer is None:
            return None
        try:
            state = consumer._subscription.subscription.assignment.state_value(TopicPartition(topic, number))
        except (AttributeError, KeyError):
            return None  # revoked at this moment
        if state is None or not state.has_valid_position:
            return None
        polled_ms_ago = None if state.timestamp is None else int(time.time() * 1000) - state.timestamp
        tp = TP(topic, number)
        delivered = max(self._expected.get(tp, state.position), self._fetched.get(tp, 0))
        return InputProgress(state.position, readable_end(state), polled_ms_ago, delivered)


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread with options that Faust's settings do not reach."""

    def _create_worker_consumer(self, transport: driver.Transport) -> AIOKafkaConsumer:
        unpacking.install()
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        # a position that the log no longer holds is an error that we see, not a silent jump to where the log begins
        consumer._auto_offset_reset = "none"
        return consumer


class BatchTransport(driver.Transport):
    Consumer = BatchConsumer


class _Boot(BootStrategy):
    enable_web = False


class BatchApp(faust.App):
    """A Faust app whose agents are given `Batch`es.

    `fail` is called with an error that waiting does not mend; whatever runs the app then ends with it.
    """

    BootStrategy = _Boot
    ledger: OffsetLedger
    assignee: Assignee
    metrics: Metrics
    fail: Callable[[BaseException], None]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, consumer_metadata_max_age_ms=_METADATA_MAX_AGE_MS, **options)

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
