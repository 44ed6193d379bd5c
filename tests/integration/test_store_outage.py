"""A store that goes away while windows are written: the service waits, and nothing is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from streams.store.base import StoreUnavailable
from streams.store.retrying import RetryingStore
from streams.store.server import ServerStore
from tests.integration.qdrant_server import QdrantServer
from tests.integration.test_store_contract import all_of, point

pytestmark = pytest.mark.qdrant


async def test_a_server_that_is_killed_and_comes_back_is_waited_for(tmp_path: Path) -> None:
    node = QdrantServer(tmp_path / "node").start()
    waits: list[bool] = []
    waiting = asyncio.Event()

    def on_wait(begins: bool) -> None:
        waits.append(begins)
        waiting.set()

    try:
        async with ServerStore(node.url, grpc_port=node.grpc_port) as bare:
            store = RetryingStore(bare, on_wait)
            await store.upsert([point(n) for n in range(100)])
            await asyncio.to_thread(node.kill)
            with pytest.raises(StoreUnavailable):
                await bare.count()
            writing = asyncio.create_task(store.upsert([point(n) for n in range(100, 200)]))
            await asyncio.wait_for(waiting.wait(), 30)
            assert not writing.done()
            assert waits == [True]
            await asyncio.to_thread(node.start)
            await asyncio.wait_for(writing, 30)
            assert waits == [True, False]
            assert len(await all_of(store)) == 200
    finally:
        node.kill()


async def test_a_node_of_three_is_killed_while_windows_are_written(tmp_path: Path) -> None:
    first = QdrantServer(tmp_path / "n1", cluster=True).start()
    nodes = [first]
    try:
        for name in ("n2", "n3"):
            nodes.append(QdrantServer(tmp_path / name, cluster=True, bootstrap=first.p2p).start())
        async with ServerStore(first.url, grpc_port=first.grpc_port, shards=3, replicas=2) as bare:
            store = RetryingStore(bare)
            for batch in range(30):
                if batch == 10:
                    await asyncio.to_thread(nodes[2].kill)
                await store.upsert([point(batch * 20 + n) for n in range(20)])
            assert await store.count() == 600
            assert [p.id for p in await all_of(store)] == [point(n).id for n in range(600)]
            await asyncio.to_thread(nodes[2].start)
            await store.upsert([point(n) for n in range(600, 620)])
            assert len(await all_of(store)) == 620
    finally:
        for node in nodes:
            node.kill()
