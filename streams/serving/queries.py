"""Queries about stored windows: moments like this, streams, incidents, an export.

The same queries go to a store in this process (`StoreQueries`) or to the worker that has it open
(`client.RemoteQueries`); answers are plain dicts, as the local API sends them. Nothing here retries: while the store is
away every query raises `StoreUnavailable`.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.interface import WindowModel
from streams.errors import DataError
from streams.events.types import MODALITIES
from streams.serving.incident_page import IncidentPage
from streams.serving.pages import MAX_ROWS, CursorError, Page, Row, decode_cursor, encode_cursor
from streams.store.base import Filter, Hit, Point, Vector, VectorStore

_DEEPEST = 10_000  # moments that a search can be paged through
_TIES = 1_000  # moments of one similarity among which a page is cut by id


class QueryError(DataError):
    """A query that cannot be answered; the message says why and what would mend it."""


class Queries(Protocol):
    """Times are epoch ms. A page has at most `limit` rows; `cursor` is the `next` of the page before."""

    async def search_text(self, text: str, where: Filter, limit: int, cursor: str | None = None) -> Page: ...
    async def search_audio(self, encoded: bytes, where: Filter, limit: int, cursor: str | None = None) -> Page: ...
    async def search_window(self, id: str, where: Filter, limit: int, cursor: str | None = None) -> Page: ...
    async def streams(self, limit: int = MAX_ROWS, cursor: str | None = None) -> Page: ...
    async def incidents(self, where: Filter, limit: int = MAX_ROWS, cursor: str | None = None) -> Page: ...
    async def windows(self, where: Filter, limit: int, cursor: str | None = None) -> Page: ...
    def export(self) -> AsyncGenerator[Row, None]: ...


class StoreQueries:
    """Answers from a store that is open here. The model is loaded when it is first needed: torch takes seconds."""

    def __init__(self, store: VectorStore, model: Callable[[], WindowModel]) -> None:
        self._store = store
        self._load = model

    async def search_text(self, text: str, where: Filter, limit: int, cursor: str | None = None) -> Page:
        """Moments nearest to a text, by sounds, readings or captions: the best of its modalities counts."""
        if not text.strip():
            raise QueryError("nothing to search for: give some words, as in: sensorium search --text 'grinding noise'")
        vector = await asyncio.to_thread(lambda: self._load().embed_text(text))
        return await self._nearest(vector, ("joint", "caption", "audio", "sensor"), where, limit, cursor)

    async def search_audio(self, encoded: bytes, where: Filter, limit: int, cursor: str | None = None) -> Page:
        """Moments nearest to a sound, given as an encoded clip."""
        samples = await _decode(encoded)
        vector = await asyncio.to_thread(lambda: self._load().embed_audio(samples))
        return await self._nearest(vector, ("audio",), where, limit, cursor)

    async def search_window(self, id: str, where: Filter, limit: int, cursor: str | None = None) -> Page:
        """Moments nearest to a stored window, which itself is left out."""
        found = await self._store.get([id], vectors=True) if _is_id(id) else []
        if not found:
            raise QueryError(f"no window {id} is stored; ids are shown by: sensorium search --json")
        return await self._nearest(found[0].vectors["joint"], ("joint",), where, limit, cursor, without=found[0].id)

    async def _nearest(
        self,
        vector: Vector,
        names: Sequence[str],
        where: Filter,
        limit: int,
        cursor: str | None,
        without: str | None = None,
    ) -> Page:
        """A page of moments by (similarity descending, id).

        An engine returns the best `requested` of each named vector, ties cut anywhere: what is more similar than the
        worst of these is complete. More are requested until the complete ones fill the page.
        """
        seen, after = 0, None
        if cursor is not None:
            seen, score, id = decode_cursor("moments", cursor, int, float, str)
            after = (-score, id)
        if not 0 <= seen < _DEEPEST:
            raise QueryError(f"a search shows its {_DEEPEST:,} nearest moments; narrow it by stream or time")
        requested = seen + limit + (1 if without is None else 2)
        most = requested + _TIES
        while True:
            hits, complete_above = await self._best(vector, names, where, requested)
            ranked = [hit for hit in hits if hit.point.id != without and (after is None or _rank(hit) > after)]
            complete = sum(hit.score > complete_above for hit in ranked)
            ended = complete_above == -np.inf
            if complete >= limit or ended or requested >= most:
                break
            requested = min(2 * requested, most)
        shown = ranked[:limit]
        more = len(ranked) > limit or not ended
        last = shown[-1] if shown else None
        following = (
            None if last is None or not more else encode_cursor("moments", seen + limit, last.score, last.point.id)
        )
        return Page(map(_moment, shown), following)

    async def _best(
        self, vector: Vector, names: Sequence[str], where: Filter, requested: int
    ) -> tuple[list[Hit], float]:
        """The best hits of each named vector as one ranking, and the score above which none is missing."""
        best: dict[str, Hit] = {}
        complete_above = -np.inf
        for using in names:
            hits = await self._store.search(vector, using=using, where=where, limit=requested)
            for hit in hits:
                if hit.point.id not in best or hit.score > best[hit.point.id].score:
                    best[hit.point.id] = hit
            if len(hits) >= requested:
                complete_above = max(complete_above, min(hit.score for hit in hits))
        return sorted(best.values(), key=_rank), complete_above

    async def streams(self, limit: int = MAX_ROWS, cursor: str | None = None) -> Page:
        """Every stream by name: its number of windows, the end of its last one, and how it is.

        Two requests to the store, however many streams there are.
        """
        after = "" if cursor is None else decode_cursor("streams", cursor, str)[0]
        counts = await self._store.streams()
        names = sorted(name for name in counts if name > after)
        latest = await self._store.latest(names[:limit])
        keys = ("end", "status", "score", "incident", "modalities")
        rows = [
            {"stream": name, "windows": counts[name]} | {key: latest[name].payload[key] for key in keys}
            for name in names[:limit]
            if name in latest  # retention may have deleted it since it was counted
        ]
        return Page(rows, encode_cursor("streams", names[limit - 1]) if len(names) > limit else None)

    async def incidents(self, where: Filter, limit: int = MAX_ROWS, cursor: str | None = None) -> Page:
        """Incidents with their steps, by the time they opened and then by id."""
        found = IncidentPage(limit, None if cursor is None else decode_cursor("incidents", cursor, int, str, int))
        from_ms = max((ms for ms in (where.from_ms, found.from_ms) if ms is not None), default=None)
        steps = Filter(where.stream, from_ms, where.to_ms, where.incident, incident_step=True)
        async for point in self._store.scroll(steps):
            if found.complete(point.payload["start"]):
                break
            for step in point.payload["steps"]:
                found.add(step, point.payload["start"])
        return found.page()

    async def windows(self, where: Filter, limit: int, cursor: str | None = None) -> Page:
        """The newest windows, without vectors."""
        after = None if cursor is None else decode_cursor("windows", cursor, int, str)
        position = None if after is None else (after[0], after[1])
        if position is not None and not _is_id(position[1]):
            raise CursorError("the cursor names no window: take that of the page before")
        points = [p async for p in self._store.scroll(where, descending=True, limit=limit + 1, after=position)]
        last = points[limit - 1] if len(points) > limit else None
        following = None if last is None else encode_cursor("windows", int(last.payload["start"]), last.id)
        return Page(map(_window, points[:limit]), following)

    async def export(self) -> AsyncGenerator[Row, None]:
        """Every stored window; the caller sorts by id."""
        async for point in self._store.scroll(Filter(), vectors=True):
            payload = point.payload
            joint = np.ascontiguousarray(point.vectors["joint"], dtype="<f4").tobytes()
            events = payload["events"]  # stores keep keys in an order of their own
            yield {
                "id": point.id,
                "stream": payload["stream"],
                "start": payload["start"],
                "end": payload["end"],
                "revision": payload["revision"],
                "mask": payload["mask"],
                "events": {m.value: events[m.value] for m in MODALITIES if m.value in events},
                "sha256": hashlib.sha256(joint).hexdigest(),
                "score": payload["score"],
                "incident": payload["incident"],
            }


def _rank(hit: Hit) -> tuple[float, str]:
    return (-hit.score, hit.point.id)


def _is_id(text: str) -> bool:
    """Stores take nothing else for the id of a point."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


async def _decode(encoded: bytes) -> NDArray[np.int16]:
    from streams.events.audio import ClipDecoder
    from streams.events.types import Rejection
    from streams.settings import AudioSettings

    async with ClipDecoder(AudioSettings()) as clips:
        try:
            return (await clips.decode(encoded, (("time", b"0"),), 0)).samples
        except Rejection as rejection:
            raise QueryError(f"cannot use that sound: {rejection.detail} ({rejection.reason})") from None


def _window(point: Point) -> Row:
    payload = point.payload
    keys = ("stream", "start", "end", "status", "score", "severity", "incident", "captions", "modalities", "events")
    return {"id": point.id} | {key: payload[key] for key in keys}


def _moment(hit: Hit) -> Row:
    return {"similarity": round(hit.score, 4)} | _window(hit.point)
