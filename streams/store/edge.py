"""The embedded store: Qdrant Edge in this process, one folder, one opener.

Its calls are synchronous and some hold the GIL for a while, so all of them run one after another in a thread of their
own. Vectors are unit vectors under a dot product: they come back bit for bit, which a cosine index would not promise.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import numpy as np
import qdrant_edge as qe

from streams.store.base import (
    DIM,
    VECTOR_NAMES,
    Filter,
    Hit,
    Point,
    Position,
    StoreError,
    StoreInfo,
    StoreLocked,
    StoreUnavailable,
    Vector,
)
from streams.store.encoding import from_stored, to_stored
from streams.store.free_space import MIN_FREE_BYTES, check_free, free_bytes
from streams.store.paging import scroll
from streams.store.validation import INDEXES, checked

T = TypeVar("T")
_FACET_LIMIT = 1_000_000
_INDEX_TYPES = {"keyword": qe.PayloadSchemaType.Keyword, "integer": qe.PayloadSchemaType.Integer}
# qdrant-edge-py 0.9 turns True into 1 in a match, which then matches nothing: flags are matched by a keyword beside
# them, `flag_<name>`, that no caller sees
_FLAG = "flag_"
_FLAGS = tuple(name for name, kind in INDEXES.items() if kind == "bool")


class EdgeStore:
    """A `VectorStore` in a folder. Not open yet: use `async with`.

    While fewer than `min_free_bytes` are free on its disk (`free` counts them) it is neither opened nor written:
    `StoreUnavailable`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        min_free_bytes: int = MIN_FREE_BYTES,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self.folder = folder
        self._min_free_bytes = min_free_bytes
        self._free = free
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
        assert self._pool is not None
        try:
            await self._run(self._close)
        finally:
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
        after: Position | None = None,
    ) -> AsyncIterator[Point]:
        reader = _Reader(self, where, vectors, descending)
        async for point in scroll(reader, descending=descending, limit=limit, page=page, after=after):
            yield point

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

    async def latest(self, streams: Sequence[str]) -> dict[str, Point]:
        if not streams:
            return {}
        newest = qe.OrderBy("start", qe.Direction.Desc)
        requests = [
            qe.QueryRequest(limit=1, query=newest, filter=_filter(Filter(stream=stream)), with_payload=True)
            for stream in streams
        ]
        found = await self._run(lambda: self._open_shard().query_batch(qe.QueryBatchRequest(requests)))
        return {stream: _point(hits[0]) for stream, hits in zip(streams, found, strict=True) if hits}

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
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)
        except StoreError:
            raise
        except Exception as error:
            if type(error) in (Exception, ValueError) or isinstance(error, OSError):  # all that the engine raises
                raise _classified(error, self.folder) from None
            raise

    def _open(self) -> None:
        check_free(self.folder, self._free(self.folder), self._min_free_bytes)
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(self.folder)
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
                key, type_ = (_FLAG + name, "keyword") if name in _FLAGS else (name, kind)
                self._shard.update(qe.UpdateOperation.create_field_index(key, _INDEX_TYPES[type_]))
        except Exception as error:
            lock.close()
            self._lock = None
            if _is_full(error):
                raise _classified(error, self.folder) from None
            raise StoreError(
                f"cannot open the store in {data}: {error}; if the disk is broken or read-only mend that, or move the "
                "folder away to begin anew"
            ) from None

    def _close(self) -> None:
        shard, lock = self._shard, self._lock
        self._shard = self._lock = None
        try:
            if shard is not None:
                try:
                    shard.flush()
                finally:
                    shard.close()
        finally:
            if lock is not None:
                lock.close()

    def _open_shard(self) -> qe.EdgeShard:
        assert self._shard is not None
        return self._shard

    def _upsert(self, points: Sequence[Point]) -> None:
        ready = [qe.Point(p.id, vectors, _with_flags(to_stored(p.payload))) for p, vectors in checked(points)]
        self._update(qe.UpdateOperation.upsert_points(ready))

    def _update(self, operation: qe.UpdateOperation) -> None:
        # the write-ahead log is in the page cache when this returns: it outlives the process, as promised
        check_free(self.folder, self._free(self.folder), self._min_free_bytes)
        self._open_shard().update(operation)


def lock_folder(folder: Path) -> IO[str]:
    """Take the lock of a store's folder, held until the file is closed. Raises `StoreLocked`."""
    lock = (folder / "lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        owner = lock.read().strip() or "?"
        lock.close()
        raise StoreLocked(
            f"{folder} is open in process {owner}; stop that one, choose another folder with --store edge:DIR, or use "
            "a Qdrant server for several workers: --store http://host:6333"
        ) from None
    lock.seek(0)
    lock.truncate()
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


@dataclass(frozen=True, slots=True)
class _Reader:
    """One scroll of an open store, as `paging` asks it."""

    store: EdgeStore
    where: Filter
    vectors: bool
    descending: bool

    async def by_start(self, beyond_ms: int | None, limit: int) -> list[Point]:
        direction = qe.Direction.Desc if self.descending else qe.Direction.Asc
        return await self._read(
            limit=limit,
            filter=_filter(self.where, beyond=beyond_ms, descending=self.descending),
            order_by=qe.OrderBy("start", direction),
        )

    async def of_start(self, start_ms: int, from_id: str | None, limit: int) -> list[Point]:
        return await self._read(limit=limit, filter=_filter(self.where, exactly=start_ms), offset=from_id)

    async def _read(self, **options: Any) -> list[Point]:
        request = qe.ScrollRequest(with_payload=True, with_vector=self.vectors, **options)

        def read() -> list[Point]:
            return [_point(record) for record in self.store._open_shard().scroll(request)[0]]  # noqa: SLF001

        return await self.store._run(read)  # noqa: SLF001


def _is_full(error: Exception) -> bool:
    """No space, or a quota used up; the engine gives the system's words and number as text."""
    return any(text in str(error) for text in ("No space left", "os error 28", "Errno 28", "os error 122", "Errno 122"))


def _classified(error: Exception, folder: Path) -> StoreError:
    """An error of the engine: one that a retry may mend (`StoreUnavailable`), or one that ends the operation."""
    if _is_full(error):
        return StoreUnavailable(f"the disk of {folder} is full: {error}; free some room there")
    if isinstance(error, OSError) or "Read-only file system" in str(error) or "os error 30" in str(error):
        return StoreError(f"cannot write the store in {folder}: {error}; make the folder writable and start again")
    return StoreError(f"the store in {folder} failed: {error}; if it fails again, see: sensorium doctor")


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
    stored = {key: value for key, value in (record.payload or {}).items() if not key.startswith(_FLAG)}
    return Point(str(record.id), vectors, from_stored(stored))


def _with_flags(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(values) | {_FLAG + name: str(values[name]) for name in _FLAGS if name in values}


def _flag(name: str, value: bool) -> qe.FieldCondition:
    return qe.FieldCondition(_FLAG + name, match=qe.MatchValue(str(value)))
