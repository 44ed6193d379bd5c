"""The read-only HTTP API: pages by header, and a store that is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import httpx
import pytest

from streams.api.server import make_api
from streams.metrics import Metrics
from streams.serving import supervisor
from streams.serving.client import RemoteQueries
from streams.serving.pages import every
from streams.serving.queries import QueryError, StoreQueries
from streams.serving.supervisor import WorkerSupervisor
from streams.settings import load_settings
from streams.store.base import Filter, Point, StoreError, StoreUnavailable, VectorStore
from streams.store.retrying import RetryingStore
from streams.testing import RecordedOutputs
from tests.memory_store import MemoryStore
from tests.unit.serving.stored import step, unit, window


class Model:
    """As much of a model as searches need."""

    def embed_text(self, text: str) -> Any:
        return unit(3)


class AwayStore(MemoryStore):
    """Fails like a server that is away, or as a test says."""

    error: StoreError = StoreUnavailable("http://qdrant:6333: connection refused; start the Qdrant server there")

    def _fail(self, *_: Any, **__: Any) -> NoReturn:
        raise self.error

    async def get(self, *arguments: Any, **options: Any) -> list[Point]:
        self._fail()

    async def search(self, *arguments: Any, **options: Any) -> NoReturn:
        self._fail()

    async def streams(self) -> dict[str, int]:
        self._fail()

    async def scroll(self, *arguments: Any, **options: Any) -> AsyncIterator[Point]:
        self._fail()
        yield window(0)


def http_of(live: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(make_api(live))
    return httpx.AsyncClient(transport=transport, base_url="http://worker", trust_env=False)


def over(store: VectorStore) -> httpx.AsyncClient:
    return http_of(StoreQueries(store, lambda: Model()))  # type: ignore[arg-type, return-value]


async def filled() -> MemoryStore:
    store = MemoryStore()
    steps = [[step(f"i{n}", n * 1000 + 1000, 0, "opened")] for n in range(30)]
    await store.upsert([window(n, stream=f"s{n:02}", steps=steps[n]) for n in range(30)])
    return store


LISTS = ["/v1/streams", "/v1/windows", "/v1/incidents", "/v1/search?text=noise", f"/v1/search?window={window(3).id}"]


@pytest.mark.parametrize("path", LISTS)
async def test_every_list_is_an_array_and_names_the_next_page_in_a_header(path: str) -> None:
    async with over(await filled()) as http:
        whole = await http.get(path, params=httpx.URL(path).params.merge({"limit": 1000}))
        assert "x-next-cursor" not in whole.headers
        rows, cursor = [], None
        for _ in range(10):
            params = httpx.URL(path).params.merge({"limit": 8} | ({} if cursor is None else {"cursor": cursor}))
            answer = await http.get(path, params=params)
            assert answer.status_code == 200
            assert len(answer.json()) <= 8
            rows += answer.json()
            cursor = answer.headers.get("x-next-cursor")
            if cursor is None:
                break
        assert rows == whole.json()
        assert len(rows) >= 29


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": 1001}, {"cursor": "nonsense"}, {"cursor": "x" * 3000}])
async def test_a_limit_or_cursor_that_cannot_be_is_refused(path: str, wrong: dict[str, Any]) -> None:
    async with over(await filled()) as http:
        answer = await http.get(path, params=httpx.URL(path).params.merge(wrong))
    assert answer.status_code == 422


async def test_the_client_goes_through_all_pages() -> None:
    async with over(await filled()) as http:
        remote = RemoteQueries(http)
        assert len([row async for row in every(partial(remote.streams, 7))]) == 30
        assert len([row async for row in every(partial(remote.incidents, Filter(), 7))]) == 30
        assert len([row async for row in every(partial(remote.windows, Filter(from_ms=5000), 7))]) == 25
        assert len([row async for row in every(partial(remote.search_text, "noise", Filter(), 7))]) == 30
        with pytest.raises(QueryError, match="nothing to search for"):
            await remote.search_text(" ", Filter(), 7)


@pytest.mark.parametrize("path", [*LISTS, "/v1/export"])
async def test_a_store_that_is_away_is_a_503_with_what_mends_it(path: str) -> None:
    async with over(AwayStore()) as http:
        answer = await http.get(path)
    assert answer.status_code == 503
    assert answer.headers["retry-after"].isdigit()
    assert answer.json() == {"error": str(AwayStore.error)}


async def test_an_error_that_no_retry_mends_is_not_called_unavailable() -> None:
    store = AwayStore()
    store.error = StoreError("http://qdrant:6333 refused: UNAUTHENTICATED; set SENSORIUM_STORE_API_KEY")
    async with over(store) as http:
        answer = await http.get("/v1/streams")
    assert (answer.status_code, answer.json()) == (500, {"error": str(store.error)})


async def test_the_client_tells_a_store_that_is_away_from_a_wrong_query() -> None:
    async with over(AwayStore()) as http:
        with pytest.raises(StoreUnavailable, match="start the Qdrant server"):
            await RemoteQueries(http).streams()
        with pytest.raises(StoreUnavailable, match="start the Qdrant server"):
            _ = [row async for row in RemoteQueries(http).export()]


async def test_an_export_is_whole() -> None:
    store = await filled()
    async with over(store) as http:
        ids = [row["id"] async for row in RemoteQueries(http).export()]
    assert sorted(ids) == sorted(window(n).id for n in range(30))
    async with over(MemoryStore()) as http:
        assert (await http.get("/v1/export")).content == b""


def live_on(tmp_path: Path, bare: VectorStore) -> WorkerSupervisor:
    """A supervisor whose worker retries, as a real one does, on a store of ours."""
    live = WorkerSupervisor(load_settings(state=tmp_path), "127.0.0.1:1")
    live.worker = worker_on(bare)
    live._serving = supervisor._ServingVersion(live.worker)
    return live


def worker_on(bare: VectorStore) -> Any:
    version = SimpleNamespace(name="small-1")
    return SimpleNamespace(
        version=version,
        store=RetryingStore(bare),
        query_store=bare,
        model=Model(),
        outputs=RecordedOutputs(),
        metrics=Metrics(),
        topic_partitions=1,
        numbers=frozenset({0}),
    )


async def test_queries_do_not_wait_for_the_store_although_the_pipeline_does(tmp_path: Path) -> None:
    live = live_on(tmp_path, AwayStore())
    waiting = asyncio.create_task(live.worker.store.streams())
    async with http_of(live) as http:
        assert (await http.get("/v1/streams")).status_code == 503
    assert not waiting.done()
    waiting.cancel()


async def test_a_takeover_goes_on_while_the_store_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_CATCH_UP_S", 0.0)
    live = live_on(tmp_path, AwayStore())
    before = live._serving
    live.worker = worker_on(AwayStore())
    with pytest.raises(StoreUnavailable):
        await live.streams()  # it is over at once, and holds nothing
    async with asyncio.timeout(supervisor._DRAIN_S / 2):
        await live._hand_over(before, contextlib.AsyncExitStack())
    assert live._serving is not before
