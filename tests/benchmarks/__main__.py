"""`make bench`: every benchmark in one run, one table, the targets beside the figures.

python -m tests.benchmarks [NAME ...] [--json FILE]

Names: before operator store intake pipeline memory models; none: all of them. Each also runs alone, as
`python -m tests.benchmarks.<name>_bench`. Ends with status 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # as the command does

from tests.benchmarks import before, intake_bench, memory_bench, pipeline_bench, store_bench, windows_bench  # noqa: E402
from tests.benchmarks.measuring import Figure, print_table  # noqa: E402


def operator() -> list[Figure]:
    """The window operator alone; the target is for its case with everything on."""
    figures = []
    for case, row in windows_bench.run().items():
        least = 400_000 if case == windows_bench.HEADLINE else None
        note = f"a bare dict of lists: {row['bare_per_cpu_s']:,}"
        rate = row["readings_per_cpu_s"]
        figures.append(Figure(f"operator: {case}", rate, "readings/CPU-s", least=least, note=note))
    return figures


def models() -> list[Figure]:
    """What windows cost in the models."""
    from tests.benchmarks import models_bench

    return [Figure(f"models: {name}", round(value, 3)) for name, value in models_bench.main().items()]


BENCHMARKS: dict[str, Callable[[], list[Figure]]] = {
    "before": before.run,
    "operator": operator,
    "store": store_bench.run,
    "intake": intake_bench.run,
    "pipeline": pipeline_bench.run,
    "memory": memory_bench.run,
    "models": models,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(BENCHMARKS)}; none: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON as well")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    figures: list[Figure] = []
    for name in arguments.names or BENCHMARKS:
        began = time.monotonic()
        found = BENCHMARKS[name]()
        print_table(found)
        print(f"({name}: {time.monotonic() - began:.0f} s)\n", flush=True)
        figures += found
    if arguments.json is not None:
        machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
        report = {"machine": machine, "figures": [figure.to_json() for figure in figures]}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    missed = [figure for figure in figures if figure.met is False]
    for figure in missed:
        print(f"MISSED {figure.name}: {figure.value:g} {figure.unit}")
    print(f"{sum(figure.met is not None for figure in figures)} targets, {len(missed)} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
