"""Queries on a store: pages that together are the whole list, whatever is written between them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from streams.serving.pages import CursorError, Page, encode_cursor, every
from streams.serving.queries import QueryError, StoreQueries
from streams.store.base import Filter, Hit, Point
from tests.memory_store import MemoryStore
from tests.unit.serving.stored import step, unit, window


def queries(store: MemoryStore) -> StoreQueries:
    def no_model() -> Any:
        raise AssertionError("no model is needed here")

    return StoreQueries(store, no_model)


class CountingStore(MemoryStore):
    """Counts calls, and the points that were yielded."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.yielded = 0

    async def streams(self) -> dict[str, int]:
        self.calls.append("streams")
        return await super().streams()

    async def latest(self, streams: Sequence[str]) -> dict[str, Point]:
        self.calls.append("latest")
        return await super().latest(streams)

    async def scroll(self, where: Filter, **options: Any) -> AsyncIterator[Point]:
        self.calls.append("scroll")
        async for point in super().scroll(where, **options):
            self.yielded += 1
            yield point


async def test_streams_are_two_requests_however_many_there_are() -> None:
    store = CountingStore()
    await store.upsert([window(n, stream=f"s{n:03}") for n in range(300)])
    page = await queries(store).streams()
    assert len(page) == 300
    assert store.calls == ["streams", "latest"]


async def test_a_stream_is_shown_as_its_last_window_left_it() -> None:
    store = MemoryStore()
    await store.upsert([window(n, score=n / 10, status="alarm" if n == 4 else "ok") for n in range(5)])
    (row,) = await queries(store).streams()
    assert row == {
        "stream": "pump",
        "windows": 5,
        "end": 5000,
        "status": "alarm",
        "score": 0.4,
        "incident": None,
        "modalities": ["sensor"],
    }


async def test_pages_of_streams_stay_in_order_while_streams_come() -> None:
    store = MemoryStore()
    await store.upsert([window(n, stream=f"s{n:02}") for n in range(0, 20, 2)])
    first = await queries(store).streams(4)
    assert [row["stream"] for row in first] == ["s00", "s02", "s04", "s06"]
    await store.upsert([window(1, stream="s01"), window(7, stream="s07")])
    rest = [row["stream"] async for row in every(lambda cursor: queries(store).streams(4, cursor or first.next))]
    assert rest == ["s07", "s08", "s10", "s12", "s14", "s16", "s18"]


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
async def test_pages_of_windows_are_the_whole_list_also_where_many_start_together(limit: int) -> None:
    store = MemoryStore()
    await store.upsert([window(n, start=n // 5 * 1000) for n in range(23)])
    pages = every(partial(queries(store).windows, Filter(), limit))
    found = [(row["start"], row["id"]) async for row in pages]
    assert found == sorted({(n // 5 * 1000, window(n).id) for n in range(23)}, key=lambda row: (-row[0], row[1]))


async def test_windows_that_come_later_are_not_on_later_pages_and_shift_none() -> None:
    store = MemoryStore()
    await store.upsert([window(n) for n in range(10)])
    first = await queries(store).windows(Filter(), 4)
    await store.upsert([window(n) for n in range(10, 15)])
    second = await queries(store).windows(Filter(), 100, first.next)
    assert [row["start"] for row in [*first, *second]] == [n * 1000 for n in reversed(range(10))]
    assert second.next is None


async def test_a_page_of_windows_reads_one_window_more_than_it_shows() -> None:
    store = CountingStore()
    await store.upsert([window(n) for n in range(100)])
    await queries(store).windows(Filter(), 10)
    assert store.yielded == 11


def similar(count: int) -> list[Point]:
    """Windows at falling similarity to `unit(0)`; groups of three have the same vector."""
    points = []
    for n in range(count):
        mixed = unit(0) + (n // 3 + 1) * 0.1 * unit(1)
        points.append(window(n, vector=(mixed / np.linalg.norm(mixed)).astype(np.float32)))
    random.Random(1).shuffle(points)
    return points


@pytest.mark.parametrize("limit", [1, 2, 5, 50])
async def test_pages_of_a_search_are_one_ranking(limit: int) -> None:
    store = MemoryStore()
    await store.upsert(similar(20))
    anchor = window(500, vector=unit(0))
    await store.upsert([anchor])
    pages = every(lambda cursor: queries(store).search_window(anchor.id, Filter(), limit, cursor))
    assert [row["id"] async for row in pages] == [window(n).id for n in range(20)]


async def test_a_search_goes_on_below_the_last_moment_when_nearer_ones_come() -> None:
    store = MemoryStore()
    points = similar(12)
    anchor = window(500, vector=unit(0))
    await store.upsert([*points, anchor])
    first = await queries(store).search_window(anchor.id, Filter(), 6)
    await store.upsert([window(600 + n, vector=unit(0)) for n in range(20)])
    second = await queries(store).search_window(anchor.id, Filter(), 100, first.next)
    assert [row["id"] for row in [*first, *second]] == [window(n).id for n in range(12)]


async def test_moments_of_one_similarity_are_all_found_although_the_engine_cuts_them_anywhere() -> None:
    class Unordered(MemoryStore):
        async def search(self, vector: Any, **options: Any) -> list[Hit]:
            limit = options.pop("limit")
            hits = await super().search(vector, limit=10_000, **options)
            random.Random(limit).shuffle(hits)  # another order of equal ones each time
            return sorted(hits, key=lambda hit: -hit.score)[:limit]

    store = Unordered()
    await store.upsert([window(n, vector=unit(0)) for n in range(40)])
    pages = every(lambda cursor: queries(store).search_window(window(0).id, Filter(), 7, cursor))
    assert [row["id"] async for row in pages] == [window(n).id for n in range(1, 40)]


def with_incidents(count: int) -> list[Point]:
    """Incident `n` opens in window 3n and closes in window 3n + 1; the third stays open for two others."""
    points = {n: window(n, steps=[]) for n in range(3 * count + 8)}

    def add(number: int, one: dict[str, Any]) -> None:
        points[number] = window(number, steps=[*points[number].payload["steps"], one])

    for n in range(count):
        opened = points[3 * n].payload["end"]
        add(3 * n, step(f"i{n}", opened, 0, "opened"))
        add(3 * n + (8 if n == 2 else 1), step(f"i{n}", opened, 1, "closed"))
    return list(points.values())


@pytest.mark.parametrize("limit", [1, 2, 3, 50])
async def test_pages_of_incidents_are_the_whole_list_with_every_step(limit: int) -> None:
    store = MemoryStore()
    await store.upsert(with_incidents(9))
    pages = every(partial(queries(store).incidents, Filter(), limit))
    rows = [row async for row in pages]
    assert [(row["id"], row["state"], len(row["steps"])) for row in rows] == [(f"i{n}", "closed", 2) for n in range(9)]


async def test_a_page_of_incidents_reads_no_further_than_it_must() -> None:
    store = CountingStore()
    await store.upsert(with_incidents(200))
    first = await queries(store).incidents(Filter(), 2)
    assert store.yielded < 15
    store.yielded = 0
    assert [row["id"] for row in await queries(store).incidents(Filter(), 2, first.next)] == ["i2", "i3"]
    assert store.yielded < 15


async def test_an_incident_that_stays_open_holds_back_no_other() -> None:
    store = MemoryStore()
    await store.upsert([window(0, steps=[step("old", 1000, 0, "opened")]), *with_incidents(4)[1:]])
    pages = every(partial(queries(store).incidents, Filter(), 1))
    assert [(row["id"], row["state"]) async for row in pages] == [
        ("i0", "closed"),
        ("old", "open"),
        ("i1", "closed"),
        ("i2", "closed"),
        ("i3", "closed"),
    ]


CURSORS = {
    "nonsense": "not a cursor",
    "empty": "",
    "of another list": encode_cursor("streams", "pump"),
    "too short": encode_cursor("windows", 5),
    "wrong kind": encode_cursor("windows", "5", window(1).id),
    "no window": encode_cursor("windows", 5, "nobody"),
}


@pytest.mark.parametrize("name", CURSORS)
async def test_a_cursor_of_another_list_is_refused(name: str) -> None:
    store = MemoryStore()
    await store.upsert([window(1)])
    with pytest.raises(CursorError, match="cursor"):
        await queries(store).windows(Filter(), 10, CURSORS[name])


@pytest.mark.parametrize("depth", [10_000, -5])
async def test_a_search_has_an_end(depth: int) -> None:
    store = MemoryStore()
    await store.upsert([window(1)])
    with pytest.raises(QueryError, match="narrow it"):
        await queries(store).search_window(window(1).id, Filter(), 10, encode_cursor("moments", depth, 0.5, "x"))


def test_a_page_is_a_list() -> None:
    page = Page([{"a": 1}], "next")
    assert page == [{"a": 1}]
    assert page.next == "next"
