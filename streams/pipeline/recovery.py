"""The store is the state: what a worker needs of a stream's past when it first meets the stream after an assignment.

Two things are read back. For the window operator: which windows are stored, final or not, and whose records they
hold, so that records read again are recognised. For the detector: the drift state of the last window before those
that will be rebuilt, and later, when a window must be scored, the vectors of its banks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from streams.drift import Detector, DriftConfig, DriftState
from streams.events.types import Modality
from streams.pipeline.payload import WindowPayload, payload_from, stored_window
from streams.pipeline.state import PartitionState, StreamState
from streams.settings import Settings
from streams.store.base import Filter, VectorStore
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


@dataclass(slots=True)
class Origin:
    """Whose records: the id of each input topic (KIP-516). A topic deleted and made anew has another one."""

    topics: Mapping[Modality, str]

    def of(self, number: int) -> dict[str, str]:
        """What identifies the records of one partition number, by modality, together with their offsets."""
        return {modality.value: f"{topic}/{number}" for modality, topic in self.topics.items()}


class StateLoader:
    """Reads streams' pasts out of a store. `store` must wait while it is away (`store.retrying`)."""

    def __init__(self, store: VectorStore, drift: DriftConfig, *, model: str, size_ms: int, origin: Origin) -> None:
        self._store = store
        self._drift = drift
        self._model = model
        self._size_ms = size_ms
        self._origin = origin

    async def restore(self, partition: PartitionState, asked: Mapping[str, Iterable[int]]) -> None:
        """Look up streams (of streams already restored: pane starts) and give them to the partition's operator."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(stream: str, starts: Iterable[int]) -> None:
            async with gate:
                if not partition.operator.is_restored(stream):
                    await self._restore_stream(partition, stream)
                await self._restore_panes(partition, stream, starts)

        await asyncio.gather(*(one(stream, starts) for stream, starts in asked.items()))

    async def _restore_stream(self, partition: PartitionState, stream: str) -> None:
        state = partition.streams.setdefault(stream, StreamState())
        newest = await self._newest(stream)
        if newest is None:
            partition.operator.restore(stream, None, [])
            return
        state.newest_start_ms = newest.start
        since = None if newest.final_before is None else newest.final_before - self._size_ms
        origin = self._origin.of(partition.number)
        stored: list[StoredWindow] = []
        async for point in self._store.scroll(Filter(stream=stream, from_ms=since)):
            stored.append(stored_window(payload_from(point.payload), origin))
        partition.operator.restore(
            stream, newest.final_before, stored, interval_ms=newest.interval, silent_since_ms=newest.silent
        )
        final = state.final_before_ms = partition.operator.final_before(stream)
        if final is None:
            return  # every window will be rebuilt from its first record on
        async for point in self._store.scroll(Filter(stream=stream, to_ms=final), descending=True, limit=_LOOKBACK):
            payload = payload_from(point.payload)
            if payload.drift is not None:
                state.last_scored = payload
                state.last_start_ms = payload.start
                break

    async def _restore_panes(self, partition: PartitionState, stream: str, starts: Iterable[int]) -> None:
        """Windows that were final before us and whose records are read again all the same."""
        final = partition.operator.final_before(stream)
        old = [start for start in starts if final is not None and start < final]
        if old:
            origin = self._origin.of(partition.number)
            points = await self._store.get([self.window_id(stream, start) for start in old])
            stored = [stored_window(payload_from(point.payload), origin) for point in points]
            partition.operator.restore(stream, final, stored, old)

    async def load_detectors(self, streams: Mapping[str, StreamState]) -> None:
        """Give each stream its detector as it was after the window `last_scored`: one request for all of them."""
        states = {
            stream: DriftState.from_payload(state.last_scored.drift)
            for stream, state in streams.items()
            if state.last_scored is not None and state.last_scored.drift is not None
        }
        ids = [self.window_id(stream, start) for stream, s in states.items() for start in Detector.bank_starts(s)]
        vectors: dict[str, dict[int, Mapping[str, Any]]] = {}
        for point in await self._store.get(ids, vectors=True) if ids else ():
            vectors.setdefault(point.payload["stream"], {})[point.payload["start"]] = point.vectors
        for stream, state in streams.items():
            state.detector = self._detector(stream, states.get(stream), vectors.get(stream, {}))

    def _detector(self, stream: str, state: DriftState | None, vectors: Mapping[int, Mapping[str, Any]]) -> Detector:
        def named(start_ms: int) -> str:
            return self.window_id(stream, start_ms)

        return Detector(stream, self._drift, state, vectors, window_id=named)

    def window_id(self, stream: str, start_ms: int) -> str:
        return window_id(stream, start_ms, self._size_ms, self._model)

    async def _newest(self, stream: str) -> WindowPayload | None:
        async for point in self._store.scroll(Filter(stream=stream), descending=True, limit=1):
            return payload_from(point.payload)
        return None
