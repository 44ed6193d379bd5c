"""How benchmarks measure: CPU-seconds of a process of its own for every peer, figures with their targets, a table.

Timings on a shared machine are noisy, so only CPU-seconds (user and system, all threads) are compared, only within
one run, and peers take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from streams.kafka.admin import create_topics
from streams.kafka.embedded import Broker
from streams.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number; `least` or `most` is the target it has to meet, where it has one."""

    name: str
    value: float
    unit: str = ""
    least: float | None = None
    most: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """None: no target."""
        if self.least is None and self.most is None:
            return None
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in (None, "")} | (
            {} if self.met is None else {"met": self.met}
        )


def ratio(name: str, ours: float, theirs: float, *, least: float, note: str = "") -> Figure:
    """Ours divided by theirs, both rates of the same thing."""
    return Figure(name, round(ours / theirs, 3), "x", least=least, note=note)


def print_table(figures: Iterable[Figure]) -> None:
    """One line a figure, for people."""
    for figure in figures:
        value = f"{figure.value:,.0f}" if abs(figure.value) >= 1000 else f"{figure.value:,.3g}"
        target = ""
        if figure.met is not None:
            sign, limit = (">=", figure.least) if figure.least is not None else ("<=", figure.most)
            target = f"{sign} {limit:,g} {'met' if figure.met else 'MISSED'}"
        print(f"{figure.name:<66} {value:>11} {figure.unit:<18} {target:<18} {figure.note}".rstrip(), flush=True)


# -- CPU ---------------------------------------------------------------------------------------------------------


def cpu_s() -> float:
    """User and system seconds of this process so far, all threads."""
    return time.process_time()


def whole_cpu_s() -> float:
    """The same from the birth of the process, imports included, and of children that have ended."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return total


def family_cpu_s(process: psutil.Process | None = None) -> float:
    """CPU-seconds of a process and its living descendants (the decoder child does work of ours)."""
    process = process or psutil.Process()
    total = 0.0
    for member in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            used = member.cpu_times()
            total += used.user + used.system
    return total


# -- peers in processes of their own -----------------------------------------------------------------------------


def pin() -> None:
    """Keep this process and its children on one processor, where the system can.

    Two busy threads on the two halves of one core take longer CPU-seconds for the same work: a peer that uses one
    thread would be flattered beside one that uses several.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def run_peer(module: str, arguments: Sequence[object]) -> dict[str, Any]:
    """Run `python -m tests.benchmarks.<module> --peer ARGUMENTS...`; gives back the JSON it prints last."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", "--peer", *map(str, arguments)]
    with tempfile.TemporaryDirectory(prefix="sensorium-bench-") as place:  # a Faust app leaves a folder where it runs
        environment = peer_environment() | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(map(str, arguments))} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def peer_environment() -> dict[str, str]:
    """One thread for BLAS, as the command has it, and no settings but those that the benchmark makes."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SENSORIUM_")}
    for name in ("SENSORIUM_CACHE", "SENSORIUM_MAVEN"):
        if name in os.environ:
            ours[name] = os.environ[name]
    return ours | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


# -- a Kafka for a benchmark -------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def kafka() -> AsyncIterator[tuple[Broker, Path]]:
    """The embedded Kafka with a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="sensorium-bench-") as folder:
        async with Broker(Path(folder)) as broker:
            yield broker, Path(folder)


def settings_in(folder: Path, bootstrap: str, prefix: str | None = None, **more: Any) -> Settings:
    """Settings of one run: topics, group, state and store of its own."""
    prefix = f"b{uuid.uuid4().hex[:8]}." if prefix is None else prefix
    return load_settings(state=folder / (prefix + "state"), kafka=bootstrap, topic_prefix=prefix, **more)


async def made_topics(settings: Settings) -> None:
    assert settings.kafka is not None
    await create_topics(settings, settings.kafka)


async def in_thread(work: Any, *arguments: Any, **options: Any) -> Any:
    return await asyncio.to_thread(work, *arguments, **options)
