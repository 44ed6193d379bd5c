"""A `VectorStore` in a dict, for tests that need thousands of runs; payloads pass through JSON, as in a real one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from streams.store.base import Filter, Hit, Point, Position, StoreInfo, Vector
from streams.store.validation import checked


class MemoryStore:
    """Keeps what was written when it is closed and opened again, as a folder would."""

    def __init__(self) -> None:
        self._points: dict[str, tuple[str, dict[str, bytes]]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def upsert(self, points: Sequence[Point]) -> None:
        for point, _ in checked(points):
            vectors = {name: np.asarray(v, dtype=np.float32).tobytes() for name, v in point.vectors.items()}
            self._points[point.id] = (json.dumps(point.payload, allow_nan=False), vectors)

    async def set_payload(self, id: str | Sequence[str], values: Mapping[str, Any]) -> None:
        for one in [id] if isinstance(id, str) else id:
            if one in self._points:
                payload, vectors = self._points[one]
                self._points[one] = (json.dumps(json.loads(payload) | dict(values), allow_nan=False), vectors)

    async def get(self, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        return [self._point(id, vectors) for id in ids if id in self._points]

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
        def place(start: int, id: str) -> Position:
            return (-start if descending else start, id)

        found = [point for point in (self._point(id, vectors) for id in self._points) if _matches(where, point)]
        found.sort(key=lambda point: place(point.payload["start"], point.id))
        if after is not None:
            found = [point for point in found if place(point.payload["start"], point.id) > place(*after)]
        for point in found[:limit]:
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
        points = [self._point(id, True) for id in self._points]
        found = [p for p in points if using in p.vectors and _matches(where or Filter(), p)]
        hits = [Hit(p, float(np.dot(vector, p.vectors[using]))) for p in found]
        return sorted(hits, key=lambda hit: -hit.score)[:limit]

    async def streams(self) -> dict[str, int]:
        return self._counted("stream")

    async def latest(self, streams: Sequence[str]) -> dict[str, Point]:
        newest: dict[str, Point] = {}
        for point in (self._point(id, False) for id in self._points):
            stream = point.payload["stream"]
            if stream in streams and (stream not in newest or point.payload["start"] > newest[stream].payload["start"]):
                newest[stream] = point
        return newest

    async def versions(self) -> dict[str, int]:
        return self._counted("model")

    async def count(self, where: Filter | None = None) -> int:
        return sum(_matches(where or Filter(), self._point(id, False)) for id in self._points)

    async def delete_before(self, end_ms: int) -> int:
        points = [self._point(id, False) for id in self._points]
        old = [p.id for p in points if p.payload["end"] < end_ms and not p.payload.get("bank")]
        for id in old:
            del self._points[id]
        return len(old)

    async def info(self) -> StoreInfo:
        return StoreInfo("memory", "this process", len(self._points), "1")

    def _point(self, id: str, vectors: bool) -> Point:
        payload, held = self._points[id]
        found = {name: np.frombuffer(data, dtype=np.float32) for name, data in held.items()} if vectors else {}
        return Point(id, found, json.loads(payload))

    def _counted(self, key: str) -> dict[str, int]:
        counts: dict[str, int] = {}
        for id in self._points:
            value = self._point(id, False).payload[key]
            counts[value] = counts.get(value, 0) + 1
        return dict(sorted(counts.items()))


def _matches(where: Filter, point: Point) -> bool:
    payload = point.payload
    return (
        (where.stream is None or payload["stream"] == where.stream)
        and (where.from_ms is None or payload["start"] >= where.from_ms)
        and (where.to_ms is None or payload["start"] < where.to_ms)
        and (where.incident is None or payload["incident"] == where.incident)
        and (where.incident_step is None or payload["incident_step"] == where.incident_step)
    )
