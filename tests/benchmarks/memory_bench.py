"""Resident memory of a worker over a long replay: is it flat over the second half?

python -m tests.benchmarks.memory_bench

`sensorium worker` in a process of its own replays a recording of the simulated plant from a real Kafka, as fast as it
goes, with the shipped model and the embedded store; its resident memory is read from outside, twice a second, beside
the number of windows it has announced. The second half is that of the windows. Pages of the store's files that are
mapped into the process count as resident too, though the system may take them back at any time, so both are told:
resident memory, and the part of it that is the process's own (anonymous).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from streams.settings import Settings
from tests.benchmarks.measuring import (
    Figure,
    in_thread,
    kafka,
    made_topics,
    peer_environment,
    print_table,
    settings_in,
)
from tests.benchmarks.pipeline_bench import produce

PLANT = {"streams": 12, "seed": 9, "seconds": 10_000}
WINDOW = {"idle_timeout_ms": 1_000}
EVERY_S = 0.5
STALLED_S = 120.0
MIB = 1 << 20


async def announced(settings: Settings, seen: list[int], enough: int) -> None:
    """Counts the records of the `windows` topic into `seen[0]` until there are `enough`."""
    from streams.kafka.reader import end_offsets, follow

    assert settings.kafka is not None
    stop = asyncio.Event()
    names = [settings.topic("windows")]
    start = await end_offsets(settings, settings.kafka, names)
    async for records in follow(settings, settings.kafka, start, stop):
        seen[0] += len(records)
        if seen[0] >= enough:
            stop.set()


def resident(process: psutil.Process) -> tuple[float, float]:
    """Resident MiB of a process, and the anonymous part of it."""
    fields = {"Rss": 0.0, "Anonymous": 0.0}
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in fields:
            fields[name] = int(rest.split()[0]) / 1024
    return fields["Rss"], fields["Anonymous"]


async def watch(settings: Settings, expected: int) -> list[tuple[int, float, float]]:
    """(windows announced, resident MiB, anonymous MiB) over the life of a worker that replays everything."""
    seen = [0]
    counting = asyncio.create_task(announced(settings, seen, expected))
    environment = peer_environment() | {
        "SENSORIUM_STATE": str(settings.state),
        "SENSORIUM_KAFKA": str(settings.kafka),
        "SENSORIUM_TOPIC_PREFIX": settings.topic_prefix,
        "SENSORIUM_WINDOW__IDLE_TIMEOUT_MS": str(settings.window.idle_timeout_ms),
        "SENSORIUM_LOG_LEVEL": "error",
    }
    command = str(Path(sys.executable).with_name("sensorium"))
    log = settings.state.with_suffix(".log")
    samples: list[tuple[int, float, float]] = []
    with log.open("wb") as out:
        worker = await in_thread(
            subprocess.Popen, [command, "worker"], cwd=settings.state.parent, env=environment, stdout=out, stderr=out
        )
    try:
        process, moved = psutil.Process(worker.pid), time.monotonic()
        while not counting.done():
            await asyncio.sleep(EVERY_S)
            if worker.poll() is not None or time.monotonic() - moved > STALLED_S:
                raise RuntimeError(f"the worker ended or stalled at window {seen[0]}: {log.read_text()[-2000:]}")
            if samples and samples[-1][0] != seen[0]:
                moved = time.monotonic()
            samples.append((seen[0], *await in_thread(resident, process)))
        counting.result()
    finally:
        counting.cancel()
        worker.terminate()
        await in_thread(worker.wait)
    return samples


def spread(values: list[float]) -> float:
    """How far values are from the middle of their range, in per cent of it: 5 is plus or minus 5 %."""
    low, high = min(values), max(values)
    return 100.0 * (high - low) / (high + low)


async def measure(**plant: Any) -> list[Figure]:
    from streams.sources.plant_recording import record

    with tempfile.TemporaryDirectory(prefix="sensorium-bench-") as place:
        folder = Path(place) / "plant"
        await in_thread(lambda: record(folder, **(PLANT | plant)))
        expected = PLANT["streams"] * (PLANT | plant)["seconds"] // 10
        async with kafka() as (broker, state):
            settings = settings_in(state, broker.bootstrap, partitions=4, window=WINDOW)
            await made_topics(settings)
            await produce(settings, folder)
            samples = await watch(settings, expected)
    half = [sample for sample in samples if sample[0] >= expected // 2]
    rss, own = [r for _, r, _ in half], [a for _, _, a in half]
    title = f"memory, {expected:,} windows"
    return [
        Figure(f"{title}: resident at half", round(rss[0]), "MiB"),
        Figure(f"{title}: resident at the end", round(rss[-1]), "MiB"),
        Figure(f"{title}: anonymous part at half", round(own[0]), "MiB"),
        Figure(f"{title}: anonymous part at the end", round(own[-1]), "MiB"),
        Figure("memory: resident over the second half, plus or minus", round(spread(rss), 2), "%", most=5),
        Figure("memory: anonymous over the second half, plus or minus", round(spread(own), 2), "%"),
    ]


def run() -> list[Figure]:
    return asyncio.run(measure())


def main(arguments: list[str]) -> None:
    if arguments:
        print(json.dumps([figure.to_json() for figure in asyncio.run(measure(seconds=int(arguments[0])))]))
        return
    print_table(run())


if __name__ == "__main__":
    main(sys.argv[1:])
