"""Queries in flight when another model version takes over."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from streams.serving.supervisor import _ServingVersion


def serving() -> _ServingVersion:
    worker: Any = SimpleNamespace(version=SimpleNamespace(name="a version"), query_store=None, model=None)
    return _ServingVersion(worker)


async def test_draining_ends_with_the_last_query() -> None:
    version = serving()
    async with version.acquire():
        async with version.acquire():
            draining = asyncio.create_task(version.drain())
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not draining.done()
    await asyncio.wait_for(draining, 10)


async def test_draining_is_cancelled_although_the_last_query_ends_at_that_moment() -> None:
    version = serving()
    async with version.acquire():
        draining = asyncio.create_task(version.drain())
        await asyncio.sleep(0)
    draining.cancel()
    await asyncio.wait({draining}, timeout=10)
    assert draining.cancelled()
