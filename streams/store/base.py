"""The `VectorStore` protocol: what the service needs of a vector database, and nothing else.

Two implementations, `edge.EdgeStore` (embedded) and `server.ServerStore` (a Qdrant server), pass one contract-test
suite. A *point* is one window: a deterministic UUID, up to four named vectors, and a payload.

    StoreError                   no retry mends it: the operation ends with this message
    ├── StoreUnavailable         a retry may mend it: server away, overloaded, disk full
    ├── StoreLocked              another process has the embedded store open
    └── InvalidPoint             refused before anything was written
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streams.errors import DependencyError

Vector = NDArray[np.float32]  # shape (DIM,), unit length
Position = tuple[int, str]  # (`start` in epoch ms, id): where a scroll stands
VECTOR_NAMES = ("joint", "sensor", "audio", "caption")
DIM = 256


class StoreError(DependencyError):
    """Base of everything a store raises; as itself: no retry mends it (wrong API key, dropped collection)."""


class StoreUnavailable(StoreError):
    """The store cannot do this now, and may later: the pipeline waits and retries, a query answers 503."""


class StoreLocked(StoreError):
    """Another process has the embedded store open."""


class InvalidPoint(StoreError, ValueError):
    """A vector that must not be stored: NaN, infinite, zero, not unit length (within 1e-3), of the wrong size."""


@dataclass(frozen=True, slots=True)
class Point:
    """One window. `vectors` holds `joint` and one vector per present modality; `get`/`scroll` fill it on request.

    Payload keys that the store indexes: `stream` (keyword, the tenant key), `start` and `end` (integer, epoch ms),
    `incident_step` (bool: this window opened, updated or closed an incident), `incident` (keyword), `model` (keyword).
    """

    id: str
    vectors: Mapping[str, Vector]
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Filter:
    """All given conditions must hold. Times are epoch ms on the window's `start`, half-open [from, to)."""

    stream: str | None = None
    from_ms: int | None = None
    to_ms: int | None = None
    incident: str | None = None
    incident_step: bool | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    point: Point
    score: float  # cosine similarity


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What `doctor` shows of a store."""

    kind: str
    location: str
    points: int
    version: str
    detail: Mapping[str, Any] = field(default_factory=dict)


class VectorStore(Protocol):
    """Vectors come back bit for bit as they went in (dot product on unit vectors, no quantisation of the originals).

    Every method raises `StoreUnavailable` when the store is away and `StoreError` when no retry would help; none
    retries by itself (`streams.store.retrying` does, for the pipeline).
    """

    async def __aenter__(self) -> VectorStore: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def upsert(self, points: Sequence[Point]) -> None:
        """Write points, replacing those of the same id. Durable (survives kill -9) when it returns."""
        ...

    async def set_payload(self, id: str | Sequence[str], values: Mapping[str, Any]) -> None:
        """Merge `values` into the payload of one point that exists, or of several."""
        ...

    async def get(self, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        """Points of these ids that exist, in the order of `ids`."""
        ...

    def scroll(
        self,
        where: Filter,
        *,
        vectors: bool = False,
        descending: bool = False,
        limit: int | None = None,
        page: int = 256,
        after: Position | None = None,
    ) -> AsyncIterator[Point]:
        """Points that match, by `start` ascending or descending and then by id ascending, at most `limit`.

        `after`: only what follows this position in that order; the point itself may be gone by now. Reads from the
        engine what it yields and one record more, in requests of at most `page` + 1 records.
        """
        ...

    async def search(
        self,
        vector: Vector,
        *,
        using: str = "joint",
        where: Filter | None = None,
        limit: int = 10,
        vectors: bool = False,
    ) -> list[Hit]:
        """Nearest points by cosine on the named vector, best first; points without that vector do not match."""
        ...

    async def streams(self) -> dict[str, int]:
        """Every stream and its number of windows, by name."""
        ...

    async def latest(self, streams: Sequence[str]) -> dict[str, Point]:
        """The window that starts last of each of these streams, in one request however many there are.

        Without vectors; streams without a window are left out.
        """
        ...

    async def versions(self) -> dict[str, int]:
        """Every model version that stored windows carry, and how many do."""
        ...

    async def count(self, where: Filter | None = None) -> int: ...

    async def delete_before(self, end_ms: int) -> int:
        """Retention: delete windows that ended before `end_ms`; returns how many."""
        ...

    async def info(self) -> StoreInfo: ...
