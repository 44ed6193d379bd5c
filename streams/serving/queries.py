"""What people ask of stored windows: moments like this, streams, incidents, an export. The store answers.

The same questions are put to a store in this process (`StoreQueries`) or to the worker that has it open
(`client.RemoteQueries`); answers are plain dicts, as the local API sends them.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.interface import WindowModel
from streams.errors import DataError
from streams.events.types import MODALITIES
from streams.store.base import Filter, Hit, Point, VectorStore

Row = dict[str, Any]


class QueryError(DataError):
    """A question that cannot be answered; the message says why and what would mend it."""


class Queries(Protocol):
    """Times are epoch ms; `limit` bounds the answer."""

    async def search_text(self, text: str, where: Filter, limit: int) -> list[Row]: ...
    async def search_audio(self, encoded: bytes, where: Filter, limit: int) -> list[Row]: ...
    async def search_window(self, id: str, where: Filter, limit: int) -> list[Row]: ...
    async def streams(self) -> list[Row]: ...
    async def incidents(self, where: Filter) -> list[Row]: ...
    async def windows(self, where: Filter, limit: int) -> list[Row]: ...
    def export(self) -> AsyncIterator[Row]: ...


class StoreQueries:
    """Answers from a store that is open here. The model is loaded when it is first needed: torch takes seconds."""

    def __init__(self, store: VectorStore, model: Callable[[], WindowModel]) -> None:
        self._store = store
        self._load = model

    async def search_text(self, text: str, where: Filter, limit: int) -> list[Row]:
        """Moments nearest to a text, by what was heard, read or said in them."""
        if not text.strip():
            raise QueryError("nothing to search for: give some words, as in: sensorium search --text 'grinding noise'")
        vector = await asyncio.to_thread(lambda: self._load().embed_text(text))
        return await self._near(vector, where, limit)

    async def search_audio(self, encoded: bytes, where: Filter, limit: int) -> list[Row]:
        """Moments nearest to a sound, given as an encoded clip."""
        samples = await _decode(encoded)
        vector = await asyncio.to_thread(lambda: self._load().embed_audio(samples))
        hits = await self._store.search(vector, using="audio", where=where, limit=limit)
        return [_moment(hit) for hit in hits]

    async def search_window(self, id: str, where: Filter, limit: int) -> list[Row]:
        """Moments nearest to a stored window, which itself is left out."""
        found = await self._store.get([id], vectors=True) if _is_id(id) else []
        if not found:
            raise QueryError(f"no window {id} is stored; ids are shown by: sensorium search --json")
        hits = await self._store.search(found[0].vectors["joint"], where=where, limit=limit + 1)
        return [_moment(hit) for hit in hits if hit.point.id != id][:limit]

    async def _near(self, vector: NDArray[np.float32], where: Filter, limit: int) -> list[Row]:
        # a moment may match by any of its modalities: each is asked, and its best score counts
        best: dict[str, Hit] = {}
        for using in ("joint", "caption", "audio", "sensor"):
            for hit in await self._store.search(vector, using=using, where=where, limit=limit):
                if hit.point.id not in best or hit.score > best[hit.point.id].score:
                    best[hit.point.id] = hit
        ordered = sorted(best.values(), key=lambda hit: (-hit.score, hit.point.id))
        return [_moment(hit) for hit in ordered[:limit]]

    async def streams(self) -> list[Row]:
        """Every stream: windows, when it was last heard, and how it is."""
        rows = []
        for stream, windows in sorted((await self._store.streams()).items()):
            async for point in self._store.scroll(Filter(stream=stream), descending=True, limit=1):
                payload = point.payload
                keys = ("end", "status", "score", "incident", "modalities")
                rows.append({"stream": stream, "windows": windows} | {key: payload[key] for key in keys})
        return rows

    async def incidents(self, where: Filter) -> list[Row]:
        """Every incident with its steps, by the time it opened."""
        steps: dict[str, dict[tuple[int, str], Mapping[str, Any]]] = {}
        only = Filter(where.stream, where.from_ms, where.to_ms, where.incident, incident_step=True)
        async for point in self._store.scroll(only):
            for step in point.payload["steps"]:
                # a late step has the number of the step it follows
                place = step["sequence"], step["window"] if step.get("late") else ""
                steps.setdefault(step["id"], {})[place] = step
        rows = [_incident([known[n] for n in sorted(known)]) for known in steps.values()]
        return sorted(rows, key=lambda row: (row["opened_ms"], row["id"]))

    async def windows(self, where: Filter, limit: int) -> list[Row]:
        """The newest windows, without vectors."""
        return [_window(point) async for point in self._store.scroll(where, descending=True, limit=limit)]

    async def export(self) -> AsyncIterator[Row]:
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


def _incident(steps: list[Mapping[str, Any]]) -> Row:
    first, last = steps[0], steps[-1]
    return {
        "id": first["id"],
        "stream": first["stream"],
        "state": "closed" if last["kind"] in ("closed", "adopted") else "open",
        "opened_ms": first["opened_ms"],
        "onset_ms": first.get("onset_ms"),
        "closed_ms": last.get("closed_ms"),
        "severity": max(step["severity"] for step in steps),
        "modalities": first.get("modalities", {}),
        "text": first["text"],
        "steps": [dict(step) for step in steps],
    }
