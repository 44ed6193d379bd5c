"""What the chaos tests share: a replay through workers in processes of their own that may be killed; its export."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from streams.kafka.admin import create_topics
from streams.settings import Settings, load_settings
from streams.sources.recording import Message, Recording
from streams.sources.replay import Replay

COMMAND = str(Path(sys.executable).with_name("sensorium"))
# quiet inputs are told from a stalled replay by a margin that a busy machine does not eat up
WINDOW = {"idle_timeout_ms": 5_000, "allowed_lateness_ms": 30_000}
DISORDER_MS = 2_000  # the default bound


@dataclass
class Installation:
    """Topics, group, state and store of one run, on a Kafka that others may use too."""

    folder: Path
    bootstrap: str
    store: str | None = None
    grpc_port: int | None = None
    settings: Settings = field(init=False)
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        values: dict[str, Any] = {
            "state": self.folder / "state",
            "kafka": self.bootstrap,
            "store": self.store,
            "topic_prefix": f"c{uuid.uuid4().hex[:8]}.",
            "window": WINDOW,
            "session_timeout_s": 6.0,
        }
        if self.grpc_port is not None:
            values["store_grpc_port"] = self.grpc_port
        self.settings = load_settings(**values)
        flat = {key: value for key, value in values.items() if key != "window" and value is not None}
        flat |= {f"window__{key}": value for key, value in WINDOW.items()}
        self.environment = os.environ | {f"SENSORIUM_{key.upper()}": str(value) for key, value in flat.items()}

    async def create(self) -> Installation:
        """Make the topics."""
        await create_topics(self.settings, self.bootstrap)
        return self

    def run(self, *arguments: str) -> str:
        """Standard output of a command; fails with what it said."""
        done = subprocess.run(
            [COMMAND, *arguments], env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def export(self) -> str:
        out = self.folder / "export.jsonl"
        self.run("export", "--out", str(out))
        return out.read_text()

    def incidents(self) -> list[str]:
        """Ids of all stored incidents with their steps, as the commands tell them."""
        rows = json.loads(self.run("incidents", "--json"))
        return sorted(f"{row['id']} {step['sequence']} {step['kind']}" for row in rows for step in row["steps"])


class WorkerProcess:
    """`sensorium worker`, as an operator runs it."""

    def __init__(self, installation: Installation, name: str = "worker") -> None:
        self._installation = installation
        self._log = installation.folder / f"{name}.log"
        state = installation.settings.state if name == "worker" else installation.folder / name
        self._environment = installation.environment | {"SENSORIUM_STATE": str(state)}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([COMMAND, "worker"], env=self._environment, stdout=log, stderr=log)

    async def join(self) -> None:
        """Start, and wait until it has partitions."""
        self.start()
        deadline = time.monotonic() + 60
        while "] assigned " not in self.log():
            assert self.alive, f"the worker ended by itself: {self.log()[-2000:]}"
            assert time.monotonic() < deadline, f"no partitions after 60 s: {self.log()[-2000:]}"
            await asyncio.sleep(0.05)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        assert self.alive, f"the worker ended by itself: {self._log.read_text()[-2000:]}"
        self._process.kill()
        self._process.wait()

    async def stop(self) -> None:
        """SIGTERM; a clean end within ten seconds, with status 0."""
        process = self._process
        assert process is not None
        assert self.alive, f"the worker ended by itself: {self._log.read_text()[-2000:]}"
        process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(process.wait, 15)
        assert code == 0, f"status {code}: {self._log.read_text()[-2000:]}"

    def log(self) -> str:
        return self._log.read_text()

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Disordered(Recording):
    """A recording whose messages come shuffled within the disorder bound, and some of them twice."""

    def __init__(self, folder: Path, *, seed: int, duplicates: float) -> None:
        super().__init__(folder)
        self._seed = seed
        self._duplicates = duplicates
        self.repeated = 0

    def messages(self) -> Iterator[Message]:
        # a message that is late by at most the bound arrives before any that is newer by more than it
        rng = random.Random(self._seed)
        arrivals = []
        for number, message in enumerate(super().messages()):
            arrivals.append((message.time_ms + rng.uniform(0, DISORDER_MS - 1), number, message))
            if rng.random() < self._duplicates:
                self.repeated += message.events
                arrivals.append((message.time_ms + rng.uniform(0, DISORDER_MS - 1), number, message))
        for _, _, message in sorted(arrivals, key=lambda arrival: arrival[:2]):
            yield message


@contextlib.asynccontextmanager
async def replaying(
    installation: Installation, recording: Recording, *, speed: float | None = None
) -> AsyncIterator[Replay]:
    """A replay that runs while the body does, and is waited for after it; its account is in `replay.account`."""
    replay = Replay(installation.settings, installation.bootstrap, recording, speed)
    running = asyncio.create_task(replay.run(Console(quiet=True), give_up_s=120))
    try:
        yield replay
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def disturbed(
    replay: Replay, times: int, rng: random.Random, total: int, disturb: Callable[[], Awaitable[None]]
) -> None:
    """Call `disturb` at random moments of a replay: each time after a random number of further windows."""
    for left in range(times, 0, -1):
        remaining = total - replay.account.windows
        target = replay.account.windows + rng.randint(1, max(1, remaining // (left + 1)))
        while replay.account.windows < min(target, total):
            await asyncio.sleep(0.01)
        await asyncio.sleep(rng.uniform(0, 0.1))
        await disturb()
