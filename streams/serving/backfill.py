"""A candidate version reads what the serving version has read, into its own collection: the past first, then live.

It is a consumer group of its own, so its offsets say what its collection holds, and are committed only after its store
has acknowledged; the serving version knows nothing of it. It writes no topic. It never reads past what the serving
version has committed: what it stores was published, and a worker that takes over from its offsets publishes the rest.
"""

from __future__ import annotations

import asyncio
import time

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from streams.events.audio import ClipDecoder
from streams.events.topics import TOPICS
from streams.events.types import MODALITIES, Modality
from streams.kafka.admin import topic_ids
from streams.kafka.clients import new_consumer, open_admin
from streams.kafka.producer import Headers
from streams.kafka.progress import InputProgress, Start, readable_end
from streams.kafka.reader import partitions_of
from streams.lifecycle import Opened
from streams.metrics import Metrics
from streams.pipeline.pipeline import Pipeline
from streams.pipeline.publisher import NullPublisher
from streams.pipeline.recovery import Origin
from streams.serving.versions import Version
from streams.settings import Settings
from streams.store.base import VectorStore
from streams.store.retrying import RetryingStore

_TICK_S = 0.25
_BOUNDS_EVERY_S = 0.5
_COMMIT_EVERY_S = 1.0
_BATCH_RECORDS = 500


class _NullOutputs:
    """Sends nothing: the serving version has published everything, and rerouted what was in the wrong partition."""

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
        return


class Backfill(Opened):
    """One process reads all partitions. Not started yet: use `async with`, then `run`."""

    def __init__(self, settings: Settings, bootstrap: str, version: Version, serving_group: str) -> None:
        super().__init__()
        self.settings = settings
        self.version = version
        self._bootstrap = bootstrap
        self._serving_group = serving_group
        self._bounds: dict[TopicPartition, int] = {}  # read up to there, exclusive
        self._resume: dict[TopicPartition, int] = {}
        self._sent: dict[TopicPartition, int] = {}

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
        ids = await topic_ids(settings, self._bootstrap)
        self._publisher = NullPublisher()
        self._pipeline = Pipeline(
            settings,
            model=self.version.model,
            store=self.store,
            outputs=_NullOutputs(),
            publisher=self._publisher,
            clips=clips,
            origin=Origin({m: ids[settings.topic(name)] for m, name in TOPICS.items()}),
            progress=self._progress_of,
            metrics=Metrics(),
            partitions=len({tp.partition for tp in self._modality}),
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
            tps = [TopicPartition(self.settings.topic(TOPICS[m]), number) for m in MODALITIES]
            self._pipeline.ingest.assign(number, [Start(self._resume[tp], None) for tp in tps])
        await self._look()

    # -- work ----------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Read until `stop`; then what is in flight is finished and committed."""
        pipeline = asyncio.create_task(self._pipeline.run(), name="pipeline")
        reading = asyncio.create_task(self._read(stop), name="backfill")
        try:
            await asyncio.wait({pipeline, reading}, return_when=asyncio.FIRST_COMPLETED)
            if pipeline.done():
                await pipeline
            await reading
            while not self._pipeline.idle and not pipeline.done():
                await asyncio.sleep(0.02)
            await self._commit()
        finally:
            for task in (reading, pipeline):
                task.cancel()
            await asyncio.gather(reading, pipeline, return_exceptions=True)

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
                await self._pipeline.ingest.handle(self._modality[tp], tp.partition, records)
            now = time.monotonic()
            if now - looked >= _BOUNDS_EVERY_S:
                looked = now
                await self._look()
            if now - ticked >= _TICK_S:
                elapsed_ms = min(int((now - ticked) * 1000), 4 * int(_TICK_S * 1000))
                ticked = now
                await self._pipeline.ingest.tick(elapsed_ms)
            if now - committed >= _COMMIT_EVERY_S:
                committed = now
                await self._commit()

    async def _look(self) -> None:
        """How far the serving version has got by now."""
        offsets = await self._admin.list_consumer_group_offsets(self._serving_group)
        for tp in self._modality:
            at = offsets[tp].offset if tp in offsets else -1
            self._bounds[tp] = max(self._bounds.get(tp, 0), self._resume[tp], at)

    def _held(self) -> set[TopicPartition]:
        """Inputs that are read as far as the serving version has finished them, and have more."""
        return {
            tp
            for tp in self._modality
            if self._position(tp) >= self._bounds[tp] and (self._consumer.highwater(tp) or 0) > self._bounds[tp]
        }

    def _pause(self) -> None:
        """Fetch only what may be worked on: not past the serving version, and no input far ahead of the others."""
        held, full = self._held(), self._pipeline.ingest.full()
        for tp, modality in self._modality.items():
            stop = tp in held or full[modality, tp.partition]
            paused = tp in self._consumer.paused()
            if stop != paused:
                (self._consumer.resume if paused else self._consumer.pause)(tp)

    async def _commit(self) -> None:
        offsets: dict[TopicPartition, int] = {}
        for tp in self._modality:
            offset = self._pipeline.ledger.committable((tp.topic, tp.partition))
            if offset is not None and offset > self._sent.get(tp, -1):
                offsets[tp] = offset
        if offsets:
            await self._consumer.commit({tp: OffsetAndMetadata(offset, "") for tp, offset in offsets.items()})
            self._sent.update(offsets)

    # -- where it stands -----------------------------------------------------------------------------------------

    def _position(self, tp: TopicPartition) -> int:
        partition = self._pipeline.ingest.partitions[tp.partition]
        return partition.read[MODALITIES.index(self._modality[tp])]

    def _progress_of(self, modality: Modality, number: int) -> InputProgress | None:
        tp = TopicPartition(self.settings.topic(TOPICS[modality]), number)
        state = self._consumer._subscription.subscription.assignment.state_value(tp)
        if state is None or not state.has_valid_position:
            return None
        polled_ms_ago = None if state.timestamp is None else int(time.time() * 1000) - state.timestamp
        return InputProgress(state.position, readable_end(state), polled_ms_ago)

    @property
    def windows(self) -> int:
        """Stored, or recognised as stored."""
        return self._publisher.windows

    @property
    def total(self) -> int:
        """Records to be read, as far as the serving version has got."""
        return sum(self._bounds[tp] - self._resume[tp] for tp in self._modality)

    @property
    def lag(self) -> int:
        """Records that the serving version has finished and we have not read.

        An input that is full waits for another one, which is read as far as the serving version has finished it.
        """
        full = self._pipeline.ingest.full()
        frontier = {tp.partition for tp in self._held()}
        return sum(
            max(0, self._bounds[tp] - self._position(tp))
            for tp, modality in self._modality.items()
            if not (full[modality, tp.partition] and tp.partition in frontier)
        )

    @property
    def caught_up(self) -> bool:
        """All is read and stored. Where the inputs end there, no window is left open."""
        if self.lag or not self._pipeline.idle:
            return False
        for partition in self._pipeline.ingest.partitions.values():
            tps = [TopicPartition(self.settings.topic(TOPICS[m]), partition.number) for m in MODALITIES]
            ends = all((self._consumer.highwater(tp) or 0) <= self._bounds[tp] for tp in tps)
            if ends and partition.operator.open_panes:
                return False
        return True
