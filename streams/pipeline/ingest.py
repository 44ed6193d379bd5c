"""From records to fired windows: decode, guard the clock, put in order, window, and set aside what is late or bad.

Each of the three ingest agents calls `handle` with up to 500 consecutive records of one partition. Records of one
partition number meet in one merge and one window operator under one lock; what follows from them goes to the scoring
queue in the order in which it must be worked on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog

from streams.events.audio import ClipDecoder
from streams.events.clock_guard import TimeGuard
from streams.events.envelope import decode_key
from streams.events.json_codec import decode_caption, decode_reading, decode_readings
from streams.events.topics import TOPICS
from streams.events.types import MODALITIES, Event, Modality, Reason, Rejection
from streams.kafka.failures import RecordTooLarge
from streams.kafka.ledger import OffsetLedger
from streams.kafka.producer import Outputs
from streams.kafka.progress import InputProgress, Start
from streams.metrics import Metrics
from streams.pipeline.idleness import caught_up, look
from streams.pipeline.merge import Run
from streams.pipeline.recovery import StateLoader
from streams.pipeline.reroute import Router
from streams.pipeline.set_aside import Aside
from streams.pipeline.state import PartitionState
from streams.settings import WindowSettings
from streams.windows.operator import StreamLimit
from streams.windows.types import Late, Output, Record, Refused, WindowConfig

log = structlog.get_logger(__name__)
_OUTPUTS_AT_ONCE = 256  # fired before the queue and the event loop get their turn
_CLIPS_AT_ONCE = 16  # clips decoded before they are windowed: bounds memory and keeps windows moving

Progress = Callable[[Modality, int], InputProgress | None]
# events, the Kafka record of each, and what is bad
Decoded = tuple[list[Record], Sequence[Any], list[tuple[Any, Rejection]]]


def window_config(settings: WindowSettings) -> WindowConfig:
    """The operator's configuration out of the settings."""
    disorder, wait = settings.disorder_ms, settings.max_wait_ms
    return WindowConfig(
        size_ms=settings.size_ms,
        hop_ms=settings.hop_ms,
        disorder_ms=(disorder.sensor, disorder.audio, disorder.caption),
        allowed_lateness_ms=settings.allowed_lateness_ms,
        idle_timeout_ms=settings.idle_timeout_ms,
        max_wait_ms=(wait.sensor, wait.audio, wait.caption),
        max_jump_ms=settings.max_jump_ms,
        modality_memory_ms=settings.modality_memory_ms,
        max_stream_lag_ms=settings.max_stream_lag_ms,
        max_pane_events=settings.max_pane_events,
    )


class Ingest:
    """Owns the partitions that are assigned to this worker."""

    def __init__(
        self,
        settings: WindowSettings,
        *,
        ledger: OffsetLedger,
        outputs: Outputs,
        queue: asyncio.Queue[tuple[PartitionState, Output]],
        loader: StateLoader,
        clips: ClipDecoder,
        metrics: Metrics,
        now_ms: Callable[[], int],
        clock_ms: Callable[[], int],
        progress: Progress,
        router: Router,
        topic: Callable[[str], str] = str,
    ) -> None:
        """`now_ms`: wall clock; `clock_ms`: monotonic; `progress`: where the consumer stands in an input."""
        self._config = window_config(settings)
        self._ledger = ledger
        self._outputs = outputs
        self._queue = queue
        self._loader = loader
        self._clips = clips
        self._metrics = metrics
        self._guard = TimeGuard(settings, now_ms)
        self._clock_ms = clock_ms
        self._progress = progress
        self.router = router
        self._topic = {m: topic(name) for m, name in TOPICS.items()}
        self._aside = Aside(outputs, ledger, metrics, self._topic.__getitem__)
        self._limit = StreamLimit(settings.max_streams)
        self._epochs: dict[int, int] = {}
        self._working: set[asyncio.Task[None]] = set()  # partitions that were let go on by a tick
        self.partitions: dict[int, PartitionState] = {}

    # -- assignment ----------------------------------------------------------------------------------------------

    def assign(self, number: int, starts: Sequence[Start], epoch: int | None = None) -> PartitionState:
        """Take over a partition number; `starts`: where reading begins in each modality's input."""
        epoch = self._epochs.get(number, 0) + 1 if epoch is None else epoch
        self._epochs[number] = epoch
        sensor, audio, caption = (start.offset for start in starts)
        partition = PartitionState(number, epoch, self._config, (sensor, audio, caption), self._limit)
        self.partitions[number] = partition
        for modality, start in zip(MODALITIES, starts, strict=True):
            self._ledger.begin((self._topic[modality], number), epoch, start.offset if start.lost else None)
        return partition

    def revoke(self, number: int) -> None:
        """Drop all buffers of a partition number; what is in flight of it will be discarded."""
        partition = self.partitions.pop(number, None)
        if partition is not None:
            partition.revoke()
        for modality in MODALITIES:
            self._ledger.forget((self._topic[modality], number))

    # -- records -------------------------------------------------------------------------------------------------

    async def handle(self, modality: Modality, number: int, records: Sequence[Any]) -> None:
        """Work on consecutive records of one partition (aiokafka records or `RawRecord`-alikes)."""
        partition = self.partitions.get(number)
        if partition is None or not records:
            return
        index = MODALITIES.index(modality)
        self._metrics.records.labels(self._topic[modality]).inc(len(records))
        tp = (self._topic[modality], number)
        self._ledger.track(tp, partition.epoch, [record.offset for record in records])
        step = _CLIPS_AT_ONCE if modality is Modality.AUDIO else len(records)
        for start in range(0, len(records), step):
            chunk = records[start : start + step]
            partition.in_hand[index] += 1
            try:
                mine = await self._without_strays(partition, modality, chunk)
                events, raws, rejected = await self._decode(partition, modality, mine)
            finally:
                partition.in_hand[index] -= 1
            if partition.revoked:
                return
            arrived_ms = self._arrived_ms(modality, number)
            partition.merge.add(index, events, raws, [raw.timestamp for raw in raws], arrived_ms)
            partition.read[index] = chunk[-1].offset + 1
            await self._aside.rejected(partition, modality, rejected)
            await self._work(partition)

    def _arrived_ms(self, modality: Modality, number: int) -> int:
        """When the broker answered with these records, or later: a confirmation of another input counts from then."""
        at = self._progress(modality, number)
        ago = 0 if at is None or at.polled_ms_ago is None else at.polled_ms_ago
        return self._clock_ms() - ago

    async def _without_strays(
        self, partition: PartitionState, modality: Modality, records: Sequence[Any]
    ) -> Sequence[Any]:
        """Records that belong here; those that belong to another partition are produced into it."""
        router, number = self.router, partition.number
        try:
            if router.all_belong({record.key for record in records}, number):
                return records
        except Rejection:
            pass  # one of them cannot be read: each is looked at by itself
        strays: list[tuple[Any, int]] = []
        too_large: list[tuple[Any, Rejection]] = []
        for record in records:
            try:
                home = router.elsewhere(record.key, number)
                if home is not None and not router.was_rerouted(record.headers or ()):
                    strays.append((record, home))
            except Rejection:
                continue  # its key cannot be read: decoding says so
        if not strays:
            return records
        tp = (self._topic[modality], number)

        async def move(record: Any, home: int) -> None:
            timestamp_ms = record.timestamp if record.timestamp >= 0 else None
            try:
                await self._outputs.send(
                    TOPICS[modality],
                    record.value,
                    key=record.key,
                    headers=router.headers_of(record),
                    partition=home,
                    timestamp_ms=timestamp_ms,
                )
            except RecordTooLarge as error:  # with the header that says where it came from
                too_large.append((record, Rejection(Reason.TOO_LARGE, str(error))))
                return
            self._metrics.events.labels(tp[0], "rerouted").inc()
            self._ledger.release(tp, partition.epoch, [record.offset])

        log.debug("records of another partition", topic=tp[0], partition=number, records=len(strays))
        await asyncio.gather(*(move(*stray) for stray in strays))
        await self._aside.rejected(partition, modality, too_large)
        moved = {record.offset for record, _ in strays}
        return [record for record in records if record.offset not in moved]

    async def _decode(self, partition: PartitionState, modality: Modality, records: Sequence[Any]) -> Decoded:
        if modality is Modality.SENSOR:
            return self._decode_readings(partition, records)
        if modality is Modality.AUDIO:

            async def decode(record: Any) -> Event:
                return await self._clips.decode(record.value, record.headers, record.timestamp)
        else:

            async def decode(record: Any) -> Event:
                return decode_caption(record.value, record.headers, record.timestamp)

        return await self._decode_each(records, decode)

    def _decode_readings(self, partition: PartitionState, records: Sequence[Any]) -> Decoded:
        tp = (self._topic[Modality.SENSOR], partition.number)
        events: list[Record] = []
        rejected: list[tuple[Any, Rejection]] = []
        events_of: dict[int, int] = {}  # by offset, for records that are not one event
        low, high = self._guard.bounds()
        for record in records:
            try:
                stream = decode_key(record.key)
                reading = decode_reading(record.value, record.headers, record.timestamp)
                if reading is not None:  # the hot path
                    if not low <= reading.time_ms <= high:
                        self._guard.check(reading.time_ms)
                    events.append(Record(record.offset, stream, reading))
                    continue
                readings = decode_readings(record.value, record.headers, record.timestamp)
                for reading in readings:
                    if not low <= reading.time_ms <= high:
                        self._guard.check(reading.time_ms)
            except Rejection as rejection:
                rejected.append((record, rejection))
                events_of[record.offset] = 0
                continue
            if len(readings) > 1:
                self._ledger.expect(tp, partition.epoch, record.offset, len(readings))
            events_of[record.offset] = len(readings)
            events += [Record(record.offset, stream, reading) for reading in readings]
        if not events_of:
            return events, records, rejected
        return events, [record for record in records for _ in range(events_of.get(record.offset, 1))], rejected

    async def _decode_each(self, records: Sequence[Any], decode: Callable[[Any], Awaitable[Event]]) -> Decoded:
        async def one(record: Any) -> Record | Rejection:
            try:
                stream = decode_key(record.key)
                event = await decode(record)
                self._guard.check(event.time_ms)
            except Rejection as rejection:
                return rejection
            return Record(record.offset, stream, event)

        results = await asyncio.gather(*(one(record) for record in records))
        events = [result for result in results if isinstance(result, Record)]
        raws = [r for r, result in zip(records, results, strict=True) if isinstance(result, Record)]
        rejected = [(r, result) for r, result in zip(records, results, strict=True) if isinstance(result, Rejection)]
        return events, raws, rejected

    # -- windows -------------------------------------------------------------------------------------------------

    async def _work(self, partition: PartitionState) -> None:
        """Window what may be windowed now, and hand on what follows; a full queue holds the partition back."""
        async with partition.lock:
            runs: list[Run] = []
            confirmed = self._confirmed(partition)
            for run in partition.merge.release(confirmed):
                unresolved = partition.operator.push(run.modality, run.events, run.read_ms)
                while unresolved and not partition.revoked:
                    await self._loader.restore(partition, partition.operator.unknown(unresolved))
                    unresolved = partition.operator.push(run.modality, unresolved)
                if partition.revoked:
                    return
                runs.append(run)
            aside = await self._forward(partition)
        if aside:
            raws = {
                (run.modality, event.offset): raw
                for run in runs
                for event, raw in zip(run.events, run.raws, strict=True)
            }
            await self._set_aside(partition, [(o, raws[o.modality, o.record.offset]) for o in aside])

    def _confirmed(self, partition: PartitionState) -> list[int | None]:
        """When the broker last confirmed of each input that all it has was taken in."""
        now = self._clock_ms()
        confirmed: list[int | None] = []
        for index, modality in enumerate(MODALITIES):
            at = self._progress(modality, partition.number)
            is_caught_up = at is not None and caught_up(partition, index, at)
            confirmed.append(now - (at.polled_ms_ago or 0) if at is not None and is_caught_up else None)
        return confirmed

    async def _forward(self, partition: PartitionState) -> list[Late | Refused]:
        """Hand everything to scoring but what is set aside."""
        aside: list[Late | Refused] = []
        outbox = partition.outbox
        while not partition.revoked:
            if not outbox:
                outbox.extend(partition.operator.advance(_OUTPUTS_AT_ONCE))
            if not outbox:
                break
            output = outbox.popleft()
            if isinstance(output, Late | Refused):
                aside.append(output)
            else:
                await self._queue.put((partition, output))
        return aside

    def _forward_some(self, partition: PartitionState) -> None:
        """As much as the queue has room for: called by the ticker, which never waits."""
        outbox = partition.outbox
        while not self._queue.full():
            if not outbox:
                outbox.extend(partition.operator.advance(_OUTPUTS_AT_ONCE))
            if not outbox:
                return
            self._queue.put_nowait((partition, outbox.popleft()))

    async def _set_aside(self, partition: PartitionState, aside: Sequence[tuple[Late | Refused, Any]]) -> None:
        await self._aside.late(partition, [(o, raw) for o, raw in aside if isinstance(o, Late)])
        await self._aside.refused(partition, [(o, raw) for o, raw in aside if isinstance(o, Refused)])

    # -- time ----------------------------------------------------------------------------------------------------

    async def tick(self, elapsed_ms: int, numbers: Sequence[int] | None = None) -> None:
        """Move the idle clocks by `elapsed_ms` where inputs are caught up, and hand on what follows from that.

        `numbers`: of these partitions only. Raises what went wrong in work that an earlier tick has started.
        """
        for task in [task for task in self._working if task.done()]:
            self._working.discard(task)
            task.result()
        for partition in list(self.partitions.values()):
            if numbers is None or partition.number in numbers:
                self._tick(partition, elapsed_ms)
        silent = sum(partition.operator.silent_streams for partition in self.partitions.values())
        self._metrics.silent_streams.set(silent)

    def _tick(self, partition: PartitionState, elapsed_ms: int) -> None:
        for i, modality in enumerate(MODALITIES):
            look(partition, i, self._progress(modality, partition.number))
        # confirmations of inputs that brought nothing may let others go on
        if partition.merge.held and not partition.lock.locked():
            self._working.add(asyncio.create_task(self._work(partition), name=f"partition-{partition.number}"))
            return
        ready = [caught_up(partition, i, self._progress(m, partition.number)) for i, m in enumerate(MODALITIES)]
        # under back-pressure of this partition inputs may look quiet that were only not worked on
        if not (partition.outbox or partition.lock.locked() or partition.merge.held):
            for i, is_ready in enumerate(ready):
                partition.input_clocks_ms[i] += elapsed_ms if is_ready else 0
            partition.idle_clock_ms += elapsed_ms if all(ready) else 0
        partition.operator.tick(partition.idle_clock_ms, partition.input_clocks_ms)
        if not partition.lock.locked():
            self._forward_some(partition)
        delay = partition.operator.watermark_delay_ms()
        if delay is not None:
            self._metrics.watermark_delay.labels(str(partition.number)).set(delay / 1000)

    @property
    def busy(self) -> bool:
        """Whether work that a tick has started goes on."""
        return any(not task.done() for task in self._working)

    def full(self) -> dict[tuple[Modality, int], bool]:
        """Which inputs run so far ahead of the others that fetching from them should pause."""
        return {
            (modality, number): partition.merge.is_full(index)
            for number, partition in self.partitions.items()
            for index, modality in enumerate(MODALITIES)
        }


def in_hand(partitions: Mapping[int, PartitionState]) -> int:
    """Batches, events and outputs that were read and not yet handed on."""
    return sum(sum(p.in_hand) + p.merge.held + len(p.outbox) for p in partitions.values())
