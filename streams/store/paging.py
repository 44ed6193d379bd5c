"""Reading points in a total order, (`start`, id), from engines that order by one key alone.

An engine returns points of one `start` in any order, and may cut a page among them. Every page is therefore requested
with one record more than is wanted: points whose start differs from that of the last record are complete, and the next
page begins after them. Where a whole page has one start, its points are read by id. Pure: the engine is two functions.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from streams.store.base import Point, Position


class Reader(Protocol):
    """What an engine can do; filter, direction and vectors are bound by the implementation."""

    async def by_start(self, beyond_ms: int | None, limit: int) -> Sequence[Point]:
        """At most `limit` points by `start` beyond `beyond_ms` (exclusive); ties in any order."""
        ...

    async def of_start(self, start_ms: int, from_id: str | None, limit: int) -> Sequence[Point]:
        """At most `limit` points of this `start` by id ascending, from `from_id` (inclusive)."""
        ...


async def scroll(
    reader: Reader, *, descending: bool, limit: int | None, page: int, after: Position | None
) -> AsyncIterator[Point]:
    """Points by `start` and then by id, after a position; what is read is what is yielded, and one record a page."""
    left = limit
    beyond: int | None = None
    if after is not None and left != 0:
        beyond = after[0]
        async for point in _ties(reader, after, left, page):
            yield point
            left = None if left is None else left - 1
    while left is None or left > 0:
        requested = (page if left is None else min(page, left)) + 1
        found = await reader.by_start(beyond, requested)
        last = None if len(found) < requested else int(found[-1].payload["start"])
        whole = [point for point in found if point.payload["start"] != last]
        for point in sorted(whole, key=lambda p: (-p.payload["start"] if descending else p.payload["start"], p.id)):
            yield point
            if left is not None:
                left -= 1
                if not left:
                    return
        if last is None:
            return
        if whole:
            beyond = int(whole[-1].payload["start"])  # the last record comes again, with those that share its start
            continue
        async for point in _ties(reader, (last, ""), left, page):
            yield point
            left = None if left is None else left - 1
        beyond = last


async def _ties(reader: Reader, after: Position, limit: int | None, page: int) -> AsyncIterator[Point]:
    """Points of one `start` by id, after an id; `""` is before all."""
    start_ms, id = after
    left = limit
    while left is None or left > 0:
        requested = (page if left is None else min(page, left)) + 1
        found = await reader.of_start(start_ms, id or None, requested)
        for point in found:
            if point.id == id:
                continue
            yield point
            if left is not None:
                left -= 1
                if not left:
                    return
        if len(found) < requested:
            return
        id = found[-1].id
