"""What is read back of a stream: what is final, who is a member, where the chain of states goes on."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest

from streams.drift import DriftConfig, DriftState
from streams.pipeline.payload import encode_offsets
from streams.pipeline.recovery import Restorer
from streams.pipeline.state import Partition
from streams.store.base import Point
from streams.windows.types import Record, WindowConfig, window_id
from tests.memory_store import MemoryStore
from tests.unit.drift.support import Watched, observation
from tests.unit.windows.support import reading

SIZE = 10_000


def unit(seed: int) -> Any:
    vector = np.random.default_rng(seed).standard_normal(256).astype(np.float32)
    return vector / np.linalg.norm(vector)


def point(start: int, *offsets: int, sealed: int | None, drift: str | None = None, **payload: Any) -> Point:
    held = {
        "stream": "pump",
        "start": start,
        "end": start + SIZE,
        "revision": 0,
        "hash": f"hash-{start}",
        "model": "m",
        "members": {"sensor": encode_offsets(offsets)},
        "origin": "here",
        "sealed": sealed,
        "drift": drift,
        "incident": None,
        "incident_step": False,
    }
    return Point(window_id("pump", start, SIZE, "m"), {"joint": unit(start)}, held | payload)


class Past:
    def __init__(self, resume: tuple[int, int, int] = (0, 0, 0)) -> None:
        self.store = MemoryStore()
        self.restorer = Restorer(self.store, DriftConfig(), model="m", size_ms=SIZE, origin="here")
        self.partition = Partition(0, 1, WindowConfig(), resume)

    async def restore(self, *starts: int) -> Any:
        await self.restorer.restore(self.partition, {"pump": set(starts)})
        return self.partition.memories["pump"]


STATE = DriftState(windows=7).to_payload()


async def test_a_stream_that_the_store_does_not_know_begins_anew() -> None:
    p = Past()
    memory = await p.restore(0)
    assert p.partition.operator.is_restored("pump")
    assert (memory.chain, memory.sealed_before_ms) == (None, None)
    state = (await p.restorer.detector("pump", memory)).state
    assert (state.windows, state.reason) == (0, None)


async def test_the_last_stored_window_says_what_is_final() -> None:
    p = Past()
    await p.store.upsert([point(0, 1, sealed=None, drift=STATE), point(SIZE, 2, sealed=SIZE, drift=STATE)])
    memory = await p.restore(2 * SIZE)
    assert memory.sealed_before_ms == SIZE
    assert memory.chain["start"] == 0
    assert memory.last_start_ms == 0


async def test_released_records_say_more_than_the_last_window_could() -> None:
    p = Past(resume=(3, 0, 0))
    await p.store.upsert([point(0, 1, sealed=None, drift=STATE), point(SIZE, 2, sealed=0, drift=STATE)])
    memory = await p.restore(2 * SIZE)
    assert memory.sealed_before_ms == 2 * SIZE
    assert memory.chain["start"] == SIZE


async def test_windows_scored_out_of_order_carry_no_state_and_are_passed_over() -> None:
    p = Past(resume=(9, 0, 0))
    late = [point(n * SIZE, n, sealed=None, drift=None) for n in (2, 3)]
    await p.store.upsert([point(0, 0, sealed=None), point(SIZE, 1, sealed=None, drift=STATE), *late])
    memory = await p.restore(4 * SIZE)
    assert memory.sealed_before_ms == 4 * SIZE
    assert memory.chain["start"] == SIZE


async def test_where_nothing_is_final_everything_is_rebuilt_and_recognised() -> None:
    p = Past()
    await p.store.upsert([point(0, 5, sealed=None, drift=STATE)])
    memory = await p.restore(0)
    assert memory.chain is None
    assert p.partition.operator.push(0, [Record(5, "pump", reading(1_000)), Record(6, "pump", reading(15_000))]) == []
    p.partition.operator.tick(0, (False, True, True))
    fired = p.partition.operator.advance()
    assert [f.stored.content_hash for f in fired if f.stored] == ["hash-0"]  # type: ignore[union-attr]


async def test_old_panes_are_looked_up_one_by_one() -> None:
    p = Past(resume=(9, 0, 0))
    await p.store.upsert([point(0, 0, 1, sealed=None), point(5 * SIZE, 5, sealed=4 * SIZE)])
    await p.restore(0, SIZE)
    records = [Record(1, "pump", reading(1_000)), Record(2, "pump", reading(1_500)), Record(3, "pump", reading(11_000))]
    assert p.partition.operator.push(0, records) == []
    kinds = [type(output).__name__ for output in p.partition.operator.advance()]
    assert kinds == ["PaneFinal", "Late", "Late"]


async def test_offsets_of_another_cluster_seal_nothing() -> None:
    p = Past(resume=(9, 0, 0))
    await p.store.upsert([point(0, 1, sealed=None, drift=STATE, origin="there")])
    memory = await p.restore(0)
    assert memory.sealed_before_ms is None


async def test_streams_are_restored_side_by_side_and_each_once() -> None:
    p = Past()
    await p.restorer.restore(p.partition, {f"pump-{n}": {0} for n in range(50)})
    assert all(p.partition.operator.is_restored(f"pump-{n}") for n in range(50))


async def test_a_detector_goes_on_as_if_it_had_never_been_away() -> None:
    p, w = Past(), Watched()
    namer = p.restorer._namer("pump")
    w.detector = p.restorer.new_detector("pump")
    for i in range(40):
        w.see(observation(i, unit(i % 3)))
        drift = w.detector.state.to_payload()
        vectors = dict(w.store[i * SIZE])
        await p.store.upsert([Point(namer(i * SIZE), vectors, point(i * SIZE, i, sealed=None, drift=drift).payload)])
    p.partition = Partition(0, 2, WindowConfig(), (40, 0, 0))
    memory = await p.restore(40 * SIZE)
    restored = await p.restorer.detector("pump", memory)
    window = observation(40, unit(9))
    assert restored.observe(window) == w.detector.observe(window)
    assert restored.state == w.detector.state


@pytest.mark.parametrize("start", [-SIZE, 0, 10**15])
def test_ids_are_uuids_of_stream_start_size_and_model(start: int) -> None:
    made = Past().restorer.window_id("pump", start)
    assert uuid.UUID(made).version == 5
    assert made == window_id("pump", start, SIZE, "m")
