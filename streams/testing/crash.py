"""Death in the middle of work: a store and outputs that take so many writes more and then never return."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from streams.kafka.producer import Headers, Outputs
from streams.store.base import Point, VectorStore


class Fuse:
    """Lets a number of writes through and holds every other: what a process does that is killed."""

    def __init__(self) -> None:
        self.left: int | None = None  # None: any number
        self.blown = asyncio.Event()

    async def burn(self) -> None:
        """One write; does not return once none is left."""
        if self.left is None:
            return
        if not self.left:
            self.blown.set()
            await asyncio.Event().wait()
        self.left -= 1


class FusedOutputs:
    """Outputs whose every record burns the fuse."""

    def __init__(self, outputs: Outputs, fuse: Fuse) -> None:
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


class FusedStore:
    """A store whose writes burn the fuse; everything else is the store's own."""

    def __init__(self, store: VectorStore, fuse: Fuse) -> None:
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
