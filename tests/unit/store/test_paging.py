"""Reading in a total order from an engine that orders by one key: every point once, and hardly one too many."""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.store.base import Point
from streams.store.paging import scroll


class Engine:
    """Points in memory. Ties come in any order and are cut anywhere, as engines do."""

    def __init__(self, points: Sequence[Point], descending: bool, seed: int) -> None:
        self._points = list(points)
        self._descending = descending
        self._random = random.Random(seed)
        self.requested = 0
        self.returned = 0

    async def by_start(self, beyond_ms: int | None, limit: int) -> list[Point]:
        sign = -1 if self._descending else 1
        self._random.shuffle(self._points)
        found = [p for p in self._points if beyond_ms is None or sign * int(p.payload["start"]) > sign * beyond_ms]
        found.sort(key=lambda p: sign * int(p.payload["start"]))
        return self._counted(found, limit)

    async def of_start(self, start_ms: int, from_id: str | None, limit: int) -> list[Point]:
        found = [p for p in self._points if p.payload["start"] == start_ms and (from_id is None or p.id >= from_id)]
        return self._counted(sorted(found, key=lambda p: p.id), limit)

    def _counted(self, found: list[Point], limit: int) -> list[Point]:
        self.requested += limit
        self.returned += len(found[:limit])
        return found[:limit]


def points_of(starts: Sequence[int]) -> list[Point]:
    ids = [str(uuid.uuid5(uuid.NAMESPACE_OID, str(n))) for n in range(len(starts))]
    return [Point(id, {}, {"start": start}) for id, start in zip(ids, starts, strict=True)]


@settings(deadline=None, max_examples=300)
@given(
    starts=st.lists(st.integers(-5, 5), max_size=40),
    descending=st.booleans(),
    limit=st.none() | st.integers(0, 50),
    page=st.integers(1, 50),
    begin=st.none() | st.integers(0, 39),
    seed=st.integers(0, 99),
)
async def test_every_point_comes_once_and_in_order(
    starts: list[int], descending: bool, limit: int | None, page: int, begin: int | None, seed: int
) -> None:
    points = points_of(starts)
    sign = -1 if descending else 1
    expected = [p.id for p in sorted(points, key=lambda p: (sign * p.payload["start"], p.id))]
    after = None
    if begin is not None and begin < len(expected):
        last = next(p for p in points if p.id == expected[begin])
        after, expected = (int(last.payload["start"]), last.id), expected[begin + 1 :]
    engine = Engine(points, descending, seed)
    found = [p.id async for p in scroll(engine, descending=descending, limit=limit, page=page, after=after)]
    assert found == expected[:limit]


async def test_one_point_costs_two() -> None:
    engine = Engine(points_of(range(1000)), True, 1)
    found = [p async for p in scroll(engine, descending=True, limit=1, page=256, after=None)]
    assert [p.payload["start"] for p in found] == [999]
    assert engine.requested == 2


async def test_a_page_of_points_that_start_together_reads_no_more_than_twice_its_size() -> None:
    engine = Engine(points_of([7] * 5000), False, 1)
    found = [p async for p in scroll(engine, descending=False, limit=100, page=256, after=None)]
    assert len(found) == 100
    assert engine.returned == 202
    after = (7, found[-1].id)
    engine = Engine(points_of([7] * 5000), False, 1)
    assert len([p async for p in scroll(engine, descending=False, limit=100, page=256, after=after)]) == 100
    assert engine.returned == 101
