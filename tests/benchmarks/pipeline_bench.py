"""The whole service against an offline loop of the same models: CPU-seconds per window, and how free the loop stays.

python -m tests.benchmarks.pipeline_bench

- ours: a worker on a real Kafka that holds the whole recording: fetching, decoding (clips in the killable child, whose
  CPU counts), windows, embedding, drift scores, the embedded store, the output topics, commits. CPU-seconds count from
  the assignment of its partitions until the last window has been announced.
- the offline loop: reads the CSVs and the clips (soundfile, and the resampler that the models' rate needs), groups by
  stream and window in a dict, embeds in batches of 32. No Kafka, no checks, no scores, no store. Its CPU-seconds count
  from the first row on.

The recording is the real one where the data is there (SKAB sensors, ESC-10 sounds), and the simulated plant besides.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from streams.kafka.progress import Start
from streams.settings import Settings
from streams.sources.recording import Recording, time_ms_of
from tests.benchmarks.measuring import (
    ROOT,
    Figure,
    cpu_s,
    family_cpu_s,
    in_thread,
    kafka,
    made_topics,
    pin,
    print_table,
    ratio,
    run_peer,
    settings_in,
    whole_cpu_s,
)

SHARED = ROOT.parent / "shared"
SIZE_MS = 10_000
BATCH = 32
WINDOW = {"idle_timeout_ms": 1_000}
SIMULATED = {"streams": 12, "seed": 5, "seconds": 2_400}
LAG_STEP_S = 0.02


# -- recordings --------------------------------------------------------------------------------------------------


def recordings(folder: Path) -> dict[str, Path]:
    """The real recording where its data is there, and a simulated one."""
    found: dict[str, Path] = {}
    if (SHARED / "data").is_dir():
        real = folder / "real"
        tool = [sys.executable, str(SHARED / "tools" / "make_plant.py"), "--out", str(real)]
        subprocess.run(tool, check=True, capture_output=True)
        found["real"] = real
    else:
        print("no data in ../shared/data: the simulated plant only", file=sys.stderr)
    from streams.sources.plant_recording import record

    record(folder / "simulated", **SIMULATED)
    found["simulated"] = folder / "simulated"
    return found


async def produce(settings: Settings, folder: Path) -> int:
    """The recording into Kafka, in event-time order; returns its events."""
    from streams.kafka.clients import new_producer

    assert settings.kafka is not None
    producer = new_producer(settings, settings.kafka, linger_ms=20, max_batch_size=262_144)
    await producer.start()
    events = 0
    try:
        for message in Recording(folder).messages():
            topic = settings.topic(message.topic)
            await producer.send(topic, message.value, key=message.key, headers=message.headers)
            events += message.events
        await producer.flush()
    finally:
        await producer.stop()
    return events


# -- ours --------------------------------------------------------------------------------------------------------


async def ours(settings: Settings, events: int) -> dict[str, float]:
    """A worker until every event is in a window that was announced."""
    from streams.process import freeze_gc, limit_malloc_arenas
    from streams.serving.worker import Worker

    class Measured(Worker):
        began: float | None = None

        async def assigned(self, starts: Mapping[tuple[str, int], Start]) -> None:
            await super().assigned(starts)
            self.began = family_cpu_s()

    assert settings.kafka is not None
    limit_malloc_arenas()  # this and the next as the command does
    async with Measured(settings, settings.kafka) as worker:
        freeze_gc()
        stop = asyncio.Event()
        running = asyncio.create_task(worker.run(stop))
        while worker.began is None and not running.done():
            await asyncio.sleep(0.01)
        lags: list[float] = []
        work: list[float] = []
        watching = asyncio.create_task(_watch(lags, work))
        while worker.status.events < events and not running.done():
            await asyncio.sleep(0.05)
        if running.done():
            running.result()
        assert worker.began is not None
        took = family_cpu_s() - worker.began
        watching.cancel()
        windows = worker.status.windows
        stop.set()
        await running
    lags.sort()
    return {
        "cpu_s": took,
        "windows": windows,
        "lag_p99_s": lags[int(len(lags) * 0.99)],
        "lag_max_s": lags[-1],
        "work_max_s": max(work),
    }


async def _watch(lags: list[float], work: list[float]) -> None:
    """How late the event loop comes back to a task that sleeps, and the CPU-seconds its thread took in between.

    On a busy machine the loop may be late because the system runs others; what it took itself is its own doing.
    """
    while True:
        began, used = time.perf_counter(), time.thread_time()
        await asyncio.sleep(LAG_STEP_S)
        lags.append(time.perf_counter() - began - LAG_STEP_S)
        work.append(time.thread_time() - used)


# -- the offline loop --------------------------------------------------------------------------------------------


def offline(folder: Path) -> dict[str, float]:
    """What a notebook would do with the same models."""
    import models
    from models.interface import WindowInput

    model = models.load(None)
    model.embed([WindowInput(0, SIZE_MS, readings=[(0, {"a": 1.0})])])  # what is set up once is not counted
    began = cpu_s()
    windows: dict[tuple[str, int], tuple[list[Any], list[Any], list[Any]]] = {}
    for stream, time_ms, kind, content in _rows(folder):
        key = (stream, time_ms - time_ms % SIZE_MS)
        windows.setdefault(key, ([], [], []))[kind].append((time_ms, content))
    inputs = []
    embedded = 0
    for (_, start_ms), (readings, clips, captions) in windows.items():
        sounds = [(time_ms, _samples(path)) for time_ms, path in clips]
        inputs.append(WindowInput(start_ms, start_ms + SIZE_MS, readings, sounds, captions))
        if len(inputs) == BATCH:
            embedded += len(model.embed(inputs))
            inputs.clear()
    if inputs:
        embedded += len(model.embed(inputs))
    return {"cpu_s": cpu_s() - began, "windows": embedded}


def _rows(folder: Path) -> Iterator[tuple[str, int, int, Any]]:
    """(stream, time, kind, content) of everything: readings 0, clips 1 (as paths), captions 2."""
    for path in sorted((folder / "sensors").glob("*.csv")):
        with path.open(newline="") as file:
            rows = csv.reader(file)
            names = next(rows)[1:]
            for cells in rows:
                values = {name: float(cell) if cell else None for name, cell in zip(names, cells[1:], strict=True)}
                yield path.stem, time_ms_of(cells[0]), 0, values
    for name, kind in (("audio.csv", 1), ("captions.csv", 2)):
        if (folder / name).is_file():
            with (folder / name).open(newline="") as file:
                rows = csv.reader(file)
                next(rows)
                for time, stream, content in rows:
                    yield stream, time_ms_of(time), kind, folder / content if kind == 1 else content


def _samples(path: Path) -> Any:
    import soundfile

    from streams.events.wav import float_samples

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return float_samples(np.ascontiguousarray(samples).reshape(-1), samples.shape[1], rate)


# -- the benchmark -----------------------------------------------------------------------------------------------


async def measure() -> list[Figure]:
    figures: list[Figure] = []
    async with contextlib.AsyncExitStack() as exits:
        place = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="sensorium-bench-")))
        broker, state = await exits.enter_async_context(kafka())
        for name, folder in (await in_thread(recordings, place)).items():
            filled = settings_in(state, broker.bootstrap, partitions=4)
            await made_topics(filled)
            events = await produce(filled, folder)
            loop = await in_thread(run_peer, "pipeline_bench", ["offline", folder])
            arguments = ["ours", state / name, broker.bootstrap, filled.topic_prefix, events]
            service = await in_thread(run_peer, "pipeline_bench", arguments)
            assert service["windows"] == loop["windows"], f"{service} and {loop} made different windows"
            rates = [peer["windows"] / peer["cpu_s"] for peer in (service, loop)]
            load = f"load average {psutil.getloadavg()[0]:.1f}: others ran as well"
            whole = [f"whole process {peer['windows'] / peer['whole_s']:,.0f}" for peer in (service, loop)]
            title = f"pipeline, {name} recording, {service['windows']:,.0f} windows"
            figures += [
                Figure(f"{title}: ours", round(rates[0], 1), "windows/CPU-s", note=whole[0]),
                Figure(f"{title}: offline loop", round(rates[1], 1), "windows/CPU-s", note=whole[1]),
                ratio(f"pipeline, {name} recording: ours to the offline loop", *rates, least=0.7),
                Figure(f"loop, {name} recording: most CPU at a stretch", _ms(service["work_max_s"]), "ms", most=100),
                Figure(f"loop, {name} recording: late, 99 % of times", _ms(service["lag_p99_s"]), "ms"),
                Figure(f"loop, {name} recording: late, most", _ms(service["lag_max_s"]), "ms", note=load),
            ]
    return figures


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 1)


def run() -> list[Figure]:
    return asyncio.run(measure())


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--peer"]:
        pin()
    if arguments[:2] == ["--peer", "offline"]:
        print(json.dumps(offline(Path(arguments[2])) | {"whole_s": whole_cpu_s()}))
    elif arguments[:1] == ["--peer"]:
        state, bootstrap, prefix, events = arguments[2:]
        settings = settings_in(Path(state), bootstrap, prefix, partitions=4, window=WINDOW, log_level="error")
        print(json.dumps(asyncio.run(ours(settings, int(events))) | {"whole_s": whole_cpu_s()}))
    else:
        print_table(run())


if __name__ == "__main__":
    main(sys.argv[1:])
