"""The commit order: store, then output topics, then the ledger.

A record is released only when every window that holds it is final, stored and published. A crash between any two
steps loses nothing and doubles nothing: ids are the same when the work is done again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from streams.events.topics import TOPICS
from streams.events.types import MODALITIES
from streams.kafka.ledger import OffsetLedger
from streams.metrics import Metrics
from streams.pipeline.payload import BOOKKEEPING
from streams.pipeline.publisher import Publisher
from streams.pipeline.recovery import StateLoader
from streams.pipeline.scoring import Batch, Work, named
from streams.pipeline.state import PartitionState
from streams.store.base import Point, VectorStore
from streams.windows.types import PaneFinal, StreamIdle

_WIRE_NAMES = {"final_before": "sealed"}


class Committer:
    """Finishes scored batches. `store` and `publisher` wait while they are away; nothing is dropped."""

    def __init__(
        self,
        *,
        store: VectorStore,
        loader: StateLoader,
        publisher: Publisher,
        ledger: OffsetLedger,
        metrics: Metrics,
        topic: Callable[[str], str] = str,
    ) -> None:
        self._store = store
        self._loader = loader
        self._publisher = publisher
        self._ledger = ledger
        self._metrics = metrics
        self._topic = topic

    async def commit(self, batch: Batch) -> None:
        """Returns when everything of the batch is stored, published and released."""
        began = time.perf_counter()
        live = [work for work in batch.works.values() if not work.partition.revoked]
        await self._write(live)
        stored = time.perf_counter()
        await self._publish(batch)
        for partition, output in batch.items:
            if isinstance(output, PaneFinal) and not partition.revoked:
                self._release(partition, output)
        for partition in {partition for partition, _ in batch.items}:
            partition.forget_quiet()
        self._metrics.windows.labels("stale").inc(len(batch.works) - len(live))
        self._metrics.stage.labels("store").observe(stored - began)
        self._metrics.stage.labels("publish").observe(time.perf_counter() - stored)

    # -- store ---------------------------------------------------------------------------------------------------

    async def _write(self, works: list[Work]) -> None:
        """Upsert what is new; merge payloads where only the bookkeeping changed; flag members of reference banks."""
        newest: dict[str, Work] = {}
        for work in works:
            if work.outcome in ("new", "revised"):
                newest[work.id] = work
            elif work.outcome == "recounted" and work.id in newest:
                newest[work.id].payload = work.payload
            if work.payload is not None:
                start_ms = work.payload.start
                work.stream.newest_start_ms = max(start_ms, work.stream.newest_start_ms or start_ms)
        points = [
            Point(work.id, named(work.vectors), work.payload.to_dict())
            for work in newest.values()
            if work.vectors is not None and work.payload is not None
        ]
        if points:
            await self._store.upsert(points)
        for work in works:
            if work.outcome == "recounted" and work.id not in newest and work.payload is not None:
                whole = work.payload.to_dict()
                keys = [_WIRE_NAMES.get(name, name) for name in BOOKKEEPING]
                await self._store.set_payload(work.id, {key: whole[key] for key in keys})
        await self._flag_banks(works)

    async def _flag_banks(self, works: list[Work]) -> None:
        """Retention spares the windows that a stream's banks are made of. One that joins them is written as such."""
        flags: dict[tuple[str, int], bool] = {}
        for work in works:
            joined, left = work.bank_after - work.bank_before, work.bank_before - work.bank_after
            flags.update(((work.window.stream, start), True) for start in joined if start != work.window.start_ms)
            flags.update(((work.window.stream, start), False) for start in left)
        for flag in (True, False):
            ids = [self._loader.window_id(*window) for window, flagged in flags.items() if flagged is flag]
            await self._store.set_payload(ids, {"bank": flag})

    # -- output topics -------------------------------------------------------------------------------------------

    async def _publish(self, batch: Batch) -> None:
        """Windows side by side; incidents and silences in order within a stream, and streams side by side."""
        outcomes: dict[str, int] = {}
        in_order: dict[tuple[int, str], list[Callable[[], Awaitable[None]]]] = {}  # by partition and stream
        counted: list[Work] = []
        async with asyncio.TaskGroup() as sends:
            for i, (partition, output) in enumerate(batch.items):
                work = batch.works.get(i)
                if partition.revoked:
                    continue
                if work is not None:
                    outcomes[work.outcome] = outcomes.get(work.outcome, 0) + 1
                    if work.outcome == "superseded":
                        continue
                    if work.payload is None:
                        failure = self._publisher.failure(work.id, work.window, partition.number, work.failure)
                        sends.create_task(failure)
                        continue
                    counted.append(work)
                    sends.create_task(self._publisher.window(work.id, work.payload))
                    steps = work.payload.steps if work.window.firing == 0 else work.new_steps
                    if steps:
                        # re-publish what was stored before: a crash may have come between upsert and publish
                        again = work.outcome not in ("new", "revised")
                        in_order.setdefault((id(partition), work.window.stream), []).append(
                            lambda steps=steps, again=again: self._publisher.incidents(steps, again=again)  # type: ignore[misc]
                        )
                elif isinstance(output, StreamIdle):
                    in_order.setdefault((id(partition), output.stream), []).append(
                        lambda partition=partition, output=output: self._publish_idle(partition, output)  # type: ignore[misc]
                    )
            for calls in in_order.values():
                sends.create_task(_one_after_another(calls))
            # they are stored: what reads of them on a topic finds them counted
            for outcome, count in outcomes.items():
                self._metrics.windows.labels(outcome).inc(count)
            self._count(counted)

    async def _publish_idle(self, partition: PartitionState, output: StreamIdle) -> None:
        """Publish, and note in the stream's newest window that it is silent: it survives restarts."""
        await self._publisher.idle(output)
        stream = partition.streams.get(output.stream)
        if not output.active and stream is not None and stream.newest_start_ms is not None:
            await self._store.set_payload(
                self._loader.window_id(output.stream, stream.newest_start_ms), {"silent": output.event_ms}
            )

    def _count(self, works: list[Work]) -> None:
        gained = dict.fromkeys(MODALITIES, 0)
        repeats = 0
        for work in works:
            assert work.payload is not None
            before = work.before.payload if work.before is not None else None
            for modality in MODALITIES:
                known = before.home.get(modality.value, 0) if before is not None else 0
                gained[modality] += max(0, work.payload.home.get(modality.value, 0) - known)
            repeats += max(0, work.payload.duplicates - (before.duplicates if before is not None else 0))
        for modality, events in gained.items():
            if events:
                self._metrics.events.labels(self._topic(TOPICS[modality]), "windowed").inc(events)
        if repeats:
            self._metrics.events.labels("all", "duplicate").inc(repeats)

    # -- ledger --------------------------------------------------------------------------------------------------

    def _release(self, partition: PartitionState, output: PaneFinal) -> None:
        for modality, offsets in zip(MODALITIES, output.offsets, strict=True):
            if offsets:
                self._ledger.release((self._topic(TOPICS[modality]), partition.number), partition.epoch, offsets)
        partition.finished[output.stream] = output.start_ms
        stream = partition.streams.get(output.stream)
        if stream is not None:
            if output.ahead:
                stream.revisions.pop(output.start_ms, None)
                return
            final = output.start_ms + partition.config.hop_ms
            stream.final_before_ms = max(final, stream.final_before_ms or final)
            for start in list(stream.revisions):  # a copy: the executor may be adding to it
                if start < stream.final_before_ms:
                    del stream.revisions[start]


async def _one_after_another(calls: list[Callable[[], Awaitable[None]]]) -> None:
    for call in calls:
        await call()
