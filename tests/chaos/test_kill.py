"""kill -9, repeats, disorder, a broker that dies, workers that come and go: the store ends as if nothing had happened.

Every run replays the same recording through real Kafka and workers in processes of their own. Its export must equal
the one of an undisturbed run byte for byte: ids, revisions, event counts, vectors, scores, incidents.

`make soak` does the full round: the real recording where the data is there, and ten kills.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from streams.kafka.embedded import Broker
from streams.sources.recording import Recording
from tests.chaos.support import Disordered, Installation, WorkerProcess, disturbed, replaying
from tests.conftest import DATA, TOOLS
from tests.integration.qdrant_server import QdrantServer

SOAK = bool(os.environ.get("SENSORIUM_SOAK"))
KILLS = 10 if SOAK else 4
SEED = int(os.environ.get("SENSORIUM_SOAK_SEED", time.time_ns() % 10**6 if SOAK else 5))
pytestmark = [
    pytest.mark.kafka,
    pytest.mark.chaos,
    pytest.mark.slow,
    pytest.mark.timeout(1800 if SOAK else 400),
    pytest.mark.asyncio(loop_scope="session"),
]


@dataclass(frozen=True)
class Undisturbed:
    """The run that all others are compared with."""

    recording: Path
    export: str
    incidents: list[str]
    report: dict[str, Any]

    @property
    def windows(self) -> int:
        return self.export.count("\n")


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chaos") / "plant"
    if SOAK and DATA.is_dir():
        subprocess.run([sys.executable, str(TOOLS / "make_plant.py"), "--out", str(folder)], check=True)
    else:
        from streams.sources.plant_recording import record

        record(folder, streams=5, seed=23, seconds=2_000)
    return folder


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def undisturbed(
    shared_broker: Broker, recording: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Undisturbed]:
    installation = await Installation(tmp_path_factory.mktemp("undisturbed"), shared_broker.bootstrap).create()
    worker = WorkerProcess(installation)
    worker.start()
    try:
        async with replaying(installation, Recording(recording)) as replay:
            pass
        await worker.stop()
    finally:
        worker.end()
    report = replay.account.to_json(replay.recording.labels())
    events = report["events"]
    assert events["windowed"] == events["produced"]
    export = installation.export()
    assert len(export.splitlines()) == report["windows"]
    incidents = installation.incidents()
    assert incidents, "a recording without incidents would prove little"
    yield Undisturbed(recording, export, incidents, report)


def assert_same(installation: Installation, undisturbed: Undisturbed) -> None:
    """Byte for byte; of a difference the first lines are shown."""
    export = installation.export()
    if export != undisturbed.export:
        ours, theirs = export.splitlines(), undisturbed.export.splitlines()
        odd = [pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]]
        pytest.fail(f"{len(ours)} windows, undisturbed {len(theirs)}; {len(odd)} differ (seed {SEED}): {odd[:2]}")
    assert installation.incidents() == undisturbed.incidents


async def test_a_worker_killed_at_random_moments_changes_nothing(
    undisturbed: Undisturbed, shared_broker: Broker, tmp_path: Path
) -> None:
    installation = await Installation(tmp_path, shared_broker.bootstrap).create()
    worker = WorkerProcess(installation)
    worker.start()

    async def kill() -> None:
        await asyncio.to_thread(worker.kill)
        worker.start()

    try:
        async with replaying(installation, Recording(undisturbed.recording)) as replay:
            await disturbed(replay, KILLS, random.Random(SEED), undisturbed.windows, kill)
        await worker.stop()
    finally:
        worker.end()
    assert replay.account.to_json()["events"] == undisturbed.report["events"]
    assert_same(installation, undisturbed)


async def test_repeats_and_disorder_within_the_bound_change_nothing(
    undisturbed: Undisturbed, shared_broker: Broker, tmp_path: Path
) -> None:
    installation = await Installation(tmp_path, shared_broker.bootstrap).create()
    shuffled = Disordered(undisturbed.recording, seed=SEED, duplicates=0.05)
    worker = WorkerProcess(installation)
    worker.start()

    async def kill() -> None:
        await asyncio.to_thread(worker.kill)
        worker.start()

    try:
        async with replaying(installation, shuffled) as replay:
            await disturbed(replay, 1, random.Random(SEED), undisturbed.windows, kill)
        await worker.stop()
    finally:
        worker.end()
    assert shuffled.repeated > 0
    events = undisturbed.report["events"]
    assert replay.account.to_json()["events"] == events | {
        "produced": events["produced"] + shuffled.repeated,
        "duplicate": shuffled.repeated,
    }
    assert_same(installation, undisturbed)


async def test_a_broker_killed_twice_changes_nothing(undisturbed: Undisturbed, tmp_path: Path) -> None:
    async with Broker(tmp_path / "kafka") as own:
        installation = await Installation(tmp_path / "run", own.bootstrap).create()
        worker = WorkerProcess(installation)
        worker.start()

        async def kill() -> None:
            await asyncio.to_thread(own.kill)
            await asyncio.sleep(2)
            await own.start()

        try:
            async with replaying(installation, Recording(undisturbed.recording)) as replay:
                await disturbed(replay, 2, random.Random(SEED), undisturbed.windows, kill)
            await worker.stop()
        finally:
            worker.end()
        assert replay.account.to_json()["events"] == undisturbed.report["events"]
        assert_same(installation, undisturbed)
        # aiokafka alone writes four errors every 100 ms while a broker is away
        lines = len(worker.log().splitlines())
        assert lines < 400 + len(undisturbed.incidents), f"a flood of log lines: {lines}"


@pytest.mark.qdrant
async def test_a_store_killed_and_restarted_changes_nothing(
    undisturbed: Undisturbed, shared_broker: Broker, tmp_path: Path
) -> None:
    server = QdrantServer(tmp_path / "qdrant").start()
    settings = (shared_broker.bootstrap, server.url, server.grpc_port)
    installation = await Installation(tmp_path / "run", *settings).create()
    worker = WorkerProcess(installation)

    async def kill() -> None:
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(2)
        await asyncio.to_thread(server.start)

    try:
        worker.start()
        async with replaying(installation, Recording(undisturbed.recording)) as replay:
            await disturbed(replay, 2, random.Random(SEED), undisturbed.windows, kill)
        await worker.stop()
        assert replay.account.to_json()["events"] == undisturbed.report["events"]
        assert_same(installation, undisturbed)
    finally:
        worker.end()
        server.kill()


@pytest.mark.qdrant
async def test_workers_that_join_and_leave_change_nothing(
    undisturbed: Undisturbed, shared_broker: Broker, tmp_path: Path
) -> None:
    server = QdrantServer(tmp_path / "qdrant").start()
    installation = await Installation(tmp_path / "run", shared_broker.bootstrap, server.url, server.grpc_port).create()
    first = WorkerProcess(installation)
    others = [WorkerProcess(installation, "second"), WorkerProcess(installation, "third")]
    steps = iter([others[0].join, others[0].stop, others[1].join, others[1].kill])

    async def join_or_leave() -> None:
        step = next(steps)
        await (step() if asyncio.iscoroutinefunction(step) else asyncio.to_thread(step))

    try:
        await first.join()
        # slow enough that those who join find something left to do
        played = Recording(undisturbed.recording)
        speed = (played.end_ms - played.start_ms) / 1000 / 30
        async with replaying(installation, played, speed=speed) as replay:
            await disturbed(replay, 4, random.Random(SEED), undisturbed.windows, join_or_leave)
        await first.stop()
        assert replay.account.to_json()["events"] == undisturbed.report["events"]
        assert_same(installation, undisturbed)
    finally:
        for worker in (first, *others):
            worker.end()
        server.kill()
