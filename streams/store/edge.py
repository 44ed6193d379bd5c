"""The embedded store: Qdrant Edge in this process, one folder, one opener.

Its calls are synchronous and some hold the GIL for a while, so all of them run one after another in a thread of their
own. Vectors are unit vectors under a dot product: they come back bit for bit, which a cosine index would not promise.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import msgspec
import numpy as np
import qdrant_edge as qe

from streams.store.base import (
    DIM,
    VECTOR_NAMES,
    Filter,
    Hit,
    Point,
    StoreError,
    StoreInfo,
    StoreLocked,
    Vector,
)
from streams.store.validation import INDEXES, checked

T = TypeVar("T")
_FACET_LIMIT = 1_000_000
_INDEX_TYPES = {"keyword": qe.PayloadSchemaType.Keyword, "integer": qe.PayloadSchemaType.Integer}
# qdrant-edge-py 0.9 turns True into 1 in a match, which then matches nothing: flags are matched by a keyword beside
# them, `flag_<name>`, that no caller sees
_FLAGS = tuple(name for name, kind in INDEXES.items() if kind == "bool")
_BODY = "body"  # the whole payload as JSON; keys beside it were set later, or are indexed


class EdgeStore:
    """A `VectorStore` in a folder. Not open yet: use `async with`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shard: qe.EdgeShard | None = None
        self._lock: IO[str] | None = None
        self._pool: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> Self:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="edge-store")
        try:
            await self._run(self._open)
        except BaseException:
            self._pool.shutdown(wait=False)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._run(self._close)
        assert self._pool is not None
        self._pool.shutdown(wait=True)

    async def upsert(self, points: Sequence[Point]) -> None:
        if points:
            await self._run(self._upsert, points)

    async def set_payload(self, id: str | Sequence[str], values: Mapping[str, Any]) -> None:
        ids: list[Any] = [id] if isinstance(id, str) else list(id)
        if ids:
            await self._run(self._update, qe.UpdateOperation.set_payload(ids, _with_flags(values)))

    async def get(self, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        if not ids:
            return []
        records = await self._run(lambda: self._open_shard().retrieve(list(ids), True, vectors))
        found = {str(record.id): _point(record) for record in records}
        return [found[id] for id in ids if id in found]

    async def scroll(
        self,
        where: Filter,
        *,
        vectors: bool = False,
        descending: bool = False,
        limit: int | None = None,
        page: int = 256,
    ) -> AsyncIterator[Point]:
        """By (`start`, id). A page that ends among points of one start is completed before it is handed on."""
        left, after = limit, None
        while left is None or left > 0:
            batch, after = await self._run(self._page, where, vectors, descending, page, after)
            for point in batch:
                yield point
                if left is not None:
                    left -= 1
                    if not left:
                        return
            if after is None:
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
        request = qe.QueryRequest(
            limit=limit,
            query=qe.Query.Nearest(np.asarray(vector, dtype=np.float32).tolist(), using),
            filter=_filter(where, has_vector=using),
            with_payload=True,
            with_vector=vectors,
            params=qe.SearchParams(exact=True),
        )
        found = await self._run(lambda: self._open_shard().query(request))
        return [Hit(_point(hit), float(hit.score)) for hit in found]

    async def streams(self) -> dict[str, int]:
        return await self._facet("stream")

    async def versions(self) -> dict[str, int]:
        return await self._facet("model")

    async def _facet(self, key: str) -> dict[str, int]:
        request = qe.FacetRequest(key, limit=_FACET_LIMIT, exact=True)
        response = await self._run(lambda: self._open_shard().facet(request))
        return {str(hit.value): int(hit.count) for hit in sorted(response.hits, key=lambda hit: str(hit.value))}

    async def count(self, where: Filter | None = None) -> int:
        request = qe.CountRequest(exact=True, filter=_filter(where))
        return int(await self._run(lambda: self._open_shard().count(request)))

    async def delete_before(self, end_ms: int) -> int:
        old = qe.Filter(
            must=[qe.FieldCondition("end", range=qe.RangeFloat(lt=float(end_ms)))],
            must_not=[_flag("bank", True)],
        )
        count = int(await self._run(lambda: self._open_shard().count(qe.CountRequest(exact=True, filter=old))))
        if count:
            await self._run(self._update, qe.UpdateOperation.delete_points_by_filter(old))
        return count

    async def info(self) -> StoreInfo:
        return StoreInfo("edge", str(self.folder), await self.count(), version("qdrant-edge-py"))

    # -- in the store's thread -----------------------------------------------------------------------------------

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        assert self._pool is not None, "use the store as a context manager: async with EdgeStore(folder)"
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = (self.folder / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "?"
            lock.close()
            raise StoreLocked(
                f"{self.folder} is open in process {owner}; stop that one, choose another folder with --store "
                "edge:DIR, or use a Qdrant server for several workers: --store http://host:6333"
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock
        data = self.folder / "points"
        try:
            if (data / "segments").is_dir():
                self._shard = qe.EdgeShard.load(str(data))
            else:
                data.mkdir(exist_ok=True)
                parameters = qe.EdgeVectorParams(size=DIM, distance=qe.Distance.Dot)
                self._shard = qe.EdgeShard.create(
                    str(data), qe.EdgeConfig(vectors=dict.fromkeys(VECTOR_NAMES, parameters))
                )
            for name, kind in INDEXES.items():
                key, type_ = (f"flag_{name}", "keyword") if name in _FLAGS else (name, kind)
                self._shard.update(qe.UpdateOperation.create_field_index(key, _INDEX_TYPES[type_]))
        except Exception as error:
            lock.close()
            raise StoreError(
                f"cannot open the store in {data}: {error}; if a disk is full or broken mend that, or move the folder "
                "away to begin anew"
            ) from None

    def _close(self) -> None:
        if self._shard is not None:
            self._shard.flush()
            self._shard.close()
            self._shard = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _open_shard(self) -> qe.EdgeShard:
        assert self._shard is not None
        return self._shard

    def _upsert(self, points: Sequence[Point]) -> None:
        ready = [qe.Point(point.id, vectors, _stored(point.payload)) for point, vectors in checked(points)]
        self._update(qe.UpdateOperation.upsert_points(ready))

    def _update(self, operation: qe.UpdateOperation) -> None:
        # the write-ahead log is in the page cache when this returns: it outlives the process, as promised
        self._open_shard().update(operation)

    def _page(
        self, where: Filter, vectors: bool, descending: bool, page: int, after: int | None
    ) -> tuple[list[Point], int | None]:
        """A page beyond `after` (a start), whole groups of one start only; and where it ended, or None at the end."""
        shard = self._open_shard()
        direction = qe.Direction.Desc if descending else qe.Direction.Asc
        request = qe.ScrollRequest(
            limit=page,
            filter=_filter(where, beyond=after, descending=descending),
            with_payload=True,
            with_vector=vectors,
            order_by=qe.OrderBy("start", direction),
        )
        points = [_point(record) for record in shard.scroll(request)[0]]
        if len(points) < page:
            return _ordered(points, descending), None
        last = int(points[-1].payload["start"])
        whole = [point for point in points if point.payload["start"] != last]
        whole += self._with_start(where, last, vectors)
        return _ordered(whole, descending), last

    def _with_start(self, where: Filter, start_ms: int, vectors: bool) -> Iterator[Point]:
        same = _filter(where, exactly=start_ms)
        offset = None
        while True:
            request = qe.ScrollRequest(offset=offset, limit=512, filter=same, with_payload=True, with_vector=vectors)
            records, offset = self._open_shard().scroll(request)
            for record in records:
                yield _point(record)
            if offset is None:
                return


def _ordered(points: list[Point], descending: bool) -> list[Point]:
    return sorted(points, key=lambda point: (point.payload["start"], point.id), reverse=descending)


def _filter(
    where: Filter | None,
    *,
    beyond: int | None = None,
    descending: bool = False,
    exactly: int | None = None,
    has_vector: str | None = None,
) -> qe.Filter | None:
    must: list[Any] = []
    where = where or Filter()
    if where.stream is not None:
        must.append(qe.FieldCondition("stream", match=qe.MatchValue(where.stream)))
    if where.incident is not None:
        must.append(qe.FieldCondition("incident", match=qe.MatchValue(where.incident)))
    if where.incident_step is not None:
        must.append(_flag("incident_step", where.incident_step))
    if where.from_ms is not None or where.to_ms is not None:
        low = None if where.from_ms is None else float(where.from_ms)
        high = None if where.to_ms is None else float(where.to_ms)
        must.append(qe.FieldCondition("start", range=qe.RangeFloat(gte=low, lt=high)))
    if beyond is not None:
        limits = qe.RangeFloat(lt=float(beyond)) if descending else qe.RangeFloat(gt=float(beyond))
        must.append(qe.FieldCondition("start", range=limits))
    if exactly is not None:
        must.append(qe.FieldCondition("start", range=qe.RangeFloat(gte=float(exactly), lte=float(exactly))))
    if has_vector is not None:
        must.append(qe.HasVectorCondition(has_vector))
    return qe.Filter(must=must) if must else None


def _point(record: Any) -> Point:
    vectors = {name: np.asarray(v, dtype=np.float32) for name, v in (record.vector or {}).items()}
    kept = record.payload or {}
    payload: dict[str, Any] = msgspec.json.decode(kept.pop(_BODY)) if _BODY in kept else {}
    payload.update((key, value) for key, value in kept.items() if not key.startswith("flag_"))
    return Point(str(record.id), vectors, payload)


def _stored(payload: Mapping[str, Any]) -> dict[str, Any]:
    """What the engine is given: the keys that it indexes, and everything as one JSON text.

    It takes 3 to 7 microseconds over every value that it converts, and gives one float in eight back a bit off.
    """
    indexed = {key: payload[key] for key in INDEXES if key in payload}
    return _with_flags(indexed) | {_BODY: msgspec.json.encode(payload).decode()}


def _with_flags(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(values) | {f"flag_{name}": str(values[name]) for name in _FLAGS if name in values}


def _flag(name: str, value: bool) -> qe.FieldCondition:
    return qe.FieldCondition(f"flag_{name}", match=qe.MatchValue(str(value)))
