"""A candidate version reads what the serving version has read, into its own collection: the past first, then live.

It is a consumer group of its own, so its offsets say what its collection holds, and are committed only after its store
has acknowledged; the serving version knows nothing of it. It writes no topic. It never reads past what the serving
version has committed: whatever it stores was announced, and whoever takes over from its offsets announces the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from streams.events.audio import ClipDecoder
from streams.events.topics import TOPICS
from streams.events.types import MODALITIES, Modality
from streams.kafka.clients import cluster_id, new_consumer, open_admin
from streams.kafka.ledger import OffsetLedger
from streams.kafka.producer import Headers, Outputs
from streams.kafka.progress import InputProgress
from streams.kafka.reader import partitions_of
from streams.metrics import Metrics
from streams.pipeline.inference import Inference
from streams.pipeline.ingest import Intake
from streams.pipeline.publisher import Announcer
from streams.pipeline.recovery import Restorer, drift_config
from streams.pipeline.state import Partition
from streams.serving.versions import Version
from streams.settings import Settings
from streams.store.base import VectorStore
from streams.store.retrying import RetryingStore
from streams.windows.types import Output, StreamIdle

_TICK_S = 0.25
_BOUNDS_EVERY_S = 0.5
_COMMIT_EVERY_S = 1.0
_BATCH_RECORDS = 500


class _Silence:
    """Outputs that go nowhere: the serving version has said it all."""

    async def send(self, topic: str, value: bytes | None, *, key: bytes | None, headers: Headers = ()) -> None:
        return


class _Mute(Announcer):
    """Counts windows; says nothing, not in the log either."""

    def __init__(self, outputs: Outputs, metrics: Metrics) -> None:
        super().__init__(outputs, metrics)
        self.windows = 0

    async def window(self, id: str, payload: Mapping[str, Any]) -> None:
        self.windows += 1

    async def incidents(self, steps: Sequence[Mapping[str, Any]], *, again: bool) -> None:
        return

    async def silence(self, output: StreamIdle) -> None:
        return


class Backfill:
    """One process reads all partitions. Not started yet: use `async with`, then `run`."""

    def __init__(self, settings: Settings, bootstrap: str, version: Version, serving_group: str) -> None:
        self.settings = settings
        self.version = version
        self._bootstrap = bootstrap
        self._serving_group = serving_group
        self._exits = contextlib.AsyncExitStack()
        self._bounds: dict[TopicPartition, int] = {}  # read up to there, exclusive
        self._resume: dict[TopicPartition, int] = {}
        self._sent: dict[TopicPartition, int] = {}

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    async def _open(self) -> None:
        settings, exits = self.settings, self._exits
        self.store: VectorStore = RetryingStore(await exits.enter_async_context(self.version.store()))
        self._admin = await open_admin(settings, self._bootstrap)
        exits.push_async_callback(self._admin.close)
        self._consumer: AIOKafkaConsumer = new_consumer(settings, self._bootstrap, group_id=self.version.group)
        await self._consumer.start()
        exits.push_async_callback(self._consumer.stop)
        topics = {settings.topic(TOPICS[m]): m for m in MODALITIES}
        self._modality: dict[TopicPartition, Modality] = {
            tp: topics[tp.topic] for tp in await partitions_of(self._consumer, list(topics))
        }
        self._consumer.assign(list(self._modality))
        clips = await exits.enter_async_context(ClipDecoder(settings.audio))
        origin = await cluster_id(settings, self._bootstrap)
        self._ledger, silence, metrics = OffsetLedger(), _Silence(), Metrics()
        self._announcer = _Mute(silence, metrics)
        queue: asyncio.Queue[tuple[Partition, Output]] = asyncio.Queue(maxsize=256)
        restorer = Restorer(
            self.store,
            drift_config(settings),
            model=self.version.name,
            size_ms=settings.window.size_ms,
            origin=origin,
        )
        self._intake = Intake(
            settings.window,
            ledger=self._ledger,
            outputs=silence,
            queue=queue,
            restorer=restorer,
            clips=clips,
            metrics=metrics,
            now_ms=lambda: int(time.time() * 1000),
            topic=settings.topic,
        )
        self._inference = Inference(
            queue=queue,
            model=self.version.model,
            store=self.store,
            restorer=restorer,
            announcer=self._announcer,
            ledger=self._ledger,
            metrics=metrics,
            origin=origin,
            topic=settings.topic,
            batch_windows=settings.batch_windows,
            batch_wait_ms=settings.batch_wait_ms,
        )
        await self._begin()

    async def _begin(self) -> None:
        """Start where the candidate's offsets say; from the first record that is left where its collection is empty."""
        tps = list(self._modality)
        first = await self._consumer.beginning_offsets(tps)
        filled = await self.store.count() > 0
        for tp in tps:
            committed = await self._consumer.committed(tp) if filled else None
            self._resume[tp] = max(first[tp], committed or 0)
            self._consumer.seek(tp, self._resume[tp])
        for number in sorted({tp.partition for tp in tps}):
            resume = [self._resume[TopicPartition(self.settings.topic(TOPICS[m]), number)] for m in MODALITIES]
            self._intake.assign(number, resume)
        await self._look()

    # -- work ----------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Read until `stop`; then what is in flight is finished and committed."""
        inference = asyncio.create_task(self._inference.run(), name="inference")
        reading = asyncio.create_task(self._read(stop), name="backfill")
        try:
            await asyncio.wait({inference, reading}, return_when=asyncio.FIRST_COMPLETED)
            if inference.done():
                await inference
            await reading
            while not self._inference.idle and not inference.done():
                await asyncio.sleep(0.02)
            await self._commit()
        finally:
            for task in (reading, inference):
                task.cancel()
            await asyncio.gather(reading, inference, return_exceptions=True)

    async def _read(self, stop: asyncio.Event) -> None:
        ticked = looked = committed = time.monotonic()
        while not stop.is_set():
            self._pause()
            found = await self._consumer.getmany(timeout_ms=int(_TICK_S * 1000), max_records=_BATCH_RECORDS)
            for tp, records in found.items():
                bound = self._bounds[tp]
                beyond = next((r.offset for r in records if r.offset >= bound), None)
                if beyond is not None:
                    self._consumer.seek(tp, beyond)
                    records = [r for r in records if r.offset < bound]
                await self._intake.handle(self._modality[tp], tp.partition, records)
            now = time.monotonic()
            if now - looked >= _BOUNDS_EVERY_S:
                looked = now
                await self._look()
            if now - ticked >= _TICK_S:
                elapsed_ms = min(int((now - ticked) * 1000), 4 * int(_TICK_S * 1000))
                ticked = now
                await self._intake.tick(elapsed_ms, self._progress())
            if now - committed >= _COMMIT_EVERY_S:
                committed = now
                await self._commit()

    async def _look(self) -> None:
        """How far the serving version has got by now."""
        said = await self._admin.list_consumer_group_offsets(self._serving_group)
        for tp in self._modality:
            at = said[tp].offset if tp in said else -1
            self._bounds[tp] = max(self._bounds.get(tp, 0), self._resume[tp], at)

    def _pause(self) -> None:
        """Fetch only what may be worked on: not past the serving version, and no input far ahead of the others.

        An input that is held at the serving version's place is waited for by nobody: what comes next of it comes when
        that version has finished it, and that may be long after the others' last records.
        """
        held = {
            tp
            for tp in self._modality
            if self._position(tp) >= self._bounds[tp] and (self._consumer.highwater(tp) or 0) > self._bounds[tp]
        }
        frontier = {tp.partition for tp in held}
        ahead = self._intake.ahead()
        for tp, modality in self._modality.items():
            stop = tp in held or (tp.partition not in frontier and ahead[modality, tp.partition])
            paused = tp in self._consumer.paused()
            if stop != paused:
                (self._consumer.resume if paused else self._consumer.pause)(tp)

    async def _commit(self) -> None:
        offsets: dict[TopicPartition, int] = {}
        for tp in self._modality:
            offset = self._ledger.committable((tp.topic, tp.partition))
            if offset is not None and offset > self._sent.get(tp, -1):
                offsets[tp] = offset
        if offsets:
            await self._consumer.commit({tp: OffsetAndMetadata(offset, "") for tp, offset in offsets.items()})
            self._sent.update(offsets)

    # -- where it stands -----------------------------------------------------------------------------------------

    def _position(self, tp: TopicPartition) -> int:
        partition = self._intake.partitions[tp.partition]
        return partition.handled[MODALITIES.index(self._modality[tp])]

    def _progress(self) -> dict[tuple[Modality, int], InputProgress]:
        now_ms, found = int(time.time() * 1000), {}
        for tp, modality in self._modality.items():
            state = self._consumer._subscription.subscription.assignment.state_value(tp)
            if state is not None and state.has_valid_position:
                polled_ms_ago = None if state.timestamp is None else now_ms - state.timestamp
                found[modality, tp.partition] = InputProgress(state.position, state.highwater, polled_ms_ago)
        return found

    @property
    def windows(self) -> int:
        """Stored, or recognised as stored."""
        return self._announcer.windows

    @property
    def total(self) -> int:
        """Records to be read, as far as the serving version has got."""
        return sum(self._bounds[tp] - self._resume[tp] for tp in self._modality)

    @property
    def lag(self) -> int:
        """Records that the serving version has finished and we have not read."""
        return sum(max(0, self._bounds[tp] - self._position(tp)) for tp in self._modality)

    @property
    def caught_up(self) -> bool:
        """All is read and stored. An input that ends there has been quiet for long enough to hold no window open."""
        if self.lag or not self._inference.idle:
            return False
        timeout = self.settings.window.idle_timeout_ms
        for partition in self._intake.partitions.values():
            if not partition.operator.open_panes:
                continue
            ends = []
            for i, modality in enumerate(MODALITIES):
                tp = TopicPartition(self.settings.topic(TOPICS[modality]), partition.number)
                ends.append((self._consumer.highwater(tp) or 0) <= self._bounds[tp])
                if ends[i] and partition.clock_ms[i] - partition.heard_at_ms[i] < timeout:
                    return False
            if all(ends) and partition.idle_clock_ms < timeout:
                return False
        return True
