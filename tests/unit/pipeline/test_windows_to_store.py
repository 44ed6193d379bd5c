"""The whole service but Kafka, on the shipped harness: commit order, restarts, late events, bad input."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streams.pipeline.batching import Batcher
from streams.settings import Settings, WindowSettings
from streams.store.base import Filter
from streams.testing import Harness
from streams.windows.types import Fired, PaneFinal
from tests.standin import StandInModel
from tests.unit.pipeline.payloads import fired_window

SENSORS, CAPTIONS = "sensor-readings", "captions"
Window = dict[str, Any]


def harness(folder: Path, **settings: Any) -> Harness:
    return Harness(folder, model=StandInModel(), settings=Settings(state=folder, **settings))


def reading(time_ms: int, **values: float) -> dict[str, Any]:
    return {"time": 1_700_000_000_000 + time_ms, "values": values or {"flow": 3.0 + time_ms % 7 / 10}}


async def stored(h: Harness) -> list[tuple[Any, ...]]:
    """Everything about the stored windows that a replay must reproduce."""
    rows = []
    async for point in h.store.scroll(Filter(), vectors=True):
        p = point.payload
        vectors = {name: np.asarray(v, dtype="<f4").tobytes() for name, v in point.vectors.items()}
        keys = ("stream", "start", "end", "revision", "mask", "events", "score", "status", "incident")
        rows.append((point.id, vectors, tuple(str(p[key]) for key in keys), str(p["drift"])))
    return sorted(rows, key=lambda row: row[0])


async def test_a_window_is_stored_and_published_once_its_streams_clock_has_passed(tmp_path: Path) -> None:
    async with harness(tmp_path) as h:
        for second in range(0, 30):
            await h.push(SENSORS, "pump", reading(second * 1000))
        # the stream's own clock has passed their ends by the disorder bound
        assert [w.start_ms - 1_700_000_000_000 for w in h.windows()] == [0, 10_000]
        await h.advance(11_000)
        assert [(w.start_ms - 1_700_000_000_000, w.events) for w in h.windows()] == [
            (0, {"sensor": 10}),
            (10_000, {"sensor": 10}),
            (20_000, {"sensor": 10}),
        ]


async def test_nothing_is_committed_before_its_window_is_final_and_everything_after(tmp_path: Path) -> None:
    async with harness(tmp_path) as h:
        for second in range(0, 25):
            await h.push(SENSORS, "pump", reading(second * 1000))
        await h.advance(11_000)
        assert h.windows()
        assert h.commit() == {}
        await h.advance(60_000)
        assert h.commit()[SENSORS, 0] == 25


async def test_a_late_event_revises_its_window_and_a_later_one_goes_aside(tmp_path: Path) -> None:
    async with harness(tmp_path) as h:
        for second in range(0, 25):
            await h.push(SENSORS, "pump", reading(second * 1000))
        await h.advance(11_000)
        await h.push(SENSORS, "pump", reading(5_500))
        await h.advance(11_000)
        first = h.windows()[0]
        assert (first.revision, first.events) == (1, {"sensor": 11})
        for second in range(25, 90):
            await h.push(SENSORS, "pump", reading(second * 1000))
        await h.advance(11_000)
        late = reading(6_500)
        await h.push(SENSORS, "pump", late)
        assert len(h.late()) == 1
        await h.advance(100_000)
        assert h.commit()[SENSORS, 0] == 92


async def test_repeats_are_counted_and_change_nothing(tmp_path: Path) -> None:
    async with harness(tmp_path) as h:
        for second in range(0, 25):
            await h.push(SENSORS, "pump", reading(second * 1000))
            if second % 5 == 0:
                await h.push(SENSORS, "pump", reading(second * 1000))
        await h.advance(11_000)
        await h.push(SENSORS, "pump", reading(3_000))  # after the window has fired
        await h.advance(11_000)
        counts = [(w.events["sensor"], w.duplicates, w.revision) for w in h.windows()]
        assert counts == [(10, 3, 0), (10, 2, 0), (5, 1, 0)]


async def test_bad_input_is_a_dead_letter_and_harms_nothing(tmp_path: Path) -> None:
    async with harness(tmp_path) as h:
        await h.push(SENSORS, "pump", b"not json")
        await h.push(SENSORS, None, reading(0))
        await h.push(SENSORS, "pump", reading(0))
        await h.advance(60_000)
        assert len(h.dead()) == 2
        assert h.dead()[0].value == b"not json"
        assert [w.events for w in h.windows()] == [{"sensor": 1}]
        assert h.commit()[SENSORS, 0] == 3


async def test_a_window_that_cannot_be_embedded_harms_no_other(tmp_path: Path) -> None:
    model = StandInModel(poison="poison")
    async with Harness(tmp_path, model=model) as h:
        await h.push(CAPTIONS, "pump", {"time": 1_700_000_000_000, "text": "poison"}, settle=False)
        await h.push(CAPTIONS, "fan", {"time": 1_700_000_000_000, "text": "all quiet"}, settle=False)
        await h.settle()
        await h.advance(60_000)
        assert [w.stream for w in h.windows()] == ["fan"]
        assert len(h.dead()) == 1
        assert h.commit()[CAPTIONS, 0] == 2


def plant(seconds: int, seed: int) -> list[tuple[str, str, dict[str, Any]]]:
    """Three streams, one of which goes wrong; in event-time order."""
    rng = random.Random(seed)
    events = []
    for second in range(seconds):
        for number in range(3):
            level = 30.0 if number == 1 and second > seconds * 0.7 else 3.0
            time_ms = second * 1000 + number * 37
            events.append((time_ms, SENSORS, f"pump-{number}", reading(time_ms, flow=level + rng.gauss(0, 0.2))))
            if second % 20 == number:
                text = {"time": 1_700_000_000_000 + time_ms, "text": f"all quiet at {number}"}
                events.append((time_ms, CAPTIONS, f"pump-{number}", text))
    events.sort(key=lambda event: event[0])
    return [event[1:] for event in events]


async def play(
    h: Harness, events: list[tuple[str, str, dict[str, Any]]], rng: random.Random, crashes: int, commits: int
) -> None:
    crash_at = set(rng.sample(range(len(events)), crashes))
    commit_at = set(rng.sample(range(len(events)), commits))
    for i, (topic, key, value) in enumerate(events):
        await h.push(topic, key, value, settle=i % 50 == 49)
        if i in commit_at:
            h.commit()
        if i in crash_at:
            await (h.crash() if rng.random() < 0.7 else h.rebalance())
    await h.settle()
    await h.advance(100_000)


@pytest.mark.parametrize("seed", range(6))
async def test_crashes_and_rebalances_at_any_moment_change_no_bit_of_the_result(tmp_path: Path, seed: int) -> None:
    events = plant(700, seed=1)
    async with harness(tmp_path / "calm") as h:
        await play(h, events, random.Random(seed), crashes=0, commits=10)
        expected, incidents = await stored(h), [step.id for step in h.incidents()]
        assert len(expected) == 210
    async with harness(tmp_path / "stormy") as h:
        await play(h, events, random.Random(seed), crashes=10, commits=60)
        assert [row[:3] for row in await stored(h)] == [row[:3] for row in expected]
        assert await stored(h) == expected
        assert sorted({step.id for step in h.incidents()}) == sorted(set(incidents))
        assert not h.late()
        assert not h.dead()


async def test_duplicates_and_disorder_within_the_bound_change_no_bit_of_the_result(tmp_path: Path) -> None:
    events = plant(300, seed=2)
    rng = random.Random(5)
    timed = [(event[2]["time"] + rng.randrange(1_900), i, event) for i, event in enumerate(events)]
    timed += [(time + 40, i, event) for time, i, event in timed if rng.random() < 0.05]
    shuffled = [event for _, _, event in sorted(timed, key=lambda t: t[:2])]
    async with harness(tmp_path / "ordered") as h:
        await play(h, events, rng, 0, 5)
        expected = await stored(h)
    async with harness(tmp_path / "shuffled") as h:
        await play(h, shuffled, rng, crashes=5, commits=40)
        assert await stored(h) == expected
        assert sum(w.duplicates for w in h.windows()) == len(shuffled) - len(events)


async def test_hopping_windows_survive_crashes_too(tmp_path: Path) -> None:
    events = plant(200, seed=3)
    hopping = WindowSettings(size_ms=20_000, hop_ms=5_000)
    async with harness(tmp_path / "calm", window=hopping) as h:
        await play(h, events, random.Random(1), 0, 10)
        expected = await stored(h)
        assert sum(sum(w.events.values()) for w in h.windows()) == len(events)
    async with harness(tmp_path / "stormy", window=hopping) as h:
        await play(h, events, random.Random(1), 8, 40)
        assert await stored(h) == expected


async def test_a_pipeline_that_is_cancelled_just_as_a_window_arrives_ends() -> None:
    queue: asyncio.Queue[Any] = asyncio.Queue()
    batcher = Batcher(queue, batch_windows=24, batch_wait_ms=60_000)
    gathering = asyncio.create_task(batcher.gather())
    queue.put_nowait((None, "an output"))
    async with asyncio.timeout(10):
        while not batcher.taken:  # then it waits for more
            await asyncio.sleep(0)
    queue.put_nowait((None, "another"))
    gathering.cancel()
    done, _ = await asyncio.wait({gathering}, timeout=10)
    assert done
    assert gathering.cancelled()


async def test_a_batch_is_what_fits_or_what_came_in_time() -> None:
    queue: asyncio.Queue[Any] = asyncio.Queue()
    batcher = Batcher(queue, batch_windows=3, batch_wait_ms=0)
    for n in range(7):
        queue.put_nowait((None, fired_window(n * 10_000, {n: 1.0})))
        queue.put_nowait((None, PaneFinal("pump", n * 10_000, ((n,), (), ()))))
    sizes, items = [], []
    while not queue.empty():
        batch = await batcher.gather()
        sizes.append(sum(isinstance(output, Fired) for _, output in batch))
        items += batch
    assert sizes == [3, 3, 1]
    assert [type(output).__name__ for _, output in items] == ["Fired", "PaneFinal"] * 7
    assert batcher.taken == 14
