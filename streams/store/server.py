"""The store for production: a Qdrant server or cluster, over gRPC. Several workers may share it.

Writes wait until they are applied, by a majority of replicas where there are several; reads then see them. Failures
are classified in `server_errors`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import grpc
import numpy as np
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from streams.settings import Settings
from streams.store.base import DIM, VECTOR_NAMES, Filter, Hit, Point, Position, StoreInfo, Vector
from streams.store.encoding import from_stored, to_stored
from streams.store.paging import scroll
from streams.store.server_errors import FAILURES, check_version, classified
from streams.store.validation import INDEXES, checked

T = TypeVar("T")
_TIMEOUT_S = 10
_FACET_LIMIT = 1_000_000
_LARGEST_MESSAGE = {"grpc.max_receive_message_length": 256 * 1_048_576, "grpc.max_send_message_length": 256 * 1_048_576}
_INDEX_TYPES: dict[str, Any] = {
    "keyword": models.PayloadSchemaType.KEYWORD,
    "integer": models.PayloadSchemaType.INTEGER,
    "bool": models.PayloadSchemaType.BOOL,
}


def connect(url: str, *, grpc_port: int, api_key: str | None) -> AsyncQdrantClient:
    """A client of a server; the caller closes it. The one place where clients are made: tests put another one here."""
    parts = urlsplit(url)
    return AsyncQdrantClient(
        host=parts.hostname,
        port=parts.port or 6333,
        https=parts.scheme == "https",
        grpc_port=grpc_port,
        prefer_grpc=True,
        api_key=api_key,
        timeout=_TIMEOUT_S,
        check_compatibility=False,  # a line of warning for every minor version of difference; `check_version` does it
        grpc_options=dict(_LARGEST_MESSAGE),
    )


def server_store(settings: Settings, follow: str | None = None) -> ServerStore:
    """The collection that the settings name, or the one behind the alias `follow`; not open yet."""
    key = settings.store_api_key
    return ServerStore(
        settings.store_url,
        collection=settings.collection,
        grpc_port=settings.store_grpc_port,
        api_key=key.get_secret_value() if key else None,
        shards=settings.store_shards,
        replicas=settings.store_replicas,
        follow=follow,
    )


class ServerStore:
    """A `VectorStore` in one collection of a Qdrant server. Not open yet: use `async with`."""

    def __init__(
        self,
        url: str,
        *,
        collection: str = "windows",
        grpc_port: int = 6334,
        api_key: str | None = None,
        shards: int = 1,
        replicas: int = 1,
        follow: str | None = None,
    ) -> None:
        """`follow`: an alias; where it exists, the collection behind it is opened in place of `collection`."""
        self.url = url
        self.collection = collection
        self._grpc_port = grpc_port
        self._api_key = api_key
        self._shards = shards
        self._replicas = replicas
        self._follow = follow
        self._client: AsyncQdrantClient | None = None

    def beside(self, collection: str) -> ServerStore:
        """Another collection of the same server, not open yet."""
        return ServerStore(
            self.url,
            collection=collection,
            grpc_port=self._grpc_port,
            api_key=self._api_key,
            shards=self._shards,
            replicas=self._replicas,
        )

    def new_client(self) -> AsyncQdrantClient:
        """A client of this server; the caller closes it."""
        return connect(self.url, grpc_port=self._grpc_port, api_key=self._api_key)

    async def __aenter__(self) -> Self:
        self._client = self.new_client()
        try:
            check_version(self.url, (await self.call(self._qdrant.info)).version)
            if self._follow is not None:
                await self._follow_alias(self._follow)
            await self.call(self._make_collection)
        except BaseException:
            await self._client.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._qdrant.close()

    async def _follow_alias(self, alias: str) -> None:
        """The name behind the alias, looked up once: an alias that moves later must not move what is open here."""
        found = await self.call(self._qdrant.get_aliases)
        self.collection = next((a.collection_name for a in found.aliases if a.alias_name == alias), self.collection)

    async def _make_collection(self) -> None:
        client = self._qdrant
        if not await client.collection_exists(self.collection):
            try:
                await client.create_collection(
                    self.collection,
                    vectors_config={
                        name: models.VectorParams(size=DIM, distance=models.Distance.DOT) for name in VECTOR_NAMES
                    },
                    shard_number=self._shards,
                    replication_factor=self._replicas,
                    write_consistency_factor=self._replicas // 2 + 1 if self._replicas > 2 else 1,
                    on_disk_payload=True,
                )
            except (grpc.aio.AioRpcError, UnexpectedResponse):
                if not await client.collection_exists(self.collection):  # another worker was quicker
                    raise
        for name, kind in INDEXES.items():
            schema = _INDEX_TYPES[kind]
            if name == "stream":
                schema = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
            await client.create_payload_index(self.collection, name, field_schema=schema, wait=True)

    async def upsert(self, points: Sequence[Point]) -> None:
        ready = [models.PointStruct(id=p.id, vector=v, payload=to_stored(p.payload)) for p, v in checked(points)]
        if ready:
            # weak ordering: a stronger one goes through one leading replica, and waits for it to come back when its
            # node is gone; a stream has one writer, whose writes wait for one another
            await self.call(lambda: self._qdrant.upsert(self.collection, ready, wait=True))

    async def set_payload(self, id: str | Sequence[str], values: Mapping[str, Any]) -> None:
        ids: list[Any] = [id] if isinstance(id, str) else list(id)
        if ids:
            await self.call(lambda: self._qdrant.set_payload(self.collection, dict(values), points=ids, wait=True))

    async def get(self, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        if not ids:
            return []
        records = await self.call(
            lambda: self._qdrant.retrieve(self.collection, list(ids), with_payload=True, with_vectors=vectors)
        )
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
        response = await self.call(
            lambda: self._qdrant.query_points(
                self.collection,
                query=np.asarray(vector, dtype=np.float32).tolist(),
                using=using,
                query_filter=_filter(where, has_vector=using),
                limit=limit,
                with_payload=True,
                with_vectors=vectors,
            )
        )
        return [Hit(_point(hit), float(hit.score)) for hit in response.points]

    async def streams(self) -> dict[str, int]:
        return await self._facet("stream")

    async def latest(self, streams: Sequence[str]) -> dict[str, Point]:
        if not streams:
            return {}
        newest = models.OrderByQuery(order_by=models.OrderBy(key="start", direction=models.Direction.DESC))
        requests = [
            models.QueryRequest(query=newest, filter=_filter(Filter(stream=stream)), limit=1, with_payload=True)
            for stream in streams
        ]
        answers = await self.call(lambda: self._qdrant.query_batch_points(self.collection, requests))
        return {s: _point(a.points[0]) for s, a in zip(streams, answers, strict=True) if a.points}

    async def versions(self) -> dict[str, int]:
        return await self._facet("model")

    async def _facet(self, key: str) -> dict[str, int]:
        response = await self.call(lambda: self._qdrant.facet(self.collection, key, limit=_FACET_LIMIT, exact=True))
        return {str(hit.value): int(hit.count) for hit in sorted(response.hits, key=lambda hit: str(hit.value))}

    async def count(self, where: Filter | None = None) -> int:
        counted = await self.call(lambda: self._qdrant.count(self.collection, count_filter=_filter(where), exact=True))
        return int(counted.count)

    async def delete_before(self, end_ms: int) -> int:
        old = models.Filter(
            must=[models.FieldCondition(key="end", range=models.Range(lt=end_ms))],
            must_not=[models.FieldCondition(key="bank", match=models.MatchValue(value=True))],
        )
        counted = await self.call(lambda: self._qdrant.count(self.collection, count_filter=old, exact=True))
        if counted.count:
            selector = models.FilterSelector(filter=old)
            await self.call(lambda: self._qdrant.delete(self.collection, selector, wait=True))
        return int(counted.count)

    async def info(self) -> StoreInfo:
        server = await self.call(self._qdrant.info)
        return StoreInfo("server", self.url, await self.count(), server.version, {"collection": self.collection})

    @property
    def _qdrant(self) -> AsyncQdrantClient:
        assert self._client is not None, "use the store as a context manager: async with ServerStore(url)"
        return self._client

    async def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """`work`, a request to this server, with its failures as `StoreUnavailable` or `StoreError`."""
        try:
            return await work()
        except FAILURES as error:
            raise classified(self.url, error) from None


@dataclass(frozen=True, slots=True)
class _Reader:
    """One scroll of an open store, as `paging` asks it."""

    store: ServerStore
    where: Filter
    vectors: bool
    descending: bool

    async def by_start(self, beyond_ms: int | None, limit: int) -> list[Point]:
        direction = models.Direction.DESC if self.descending else models.Direction.ASC
        return await self._read(
            scroll_filter=_filter(self.where, beyond=beyond_ms, descending=self.descending),
            limit=limit,
            order_by=models.OrderBy(key="start", direction=direction),
        )

    async def of_start(self, start_ms: int, from_id: str | None, limit: int) -> list[Point]:
        return await self._read(scroll_filter=_filter(self.where, exactly=start_ms), limit=limit, offset=from_id)

    async def _read(self, **options: Any) -> list[Point]:
        client, collection = self.store._qdrant, self.store.collection  # noqa: SLF001
        request = partial(client.scroll, collection, with_payload=True, with_vectors=self.vectors, **options)
        records, _ = await self.store.call(request)
        return [_point(record) for record in records]


def _filter(
    where: Filter | None,
    *,
    beyond: int | None = None,
    descending: bool = False,
    exactly: int | None = None,
    has_vector: str | None = None,
) -> models.Filter | None:
    where = where or Filter()
    must: list[Any] = []
    for key, value in (("stream", where.stream), ("incident", where.incident), ("incident_step", where.incident_step)):
        if value is not None:
            must.append(models.FieldCondition(key=key, match=models.MatchValue(value=value)))
    if where.from_ms is not None or where.to_ms is not None:
        must.append(models.FieldCondition(key="start", range=models.Range(gte=where.from_ms, lt=where.to_ms)))
    if beyond is not None:
        limits = models.Range(lt=beyond) if descending else models.Range(gt=beyond)
        must.append(models.FieldCondition(key="start", range=limits))
    if exactly is not None:
        must.append(models.FieldCondition(key="start", range=models.Range(gte=exactly, lte=exactly)))
    if has_vector is not None:
        must.append(models.HasVectorCondition(has_vector=has_vector))
    return models.Filter(must=must) if must else None


def _point(record: Any) -> Point:
    vectors = record.vector if isinstance(record.vector, dict) else {}
    return Point(
        str(record.id),
        {name: np.asarray(vector, dtype=np.float32) for name, vector in vectors.items()},
        from_stored(record.payload or {}),
    )
