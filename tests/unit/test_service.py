"""Starting a service that is told to stop before it is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from streams.service import StoppedEarly, start_unless_stopped


class Slow:
    """Something that takes a while to start, and notes what becomes of it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.notes: list[str] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        self.notes.append("starting")
        try:
            await asyncio.sleep(self.seconds)
            self.notes.append("running")
            yield self
        finally:
            self.notes.append("ended")


async def test_a_start_that_is_told_to_stop_is_undone_and_says_so() -> None:
    stop, slow = asyncio.Event(), Slow(60)
    asyncio.get_running_loop().call_later(0.01, stop.set)
    with pytest.raises(StoppedEarly):
        async with start_unless_stopped(slow.running(), stop):
            pytest.fail("it never ran")
    assert slow.notes == ["starting", "ended"]
    await asyncio.sleep(0)  # no cancellation is left over


async def test_a_stop_after_the_start_is_left_to_the_body() -> None:
    stop, slow = asyncio.Event(), Slow(0)
    async with start_unless_stopped(slow.running(), stop) as running:
        stop.set()
        await asyncio.sleep(0.01)
        given: Any = running
        assert given.notes == ["starting", "running"]
    assert slow.notes[-1] == "ended"


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def start() -> None:
        async with start_unless_stopped(Slow(60).running(), asyncio.Event()):
            pass

    task = asyncio.create_task(start())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
