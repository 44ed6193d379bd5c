"""A test driver that ships with the service: feed records, advance the clock, crash, read the outputs. No broker.

The harness keeps a log per input partition, as Kafka would, and runs the real intake, windows, inference, drift and
ledger on it; only the consumer and the producer are replaced. The store is the real embedded one, or any other.

    async with Harness(folder) as h:
        await h.push("sensor-readings", "pump-1", {"time": 1_000, "values": {"flow": 3.2}})
        await h.advance(60_000)                 # a minute of quiet: open windows close
        assert [w.stream for w in h.windows()] == ["pump-1"]
        await h.crash()                         # kill -9: everything in memory is gone, committed offsets stay
        await h.settle()                        # records past the committed offsets are read again

`crash(after=n)` dies in the middle of work, when n more writes have reached the store and the output topics.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from models.interface import WindowModel
from streams.events.audio import ClipDecoder
from streams.events.topics import INPUTS, MODALITY_OF, TOPICS
from streams.events.types import MODALITIES, CloudEvent, IncidentEvent, Modality, WindowRecord
from streams.kafka.producer import Headers, Outputs
from streams.kafka.progress import InputProgress, start_at
from streams.metrics import Metrics
from streams.pipeline.pipeline import Pipeline
from streams.pipeline.publisher import OutputPublisher
from streams.pipeline.recovery import Origin
from streams.pipeline.reroute import partition_of
from streams.settings import Settings
from streams.store.base import Point, VectorStore
from streams.store.edge import EdgeStore

_TICK_MS = 500


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A record of the harness's log, with the attributes of an aiokafka record."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Sent:
    """A record that the service produced."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class RecordedOutputs:
    """An `Outputs` that remembers; survives crashes, as Kafka does."""

    def __init__(self, append: Callable[[Sent, int, int | None], None] | None = None) -> None:
        """`append` is given what is sent to an input topic, with its partition and timestamp."""
        self.sent: list[Sent] = []
        self._append = append

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
        sent = Sent(topic, key, value, tuple(headers))
        self.sent.append(sent)
        if self._append is not None and topic in INPUTS and partition is not None:
            self._append(sent, partition, timestamp_ms)


class _Fuse:
    """Lets a number of writes through and holds every other for ever: what a process does that is killed."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.blown = asyncio.Event()

    async def burn(self) -> None:
        if self.left is None:
            return
        if not self.left:
            self.blown.set()
            await asyncio.Event().wait()
        self.left -= 1


class _FusedOutputs:
    def __init__(self, outputs: Outputs, fuse: _Fuse) -> None:
        self._outputs = outputs
        self._fuse = fuse

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
        await self._fuse.burn()
        await self._outputs.send(topic, value, key=key, headers=headers, partition=partition, timestamp_ms=timestamp_ms)


class _FusedStore:
    """A store whose writes burn the fuse; everything else is the store's own."""

    def __init__(self, store: VectorStore, fuse: _Fuse) -> None:
        self._store = store
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def upsert(self, points: Sequence[Point]) -> None:
        await self._fuse.burn()
        await self._store.upsert(points)

    async def set_payload(self, id: str | Sequence[str], values: Mapping[str, Any]) -> None:
        await self._fuse.burn()
        await self._store.set_payload(id, values)


@dataclass(slots=True)
class _Run:
    """What lives in a worker process and dies with it."""

    fuse: _Fuse
    pipeline: Pipeline
    clips: ClipDecoder
    metrics: Metrics
    task: asyncio.Task[None]
    position: dict[tuple[str, int], int] = field(default_factory=dict)


class Harness:
    """One worker over in-memory logs. Times are epoch ms; the clock moves only by `advance`."""

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
    ) -> None:
        self.settings = settings or Settings(state=folder)
        self.outputs = RecordedOutputs(self._reproduced)
        self.store: VectorStore = store or EdgeStore(folder / "store")
        self.committed: dict[tuple[str, int], int] = {}
        self._model = model
        self._partitions = partitions
        self._now_ms = now_ms
        self._batch_records = batch_records
        self._log: dict[tuple[str, int], list[LogRecord]] = {
            (topic, number): [] for topic in TOPICS.values() for number in range(partitions)
        }
        self._begin = dict.fromkeys(self._log, 0)  # the first offset that is left of each log
        self._topic_ids = dict.fromkeys(TOPICS.values(), 1)
        self._run: _Run | None = None

    async def __aenter__(self) -> Self:
        if self._model is None:
            import models

            self._model = models.load(self.settings.model)
        await self.store.__aenter__()
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()
        await self.store.__aexit__(kind, error, trace)

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
        log = self._log[topic, number]
        record = LogRecord(
            topic=topic,
            partition=number,
            offset=len(log),
            timestamp=self._now_ms if timestamp_ms is None else timestamp_ms,
            key=key,
            value=value if isinstance(value, bytes | None) else msgspec.json.encode(value),
            headers=tuple((headers or {}).items()),
        )
        log.append(record)
        if settle:
            await self.settle()
        return record

    def _reproduced(self, sent: Sent, number: int, timestamp_ms: int | None) -> None:
        log = self._log[sent.topic, number]
        timestamp = self._now_ms if timestamp_ms is None else timestamp_ms
        log.append(LogRecord(sent.topic, number, len(log), timestamp, sent.key, sent.value, sent.headers))

    def delete_records(self, topic: str, partition: int, before_offset: int) -> None:
        """What retention does: the log begins at `before_offset` from now on."""
        self._begin[topic, partition] = max(self._begin[topic, partition], before_offset)

    def recreate_topic(self, topic: str) -> None:
        """Delete a topic and make it anew: another id, nothing in it, nothing committed. Crash or rebalance next."""
        self._topic_ids[topic] += 1
        for number in range(self._partitions):
            self._log[topic, number].clear()
            self._begin[topic, number] = 0
            self.committed.pop((topic, number), None)

    async def settle(self) -> None:
        """Read whatever is unread, a batch of each partition in turn, and wait until scoring has nothing left.

        An input that runs too far ahead of the others is paused, as in a worker.
        """
        run = self._running()
        while unread := [tp for tp, position in run.position.items() if position < len(self._log[tp])]:
            full = run.pipeline.ingest.full()
            free = [(topic, number) for topic, number in unread if not full[MODALITY_OF[topic], number]]
            for topic, number in free:
                position = max(run.position[topic, number], self._begin[topic, number])
                batch = self._log[topic, number][position : position + self._batch_records]
                run.position[topic, number] = position + len(batch)
                await self._guarded(run.pipeline.ingest.handle(MODALITY_OF[topic], number, batch))
            await self._tick(run, range(self._partitions), 0)
        await self._drain(run)

    async def advance(self, ms: int) -> None:
        """Let `ms` of quiet pass, caught up with the logs; windows close and streams fall silent by it."""
        run = self._running()
        for _ in range(0, ms, _TICK_MS):
            await self._tick(run, range(self._partitions))

    def commit(self) -> dict[tuple[str, int], int]:
        """What a commit would send now; remembered for the next crash or rebalance."""
        run = self._running()
        for tp in self._log:
            offset = run.pipeline.ledger.committable(tp)
            if offset is not None:
                self.committed[tp] = offset
        return dict(self.committed)

    def ends(self) -> dict[tuple[str, int], int]:
        """One past the last record of every input partition: what is committed when all is finished."""
        return {tp: len(log) for tp, log in self._log.items()}

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
        self._assign(run, range(self._partitions) if numbers is None else numbers)
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
        metrics, fuse = Metrics(), _Fuse()
        outputs = _FusedOutputs(self.outputs, fuse)
        clips = ClipDecoder(self.settings.audio)
        await clips.__aenter__()
        pipeline = Pipeline(
            self.settings,
            model=self._model,
            store=_FusedStore(self.store, fuse),
            outputs=outputs,
            publisher=OutputPublisher(outputs, metrics),
            clips=clips,
            origin=Origin({m: f"{topic}-{self._topic_ids[topic]}" for m, topic in TOPICS.items()}),
            progress=self._progress,
            metrics=metrics,
            partitions=self._partitions,
            now_ms=lambda: self._now_ms,
            clock_ms=lambda: self._now_ms,
            batch_wait_ms=0,
        )
        self._run = _Run(fuse, pipeline, clips, metrics, asyncio.create_task(pipeline.run()))
        self._assign(self._run, range(self._partitions))

    async def _stop(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await run.task
            await run.clips.__aexit__(None, None, None)

    def _assign(self, run: _Run, numbers: Sequence[int] | range) -> None:
        run.position.clear()
        for number in numbers:
            tps = [(TOPICS[modality], number) for modality in MODALITIES]
            starts = [start_at(self.committed.get(tp), self._begin[tp], len(self._log[tp])) for tp in tps]
            run.pipeline.ingest.assign(number, starts)
            for (topic, _), start in zip(tps, starts, strict=True):
                if start.lost:
                    run.metrics.lost.labels(topic, str(number)).inc(start.lost)
            run.position.update((tp, start.offset) for tp, start in zip(tps, starts, strict=True))

    def _progress(self, modality: Modality, number: int) -> InputProgress | None:
        tp = (TOPICS[modality], number)
        position = None if self._run is None else self._run.position.get(tp)
        return None if position is None else InputProgress(position, len(self._log[tp]), 0, position)

    async def _tick(self, run: _Run, numbers: Sequence[int] | range, ms: int = _TICK_MS) -> None:
        self._now_ms += ms
        await self._guarded(run.pipeline.ingest.tick(ms, numbers))
        await self._drain(run)

    async def _drain(self, run: _Run) -> None:
        for _ in itertools.count():
            if run.task.done():
                await run.task
            if run.pipeline.idle:
                return
            await asyncio.sleep(0.001)

    async def _guarded(self, work: Any) -> None:
        """Run `work`, but fail at once if inference has failed: nobody would empty the queue any more."""
        run = self._running()
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, run.task}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await run.task
            await task
        finally:
            task.cancel()
