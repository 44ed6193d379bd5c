"""This build beside the one that issue 10 began with: the same functions of `either_build`, taking turns, in one run.

python -m tests.benchmarks.before

The earlier build comes out of this repository's history, into a folder under `.cache/bench`. Every measurement is a
process of its own; figures are medians of three (20,000 streams: one run). Where the history lacks that commit, rows
have no target.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.measuring import ROOT, Figure, peer_environment, print_table

COMMIT = "603520f"
ROUNDS = 3
_SCRIPT = Path(__file__).with_name("either_build.py")


@dataclass(frozen=True, slots=True)
class Case:
    """A measured function of `either_build` with its load; `least`: of ours to the earlier build's."""

    name: str
    function: str
    load: Mapping[str, int]
    unit: str
    least: float


CASES = (
    Case(
        "operator, 10,000 streams at 1 Hz",
        "operator",
        {"streams": 10_000, "rate_hz": 1, "seconds": 40},
        "readings/CPU-s",
        1.5,
    ),
    Case(
        "operator, 100 streams at 10 Hz",
        "operator",
        {"streams": 100, "rate_hz": 10, "seconds": 300},
        "readings/CPU-s",
        0.95,
    ),
    Case(
        "operator, 100 streams at 10 Hz, hops of 5 s",
        "operator",
        {"streams": 100, "rate_hz": 10, "seconds": 300, "hop_ms": 5_000},
        "readings/CPU-s",
        0.95,
    ),
    Case(
        "decoding and windowing, 100 streams at 10 Hz",
        "ingest",
        {"streams": 100, "rate_hz": 10, "seconds": 200},
        "readings/CPU-s",
        0.95,
    ),
    Case("listing 2,000 streams", "listing", {"streams": 2_000, "windows": 5}, "streams/CPU-s", 0.95),
    Case("newest window of a stream of 1,000", "newest", {"streams": 4, "windows": 1_000}, "windows/CPU-s", 0.95),
)

# Both builds at 500 streams and at 3,000, which is past the 1,024 detectors that the earlier one keeps in memory; this
# one at 20,000 as well, fewer windows of each, or `make bench` would take an hour. All have a past of 26 windows: two
# more than it takes to be scored, so that the banks are there.
FEW = {"streams": 500, "stored": 26, "windows": 12}
MANY = {"streams": 3_000, "stored": 26, "windows": 2}
MOST = {"streams": 20_000, "stored": 26, "windows": 1}
LEAST_OF_FEW = 0.7


def earlier_build(commit: str = COMMIT) -> Path | None:
    """The folder of an earlier build; None where the history (a shallow clone, a source archive) lacks it."""
    folder = ROOT / ".cache" / "bench" / commit
    if folder.is_dir():
        return folder
    git = shutil.which("git")
    if git is None:
        return None
    archive = subprocess.run([git, "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        return None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(Path(place) / commit, filter="data")
        os.replace(Path(place) / commit, folder)
    return folder


def rate(build: Path, function: str, load: Mapping[str, int]) -> float:
    """How much of a case's work one CPU-second of a build does."""
    command = [sys.executable, "-P", str(_SCRIPT), function, *(f"{name}={value}" for name, value in load.items())]
    with tempfile.TemporaryDirectory(prefix="sensorium-bench-") as place:
        environment = peer_environment() | {"PYTHONPATH": str(build)}
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{function} of {build} failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["build"]) == build, f"{found['build']} was measured in the place of {build}"
    return float(found["count"]) / float(found["cpu_s"])


def medians(
    function: str, loads: Mapping[str, Mapping[str, int]], builds: Mapping[str, Path], rounds: int
) -> dict[tuple[str, str], float]:
    """The rate of every load in every build, by their names; builds and loads take turns."""
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for load in loads:
            for build in builds:
                found.setdefault((load, build), []).append(rate(builds[build], function, loads[load]))
    return {key: statistics.median(rates) for key, rates in found.items()}


def beside(case: Case, earlier: Path | None, rounds: int = ROUNDS) -> Figure:
    """One case in both builds, as a ratio; in this one alone where there is no other."""
    builds = {"ours": ROOT} | ({} if earlier is None else {"before": earlier})
    found = medians(case.function, {"": case.load}, builds, rounds)
    name = f"before: {case.name}"
    if earlier is None:
        return Figure(name, round(found["", "ours"]), case.unit, note=_absent())
    ours, before = found["", "ours"], found["", "before"]
    note = f"ours {ours:,.0f}, before {before:,.0f} {case.unit}"
    return Figure(name, round(ours / before, 3), "x", least=case.least, note=note)


def detectors(earlier: Path | None, rounds: int = ROUNDS) -> list[Figure]:
    """Windows per CPU-second with many streams in turn to that with few, in this build and in the earlier one."""
    ours = medians("detectors", {"few": FEW, "many": MANY}, {"ours": ROOT}, rounds)
    ours |= medians("detectors", {"most": MOST}, {"ours": ROOT}, 1)  # one round: it takes minutes
    before = None if earlier is None else medians("detectors", {"few": FEW, "many": MANY}, {"before": earlier}, rounds)
    few = ours["few", "ours"]
    figures = []
    for load, streams in (("many", MANY["streams"]), ("most", MOST["streams"])):
        share = ours[load, "ours"] / few
        note = f"ours {ours[load, 'ours']:,.0f} to {few:,.0f} windows/CPU-s"
        if before is None:
            note += f"; {_absent()}"
        elif (load, "before") in before:
            was = before[load, "before"], before["few", "before"]
            note += f"; before {was[0]:,.0f} to {was[1]:,.0f}, a ratio of {was[0] / was[1]:.2f}"
        name = f"before: detectors, {streams:,} streams to {FEW['streams']}"
        figures.append(Figure(name, round(share, 3), "x", least=LEAST_OF_FEW, note=note))
    if before is not None:
        note = f"ours {few:,.0f}, before {before['few', 'before']:,.0f} windows/CPU-s"
        name = f"before: whole pipeline, {FEW['streams']} streams"
        figures.append(Figure(name, round(few / before["few", "before"], 3), "x", least=0.95, note=note))
    return figures


def _absent() -> str:
    return f"{COMMIT} is not in this repository's history: nothing to compare with"


def run(rounds: int = ROUNDS) -> list[Figure]:
    """Every case, in both builds."""
    earlier = earlier_build()
    return [*(beside(case, earlier, rounds) for case in CASES), *detectors(earlier, rounds)]


if __name__ == "__main__":
    print_table(run(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS))
