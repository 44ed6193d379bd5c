"""What becomes of a fired window: new, revised, recounted, known, kept or failed; and what is published of it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import structlog

from models.interface import WindowInput, WindowModel, WindowVectors
from streams.drift import DriftConfig
from streams.events.types import Modality, Reading
from streams.kafka.ledger import OffsetLedger
from streams.metrics import Metrics
from streams.pipeline.commit import Committer
from streams.pipeline.payload import WindowPayload, decode_offsets, payload_from, stored_window
from streams.pipeline.recovery import Origin, StateLoader
from streams.pipeline.scoring import Scorer, Work
from streams.pipeline.state import PartitionState, StreamState
from streams.store.base import Filter
from streams.windows.types import Fired, StreamIdle, WindowConfig
from tests.memory_store import MemoryStore
from tests.standin import StandInModel
from tests.unit.pipeline.payloads import SIZE_MS, fired_window

TOPICS = Origin({m: f"{m.value}-1" for m in Modality})
CALM, ODD = "routine check done", "zebra umbrella quantum"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


class RecordedPublisher:
    """Notes what is published."""

    def __init__(self) -> None:
        self.windows: list[tuple[int, int]] = []  # start, revision
        self.steps: list[tuple[str, bool, bool]] = []  # kind, late, published before
        self.failures: list[str] = []

    async def window(self, id: str, payload: WindowPayload) -> None:
        self.windows.append((payload.start, payload.revision))

    async def incidents(self, steps: Sequence[Mapping[str, Any]], *, again: bool) -> None:
        self.steps += [(step["kind"], step.get("late", False), again) for step in steps]

    async def idle(self, output: StreamIdle) -> None: ...

    async def failure(self, id: str, window: Fired, partition: int, detail: str) -> None:
        self.failures.append(detail)


class Scoring:
    """A scorer and what commits its batches, over a store that survives `restart`."""

    def __init__(self, model: WindowModel | None = None, *, detector_bytes: int = 1 << 30) -> None:
        self.model = model or StandInModel()
        self.store, self.publisher = MemoryStore(), RecordedPublisher()
        self.detector_bytes = detector_bytes
        self.restart()

    def restart(self) -> None:
        """Everything in memory is gone."""
        self.metrics = Metrics()
        self.loader = StateLoader(self.store, DriftConfig(), model=self.model.version, size_ms=SIZE_MS, origin=TOPICS)
        self.scorer = Scorer(
            model=self.model,
            loader=self.loader,
            metrics=self.metrics,
            origin=TOPICS,
            detector_bytes=self.detector_bytes,
        )
        self.committer = Committer(
            store=self.store,
            loader=self.loader,
            publisher=self.publisher,
            ledger=OffsetLedger(),
            metrics=self.metrics,
        )
        self.partition = PartitionState(0, 1, WindowConfig(), (0, 0, 0))

    async def work(self, *windows: Fired) -> list[Work]:
        """Score and commit a batch."""
        batch = await self.scorer.score([(self.partition, window) for window in windows])
        await self.committer.commit(batch)
        return [batch.works[i] for i in sorted(batch.works)]

    async def run(self, windows: Sequence[Fired], batch: int = 8) -> None:
        for start in range(0, len(windows), batch):
            await self.work(*windows[start : start + batch])

    async def stored(self, stream: str = "pump") -> dict[int, WindowPayload]:
        found = [payload_from(point.payload) async for point in self.store.scroll(Filter(stream=stream))]
        return {payload.start: payload for payload in found}

    async def again(self, window: Fired) -> Fired:
        """The same window, fired by an operator that has looked it up in the store."""
        window.stored = stored_window((await self.stored(window.stream))[window.start_ms], TOPICS.of(0))
        return window


def window(n: int, value: float = 1.0, *, readings: int = 5, notes: Sequence[str] = (), **changes: Any) -> Fired:
    """The window number `n`; its readings have the offsets from 10 n on."""
    values = {10 * n + k: value + 0.1 * (k % 3) for k in range(readings)}
    return fired_window(n * SIZE_MS, values, notes=notes, **changes)


def levels(count: int, *, fault_at: int | None = None) -> list[Fired]:
    """A stream that varies a little, and jumps for good where a fault is named."""
    rng = random.Random(1)
    return [window(n, (30.0 if fault_at is not None and n >= fault_at else 1.0) + rng.random()) for n in range(count)]


# -- new ------------------------------------------------------------------------------------------------------------


async def test_a_new_window_is_embedded_scored_stored_and_published() -> None:
    s = Scoring()
    (work,) = await s.work(window(0))
    assert (work.outcome, work.payload is not None and work.payload.revision) == ("new", 0)
    payload = (await s.stored())[0]
    assert payload.drift is not None
    assert (payload.hash, payload.events, payload.status) == (window(0).content_hash(), {"sensor": 5}, "warming")
    assert s.publisher.windows == [(0, 0)]


@pytest.mark.parametrize("size", [1, 7, 60])
async def test_scores_do_not_depend_on_the_batches(size: int) -> None:
    one_by_one, batched = Scoring(), Scoring()
    await one_by_one.run(levels(60, fault_at=50), 1)
    await batched.run(levels(60, fault_at=50), size)
    assert await batched.stored() == await one_by_one.stored()
    assert batched.publisher.steps == one_by_one.publisher.steps
    assert ("opened", False, False) in batched.publisher.steps


async def test_streams_of_a_batch_have_nothing_to_do_with_each_other() -> None:
    alone, together = Scoring(), Scoring()
    await alone.run(levels(60, fault_at=50))
    others = [[window(n, 100.0 * k, stream=f"fan-{k}") for k in range(3)] for n in range(60)]
    for pump, fans in zip(levels(60, fault_at=50), others, strict=True):
        await together.work(fans[0], pump, *fans[1:])
    assert await together.stored() == await alone.stored()


async def test_detectors_that_were_let_go_go_on_where_they_were() -> None:
    roomy, narrow = Scoring(), Scoring(detector_bytes=1)
    for s in (roomy, narrow):
        for n in range(20):
            for k in range(20):
                await s.work(window(n, k + 0.1 * (n % 4), stream=f"pump-{k}"))
    for k in range(20):
        assert await narrow.stored(f"pump-{k}") == await roomy.stored(f"pump-{k}")
    held = [stream.detector is not None for stream in narrow.partition.streams.values()]
    assert held.count(True) < 10  # those of the last batches, which may not be stored yet
    assert all(stream.detector is not None for stream in roomy.partition.streams.values())


# -- known, recounted, kept: after a restart ------------------------------------------------------------------------


async def test_a_window_that_is_stored_as_it_is_keeps_its_score_and_is_not_embedded() -> None:
    model = StandInModel()
    s = Scoring(model)
    await s.run(levels(20))
    before, batches = await s.stored(), len(model.batches)
    s.restart()
    works = await s.work(*[await s.again(one) for one in levels(20)])
    assert [work.outcome for work in works] == ["known"] * 20
    assert len(model.batches) == batches
    assert await s.stored() == before


async def test_after_a_restart_the_chain_of_drift_states_goes_on_from_the_stored_windows() -> None:
    calm, stopped = Scoring(), Scoring()
    await calm.run(levels(60, fault_at=50))
    await stopped.run(levels(60, fault_at=50)[:45])
    stopped.restart()
    again = [await stopped.again(one) for one in levels(60, fault_at=50)[:45]]
    await stopped.run(again + levels(60, fault_at=50)[45:], 11)
    assert await stopped.stored() == await calm.stored()


async def test_repeats_that_came_in_since_change_the_counts_and_nothing_else() -> None:
    s = Scoring()
    await s.run(levels(3))
    before = await s.stored()
    s.restart()
    repeated = await s.again(levels(3)[1])
    repeated.duplicates, repeated.members = 2, (tuple(range(10, 17)), (), ())
    (work,) = await s.work(repeated)
    after = (await s.stored())[SIZE_MS]
    assert work.outcome == "recounted"
    assert (after.duplicates, decode_offsets(after.members["sensor"])) == (2, frozenset(range(10, 17)))
    assert (after.score, after.revision, after.drift) == (
        before[SIZE_MS].score,
        before[SIZE_MS].revision,
        before[SIZE_MS].drift,
    )


async def test_a_window_whose_records_are_gone_is_kept_as_it_was_stored() -> None:
    """F3: the log begins in the middle of a window; what is left of it must not take its place."""
    model = StandInModel()
    s = Scoring(model)
    await s.run(levels(5))
    before, batches = await s.stored(), len(model.batches)
    s.restart()
    part = fired_window(4 * SIZE_MS, {43: 1.0, 44: 1.1})
    (work,) = await s.work(await s.again(part))
    assert work.outcome == "kept"
    assert await s.stored() == before
    assert len(model.batches) == batches


async def test_after_a_window_that_was_kept_the_chain_goes_on() -> None:
    whole, partly = Scoring(), Scoring()
    await whole.run(levels(60, fault_at=50))
    await partly.run(levels(60, fault_at=50)[:45])
    partly.restart()
    part = await partly.again(fired_window(44 * SIZE_MS, {444: 1.1}))
    await partly.work(part, *levels(60, fault_at=50)[45:])
    assert await partly.stored() == await whole.stored()


async def test_a_kept_window_is_published_again_with_its_steps() -> None:
    s = Scoring()
    await s.run(levels(60, fault_at=50))
    opened = next(start for start, payload in (await s.stored()).items() if payload.steps)
    s.restart()
    s.publisher.steps.clear()
    await s.work(await s.again(levels(60, fault_at=50)[opened // SIZE_MS]))
    assert s.publisher.steps == [("opened", False, True)]


# -- revised ------------------------------------------------------------------------------------------------------


async def test_a_late_event_revises_its_window_and_moves_no_other() -> None:
    s = Scoring()
    await s.run(levels(20))
    before = await s.stored()
    joined = levels(20)[18]
    joined.readings[0].values["flow"] = 1.05
    joined.firing = 1
    (work,) = await s.work(joined)
    after = await s.stored()
    assert (work.outcome, after[18 * SIZE_MS].revision) == ("revised", 1)
    assert after[18 * SIZE_MS].hash != before[18 * SIZE_MS].hash
    assert after[18 * SIZE_MS].drift == before[18 * SIZE_MS].drift
    del before[18 * SIZE_MS], after[18 * SIZE_MS]
    assert after == before


def with_another_reading(n: int, *, firing: int = 0) -> Fired:
    """The window number `n` of `levels`, once a late event has joined it."""
    joined = levels(n + 1)[n]
    joined.readings.append(Reading(n * SIZE_MS + 9_000, {"flow": 1.05}))
    joined.members = ((*joined.members[0], 900 + n), (), ())
    joined.firing = firing
    return joined


async def test_what_follows_a_revision_is_the_same_with_and_without_a_restart() -> None:
    """The bank holds what the store holds: the vectors of the revision."""
    went_on, stopped = Scoring(), Scoring()
    for s in (went_on, stopped):
        await s.run(levels(20))
        await s.work(with_another_reading(18, firing=1))
    stopped.restart()
    again = [*levels(20)[:18], with_another_reading(18), levels(20)[19]]
    assert {w.outcome for w in await stopped.work(*[await stopped.again(one) for one in again])} == {"known"}
    for s in (went_on, stopped):
        await s.run(levels(60, fault_at=50)[20:])
    assert await stopped.stored() == await went_on.stored()


async def test_the_chain_goes_on_behind_a_stored_window_that_a_late_event_has_joined_since() -> None:
    went_on, stopped = Scoring(), Scoring()
    await went_on.run(levels(20))
    await went_on.work(with_another_reading(19, firing=1))
    await stopped.run(levels(20))
    stopped.restart()
    await stopped.work(*[await stopped.again(one) for one in levels(20)[:19]])
    (work,) = await stopped.work(await stopped.again(with_another_reading(19)))
    assert work.outcome == "revised"
    for s in (went_on, stopped):
        await s.run(levels(60, fault_at=50)[20:])
    drift = [{start: payload.drift for start, payload in (await s.stored()).items()} for s in (went_on, stopped)]
    assert drift[0] == drift[1]


async def test_a_late_event_that_joined_before_a_restart_revises_the_stored_window_once() -> None:
    s = Scoring()
    await s.run(levels(20))
    s.restart()
    windows = [await s.again(one) for one in levels(20)]
    joined = windows[18]
    joined.readings[0].values["flow"] = 1.05
    joined.members = ((*joined.members[0], 999), (), ())
    works = await s.work(*windows)
    assert [work.outcome for work in works] == ["known"] * 18 + ["revised", "known"]
    assert (await s.stored())[18 * SIZE_MS].revision == 1
    s.restart()
    (work,) = await s.work(await s.again(joined))
    assert (work.outcome, (await s.stored())[18 * SIZE_MS].revision) == ("known", 1)


async def test_a_window_that_fires_twice_in_a_batch_ends_as_its_last_form() -> None:
    s = Scoring()
    second = window(0, 2.0, firing=1)
    works = await s.work(window(0), second, window(1))
    assert [work.outcome for work in works] == ["new", "revised", "new"]
    stored = (await s.stored())[0]
    assert (stored.revision, stored.hash) == (1, second.content_hash())
    assert s.publisher.windows == [(0, 0), (0, 1), (SIZE_MS, 0)]


async def test_a_window_that_late_events_made_fire_again_and_again_is_embedded_in_its_last_form_only() -> None:
    model = StandInModel()
    s = Scoring(model)
    await s.work(window(0))
    embedded = sum(model.batches)
    last = window(0, 5.0, firing=4)
    works = await s.work(*[window(0, 1.0 + n, firing=n) for n in (1, 2, 3)], last, window(1))
    assert [work.outcome for work in works] == ["superseded"] * 3 + ["revised", "new"]
    assert sum(model.batches) == embedded + 2
    assert (await s.stored())[0].hash == last.content_hash()
    assert len(s.publisher.windows) == 3


async def test_repeats_of_a_window_that_fired_already_are_counted() -> None:
    s = Scoring()
    await s.work(window(0))
    (work,) = await s.work(window(0, firing=1, duplicates=3, members=((0, 1, 2, 3, 4, 0), (), ())))
    assert work.outcome == "recounted"
    stored = (await s.stored())[0]
    assert (stored.duplicates, stored.revision) == (3, 0)


# -- late steps ---------------------------------------------------------------------------------------------------


async def with_a_late_note(s: Scoring) -> Fired:
    """A stream in which an odd note comes late; returns the window with it."""
    calm = [window(n, notes=[] if n == 38 else [CALM]) for n in range(40)]
    await s.run(calm)
    assert s.publisher.steps == []
    joined = window(38, notes=[ODD], firing=1)
    await s.work(joined)
    return joined


LATE = [("opened", True, False), ("closed", True, False)]  # the windows behind it have been scored already


async def test_a_late_event_that_makes_its_window_odd_publishes_its_steps_once() -> None:
    s = Scoring()
    await with_a_late_note(s)
    assert s.publisher.steps == LATE
    payload = (await s.stored())[38 * SIZE_MS]
    assert (payload.revision, payload.incident_step) == (1, True)
    # a repeat, and another revision, are no news
    await s.work(window(38, notes=[ODD], firing=2, duplicates=1))
    await s.work(window(38, readings=6, notes=[ODD], firing=3))
    again = (await s.stored())[38 * SIZE_MS]
    assert (again.revision, again.steps) == (2, payload.steps)
    assert s.publisher.steps == LATE


async def test_late_steps_are_published_again_after_a_crash_as_the_same_steps() -> None:
    """A crash may have come between the store and the topic; readers know them by their ids."""
    s = Scoring()
    joined = await with_a_late_note(s)
    steps = (await s.stored())[38 * SIZE_MS].steps
    s.restart()
    s.publisher.steps.clear()
    joined.firing = 0
    (work,) = await s.work(await s.again(joined))
    assert work.outcome == "known"
    assert s.publisher.steps == [("opened", True, True), ("closed", True, True)]
    assert (await s.stored())[38 * SIZE_MS].steps == steps


async def test_a_window_that_caused_steps_before_it_was_revised_keeps_them() -> None:
    s = Scoring()
    await s.run(levels(60, fault_at=50)[:52])
    opened = next(start for start, payload in (await s.stored()).items() if payload.steps)
    before = (await s.stored())[opened]
    calm_again = levels(60)[opened // SIZE_MS]
    calm_again.firing = 1
    await s.work(calm_again)
    after = (await s.stored())[opened]
    assert (after.revision, after.steps, after.incident) == (1, before.steps, before.incident)
    assert [step for step in s.publisher.steps if step[0] == "opened"] == [("opened", False, False)]


# -- failed -------------------------------------------------------------------------------------------------------


class BrokenModel(StandInModel):
    """Its vectors have this number in them wherever a caption asks for it."""

    def __init__(self, number: float, where: str) -> None:
        super().__init__()
        self.number, self.where = number, where

    def _one(self, window: WindowInput) -> WindowVectors:
        made = super()._one(window)
        if any(text == "break" for _, text in window.captions):
            vector = made.joint if self.where == "joint" else made.unimodal[self.where]
            if self.number:
                vector[7] = self.number
            else:
                vector[:] = 0.0
        return made


@pytest.mark.parametrize("where", ["joint", "sensor"])
@pytest.mark.parametrize("number", [np.nan, np.inf, 0.0])
async def test_vectors_without_a_direction_fail_that_window_and_no_other(number: float, where: str) -> None:
    s, healthy = Scoring(BrokenModel(number, where)), Scoring()
    windows = levels(30)
    windows[20] = window(20, notes=["break"])
    await s.run(windows)
    await healthy.run([one for one in levels(30) if one.start_ms != 20 * SIZE_MS])
    assert await s.stored() == await healthy.stored()
    assert len(s.publisher.failures) == 1
    assert s.publisher.failures[0]


async def test_a_window_that_the_model_cannot_take_harms_no_other_of_its_batch() -> None:
    s = Scoring(StandInModel(poison="poison"))
    works = await s.work(window(0), window(1, notes=["poison"]), window(2), window(0, stream="fan"))
    assert [work.outcome for work in works] == ["new", "failed", "new", "new"]
    assert works[1].payload is None
    assert s.publisher.failures == ["RuntimeError: poisoned caption"]
    assert sorted(await s.stored()) == [0, 2 * SIZE_MS]


async def test_a_model_that_returns_too_few_vectors_costs_that_window_only() -> None:
    class Forgetful(StandInModel):
        def embed(self, windows: Sequence[WindowInput]) -> list[WindowVectors]:
            return [self._one(one) for one in windows if not one.captions]

    s = Scoring(Forgetful())
    works = await s.work(window(0), window(1, notes=[CALM]), window(2))
    assert [work.outcome for work in works] == ["new", "failed", "new"]
    assert s.publisher.failures == ["ValueError: the model gave 0 results for 1 windows"]


async def test_a_revision_that_fails_leaves_the_stored_window_as_it_was() -> None:
    s = Scoring(StandInModel(poison="poison"))
    await s.work(window(0))
    before = await s.stored()
    (work,) = await s.work(window(0, notes=["poison"], firing=1))
    assert work.outcome == "failed"
    assert await s.stored() == before


# -- revoked ------------------------------------------------------------------------------------------------------


async def test_windows_of_a_revoked_partition_are_neither_scored_nor_stored() -> None:
    model = StandInModel()
    s = Scoring(model)
    s.partition.revoke()
    assert await s.work(window(0)) == []
    assert (await s.stored(), s.publisher.windows, model.batches) == ({}, [], [])


async def test_a_partition_revoked_while_its_windows_were_scored_stores_and_publishes_nothing() -> None:
    s = Scoring()
    batch = await s.scorer.score([(s.partition, window(0))])
    s.partition.revoke()
    await s.committer.commit(batch)
    assert (await s.stored(), s.publisher.windows) == ({}, [])


async def test_a_stream_that_is_new_begins_with_a_state_of_its_own() -> None:
    s = Scoring()
    await s.work(window(0))
    assert isinstance(s.partition.streams["pump"], StreamState)
    assert s.partition.streams["pump"].last_start_ms == 0
