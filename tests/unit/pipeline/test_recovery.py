"""What is read back of a stream: what is final, who is a member, where the chain of drift states goes on."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest

from streams.drift import DriftConfig, DriftState
from streams.events.types import Modality
from streams.pipeline.payload import payload_from
from streams.pipeline.recovery import Origin, StateLoader, drift_config
from streams.pipeline.state import PartitionState, StreamState
from streams.settings import Settings
from streams.store.base import Point
from streams.windows.types import Fired, Late, Record, StreamIdle, WindowConfig, window_id
from tests.memory_store import MemoryStore
from tests.unit.drift.support import Watched, observation
from tests.unit.pipeline.payloads import SIZE_MS, window_payload
from tests.unit.windows.support import reading

TOPICS = Origin({Modality.SENSOR: "readings-1", Modality.AUDIO: "clips-1", Modality.CAPTION: "captions-1"})
STATE = DriftState(windows=7).to_payload()


def unit(seed: int) -> Any:
    vector = np.random.default_rng(seed).standard_normal(256).astype(np.float32)
    return vector / np.linalg.norm(vector)


def point(start: int, *offsets: int, final_before: int | None, drift: str | None = None, **changes: Any) -> Point:
    payload = window_payload(start, *offsets, final_before=final_before, drift=drift, **changes)
    id = window_id(payload.stream, start, SIZE_MS, "m")
    return Point(id, {"joint": unit(start + 1)}, payload.to_dict())


class CountingStore(MemoryStore):
    """Counts the requests."""

    def __init__(self) -> None:
        super().__init__()
        self.gets = 0

    async def get(self, ids: Any, *, vectors: bool = False) -> list[Point]:
        self.gets += 1
        return await super().get(ids, vectors=vectors)


class Past:
    """A store, and a partition that reads from these offsets on."""

    def __init__(self, resume: tuple[int, int, int] = (0, 0, 0)) -> None:
        self.store = CountingStore()
        self.loader = StateLoader(self.store, DriftConfig(), model="m", size_ms=SIZE_MS, origin=TOPICS)
        self.partition = PartitionState(0, 1, WindowConfig(), resume)

    async def restore(self, *starts: int) -> StreamState:
        await self.loader.restore(self.partition, {"pump": set(starts)})
        return self.partition.streams["pump"]

    def outputs(self, *records: Record) -> list[Any]:
        """Of records whose stream and panes are restored, once the stream has been quiet for long."""
        assert self.partition.operator.push(0, list(records)) == []
        self.partition.operator.tick(10**7, (10**7, 10**7, 10**7))
        return self.partition.operator.advance()


# -- what is final ------------------------------------------------------------------------------------------------


async def test_a_stream_that_the_store_does_not_know_begins_anew() -> None:
    p = Past()
    stream = await p.restore(0)
    assert p.partition.operator.is_restored("pump")
    assert (stream.last_scored, stream.final_before_ms, stream.newest_start_ms) == (None, None, None)
    await p.loader.load_detectors({"pump": stream})
    assert stream.detector is not None
    assert (stream.detector.state.windows, stream.detector.state.reason) == (0, None)


async def test_the_last_stored_window_says_what_is_final() -> None:
    p = Past()
    first = point(0, 1, final_before=None, drift=STATE)
    await p.store.upsert([first, point(SIZE_MS, 2, final_before=SIZE_MS, drift=STATE)])
    stream = await p.restore(2 * SIZE_MS)
    assert stream.final_before_ms == SIZE_MS
    assert stream.last_scored == payload_from(first.payload)
    assert stream.last_start_ms == 0
    assert stream.newest_start_ms == SIZE_MS


async def test_released_records_say_more_than_the_last_window_could() -> None:
    p = Past(resume=(3, 0, 0))
    await p.store.upsert([point(0, 1, final_before=None, drift=STATE), point(SIZE_MS, 2, final_before=0, drift=STATE)])
    stream = await p.restore(2 * SIZE_MS)
    assert stream.final_before_ms == 2 * SIZE_MS
    assert stream.last_start_ms == SIZE_MS


async def test_windows_scored_out_of_order_carry_no_state_and_are_passed_over() -> None:
    p = Past(resume=(9, 0, 0))
    late = [point(n * SIZE_MS, n, final_before=None, drift=None) for n in (2, 3)]
    first = point(0, 0, final_before=None)
    await p.store.upsert([first, point(SIZE_MS, 1, final_before=None, drift=STATE), *late])
    stream = await p.restore(4 * SIZE_MS)
    assert stream.final_before_ms == 4 * SIZE_MS
    assert stream.last_start_ms == SIZE_MS


async def test_where_nothing_is_final_everything_is_rebuilt_and_recognised() -> None:
    p = Past()
    await p.store.upsert([point(0, 5, final_before=None, drift=STATE)])
    stream = await p.restore(0)
    assert stream.last_scored is None
    outputs = p.outputs(Record(5, "pump", reading(1_000)), Record(6, "pump", reading(15_000)))
    fired = [output for output in outputs if isinstance(output, Fired)]
    assert [f.stored.content_hash if f.stored else None for f in fired] == ["hash-0", None]


async def test_old_panes_are_looked_up_one_by_one() -> None:
    p = Past(resume=(9, 0, 0))
    await p.store.upsert([point(0, 0, 1, final_before=None), point(5 * SIZE_MS, 5, final_before=4 * SIZE_MS)])
    await p.restore(0, SIZE_MS)
    records = [Record(1, "pump", reading(1_000)), Record(2, "pump", reading(1_500)), Record(3, "pump", reading(11_000))]
    kinds = [type(output).__name__ for output in p.outputs(*records)]
    assert kinds == ["PaneFinal", "Late", "Late"]


# -- other records ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [{"sensor": "readings-0/0"}, {"sensor": "readings-1/3"}, "a cluster id"])
async def test_a_window_of_other_records_is_final_and_nothing_replaces_it(origin: Any) -> None:
    """Its offsets say nothing about the records read here, and it cannot be built again from them."""
    p = Past()
    await p.store.upsert([point(0, 1, final_before=None, drift=STATE, origin=origin)])
    stream = await p.restore(0)
    assert stream.final_before_ms == SIZE_MS
    assert stream.last_start_ms == 0
    outputs = p.outputs(Record(1, "pump", reading(1_000)), Record(2, "pump", reading(15_000)))
    assert isinstance(outputs[0], Late)
    assert [output.start_ms for output in outputs if isinstance(output, Fired)] == [SIZE_MS]


def test_an_origin_names_topic_and_partition_of_each_modality() -> None:
    assert TOPICS.of(2) == {"sensor": "readings-1/2", "audio": "clips-1/2", "caption": "captions-1/2"}


# -- streams that are silent --------------------------------------------------------------------------------------


async def test_the_usual_interval_survives_a_restart() -> None:
    """A meter that sends once a minute is quiet for 59 seconds, and that is not silence."""
    p = Past(resume=(1, 0, 0))
    await p.store.upsert([point(0, 0, final_before=None, drift=STATE, interval=60_000)])
    await p.restore(6 * SIZE_MS)
    assert p.partition.operator.push(0, [Record(1, "pump", reading(61_000))]) == []
    p.partition.operator.tick(59_000, (59_000, 59_000, 59_000))
    assert p.partition.operator.advance() == []


async def test_a_stream_that_was_reported_as_silent_is_not_reported_again_and_resumes() -> None:
    p = Past(resume=(1, 0, 0))
    await p.store.upsert([point(0, 0, final_before=None, drift=STATE, silent=9_000)])
    await p.restore(6 * SIZE_MS)
    outputs = p.outputs(Record(1, "pump", reading(61_000)))
    assert [output.active for output in outputs if isinstance(output, StreamIdle)] == [True, False]


# -- detectors ----------------------------------------------------------------------------------------------------


async def test_streams_are_restored_side_by_side_and_each_once() -> None:
    p = Past()
    await p.loader.restore(p.partition, {f"pump-{n}": {0} for n in range(50)})
    assert all(p.partition.operator.is_restored(f"pump-{n}") for n in range(50))


async def test_a_detector_goes_on_as_if_it_had_never_been_away() -> None:
    p, w = Past(resume=(40, 0, 0)), Watched()
    fresh = StreamState()
    await p.loader.load_detectors({"pump": fresh})
    assert fresh.detector is not None
    w.detector = fresh.detector
    for i in range(40):
        w.see(observation(i, unit(i % 3)))
        drift = w.detector.state.to_payload()
        stored = point(i * SIZE_MS, i, final_before=None, drift=drift)
        await p.store.upsert([Point(stored.id, dict(w.store[i * SIZE_MS]), stored.payload)])
    stream = await p.restore(40 * SIZE_MS)
    await p.loader.load_detectors({"pump": stream})
    assert stream.detector is not None
    window = observation(40, unit(9))
    assert stream.detector.observe(window) == w.detector.observe(window)
    assert stream.detector.state == w.detector.state


async def test_the_detectors_of_a_batch_take_one_request() -> None:
    p = Past(resume=(100, 0, 0))
    streams = [f"pump-{n}" for n in range(20)]
    for name in streams:
        w = Watched()
        for i in range(3):
            w.see(observation(i, unit(i)))
            stored = point(i * SIZE_MS, i, final_before=None, drift=w.detector.state.to_payload(), stream=name)
            await p.store.upsert([Point(stored.id, dict(w.store[i * SIZE_MS]), stored.payload)])
    await p.loader.restore(p.partition, {name: set() for name in streams})
    p.store.gets = 0
    await p.loader.load_detectors(p.partition.streams)
    assert p.store.gets == 1
    states = [stream.detector.state.windows for stream in p.partition.streams.values() if stream.detector]
    assert states == [3] * 20


async def test_windows_of_one_stream_are_not_mixed_with_those_of_another() -> None:
    p = Past(resume=(9, 0, 0))
    await p.store.upsert([point(SIZE_MS, 1, final_before=SIZE_MS, drift=STATE, stream="fan")])
    stream = await p.restore(0)
    assert (stream.final_before_ms, stream.last_scored) == (None, None)


@pytest.mark.parametrize("start", [-SIZE_MS, 0, 10**15])
def test_ids_are_uuids_of_stream_start_size_and_model(start: int) -> None:
    made = Past().loader.window_id("pump", start)
    assert uuid.UUID(made).version == 5
    assert made == window_id("pump", start, SIZE_MS, "m")


def test_the_detectors_numbers_are_those_of_the_settings() -> None:
    settings = Settings()
    config = drift_config(settings)
    assert (config.size_ms, config.hop_ms) == (settings.window.size_ms, settings.window.hop_ms)
    assert config.false_incidents_per_week == settings.drift.false_incidents_per_week
