"""The one place where a pipeline is wired: worker, backfill and test harness share it.

    records -> Ingest -> queue -> Batcher -> Scorer -> Committer -> store, output topics, ledger

Two tasks work on the queue, joined by a short one, so that the next batch is embedded while the last one is stored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from models.interface import WindowModel
from streams.events.audio import ClipDecoder
from streams.kafka.ledger import OffsetLedger
from streams.kafka.producer import Outputs
from streams.metrics import Metrics
from streams.pipeline.batching import Batcher, Item
from streams.pipeline.commit import Committer
from streams.pipeline.ingest import Ingest, Progress, in_hand
from streams.pipeline.publisher import Publisher
from streams.pipeline.recovery import Origin, StateLoader, drift_config
from streams.pipeline.reroute import Router
from streams.pipeline.scoring import Batch, Scorer
from streams.settings import Settings
from streams.store.base import VectorStore

_QUEUE_OUTPUTS = 256
_BATCHES_AHEAD = 2


def wall_clock_ms() -> int:
    """Epoch ms."""
    return int(time.time() * 1000)


def monotonic_ms() -> int:
    """Milliseconds of a clock that never goes back."""
    return int(time.monotonic() * 1000)


class Pipeline:
    """One worker's processing: `ingest.handle` takes records, `run` does the rest until it is cancelled."""

    def __init__(
        self,
        settings: Settings,
        *,
        model: WindowModel,
        store: VectorStore,
        outputs: Outputs,
        publisher: Publisher,
        clips: ClipDecoder,
        origin: Origin,
        progress: Progress,
        metrics: Metrics,
        partitions: int = 0,
        now_ms: Callable[[], int] = wall_clock_ms,
        clock_ms: Callable[[], int] = monotonic_ms,
        batch_wait_ms: int | None = None,
    ) -> None:
        """`store` and `outputs` wait while they are away. `partitions`: of each input topic; 0: reroute nothing.

        `progress`: where the consumer stands in an input; `now_ms`: wall clock; `clock_ms`: monotonic clock.
        """
        self.ledger = OffsetLedger()
        self.queue: asyncio.Queue[Item] = asyncio.Queue(maxsize=_QUEUE_OUTPUTS)
        self.loader = StateLoader(
            store, drift_config(settings), model=model.version, size_ms=settings.window.size_ms, origin=origin
        )
        self.ingest = Ingest(
            settings.window,
            ledger=self.ledger,
            outputs=outputs,
            queue=self.queue,
            loader=self.loader,
            clips=clips,
            metrics=metrics,
            now_ms=now_ms,
            clock_ms=clock_ms,
            progress=progress,
            router=Router(partitions),
            topic=settings.topic,
        )
        self._batcher = Batcher(
            self.queue,
            batch_windows=settings.batch_windows,
            batch_wait_ms=settings.batch_wait_ms if batch_wait_ms is None else batch_wait_ms,
        )
        self._scorer = Scorer(
            model=model,
            loader=self.loader,
            metrics=metrics,
            origin=origin,
            detector_bytes=settings.detector_cache_mb * 1_048_576,
        )
        self._committer = Committer(
            store=store,
            loader=self.loader,
            publisher=publisher,
            ledger=self.ledger,
            metrics=metrics,
            topic=settings.topic,
        )
        self._scored: asyncio.Queue[Batch] = asyncio.Queue(maxsize=_BATCHES_AHEAD)
        self._finished = 0

    async def run(self) -> None:
        """Work until cancelled; an exception in here must stop the process."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._score_batches(), name="score")
                tasks.create_task(self._commit_batches(), name="commit")
        finally:
            self._scorer.close()

    @property
    def finished(self) -> int:
        """Outputs worked off since the start; health tells stuck from quiet by it."""
        return self._finished

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being worked on."""
        return self.queue.empty() and self._batcher.taken == self._finished and not self.ingest.busy

    @property
    def in_hand(self) -> int:
        """What was read and is not worked off: more than 0 while anything is."""
        unfinished = self.queue.qsize() + self._batcher.taken - self._finished
        return unfinished + in_hand(self.ingest.partitions)

    async def _score_batches(self) -> None:
        while True:
            items = await self._batcher.gather()
            await self._scored.put(await self._scorer.score(items))

    async def _commit_batches(self) -> None:
        while True:
            batch = await self._scored.get()
            await self._committer.commit(batch)
            self._finished += len(batch.items)
