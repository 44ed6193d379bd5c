"""The window operator alone: readings per CPU-second, beside a bare dict of lists that only groups by window.

Every case runs in this process on the same events, already decoded. Arrival is shuffled within the disorder bound and
5 % of the events come twice, unless the case says otherwise. `ratio` is to the bare windower on the same input.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence

from streams.events.types import Reading
from streams.kafka.ledger import OffsetLedger
from streams.windows.operator import PartitionWindows
from streams.windows.types import Fired, Late, PaneFinal, Record, WindowConfig

SIZE_MS = 10_000
DISORDER_MS = 2_000
T0_MS = 1_700_000_000_000


def make_records(
    keys: int, rate_hz: int, total: int, *, duplicates: float = 0.05, shuffle: bool = True, late: float = 0.0
) -> list[Record]:
    """`total` readings of `keys` streams, in order of arrival; repeats come on top.

    `late`: the share of them that comes up to a minute too late: about half still revise their window.
    """
    rng = random.Random(7)
    step_ms = 1000 // rate_hz
    arrivals: list[tuple[float, str, Reading]] = []
    for i in range(total):
        tick, key = divmod(i, keys)
        time_ms = T0_MS + tick * step_ms + key * step_ms // keys
        reading = Reading(time_ms, {"pressure": rng.random(), "temperature": rng.random()})
        # nothing is overtaken by anything that is newer by the bound or more
        at = time_ms + (rng.random() * (DISORDER_MS - 1) if shuffle else 0.0)
        if late and rng.random() < late:
            at += DISORDER_MS + rng.random() * 60_000
        arrivals.append((at, f"pump-{key}", reading))
        if rng.random() < duplicates:
            repeat = Reading(time_ms, dict(reading.values))
            arrivals.append((time_ms + rng.random() * (DISORDER_MS - 1), f"pump-{key}", repeat))
    arrivals.sort(key=lambda arrival: arrival[0])
    return [Record(offset, name, event) for offset, (_, name, event) in enumerate(arrivals)]


def batches_of(records: Sequence[Record], size: int) -> list[Sequence[Record]]:
    return [records[i : i + size] for i in range(0, len(records), size)]


def run_operator(batches: Sequence[Sequence[Record]], *, size_ms: int, hop_ms: int, ledger: bool) -> dict[str, int]:
    """Push everything, close everything, and count what came out: the figures prove that the work was done."""
    config = WindowConfig(size_ms=size_ms, hop_ms=hop_ms, disorder_ms=(DISORDER_MS,) * 3)
    windows = PartitionWindows(config)
    offsets = OffsetLedger()
    offsets.begin("readings-0", 1)
    fired = finished = late = 0
    counted: dict[tuple[str, int], tuple[int, int]] = {}  # the last firing of a window says how many it is home of

    def take() -> None:
        nonlocal fired, finished, late
        windows.tick(0, (0, 0, 0))
        for output in windows.advance():
            if type(output) is Fired:
                fired += 1
                counted[output.stream, output.start_ms] = (output.home_events[0], output.duplicates)
            elif type(output) is PaneFinal:
                finished += len(output.offsets[0])
                if ledger:
                    offsets.release("readings-0", 1, output.offsets[0])
            elif type(output) is Late:
                late += 1
                if ledger:
                    offsets.release("readings-0", 1, (output.record.offset,))

    for batch in batches:
        if ledger:
            offsets.track("readings-0", 1, [record.offset for record in batch])
        windows.push(0, batch)
        take()
        if ledger:
            offsets.committable("readings-0")
    windows.tick(10**9, (10**9, 10**9, 10**9))
    take()  # the idle clock stays where it is
    if ledger:
        assert offsets.committable("readings-0") == finished + late
    events, repeats = (sum(column) for column in zip(*counted.values(), strict=True))
    return {"fired": fired, "events": events, "repeats": repeats, "finished": finished, "late": late}


def run_bare(batches: Sequence[Sequence[Record]], size_ms: int) -> int:
    """The least that any windower does: a list per stream and window, handed on once time has passed it."""
    open_windows: dict[tuple[str, int], list[Reading]] = {}
    newest = handed_on = 0
    for batch in batches:
        for record in batch:
            time_ms = record.event.time_ms
            newest = max(newest, time_ms)
            open_windows.setdefault((record.stream, time_ms - time_ms % size_ms), []).append(record.event)  # type: ignore[arg-type]
        past = newest - DISORDER_MS - size_ms
        if len(batch) > 1 or newest % 100 < 2:  # one by one, looking at every window each time would be unfair
            for key in [key for key in open_windows if key[1] <= past]:
                handed_on += len(open_windows.pop(key))
    return handed_on + sum(map(len, open_windows.values()))


def _cpu_s(work: Callable[[], object], repeat: int = 3) -> float:
    """CPU-seconds of the best of a few runs: the machine is shared."""
    best = float("inf")
    for _ in range(repeat):
        gc.collect()
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


HEADLINE = "100 keys, 10 Hz, 1 % late, with the ledger"
CASES: tuple[tuple[str, dict[str, int], dict[str, float], int, bool], ...] = (
    # name, records, kind of arrival, batch, ledger
    ("100 keys, 1 Hz, batches of 256", {"keys": 100, "rate_hz": 1, "total": 200_000}, {}, 256, False),
    ("100 keys, 10 Hz, batches of 256", {"keys": 100, "rate_hz": 10, "total": 200_000}, {}, 256, False),
    ("100 keys, 10 Hz, batches of 500", {"keys": 100, "rate_hz": 10, "total": 200_000}, {}, 500, False),
    ("100 keys, 10 Hz, one by one", {"keys": 100, "rate_hz": 10, "total": 100_000}, {}, 1, False),
    ("100 keys, 10 Hz, in order, no repeats", {"keys": 100, "rate_hz": 10, "total": 200_000}, {"plain": 1}, 256, False),
    ("100 keys, 10 Hz, with the ledger", {"keys": 100, "rate_hz": 10, "total": 200_000}, {}, 256, True),
    (HEADLINE, {"keys": 100, "rate_hz": 10, "total": 200_000}, {"late": 0.01}, 500, True),
    ("1000 keys, 1 Hz, 5 s windows", {"keys": 1000, "rate_hz": 1, "total": 200_000}, {"size_ms": 5_000}, 500, False),
    ("100 keys, 10 Hz, hops of 5 s", {"keys": 100, "rate_hz": 10, "total": 200_000}, {"hop_ms": 5_000}, 256, False),
)


def run() -> dict[str, dict[str, float]]:
    """Readings per CPU-second of every case, the bare windower's, and the ratio of the two."""
    figures: dict[str, dict[str, float]] = {}
    for name, made, kind, batch, ledger in CASES:
        plain = bool(kind.get("plain"))
        late = float(kind.get("late", 0.0))
        records = make_records(**made, duplicates=0.0 if plain else 0.05, shuffle=not plain, late=late)
        size_ms = int(kind.get("size_ms", SIZE_MS))
        hop_ms = int(kind.get("hop_ms", size_ms))
        batches = batches_of(records, batch)
        counts = run_operator(batches, size_ms=size_ms, hop_ms=hop_ms, ledger=ledger)
        lost = len(records) - counts["events"] - counts["repeats"] - counts["late"]
        late_ones = made["total"] - counts["events"]  # of the late ones some are repeats
        if lost or counts["finished"] + counts["late"] != len(records) or not 0 <= late_ones <= counts["late"]:
            raise AssertionError(f"{name}: {counts} does not account for {len(records)} records")
        if bool(late) != bool(counts["late"]):
            raise AssertionError(f"{name}: {counts['late']} late events")

        def work(b: list[Sequence[Record]] = batches, s: int = size_ms, h: int = hop_ms, k: bool = ledger) -> object:
            return run_operator(b, size_ms=s, hop_ms=h, ledger=k)

        def bare_work(b: list[Sequence[Record]] = batches, s: int = size_ms) -> object:
            return run_bare(b, s)

        operator, bare = len(records) / _cpu_s(work), len(records) / _cpu_s(bare_work)
        figures[name] = {
            "readings_per_cpu_s": round(operator),
            "bare_per_cpu_s": round(bare),
            "ratio": round(operator / bare, 3),
            "windows": counts["fired"],
            "late": counts["late"],
        }
    return figures


if __name__ == "__main__":
    for case, row in run().items():
        print(f"{case:40}", *(f"{k}={v:,}" for k, v in row.items()))
