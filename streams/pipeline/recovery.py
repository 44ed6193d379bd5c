"""The store is the state: what a worker needs of a stream's past when it first meets the stream after an assignment.

Two things are read back. For the window operator: which windows are stored, final or not, and whose records they
hold, so that records read again are recognised. For the detector: the drift state of the last window before those
that will be rebuilt, and later, when a window must be scored, the vectors of its bank.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from streams.drift import Detector, DriftConfig, DriftState
from streams.pipeline.payload import stored_window
from streams.pipeline.state import Partition, StreamMemory
from streams.settings import Settings
from streams.store.base import Filter, Point, VectorStore
from streams.windows.types import StoredWindow, window_id

_LOOKBACK = 16  # stored windows looked through for one that carries a drift state
_AT_ONCE = 8  # streams restored at the same time


def drift_config(settings: Settings) -> DriftConfig:
    """The detector's numbers under these settings."""
    return DriftConfig(
        false_incidents_per_week=settings.drift.false_incidents_per_week,
        size_ms=settings.window.size_ms,
        hop_ms=settings.window.hop_ms,
    )


class Restorer:
    """Reads streams' pasts out of a store. `store` must wait while it is away (`store.patient`)."""

    def __init__(self, store: VectorStore, drift: DriftConfig, *, model: str, size_ms: int, origin: str) -> None:
        self._store = store
        self._drift = drift
        self._model = model
        self._size_ms = size_ms
        self._origin = origin

    async def restore(self, partition: Partition, asked: Mapping[str, Iterable[int]]) -> None:
        """Look up streams (and, of streams already restored, pane starts), and tell the partition's operator."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(stream: str, starts: Iterable[int]) -> None:
            async with gate:
                if not partition.operator.is_restored(stream):
                    await self._restore_stream(partition, stream)
                await self._restore_panes(partition, stream, starts)

        await asyncio.gather(*(one(stream, starts) for stream, starts in asked.items()))

    async def _restore_stream(self, partition: Partition, stream: str) -> None:
        memory = partition.memories.setdefault(stream, StreamMemory())
        newest = await self._first(Filter(stream=stream), descending=True)
        if newest is None:
            partition.operator.restore(stream, None, [])
            return
        sealed = newest.payload["sealed"]
        since = None if sealed is None else sealed - self._size_ms
        stored: list[StoredWindow] = []
        async for point in self._store.scroll(Filter(stream=stream, from_ms=since)):
            stored.append(stored_window(point.payload, self._origin))
        partition.operator.restore(stream, sealed, stored)
        sealed = memory.sealed_before_ms = partition.operator.sealed_before(stream)
        if sealed is None:
            return  # every window will be rebuilt from its first record on
        async for point in self._store.scroll(Filter(stream=stream, to_ms=sealed), descending=True, limit=_LOOKBACK):
            if point.payload["drift"] is not None:
                memory.chain = point.payload
                memory.last_start_ms = point.payload["start"]
                break

    async def _restore_panes(self, partition: Partition, stream: str, starts: Iterable[int]) -> None:
        """Windows that were final before us and whose records are read again all the same."""
        sealed = partition.operator.sealed_before(stream)
        old = [start for start in starts if sealed is not None and start < sealed]
        if old:
            points = await self._store.get([self.window_id(stream, start) for start in old])
            stored = [stored_window(point.payload, self._origin) for point in points]
            partition.operator.restore(stream, sealed, stored, old)

    async def detector(self, stream: str, memory: StreamMemory) -> Detector:
        """The stream's detector as it was after the window that `memory.chain` is the payload of."""
        if memory.chain is None:
            return self.new_detector(stream)
        state = DriftState.from_payload(memory.chain["drift"])
        starts = Detector.bank_starts(state)
        points = await self._store.get([self.window_id(stream, start) for start in starts], vectors=True)
        vectors = {point.payload["start"]: point.vectors for point in points}
        return self.new_detector(stream, state, vectors)

    def new_detector(
        self, stream: str, state: DriftState | None = None, vectors: Mapping[int, Mapping[str, Any]] | None = None
    ) -> Detector:
        return Detector(stream, self._drift, state, vectors or {}, window_id=self._namer(stream))

    def window_id(self, stream: str, start_ms: int) -> str:
        return window_id(stream, start_ms, self._size_ms, self._model)

    def _namer(self, stream: str) -> Callable[[int], str]:
        return lambda start_ms: self.window_id(stream, start_ms)

    async def _first(self, where: Filter, *, descending: bool) -> Point | None:
        async for point in self._store.scroll(where, descending=descending, limit=1):
            return point
        return None
