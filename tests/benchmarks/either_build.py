"""Measured functions that run on this build and on an earlier one: `before` runs them, each in a process of its own.

python -P tests/benchmarks/either_build.py CASE [NAME=VALUE ...]     with PYTHONPATH at the root of a build

Prints one line of JSON: `cpu_s`, user and system seconds of the measured part with all its threads, and `count`, how
much of the work was done in them. What the two builds call by different names is looked up here and nowhere else.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib
import json
import random
import resource
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# An editable install would give the earlier build those modules of this one that it does not have itself.
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]

T0_MS = 1_700_000_000_000
SIZE_MS = 10_000
DISORDER_MS = 2_000
BATCH = 500  # what an agent is handed at once
TICK_EVERY = 16  # batches: at full speed about as often as the worker's ticker
SHOWN = 200  # questions to the store for the newest window of one stream
_FAR_MS = 4_000_000_000_000  # a wall clock that no reading is ahead of


def _either(*places: str) -> Any:
    """The first of `module:name` that this build has."""
    for place in places:
        module, _, name = place.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"this build has none of {', '.join(places)}")


class Meter:
    """CPU-seconds of this process from `start` on, all threads."""

    def start(self) -> None:
        gc.collect()
        gc.freeze()  # as the command does: what was made for the measurement is none of the collector's work
        self._began = _used_s()

    def stop(self, count: int) -> dict[str, float]:
        return {"cpu_s": _used_s() - self._began, "count": count}


def _used_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# -- the window operator -----------------------------------------------------------------------------------------


def operator(streams: int, rate_hz: int, seconds: int, hop_ms: int = SIZE_MS) -> dict[str, float]:
    """Readings of `streams` streams, out of order within the disorder bound and 5 % of them twice: `count` of them."""
    windows_type = _either("streams.windows.operator:PartitionWindows", "streams.windows:PartitionWindows")
    config_type, record_type = (
        _either(f"streams.windows.types:{name}", f"streams.panes:{name}") for name in ("WindowConfig", "Record")
    )
    fired_type = _either("streams.windows.types:Fired", "streams.panes:Fired")
    reading_type = _either("streams.events.types:Reading", "streams.events:Reading")
    is_new = config_type.__module__ == "streams.windows.types"
    idle = (0, 0, 0) if is_new else (False, True, True)
    windows = windows_type(config_type(size_ms=SIZE_MS, hop_ms=hop_ms, disorder_ms=(DISORDER_MS,) * 3))

    rng = random.Random(7)
    step_ms = 1000 // rate_hz
    arrivals = []
    for i in range(streams * rate_hz * seconds):
        tick, key = divmod(i, streams)
        time_ms = T0_MS + tick * step_ms + key * step_ms // streams
        for _ in range(1 + (rng.random() < 0.05)):
            reading = reading_type(time_ms, {"pressure": rng.random(), "temperature": rng.random()})
            arrivals.append((time_ms + rng.random() * (DISORDER_MS - 1), key, reading))
    arrivals.sort(key=lambda arrival: arrival[0])
    names = [f"pump-{key}" for key in range(streams)]
    records = [record_type(offset, names[key], reading) for offset, (_, key, reading) in enumerate(arrivals)]
    batches = [records[i : i + BATCH] for i in range(0, len(records), BATCH)]
    arrivals.clear()

    fired = 0
    meter = Meter()
    meter.start()
    for batch in batches:
        windows.push(0, batch)
        windows.tick(0, idle)
        for output in windows.advance():
            fired += type(output) is fired_type
    found = meter.stop(len(records))
    least = streams * (seconds * 1000 // hop_ms - 2)
    assert fired >= least, f"{fired} windows fired, at least {least} were due"
    return found


# -- decoding and windowing ---------------------------------------------------------------------------------------


class Raw(NamedTuple):
    """A record with the attributes of an aiokafka record."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


def ingest(streams: int, rate_hz: int, seconds: int) -> dict[str, float]:
    """Plain JSON readings through decoding, windows and ledger, without Kafka and without scoring: `count` of them."""
    return asyncio.run(_ingest(streams, rate_hz, seconds))


async def _ingest(streams: int, rate_hz: int, seconds: int) -> dict[str, float]:
    from streams.metrics import Metrics
    from streams.settings import Settings
    from tests.memory_store import MemoryStore

    final_type = _either("streams.windows.types:PaneFinal", "streams.panes:Finished")
    modalities = _either("streams.events.types:MODALITIES", "streams.events:MODALITIES")
    rng = random.Random(3)
    arrivals = []
    for i in range(streams * rate_hz * seconds):
        tick, key = divmod(i, streams)
        time_ms = T0_MS + tick * 1000 // rate_hz + key % 1000
        arrivals.append((time_ms + rng.random() * (DISORDER_MS - 1), time_ms, key))
    arrivals.sort()
    arrivals += [(0.0, arrivals[-1][1] + 100_000 * k, key) for k in (1, 2) for key in range(streams)]
    keys = [b"pump-%d" % key for key in range(streams)]
    raws = [
        Raw("sensor-readings", 0, offset, int(at) or time_ms, keys[key], _reading(time_ms, key))
        for offset, (at, time_ms, key) in enumerate(arrivals)
    ]
    batches = [raws[i : i + BATCH] for i in range(0, len(raws), BATCH)]
    arrivals.clear()

    queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=256)
    settings = Settings(state=Path(tempfile.gettempdir()) / "sensorium-bench-unused")
    metrics = Metrics()
    position = [0]
    ledger, handle, tick = _wired(settings, MemoryStore(), queue, metrics, position)
    released = 0

    async def release() -> None:
        nonlocal released
        while True:
            partition, output = await queue.get()
            if type(output) is final_type:
                ledger.release(("sensor-readings", 0), partition.epoch, output.offsets[0])
                released += len(output.offsets[0])

    releasing = asyncio.create_task(release())
    for _ in range(50):  # the earlier build waits for the other inputs until they were quiet for 10 s
        await tick()
    meter = Meter()
    meter.start()
    for i, batch in enumerate(batches):
        position[0] = batch[-1].offset + 1
        await handle(modalities[0], 0, batch)
        ledger.committable(("sensor-readings", 0))
        if i % TICK_EVERY == 0:
            await tick()
    before = -1
    while before < released:  # the earlier build lets windows go by its ticker, as many at once as the queue holds
        before = released
        for _ in range(3):
            await tick()
            await asyncio.sleep(0)
    found = meter.stop(len(raws))
    releasing.cancel()
    # the last readings of a stream are there to make those before them final
    assert released >= len(raws) - 2 * streams, f"{released} of {len(raws)} readings became final"
    return found


def _reading(time_ms: int, key: int) -> bytes:
    values = f'{{"flow":{3 + key % 7}.{time_ms % 90 + 10},"temp":{50 + time_ms % 9}.5}}'
    return f'{{"time":{time_ms},"values":{values}}}'.encode()


def _wired(settings: Any, store: Any, queue: Any, metrics: Any, position: list[int]) -> tuple[Any, Any, Any]:
    """(ledger, handle, tick) of the build's ingest on one partition; audio and captions are empty and caught up."""
    topics = ("sensor-readings", "audio-clips", "captions")
    try:
        from streams.pipeline.ingest import Ingest
    except ImportError:
        return _wired_before(settings, store, queue, metrics, position)
    from streams.events.types import MODALITIES
    from streams.kafka.ledger import OffsetLedger
    from streams.kafka.progress import InputProgress, Start
    from streams.pipeline.pipeline import monotonic_ms
    from streams.pipeline.recovery import Origin, StateLoader, drift_config
    from streams.pipeline.reroute import Router

    origin = Origin(dict(zip(MODALITIES, topics, strict=True)))
    loader = StateLoader(store, drift_config(settings), model="bench", size_ms=SIZE_MS, origin=origin)
    empty = InputProgress(0, 0, 0, 0)

    def progress(modality: Any, number: int) -> InputProgress:
        if modality is not MODALITIES[0]:
            return empty
        return InputProgress(position[0], position[0] + BATCH, 0, position[0])

    ledger = OffsetLedger()
    ingest = Ingest(
        settings.window,
        ledger=ledger,
        outputs=None,  # type: ignore[arg-type]  # nothing is late, nothing is bad
        queue=queue,
        loader=loader,
        clips=None,  # type: ignore[arg-type]
        metrics=metrics,
        now_ms=lambda: _FAR_MS,
        clock_ms=monotonic_ms,
        progress=progress,
        router=Router(1),
    )
    ingest.assign(0, [Start(0, None)] * 3)
    return ledger, ingest.handle, functools.partial(ingest.tick, 250)


def _wired_before(settings: Any, store: Any, queue: Any, metrics: Any, position: list[int]) -> tuple[Any, Any, Any]:
    from streams.intake import InputProgress, Intake  # type: ignore[import-not-found]
    from streams.ledger import OffsetLedger  # type: ignore[import-not-found]
    from streams.restoring import Restorer  # type: ignore[import-not-found]

    from streams.drift import DriftConfig
    from streams.events import MODALITIES  # type: ignore[attr-defined]

    drift = DriftConfig.from_settings(settings)  # type: ignore[attr-defined]
    restorer = Restorer(store, drift, model="bench", size_ms=SIZE_MS, origin="bench")
    ledger = OffsetLedger()
    intake = Intake(
        settings.window,
        ledger=ledger,
        outputs=None,
        queue=queue,
        restorer=restorer,
        clips=None,
        metrics=metrics,
        now_ms=lambda: _FAR_MS,
    )
    intake.assign(0, [0, 0, 0])

    async def tick() -> None:
        ends = (position[0] + BATCH, 0, 0)
        at = (position[0], 0, 0)
        await intake.tick(250, {(m, 0): InputProgress(at[i], ends[i], 0, at[i]) for i, m in enumerate(MODALITIES)})

    return ledger, intake.handle, tick


# -- detectors ----------------------------------------------------------------------------------------------------


def detectors(streams: int, stored: int, windows: int) -> dict[str, float]:
    """Streams that take turns on one worker, two readings a window: `count` windows scored, stored and published.

    Each has a past of `stored` windows in the store, of which its detector is made at its first window, which is not
    measured.
    """
    return asyncio.run(_detectors(streams, stored, windows))


async def _detectors(streams: int, stored: int, windows: int) -> dict[str, float]:
    from streams.settings import Settings
    from streams.testing import Harness
    from tests import standin

    standin._direction = functools.cache(standin._direction)  # the model is to cost next to nothing
    rng = random.Random(5)
    names = [f"pump-{key}" for key in range(streams)]

    async def push(harness: Any, number: int) -> None:
        for offset_ms in (1_000, 6_000):
            for name in names:
                await harness.push("sensor-readings", name, _plant(rng, number, offset_ms), settle=False)

    with tempfile.TemporaryDirectory(prefix="sensorium-bench-") as folder:
        settings = Settings(state=Path(folder))
        store = _store_by_stream()
        await _give_past(store, names, stored, rng)
        async with Harness(Path(folder), model=standin.StandInModel(), settings=settings, store=store) as harness:
            await harness.advance(20_000)  # the earlier build waits for the other inputs until they were quiet for 10 s
            await push(harness, stored)
            await push(harness, stored + 1)
            await _settle(harness)
            before = _published(harness)
            for number in range(stored + 2, stored + 2 + windows):
                await push(harness, number)
            meter = Meter()
            meter.start()
            await _settle(harness)
            found = meter.stop(_published(harness) - before)
    assert before >= streams * 0.9, f"{before} windows of {streams} streams before the clock started"
    assert found["count"] >= streams * (windows - 0.2), f"{found['count']} windows of {streams} streams"
    return found


def _plant(rng: random.Random, number: int, offset_ms: int) -> dict[str, Any]:
    values = {"flow": rng.gauss(5, 1), "temperature": rng.gauss(50, 2), "current": rng.gauss(8, 1)}
    return {"time": T0_MS + number * SIZE_MS + offset_ms, "values": values}


async def _give_past(store: Any, names: Sequence[str], windows: int, rng: random.Random) -> None:
    """The windows of one stream, as this build scores and stores them, copied to all the others."""
    from tests import standin

    window_id = _either("streams.windows.types:window_id", "streams.panes:window_id")
    made = await _stored_windows([_plant(rng, n, ms) for n in range(windows) for ms in (1_000, 6_000)])
    assert len(made) == windows, f"{len(made)} windows of {windows} were made"
    end_ms = T0_MS // SIZE_MS * SIZE_MS + windows * SIZE_MS
    rows = []
    for number, point in enumerate(made):
        final = {"sealed": end_ms} if number == windows - 1 else {"drift": None}  # of the others only vectors are read
        vectors = {name: vector.tobytes() for name, vector in point.vectors.items()}
        rows.append((point.payload["start"], json.dumps({**point.payload, **final}), vectors))
    for name in names:
        for start_ms, payload, vectors in rows:
            id = window_id(name, start_ms, SIZE_MS, standin.StandInModel.version)
            store.put(name, id, payload.replace('"template"', f'"{name}"'), vectors)


async def _stored_windows(readings: Sequence[dict[str, Any]]) -> list[Any]:
    """What the pipeline stores of these readings of one stream, `template`."""
    from streams.testing import Harness
    from tests import standin
    from tests.memory_store import MemoryStore

    store = MemoryStore()
    with tempfile.TemporaryDirectory(prefix="sensorium-bench-") as folder:
        async with Harness(Path(folder), model=standin.StandInModel(), store=store) as harness:
            for value in readings:
                await harness.push("sensor-readings", "template", value, settle=False)
            await harness.settle()
            await harness.advance(60_000)
    return sorted((store._point(id, True) for id in store._points), key=lambda point: point.payload["start"])


async def _settle(harness: Any) -> None:
    """Until nothing is left to do; the earlier build lets a queue's length of windows go at each tick."""
    await harness.settle()
    before = -1
    while before < (before := len(harness.outputs.sent)):
        await harness._tick(harness._running(), range(1), 0)


def _published(harness: Any) -> int:
    return sum(sent.topic == "windows" for sent in harness.outputs.sent)


def _store_by_stream() -> Any:
    """The tests' store in a dict, with an index by stream: a look for one stream must not read all the others."""
    from tests import memory_store

    class StoreByStream(memory_store.MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self._ids: dict[str, list[str]] = {}

        def put(self, stream: str, id: str, payload: str, vectors: dict[str, bytes]) -> None:
            self._ids.setdefault(stream, []).append(id)
            self._points[id] = (payload, vectors)

        async def upsert(self, points: Sequence[Any]) -> None:
            for point in points:
                if point.id not in self._points:
                    self._ids.setdefault(point.payload["stream"], []).append(point.id)
            await super().upsert(points)

        async def scroll(  # type: ignore[override]
            self, where: Any, *, vectors: bool = False, descending: bool = False, limit: int | None = None, **_: Any
        ) -> AsyncIterator[Any]:
            points = [self._point(id, vectors) for id in self._ids.get(where.stream, ())]
            found = [point for point in points if memory_store._matches(where, point)]
            found.sort(key=lambda point: point.payload["start"], reverse=descending)
            for point in found[:limit]:
                yield point

    return StoreByStream()


# -- store --------------------------------------------------------------------------------------------------------


def listing(streams: int, windows: int) -> dict[str, float]:
    """`streams()` of the queries over the embedded store: `count` streams listed."""
    return asyncio.run(_asked_of_store(streams, windows, _list_streams))


def newest(streams: int, windows: int) -> dict[str, float]:
    """`scroll(limit=1)` for the newest window of one stream after another: `count` windows read."""
    return asyncio.run(_asked_of_store(streams, windows, _read_newest))


async def _asked_of_store(streams: int, windows: int, ask: Callable[[Any, Sequence[str]], Any]) -> dict[str, float]:
    from streams.store.base import Point
    from streams.store.edge import EdgeStore

    rng = random.Random(5)
    made = await _stored_windows([_plant(rng, number, 1_000) for number in range(windows)])
    assert len(made) == windows
    with tempfile.TemporaryDirectory(prefix="sensorium-bench-") as folder:
        async with EdgeStore(Path(folder) / "store") as store:
            names = [f"pump-{key}" for key in range(streams)]
            for first in range(0, streams, 20):
                points = []
                for name in names[first : first + 20]:
                    for point in made:
                        id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name}/{point.id}"))
                        points.append(Point(id, point.vectors, {**point.payload, "stream": name}))
                await store.upsert(points)
            await ask(store, names[:1])  # what is set up by the first question is not counted
            meter = Meter()
            meter.start()
            return meter.stop(await ask(store, names))


async def _list_streams(store: Any, names: Sequence[str]) -> int:
    queries = _either("streams.serving.queries:StoreQueries", "streams.queries:StoreQueries")(store, _no_model)
    try:
        from streams.serving.pages import MAX_ROWS, every
    except ImportError:
        return len(await queries.streams())
    return len([row async for row in every(functools.partial(queries.streams, MAX_ROWS))])


async def _read_newest(store: Any, names: Sequence[str]) -> int:
    from streams.store.base import Filter

    found = 0
    for i in range(SHOWN):
        async for _ in store.scroll(Filter(stream=names[i % len(names)]), descending=True, limit=1):
            found += 1
    return found


def _no_model() -> Any:
    raise AssertionError("streams are listed without a model")


CASES: dict[str, Callable[..., dict[str, float]]] = {
    "operator": operator,
    "ingest": ingest,
    "detectors": detectors,
    "listing": listing,
    "newest": newest,
}


def main(arguments: Sequence[str]) -> None:
    import structlog

    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # incidents are logged in either build
    options = dict(argument.split("=") for argument in arguments[1:])
    found = CASES[arguments[0]](**{name: int(value) for name, value in options.items()})
    build = Path(importlib.import_module("streams").__file__ or "").parent.parent
    print(json.dumps(found | {"build": str(build)}))


if __name__ == "__main__":
    main(sys.argv[1:])
