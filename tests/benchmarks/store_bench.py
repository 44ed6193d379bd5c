"""The embedded store through our API beside bare Qdrant Edge: the same points, the same indexes, batches of 32.

python -m tests.benchmarks.store_bench

- ours: `RetryingStore(EdgeStore).upsert` and `.search`, as the worker calls them: vectors checked (size, length, NaN),
  calls in the store's own thread, points handed back as ours.
- bare: `EdgeShard.update` and `.query` in a loop, with vectors as lists; payloads are dicts in and out.

- streams: `StoreQueries.streams` over 2,000 streams, as `/v1/streams` and `sensorium streams` list them.

Points have the payload of real windows, the drift state of a stream with eight channels included. CPU-seconds of a
process of its own for each, all threads of the engine included; the points are made before the clock starts.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from streams.drift import Detector, DriftConfig, Observation
from streams.drift.channel_stats import channel_stats
from streams.events.types import Caption, Reading
from streams.pipeline.payload import payload_of
from streams.store.base import DIM, Filter, Point
from streams.windows.types import Fired, window_id
from tests.benchmarks.measuring import Figure, cpu_s, pin, print_table, ratio, run_peer, whole_cpu_s

STREAMS = 50
WINDOWS = 200  # of each stream
BATCH = 32
QUERIES = 200
LISTED = 2_000  # streams
ROUNDS = 3
T0_MS = 1_767_225_600_000
SIZE_MS = 10_000
NAMES = ("joint", "sensor", "caption")


def make_points(streams: int = STREAMS, windows: int = WINDOWS) -> list[Point]:
    """Windows as the worker stores them, streams taking turns."""
    rng = np.random.default_rng(11)
    detectors = {s: Detector(f"pump-{s}", DriftConfig()) for s in range(streams)}
    points = []
    for number in range(windows):
        for s, detector in detectors.items():
            start = T0_MS + number * SIZE_MS
            readings = [
                Reading(start + k * 1000, {f"channel{c}": float(rng.normal(c + 1, 0.1)) for c in range(8)})
                for k in range(10)
            ]
            captions = [Caption(start + 500, f"routine round at pump-{s}: all quiet, valve open")]
            offsets = (tuple(range(number * 40 + s, number * 40 + s + 10)), (), (number,))
            end, counts = start + SIZE_MS, (10, 0, 1)
            window = Fired(detector.stream, start, end, 0, readings, [], captions, counts, 0, offsets, None)
            id = window_id(detector.stream, start, SIZE_MS, "bench")
            vectors = {name: _near(rng, s) for name in NAMES}
            seen = Observation(detector.stream, id, start, end, 5, vectors, channel_stats(readings))
            verdict = detector.observe(seen)
            payload = payload_of(
                window,
                revision=0,
                content_hash=window.content_hash(),
                model="bench",
                verdict=verdict,
                attention={"sensor": 0.6, "caption": 0.4},
                drift=detector.state.to_payload(),
                origin={"sensor": "bench/0", "caption": "bench/0"},
                final_before_ms=None,
            )
            points.append(Point(id, vectors, payload.to_dict()))
    return points


def _near(rng: np.random.Generator, stream: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    centre = np.zeros(DIM)
    centre[stream % DIM] = 3.0
    vector = centre + rng.standard_normal(DIM) * 0.1
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def _batches(points: Sequence[Point]) -> list[Sequence[Point]]:
    return [points[i : i + BATCH] for i in range(0, len(points), BATCH)]


async def ours(folder: Path, points: Sequence[Point]) -> dict[str, float]:
    from streams.store.edge import EdgeStore
    from streams.store.retrying import RetryingStore

    async with EdgeStore(folder) as bare_store:
        store = RetryingStore(bare_store)
        began = cpu_s()
        for batch in _batches(points):
            await store.upsert(batch)
        wrote = cpu_s()
        for point in points[:QUERIES]:
            await store.search(point.vectors["joint"], where=Filter(stream=point.payload["stream"]), limit=10)
        asked = cpu_s()
        for point in points[:QUERIES]:
            await store.search(point.vectors["joint"], limit=10)
        return {
            "upsert_s": wrote - began,
            "search_s": asked - wrote,
            "search_all_s": cpu_s() - asked,
            "points": await store.count(),
        }


async def listed(folder: Path) -> dict[str, float]:
    """List many streams, from the windows that one bench stream would have."""
    from streams.serving.pages import MAX_ROWS, every
    from streams.serving.queries import StoreQueries
    from streams.store.edge import EdgeStore

    def points(first: int, last: int) -> list[Point]:
        return [
            Point(str(uuid.uuid5(uuid.NAMESPACE_OID, f"{s}/{w.id}")), w.vectors, {**w.payload, "stream": f"s{s}"})
            for s in range(first, last)
            for w in windows
        ]

    windows = make_points(streams=1, windows=5)
    async with EdgeStore(folder) as store:
        for first in range(0, LISTED, 100):
            await store.upsert(points(first, first + 100))
        queries = StoreQueries(store, _no_model)
        began = cpu_s()
        rows = [row async for row in every(partial(queries.streams, MAX_ROWS))]
        return {"list_s": cpu_s() - began, "streams": len(rows)}


def _no_model() -> Any:
    raise AssertionError("streams are listed without a model")


def bare(folder: Path, points: Sequence[Point]) -> dict[str, float]:
    import qdrant_edge as qe

    parameters = qe.EdgeVectorParams(size=DIM, distance=qe.Distance.Dot)
    shard = qe.EdgeShard.create(
        str(folder), qe.EdgeConfig(vectors={name: parameters for name in ("joint", "sensor", "audio", "caption")})
    )
    kinds = {"keyword": qe.PayloadSchemaType.Keyword, "integer": qe.PayloadSchemaType.Integer}
    for name, kind in {
        "stream": "keyword",
        "start": "integer",
        "end": "integer",
        "incident": "keyword",
        "incident_step": "keyword",
        "model": "keyword",
        "bank": "keyword",
    }.items():
        shard.update(qe.UpdateOperation.create_field_index(name, kinds[kind]))

    def search(point: Point, where: Any) -> None:
        request = qe.QueryRequest(
            limit=10,
            query=qe.Query.Nearest(point.vectors["joint"].tolist(), "joint"),
            filter=where,
            with_payload=True,
            with_vector=False,
            params=qe.SearchParams(exact=True),
        )
        for hit in shard.query(request):
            hit.id, hit.score, hit.payload  # noqa: B018  # whoever asks wants to see the payload

    began = cpu_s()
    for batch in _batches(points):
        ready = [qe.Point(p.id, {name: v.tolist() for name, v in p.vectors.items()}, dict(p.payload)) for p in batch]
        shard.update(qe.UpdateOperation.upsert_points(ready))
    wrote = cpu_s()
    for point in points[:QUERIES]:
        stream = qe.FieldCondition("stream", match=qe.MatchValue(point.payload["stream"]))
        search(point, qe.Filter(must=[stream]))
    asked = cpu_s()
    for point in points[:QUERIES]:
        search(point, None)
    ended = cpu_s()
    count = int(shard.count(qe.CountRequest(exact=True)))
    shard.close()
    return {"upsert_s": wrote - began, "search_s": asked - wrote, "search_all_s": ended - asked, "points": count}


def measure(rounds: int = ROUNDS) -> list[Figure]:
    best: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory(prefix="sensorium-bench-") as place:
        for turn in range(rounds):
            for peer in ("bare", "ours"):
                folder = Path(place) / f"{peer}{turn}"
                folder.mkdir()
                found = run_peer("store_bench", [peer, folder])
                assert found["points"] == STREAMS * WINDOWS
                for key in ("upsert_s", "search_s", "search_all_s"):
                    best[peer, key] = min(found[key], best.get((peer, key), found[key]))
    figures = []
    count = STREAMS * WINDOWS
    with tempfile.TemporaryDirectory(prefix="sensorium-bench-") as place:
        found = run_peer("store_bench", ["streams", Path(place) / "listed"])
        assert found["streams"] == LISTED
        figures.append(Figure(f"store: listing {LISTED:,} streams", round(LISTED / found["list_s"]), "streams/CPU-s"))
    for title, key, many, least in (
        (f"upserts, {count:,} points", "upsert_s", count, 0.8),
        ("searches in one stream", "search_s", QUERIES, None),
        (f"searches in all {count:,}, exact", "search_all_s", QUERIES, None),
    ):
        rates = [many / best[peer, key] for peer in ("ours", "bare")]
        figures.append(Figure(f"store: {title}: ours", round(rates[0]), "/CPU-s"))
        figures.append(Figure(f"store: {title}: bare Qdrant Edge", round(rates[1]), "/CPU-s"))
        if least is not None:
            figures.append(ratio(f"store: {title}: ours to bare", *rates, least=least))
        else:
            figures.append(Figure(f"store: {title}: ours to bare", round(rates[0] / rates[1], 3), "x"))
    return figures


def run() -> list[Figure]:
    return measure()


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--peer"]:
        pin()
    if arguments[:1] == ["--peer"]:
        peer, folder = arguments[1], Path(arguments[2])
        work: dict[str, Callable[[], dict[str, float]]] = {
            "ours": lambda: asyncio.run(ours(folder, make_points())),
            "bare": lambda: bare(folder, make_points()),
            "streams": lambda: asyncio.run(listed(folder)),
        }
        print(json.dumps(work[peer]() | {"whole_s": whole_cpu_s()}))
        return
    print_table(run())


if __name__ == "__main__":
    main(sys.argv[1:])
