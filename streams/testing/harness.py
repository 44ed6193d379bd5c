"""The harness itself: one worker's pipeline, whose input log, outputs, store and clock a test controls."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from models.interface import WindowModel
from streams.events.audio import ClipDecoder
from streams.events.topics import MODALITY_OF, TOPICS
from streams.events.types import MODALITIES, CloudEvent, IncidentEvent, WindowRecord
from streams.lifecycle import Opened
from streams.metrics import Metrics
from streams.pipeline.pipeline import Pipeline
from streams.pipeline.publisher import OutputPublisher
from streams.pipeline.recovery import Origin
from streams.pipeline.reroute import partition_of
from streams.settings import Settings
from streams.store.base import VectorStore
from streams.store.edge import EdgeStore
from streams.testing.crash import Fuse, FusedOutputs, FusedStore
from streams.testing.kafka_log import KafkaLog
from streams.testing.kafka_outputs import ReadBackOutputs
from streams.testing.logs import Input, InputLog, LogRecord, MemoryLog
from streams.testing.loop_thread import LoopThread
from streams.testing.outputs import ReadableOutputs, RecordedOutputs, Sent

_TICK_MS = 500


@dataclass(slots=True)
class _Run:
    """What lives in a worker process and dies with it."""

    fuse: Fuse
    pipeline: Pipeline
    clips: ClipDecoder
    metrics: Metrics
    task: asyncio.Task[None]


class Harness(Opened):
    """One worker, on logs in memory or on a real Kafka. Times are epoch ms; the clock moves only by `advance`."""

    def __init__(
        self,
        folder: Path,
        *,
        model: WindowModel | None = None,
        settings: Settings | None = None,
        store: VectorStore | None = None,
        partitions: int = 1,
        now_ms: int = 1_800_000_000_000,
        batch_records: int = 500,
        real: str | None = None,
    ) -> None:
        """`partitions`: of each input; `batch_records`: most records of one read.

        `real`: bootstrap servers `host:port[,...]` of a Kafka to run on, with topics and a group of this harness's
        own (their names: `settings.topic`); None: logs in memory.
        """
        super().__init__()
        self.settings = settings or Settings(state=folder)
        self.store: VectorStore = store or EdgeStore(folder / "store")
        self._model = model
        self._partitions = partitions
        self._now_ms = now_ms
        self._batch_records = batch_records
        self._log: InputLog
        self.outputs: ReadableOutputs
        self._on_kafka: list[contextlib.AbstractAsyncContextManager[Any]] = []  # in the order in which they are entered
        if real is None:
            self._log = log = MemoryLog(partitions, lambda: self._now_ms, self.settings.topic)
            self.outputs = RecordedOutputs(log.reproduced)
        else:
            prefix = f"{self.settings.topic_prefix}harness-{uuid.uuid4().hex[:12]}."
            self.settings = self.settings.model_copy(update={"kafka": real, "topic_prefix": prefix})
            thread = LoopThread()
            self._log = kafka_log = KafkaLog(self.settings, real, partitions, thread)
            self.outputs = read_back = ReadBackOutputs(self.settings, real, thread)
            self._on_kafka = [thread, kafka_log, read_back]
        self._run: _Run | None = None

    async def _open(self) -> None:
        if self._model is None:
            import models

            self._model = models.load(self.settings.model)
        await self._exits.enter_async_context(self.store)
        for part in self._on_kafka:
            await self._exits.enter_async_context(part)
        self._exits.push_async_callback(self._stop)
        await self._start()

    # -- feeding -------------------------------------------------------------------------------------------------

    async def push(
        self,
        topic: str,
        key: str | bytes | None,
        value: Mapping[str, Any] | Sequence[Any] | bytes | None,
        *,
        headers: Mapping[str, bytes] | None = None,
        timestamp_ms: int | None = None,
        partition: int | None = None,
        settle: bool = True,
    ) -> LogRecord:
        """Append one record to an input topic (`sensor-readings`, `audio-clips`, `captions`) and work it off.

        `partition`: the one that a producer with another partitioner would choose; None: that of the key.
        """
        key = key.encode() if isinstance(key, str) else key
        number = partition_of(key or b"", self._partitions) if partition is None else partition
        record = await self._log.append(
            topic,
            number,
            key=key,
            value=value if isinstance(value, bytes | None) else msgspec.json.encode(value),
            headers=tuple((headers or {}).items()),
            timestamp_ms=self._now_ms if timestamp_ms is None else timestamp_ms,
        )
        if settle:
            await self.settle()
        return record

    def delete_records(self, topic: str, partition: int, before_offset: int) -> None:
        """What retention does: the log begins at `before_offset` from now on."""
        self._log.delete_records(topic, partition, before_offset)

    def recreate_topic(self, topic: str) -> None:
        """Delete a topic and make it anew: another id, and nothing in it. Crash next: a worker starts afresh."""
        self._log.recreate_topic(topic)

    async def settle(self) -> None:
        """Read whatever is unread, a batch of each partition in turn, and wait until scoring has nothing left.

        An input that runs too far ahead of the others is paused, as in a worker.
        """
        run = self._running()
        await self._log.look()
        while unread := self._log.unread():
            full = run.pipeline.ingest.full()
            for topic, number in [tp for tp in unread if not full[MODALITY_OF[tp[0]], tp[1]]]:
                batch = await self._log.read(topic, number, self._batch_records)
                await self._guarded(run.pipeline.ingest.handle(MODALITY_OF[topic], number, batch))
            await self._tick(run, 0)
        await self._drain(run)

    async def advance(self, ms: int) -> None:
        """Let `ms` of quiet pass, caught up with the logs; windows close and streams fall silent by it."""
        run = self._running()
        for _ in range(0, ms, _TICK_MS):
            await self._tick(run, _TICK_MS)

    def commit(self) -> dict[Input, int]:
        """Commit what is finished; the next crash or rebalance goes on from there. Returns all that is committed."""
        ledger = self._running().pipeline.ledger
        found = {tp: ledger.committable((self.settings.topic(tp[0]), tp[1])) for tp in self._inputs()}
        self._log.commit({tp: offset for tp, offset in found.items() if offset is not None})
        return self._log.committed()

    def ends(self) -> dict[Input, int]:
        """One past the last record of every input partition: what is committed when all is finished."""
        return self._log.ends()

    def records(self, topic: str, partition: int) -> list[LogRecord]:
        """What an input partition holds now, records that the service re-produced into it included."""
        return self._log.records(topic, partition)

    async def crash(self, *, after: int | None = None) -> None:
        """kill -9 and start again: committed offsets, store and outputs stay, all else is gone.

        `after`: work goes on, as in `settle`, until that many writes more have been made to the store and the output
        topics (or nothing is left to do), and ends there: between any two steps of the commit order.
        """
        if after is not None:
            await self._work_until(after)
        await self._stop()
        await self._start()

    async def _work_until(self, writes: int) -> None:
        fuse = self._running().fuse
        fuse.left = writes
        work, blown = asyncio.ensure_future(self.settle()), asyncio.ensure_future(fuse.blown.wait())
        await asyncio.wait({work, blown}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        for task in (work, blown):
            task.cancel()
        await asyncio.gather(work, blown, return_exceptions=True)

    async def rebalance(self, numbers: Sequence[int] | None = None) -> None:
        """Revoke everything, then assign these partition numbers (default: all), as Faust's eager protocol does."""
        run = self._running()
        for number in list(run.pipeline.ingest.partitions):
            run.pipeline.ingest.revoke(number)
        await self._assign(run, range(self._partitions) if numbers is None else numbers)
        await asyncio.sleep(0)

    # -- reading -------------------------------------------------------------------------------------------------

    def windows(self) -> list[WindowRecord]:
        """The newest announcement of every window, by start and stream."""
        newest: dict[str, WindowRecord] = {}
        for sent in self.sent("windows"):
            record = msgspec.json.decode(sent.value or b"", type=WindowRecord)
            newest[record.id] = record
        return sorted(newest.values(), key=lambda w: (w.start_ms, w.stream))

    def incidents(self) -> list[IncidentEvent]:
        """Every distinct incident step, in the order first announced."""
        steps: dict[str, IncidentEvent] = {}
        for sent in self.sent("incidents"):
            event = msgspec.json.decode(sent.value or b"", type=CloudEvent)
            if event.type.startswith("sensorium.incident."):
                steps.setdefault(event.id, msgspec.convert(event.data, IncidentEvent))
        return list(steps.values())

    def sent(self, topic: str) -> list[Sent]:
        """Everything produced to an output topic, in order, repeats after a crash included."""
        return [sent for sent in self.outputs.sent if sent.topic == topic]

    def dead(self) -> list[Sent]:
        return self.sent("dead-letters")

    def late(self) -> list[Sent]:
        return self.sent("late-events")

    @property
    def metrics(self) -> Metrics:
        return self._running().metrics

    # -- inside --------------------------------------------------------------------------------------------------

    def _running(self) -> _Run:
        if self._run is None:
            raise RuntimeError("use the harness as a context manager: async with Harness(folder) as h")
        return self._run

    async def _start(self) -> None:
        assert self._model is not None
        metrics, fuse = Metrics(), Fuse()
        outputs = FusedOutputs(self.outputs, fuse)
        ids = await self._log.topic_ids()
        clips = ClipDecoder(self.settings.audio)
        await clips.__aenter__()
        pipeline = Pipeline(
            self.settings,
            model=self._model,
            store=FusedStore(self.store, fuse),
            outputs=outputs,
            publisher=OutputPublisher(outputs, metrics, self.settings.topic),
            clips=clips,
            origin=Origin({modality: ids[topic] for modality, topic in TOPICS.items()}),
            progress=lambda modality, number: self._log.progress(TOPICS[modality], number),
            metrics=metrics,
            partitions=self._partitions,
            now_ms=lambda: self._now_ms,
            clock_ms=lambda: self._now_ms,
            batch_wait_ms=0,
        )
        self._run = _Run(fuse, pipeline, clips, metrics, asyncio.create_task(pipeline.run()))
        await self._assign(self._run, range(self._partitions))

    async def _stop(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await run.task
            await run.clips.__aexit__(None, None, None)

    def _inputs(self) -> list[Input]:
        return [(topic, number) for topic in TOPICS.values() for number in range(self._partitions)]

    async def _assign(self, run: _Run, numbers: Iterable[int]) -> None:
        numbers = list(numbers)
        starts = await self._log.assign(numbers)
        for number in numbers:
            run.pipeline.ingest.assign(number, [starts[TOPICS[modality], number] for modality in MODALITIES])
        for (topic, number), start in starts.items():
            if start.lost:
                run.metrics.lost.labels(self.settings.topic(topic), str(number)).inc(start.lost)

    async def _tick(self, run: _Run, ms: int) -> None:
        await self._log.look()
        self._now_ms += ms
        await self._guarded(run.pipeline.ingest.tick(ms, range(self._partitions)))
        await self._drain(run)

    async def _drain(self, run: _Run) -> None:
        for _ in itertools.count():
            if run.task.done():
                await run.task
            if run.pipeline.idle:
                return
            await asyncio.sleep(0.001)

    async def _guarded(self, work: Any) -> None:
        """Run `work`, but fail at once if scoring has failed: nobody would empty the queue any more."""
        run = self._running()
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, run.task}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await run.task
            await task
        finally:
            task.cancel()
