"""A store that waits while the one behind it is away: nothing is dropped, nobody up the stream has to care."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from streams.store.base import Filter, Hit, Point, StoreInfo, StoreUnavailable, Vector, VectorStore

T = TypeVar("T")
log = structlog.get_logger(__name__)
_WAITS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class PatientStore:
    """Wraps an open store. `on_wait` is told when waiting begins (True) and when it is over (False)."""

    def __init__(self, store: VectorStore, on_wait: Callable[[bool], None] = lambda waiting: None) -> None:
        self._store = store
        self._on_wait = on_wait
        self._away_since: float | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The store behind belongs to whoever opened it."""

    async def upsert(self, points: Sequence[Point]) -> None:
        await self._patiently(lambda: self._store.upsert(points))

    async def set_payload(self, id: str | Sequence[str], values: Mapping[str, Any]) -> None:
        await self._patiently(lambda: self._store.set_payload(id, values))

    async def get(self, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        return await self._patiently(lambda: self._store.get(ids, vectors=vectors))

    async def scroll(
        self,
        where: Filter,
        *,
        vectors: bool = False,
        descending: bool = False,
        limit: int | None = None,
        page: int = 256,
    ) -> AsyncIterator[Point]:
        """An interrupted scroll begins again and leaves out what it has given already."""
        given: set[str] = set()
        attempt = 0
        while True:
            try:
                left = None if limit is None else limit - len(given)
                async for point in self._store.scroll(
                    where, vectors=vectors, descending=descending, limit=limit, page=page
                ):
                    if point.id not in given and (left is None or left > 0):
                        given.add(point.id)
                        yield point
            except StoreUnavailable as error:
                attempt = await self._wait(attempt, error)
            else:
                self._back()
                return

    async def search(
        self,
        vector: Vector,
        *,
        using: str = "joint",
        where: Filter | None = None,
        limit: int = 10,
        vectors: bool = False,
    ) -> list[Hit]:
        return await self._patiently(
            lambda: self._store.search(vector, using=using, where=where, limit=limit, vectors=vectors)
        )

    async def streams(self) -> dict[str, int]:
        return await self._patiently(self._store.streams)

    async def versions(self) -> dict[str, int]:
        return await self._patiently(self._store.versions)

    async def count(self, where: Filter | None = None) -> int:
        return await self._patiently(lambda: self._store.count(where))

    async def delete_before(self, end_ms: int) -> int:
        return await self._patiently(lambda: self._store.delete_before(end_ms))

    async def info(self) -> StoreInfo:
        return await self._patiently(self._store.info)

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        attempt = 0
        while True:
            try:
                result = await work()
            except StoreUnavailable as error:
                attempt = await self._wait(attempt, error)
            else:
                self._back()
                return result

    async def _wait(self, attempt: int, error: StoreUnavailable) -> int:
        if self._away_since is None:
            self._away_since = time.monotonic()
            self._on_wait(True)
            log.warning("waiting for the store", error=str(error))
        pause = _WAITS_S[min(attempt, len(_WAITS_S) - 1)]
        await asyncio.sleep(pause * random.uniform(0.75, 1.25))
        return attempt + 1

    def _back(self) -> None:
        if self._away_since is not None:
            log.info("the store is back", away_s=round(time.monotonic() - self._away_since, 1))
            self._away_since = None
            self._on_wait(False)
