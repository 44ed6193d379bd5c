"""Retries for the pipeline: what a retry may mend is waited for, what none mends is raised."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from streams.store import retrying
from streams.store.base import Filter, Point, Position, StoreError, StoreUnavailable
from streams.store.retrying import RetryingStore
from tests.memory_store import MemoryStore
from tests.unit.serving.stored import window

AWAY = StoreUnavailable("the disk of /data is full")


class Flaky(MemoryStore):
    """Raises these errors, one a call, before it works; a scroll breaks off after three points."""

    def __init__(self, *errors: StoreError) -> None:
        super().__init__()
        self.errors = list(errors)
        self.scrolls: list[tuple[Position | None, int | None]] = []

    async def count(self, where: Filter | None = None) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return await super().count(where)

    async def scroll(
        self, where: Filter, *, after: Position | None = None, limit: int | None = None, **options: Any
    ) -> AsyncIterator[Point]:
        self.scrolls.append((after, limit))
        given = 0
        async for point in super().scroll(where, after=after, limit=limit, **options):
            if given == 3 and self.errors:
                raise self.errors.pop(0)
            given += 1
            yield point


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "_WAITS_S", (0.0,))


async def test_an_outage_is_waited_for_and_reported_once() -> None:
    calls: list[bool] = []
    reasons: list[str | None] = []

    def on_wait(waiting: bool) -> None:
        calls.append(waiting)
        reasons.append(store.waiting_for)

    store = RetryingStore(Flaky(AWAY, AWAY, AWAY), on_wait)
    assert await store.count() == 0
    assert calls == [True, False]
    assert reasons == [str(AWAY), None]


async def test_what_no_retry_mends_is_raised() -> None:
    calls: list[bool] = []
    with pytest.raises(StoreError, match="UNAUTHENTICATED"):
        await RetryingStore(Flaky(StoreError("UNAUTHENTICATED")), calls.append).count()
    assert calls == []


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("limit", [None, 1, 3, 4, 8, 10, 50])
async def test_a_scroll_that_breaks_off_goes_on_where_it_was(descending: bool, limit: int | None) -> None:
    behind = Flaky(AWAY, AWAY)
    await behind.upsert([window(n, start=n // 4 * 1000) for n in range(10)])
    whole = MemoryStore()
    await whole.upsert([window(n, start=n // 4 * 1000) for n in range(10)])
    expected = [p.id async for p in whole.scroll(Filter(), descending=descending, limit=limit)]
    found = [p async for p in RetryingStore(behind).scroll(Filter(), descending=descending, limit=limit)]
    assert [p.id for p in found] == expected


async def test_a_scroll_goes_on_by_position_and_holds_no_ids() -> None:
    behind = Flaky(AWAY)
    await behind.upsert([window(n) for n in range(10)])
    assert len([p async for p in RetryingStore(behind).scroll(Filter(), limit=8)]) == 8
    assert behind.scrolls == [(None, 8), ((2000, window(2).id), 5)]


async def test_a_long_outage_is_logged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(retrying.log, "warning", lambda event, **_: lines.append(event))
    monkeypatch.setattr(retrying, "_LOG_EVERY_S", 0.0)
    await RetryingStore(Flaky(AWAY, AWAY, AWAY)).count()
    assert lines == ["waiting for the store", "still waiting for the store", "still waiting for the store"]
