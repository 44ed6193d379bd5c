"""One suite for all stores: what the service relies on, on Qdrant Edge, local mode and a real Qdrant server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from streams.store.base import DIM, Filter, InvalidPoint, Point, StoreLocked, VectorStore
from streams.store.edge import EdgeStore
from streams.store.server import ServerStore
from tests.integration.conftest import EVERY_ENGINE, Node
from tests.integration.qdrant_local import serve_locally

Opener = Callable[[], VectorStore]


@pytest.fixture(params=EVERY_ENGINE)
def opener(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> Opener:
    """Opens the same store again and again."""
    record_property("store_engine", request.param)
    if request.param == "edge":
        return lambda: EdgeStore(tmp_path / "store")
    name = uuid.uuid4().hex
    if request.param == "local":
        url = serve_locally(monkeypatch)
        return lambda: ServerStore(url, collection=name)
    node: Node = request.getfixturevalue("qdrant")
    return lambda: ServerStore(node.url, collection=name, grpc_port=node.grpc_port)


@pytest_asyncio.fixture
async def store(opener: Opener) -> AsyncIterator[VectorStore]:
    async with opener() as opened:
        yield opened


def unit(seed: int) -> Any:
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def point(number: int, stream: str = "pump", start: int | None = None, **payload: Any) -> Point:
    start = number * 1000 if start is None else start
    base = {"stream": stream, "start": start, "end": start + 1000, "model": "m"}
    base |= {"incident": None, "incident_step": False}
    vectors = {"joint": unit(number), "audio": unit(number + 10_000)}
    return Point(str(uuid.UUID(int=number + 1)), vectors, base | payload)


async def all_of(store: VectorStore, where: Filter | None = None, **options: Any) -> list[Point]:
    return [found async for found in store.scroll(where or Filter(), **options)]


async def test_vectors_and_payload_come_back_bit_for_bit(store: VectorStore) -> None:
    numbers = [1.1, 1 / 3, 0.1 + 0.2, 5e-324, 2**53 - 1]
    sent = point(1, nested={"a": [None, True], "numbers": numbers}, text="Größe 5 µm")
    await store.upsert([sent])
    (found,) = await store.get([sent.id], vectors=True)
    assert {name: v.tobytes() for name, v in found.vectors.items()} == {
        name: v.tobytes() for name, v in sent.vectors.items()
    }
    assert dict(found.payload) == dict(sent.payload)


async def test_an_upsert_replaces_and_a_payload_merge_does_not(store: VectorStore) -> None:
    await store.upsert([point(1, a=1, b=2)])
    await store.upsert([point(1, a=3)])
    await store.set_payload(point(1).id, {"c": 4})
    (found,) = await store.get([point(1).id])
    assert (found.payload["a"], found.payload["c"], "b" in found.payload) == (3, 4, False)


async def test_get_keeps_the_order_of_the_ids_and_leaves_out_what_is_not_there(store: VectorStore) -> None:
    await store.upsert([point(n) for n in range(5)])
    ids = [point(n).id for n in (3, 99, 0, 4)]
    assert [found.id for found in await store.get(ids)] == [ids[0], ids[2], ids[3]]


@pytest.mark.parametrize("descending", [False, True])
async def test_scrolling_is_by_start_and_id_across_pages_and_ties(store: VectorStore, descending: bool) -> None:
    points = [point(n, start=n // 7 * 1000) for n in range(100)]
    await store.upsert(points)
    sign = -1 if descending else 1
    ordered = [p.id for p in sorted(points, key=lambda p: (sign * p.payload["start"], p.id))]
    found = await all_of(store, descending=descending, page=10)
    assert [p.id for p in found] == ordered
    limited = await all_of(store, descending=descending, page=10, limit=23)
    assert [p.id for p in limited] == ordered[:23]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("page", [1, 3, 10])
async def test_scrolling_goes_on_after_any_position(store: VectorStore, descending: bool, page: int) -> None:
    await store.upsert([point(n, start=n // 7 * 1000) for n in range(30)])
    whole = await all_of(store, descending=descending)
    for n, last in enumerate(whole):
        after = (last.payload["start"], last.id)
        rest = await all_of(store, descending=descending, page=page, after=after, limit=8)
        assert [p.id for p in rest] == [p.id for p in whole[n + 1 : n + 9]]


async def test_a_position_whose_window_is_gone_still_says_where_to_go_on(store: VectorStore) -> None:
    await store.upsert([point(n) for n in range(10)])
    last = point(4)
    await store.delete_before(last.payload["end"] + 1)
    rest = await all_of(store, after=(last.payload["start"], last.id))
    assert [p.id for p in rest] == [point(n).id for n in range(5, 10)]


async def test_the_latest_window_of_each_stream_comes_in_one_answer(store: VectorStore) -> None:
    await store.upsert([point(n, stream=f"s{n % 3}") for n in range(20)])
    latest = await store.latest(["s2", "s0", "nobody"])
    assert {name: p.payload["start"] for name, p in latest.items()} == {"s2": 17_000, "s0": 18_000}
    assert dict(latest["s2"].payload) == dict(point(17, stream="s2").payload)
    assert await store.latest([]) == {}


def counting_records(store: VectorStore) -> list[int]:
    """The number of records that each read of an open store requests of its engine."""
    requested: list[int] = []
    if isinstance(store, EdgeStore):
        shard = store._open_shard()

        class Shard:
            def scroll(self, request: Any) -> Any:
                requested.append(request.limit)
                return shard.scroll(request)

        store._open_shard = Shard  # type: ignore[assignment, method-assign]
    else:
        assert isinstance(store, ServerStore)
        client = store._qdrant

        class Client:
            def scroll(self, collection: str, *, limit: int, **options: Any) -> Any:
                requested.append(limit)
                return client.scroll(collection, limit=limit, **options)

            def close(self) -> Any:
                return client.close()

        store._client = Client()  # type: ignore[assignment]
    return requested


async def test_a_scroll_requests_of_the_engine_what_its_limit_needs(store: VectorStore) -> None:
    await store.upsert([point(n) for n in range(300)])
    requested = counting_records(store)
    for limit, expected in ((1, [2]), (16, [17]), (256, [257]), (300, [257, 45])):
        requested.clear()
        assert len(await all_of(store, descending=True, limit=limit)) == limit
        assert requested[: len(expected)] == expected
        assert sum(requested) <= limit + 2 * len(requested)


async def test_filters_hold_together(store: VectorStore) -> None:
    some = [point(n, stream=f"s{n % 2}", incident="i" if n > 6 else None, incident_step=n == 8) for n in range(10)]
    await store.upsert(some)
    starts = [p.payload["start"] for p in await all_of(store, Filter(stream="s0", from_ms=2000, to_ms=8000))]
    assert starts == [2000, 4000, 6000]
    assert len(await all_of(store, Filter(incident="i"))) == 3
    assert [p.payload["start"] for p in await all_of(store, Filter(incident_step=True))] == [8000]
    assert await store.count(Filter(stream="s1")) == 5
    assert await store.streams() == {"s0": 5, "s1": 5}


async def test_the_nearest_comes_first_and_a_point_without_the_vector_never(store: VectorStore) -> None:
    points = [point(n) for n in range(20)]
    mute = Point(str(uuid.UUID(int=500)), {"joint": unit(3)}, dict(point(3).payload))
    await store.upsert([*points, mute])
    hits = await store.search(unit(10_003), using="audio", limit=30)
    assert hits[0].point.id == points[3].id
    assert hits[0].score == pytest.approx(1.0, abs=1e-6)
    assert len(hits) == 20
    near = await store.search(unit(3), where=Filter(from_ms=5000), limit=3)
    expected = sorted(points[5:], key=lambda p: -float(np.dot(p.vectors["joint"], unit(3))))[:3]
    assert [hit.point.id for hit in near] == [p.id for p in expected]


async def test_retention_spares_what_reference_banks_are_made_of(store: VectorStore) -> None:
    await store.upsert([point(n) for n in range(10)])
    await store.set_payload(point(2).id, {"bank": True})
    assert await store.delete_before(6000) == 4
    assert [p.payload["start"] for p in await all_of(store)] == [2000, 5000, 6000, 7000, 8000, 9000]


@pytest.mark.parametrize("bad", ["nan", "zero", "infinite", "short", "long", "name", "no joint"])
async def test_a_bad_vector_is_refused_before_anything_is_written(store: VectorStore, bad: str) -> None:
    vectors = {
        "nan": {"joint": unit(1) * np.float32("nan")},
        "zero": {"joint": np.zeros(DIM, np.float32)},
        "infinite": {"joint": unit(1) * np.float32("inf")},
        "short": {"joint": unit(1)[:-1]},
        "long": {"joint": unit(1) * 2},
        "name": {"joint": unit(1), "video": unit(1)},
        "no joint": {"audio": unit(1)},
    }[bad]
    with pytest.raises(InvalidPoint):
        await store.upsert([point(5), Point(point(1).id, vectors, dict(point(1).payload))])
    assert await store.count() == 0


async def test_everything_is_there_when_the_store_is_opened_again(opener: Opener) -> None:
    async with opener() as store:
        await store.upsert([point(n) for n in range(50)])
    async with opener() as store:
        assert await store.count() == 50
        assert (await store.info()).points == 50


async def test_many_may_write_at_once(store: VectorStore) -> None:
    await asyncio.gather(*(store.upsert([point(n * 10 + k) for k in range(10)]) for n in range(20)))
    assert await store.count() == 200


async def test_an_embedded_store_has_one_opener(tmp_path: Path) -> None:
    async with EdgeStore(tmp_path):
        with pytest.raises(StoreLocked, match="stop that one"):
            await EdgeStore(tmp_path).__aenter__()
    async with EdgeStore(tmp_path):
        pass


_WRITER = """
import asyncio, os, signal, sys
from pathlib import Path
from streams.store.edge import EdgeStore
from tests.integration.test_store_contract import point

async def main():
    async with EdgeStore(Path(sys.argv[1])) as store:
        for batch in range(10):
            await store.upsert([point(batch * 10 + n) for n in range(10)])
            await store.set_payload(point(batch * 10).id, {"bank": True})
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_what_was_written_outlives_kill_9(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    ended = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", _WRITER, str(tmp_path / "s")], cwd=root)
    assert ended.returncode == -9
    async with EdgeStore(tmp_path / "s") as store:
        assert await store.count() == 100
        assert len([p async for p in store.scroll(Filter()) if p.payload.get("bank")]) == 10
