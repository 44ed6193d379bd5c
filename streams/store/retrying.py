"""Retries while the store is unavailable, for the pipeline: nothing is dropped, and callers see no error.

Only `StoreUnavailable` is retried; an error that no retry mends is raised. Queries use the store itself, without
retries: they answer at once that it is away.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from streams.store.base import Filter, Hit, Point, Position, StoreInfo, StoreUnavailable, Vector, VectorStore

T = TypeVar("T")
log = structlog.get_logger(__name__)
_WAITS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_LOG_EVERY_S = 60.0


class RetryingStore:
    """Wraps an open store. `on_wait` is called when waiting begins (True) and when it ends (False).

    `waiting_for`: why it waits now, in one line; None while it does not.
    """

    def __init__(self, store: VectorStore, on_wait: Callable[[bool], None] = lambda waiting: None) -> None:
        self._store = store
        self._on_wait = on_wait
        self._away_since: float | None = None
        self._logged_at = 0.0
        self.waiting_for: str | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The wrapped store is closed by its own owner."""

    async def upsert(self, points: Sequence[Point]) -> None:
        await self._retried(lambda: self._store.upsert(points))

    async def set_payload(self, id: str | Sequence[str], values: Mapping[str, Any]) -> None:
        await self._retried(lambda: self._store.set_payload(id, values))

    async def get(self, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        return await self._retried(lambda: self._store.get(ids, vectors=vectors))

    async def scroll(
        self,
        where: Filter,
        *,
        vectors: bool = False,
        descending: bool = False,
        limit: int | None = None,
        page: int = 256,
        after: Position | None = None,
    ) -> AsyncIterator[Point]:
        """An interrupted scroll goes on after the last point that it yielded."""
        attempt, left = 0, limit
        while True:
            try:
                async for point in self._store.scroll(
                    where, vectors=vectors, descending=descending, limit=left, page=page, after=after
                ):
                    self._back()
                    attempt = 0
                    after = (int(point.payload["start"]), point.id)
                    left = None if left is None else left - 1
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
        return await self._retried(
            lambda: self._store.search(vector, using=using, where=where, limit=limit, vectors=vectors)
        )

    async def streams(self) -> dict[str, int]:
        return await self._retried(self._store.streams)

    async def latest(self, streams: Sequence[str]) -> dict[str, Point]:
        return await self._retried(lambda: self._store.latest(streams))

    async def versions(self) -> dict[str, int]:
        return await self._retried(self._store.versions)

    async def count(self, where: Filter | None = None) -> int:
        return await self._retried(lambda: self._store.count(where))

    async def delete_before(self, end_ms: int) -> int:
        return await self._retried(lambda: self._store.delete_before(end_ms))

    async def info(self) -> StoreInfo:
        return await self._retried(self._store.info)

    async def _retried(self, work: Callable[[], Awaitable[T]]) -> T:
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
        now = time.monotonic()
        self.waiting_for = str(error)
        if self._away_since is None:
            self._away_since = self._logged_at = now
            self._on_wait(True)
            log.warning("waiting for the store", error=str(error))
        elif now - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = now
            log.warning("still waiting for the store", error=str(error), away_s=round(now - self._away_since))
        pause = _WAITS_S[min(attempt, len(_WAITS_S) - 1)]
        await asyncio.sleep(pause * random.uniform(0.75, 1.25))
        return attempt + 1

    def _back(self) -> None:
        if self._away_since is not None:
            log.info("the store is back", away_s=round(time.monotonic() - self._away_since, 1))
            self._away_since = None
            self.waiting_for = None
            self._on_wait(False)
