"""From records to fired windows: decode, guard the clock, window, and send aside what is late or bad.

Each of the three ingest agents calls `handle` with up to 500 consecutive records of one partition. Records of one
partition number meet in one window operator under one lock; what follows from them goes to the inference queue in the
order in which it must be worked on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog

from streams.events.audio import ClipDecoder
from streams.events.clock_guard import TimeGuard
from streams.events.dead_letter import dead_letter, late_letter
from streams.events.envelope import decode_key
from streams.events.json_codec import decode_caption, decode_reading, decode_readings
from streams.events.topics import TOPICS
from streams.events.types import MODALITIES, Event, Modality, Reason, Rejection
from streams.kafka.ledger import OffsetLedger
from streams.kafka.producer import Outputs
from streams.kafka.progress import InputProgress
from streams.kafka.reader import raw_record
from streams.metrics import Metrics
from streams.pipeline.recovery import Restorer
from streams.pipeline.state import Partition
from streams.settings import WindowSettings
from streams.windows.types import Late, Output, Record, WindowConfig

log = structlog.get_logger(__name__)
_OUTPUTS_AT_ONCE = 256  # fired before the queue and the event loop get their turn
_LETTERS_AT_ONCE = 32  # awaiting their acknowledgement
_CLIPS_AT_ONCE = 16  # clips decoded before they are windowed: bounds memory and keeps windows moving
_POLL_FRESH_MS = 3_000  # a partition counts as caught up only if the broker confirmed it this recently


def window_config(settings: WindowSettings) -> WindowConfig:
    """The operator's configuration out of the settings."""
    disorder = settings.disorder_ms
    return WindowConfig(
        size_ms=settings.size_ms,
        hop_ms=settings.hop_ms,
        disorder_ms=(disorder.sensor, disorder.audio, disorder.caption),
        allowed_lateness_ms=settings.allowed_lateness_ms,
        idle_timeout_ms=settings.idle_timeout_ms,
        max_drift_ms=settings.max_drift_ms,
    )


class Intake:
    """Owns the partitions that are assigned to this worker."""

    def __init__(
        self,
        settings: WindowSettings,
        *,
        ledger: OffsetLedger,
        outputs: Outputs,
        queue: asyncio.Queue[tuple[Partition, Output]],
        restorer: Restorer,
        clips: ClipDecoder,
        metrics: Metrics,
        now_ms: Callable[[], int],
        topic: Callable[[str], str] = str,
    ) -> None:
        self._config = window_config(settings)
        self._ledger = ledger
        self._outputs = outputs
        self._queue = queue
        self._restorer = restorer
        self._clips = clips
        self._metrics = metrics
        self._guard = TimeGuard(settings, now_ms)
        self._topic = {m: topic(name) for m, name in TOPICS.items()}
        self._epochs: dict[int, int] = {}
        self.partitions: dict[int, Partition] = {}

    # -- assignment ----------------------------------------------------------------------------------------------

    def assign(self, number: int, resume: Sequence[int], epoch: int | None = None) -> Partition:
        """Take over a partition number; `resume` is the first offset that will be read of each modality."""
        epoch = self._epochs.get(number, 0) + 1 if epoch is None else epoch
        self._epochs[number] = epoch
        sensor, audio, caption = resume
        partition = Partition(number, epoch, self._config, (sensor, audio, caption))
        self.partitions[number] = partition
        for modality in MODALITIES:
            self._ledger.begin((self._topic[modality], number), epoch)
        return partition

    def revoke(self, number: int) -> None:
        """Drop all buffers of a partition number; what is in flight of it will be discarded."""
        partition = self.partitions.pop(number, None)
        if partition is not None:
            partition.revoked = True
        for modality in MODALITIES:
            self._ledger.forget((self._topic[modality], number))

    # -- records -------------------------------------------------------------------------------------------------

    async def handle(self, modality: Modality, number: int, records: Sequence[Any]) -> None:
        """Work on consecutive records of one partition (aiokafka records or `RawRecord`-alikes)."""
        partition = self.partitions.get(number)
        if partition is None or not records:
            return
        index = MODALITIES.index(modality)
        partition.in_hand[index] += 1
        try:
            await self._handle(modality, partition, records)
        finally:
            partition.in_hand[index] -= 1
        if not partition.revoked:
            partition.handled[index] = records[-1].offset + 1
            partition.heard_at_ms[index] = partition.clock_ms[index]

    async def _handle(self, modality: Modality, partition: Partition, records: Sequence[Any]) -> None:
        tp = (self._topic[modality], partition.number)
        index = MODALITIES.index(modality)
        self._metrics.records.labels(tp[0]).inc(len(records))
        self._ledger.track(tp, partition.epoch, [record.offset for record in records])
        if modality is Modality.SENSOR:
            events, rejected = self._decode_readings(partition, tp, records)
            await self._window(partition, index, events, records)
            await self._set_aside(partition, tp, rejected)
        else:
            step = _CLIPS_AT_ONCE if modality is Modality.AUDIO else len(records)
            decode = self._decode_clips if modality is Modality.AUDIO else self._decode_captions
            for start in range(0, len(records), step):
                chunk = records[start : start + step]
                events, rejected = await decode(chunk)
                await self._window(partition, index, events, chunk)
                await self._set_aside(partition, tp, rejected)

    def _decode_readings(
        self, partition: Partition, tp: tuple[str, int], records: Sequence[Any]
    ) -> tuple[list[Record], list[tuple[Any, Rejection]]]:
        events: list[Record] = []
        rejected: list[tuple[Any, Rejection]] = []
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
                continue
            if len(readings) == 1:
                events.append(Record(record.offset, stream, readings[0]))
            else:
                self._ledger.expect(tp, partition.epoch, record.offset, len(readings))
                events.extend(Record(record.offset, stream, reading) for reading in readings)
        return events, rejected

    async def _decode_captions(self, records: Sequence[Any]) -> tuple[list[Record], list[tuple[Any, Rejection]]]:
        async def decode(record: Any) -> Event:
            return decode_caption(record.value, record.headers, record.timestamp)

        return await self._decode_each(records, decode)

    async def _decode_clips(self, records: Sequence[Any]) -> tuple[list[Record], list[tuple[Any, Rejection]]]:
        async def decode(record: Any) -> Event:
            return await self._clips.decode(record.value, record.headers, record.timestamp)

        return await self._decode_each(records, decode)

    async def _decode_each(
        self, records: Sequence[Any], decode: Callable[[Any], Awaitable[Event]]
    ) -> tuple[list[Record], list[tuple[Any, Rejection]]]:
        async def one(record: Any) -> Record | Rejection:
            try:
                stream = decode_key(record.key)
                event = await decode(record)
                self._guard.check(event.time_ms)
            except Rejection as rejection:
                return rejection
            return Record(record.offset, stream, event)

        results = await asyncio.gather(*(one(record) for record in records))
        events = [result for result in results if not isinstance(result, Rejection)]
        pairs = zip(records, results, strict=True)
        return events, [(record, result) for record, result in pairs if isinstance(result, Rejection)]

    async def _window(self, partition: Partition, modality: int, events: list[Record], records: Sequence[Any]) -> None:
        async with partition.lock:
            unresolved = partition.operator.push(modality, events)
            while unresolved and not partition.revoked:
                await self._restorer.restore(partition, partition.operator.unknown(unresolved))
                unresolved = partition.operator.push(modality, unresolved)
            if partition.revoked:
                return
            late = await self._forward(partition)
        if late:
            await self._send_late(partition, late, records)

    async def _forward(self, partition: Partition) -> list[Late]:
        """Everything but late events goes to inference; a full queue holds the partition back, and Kafka with it."""
        late: list[Late] = []
        outbox = partition.outbox
        while True:
            if not outbox:
                outbox.extend(partition.operator.advance(_OUTPUTS_AT_ONCE))
            if not outbox:
                return late
            output = outbox.popleft()
            if isinstance(output, Late):
                late.append(output)
            else:
                await self._queue.put((partition, output))

    def _forward_some(self, partition: Partition) -> None:
        """As much as the queue has room for: whoever keeps the clocks never waits."""
        outbox = partition.outbox
        while not self._queue.full():
            if not outbox:
                outbox.extend(partition.operator.advance(_OUTPUTS_AT_ONCE))
            if not outbox:
                return
            self._queue.put_nowait((partition, outbox.popleft()))

    # -- time ----------------------------------------------------------------------------------------------------

    async def tick(self, elapsed_ms: int, progress: Mapping[tuple[Modality, int], InputProgress]) -> None:
        """Move the idle clocks by `elapsed_ms` where inputs are caught up, and fire what that lets fire.."""
        for partition in list(self.partitions.values()):
            caught_up = [
                self._caught_up(partition, i, progress.get((m, partition.number))) for i, m in enumerate(MODALITIES)
            ]
            pressed = self._queue.full() or bool(partition.outbox) or partition.lock.locked()
            if not pressed:
                for i, is_caught_up in enumerate(caught_up):
                    partition.clock_ms[i] += elapsed_ms if is_caught_up else 0
                partition.idle_clock_ms += elapsed_ms if all(caught_up) else 0
            timeout = self._config.idle_timeout_ms
            idle = [
                up and clock - heard >= timeout
                for up, clock, heard in zip(caught_up, partition.clock_ms, partition.heard_at_ms, strict=True)
            ]
            # told under pressure too: who was quiet before it may be backlogged by now
            partition.operator.tick(partition.idle_clock_ms, idle)
            if not partition.lock.locked():
                self._forward_some(partition)
            delay = partition.operator.watermark_delay_ms()
            if delay is not None:
                self._metrics.watermark_delay.labels(str(partition.number)).set(delay / 1000)

    def _caught_up(self, partition: Partition, modality: int, progress: InputProgress | None) -> bool:
        """Whether everything that the broker holds of this input has been worked on, as it said itself just now."""
        if progress is None or progress.highwater is None or progress.polled_ms_ago is None:
            return False
        if partition.in_hand[modality] or progress.polled_ms_ago >= _POLL_FRESH_MS:
            return False
        handled = partition.handled[modality]
        if handled >= progress.highwater:
            return True
        # a log may end in control records that are never delivered: then the position tells, if all that was
        # delivered has been worked on
        delivered = partition.resume[modality] if progress.delivered is None else progress.delivered
        return handled >= delivered and progress.position >= progress.highwater

    def ahead(self) -> dict[tuple[Modality, int], bool]:
        """Which inputs run too far ahead of the others in event time and should be paused."""
        return {
            (modality, number): ahead
            for number, partition in self.partitions.items()
            for modality, ahead in zip(MODALITIES, partition.operator.ahead(), strict=True)
        }

    # -- aside ---------------------------------------------------------------------------------------------------

    async def _set_aside(
        self, partition: Partition, tp: tuple[str, int], rejected: list[tuple[Any, Rejection]]
    ) -> None:
        """Dead letters: acknowledged first, released then."""

        async def one(record: Any, rejection: Rejection) -> None:
            log.warning(
                "dead letter",
                topic=tp[0],
                partition=tp[1],
                offset=record.offset,
                reason=rejection.reason,
                detail=rejection.detail,
            )
            key, value, headers = dead_letter(raw_record(record), rejection, stage="decode")
            await self._outputs.send("dead-letters", value, key=key, headers=headers)
            self._metrics.events.labels(tp[0], rejection.reason.value).inc()
            self._ledger.release(tp, partition.epoch, [record.offset])

        for start in range(0, len(rejected), _LETTERS_AT_ONCE):
            if not partition.revoked:
                await asyncio.gather(*(one(*letter) for letter in rejected[start : start + _LETTERS_AT_ONCE]))

    async def _send_late(self, partition: Partition, late: list[Late], records: Sequence[Any]) -> None:
        by_offset = {record.offset: record for record in records}
        counts: dict[tuple[int, int], int] = {}
        for output in late:
            counts[output.modality, output.record.offset] = counts.get((output.modality, output.record.offset), 0) + 1
        behind = {(o.modality, o.record.offset): o.late_ms for o in late}

        async def one(modality: int, offset: int, events: int) -> None:
            tp = (self._topic[MODALITIES[modality]], partition.number)
            detail = f"its window was final; the watermark was {behind[modality, offset]} ms past its end"
            key, value, headers = late_letter(raw_record(by_offset[offset]), detail, events=events)
            await self._outputs.send("late-events", value, key=key, headers=headers)
            self._metrics.events.labels(tp[0], Reason.LATE.value).inc(events)
            self._ledger.release(tp, partition.epoch, [offset] * events)

        letters = [(*origin, events) for origin, events in counts.items()]
        for start in range(0, len(letters), _LETTERS_AT_ONCE):
            if not partition.revoked:
                await asyncio.gather(*(one(*letter) for letter in letters[start : start + _LETTERS_AT_ONCE]))
