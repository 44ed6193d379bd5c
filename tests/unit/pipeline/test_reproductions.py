"""What a review and public reports found broken, as what should happen. One test (or a few) for each finding.

Numbers are those of the review's list of bugs; F2 and F13b are inputs from public reports. A reading from the future
(bug 5) is in `test_event_time`, every kind of delay (1, 3) in `test_isolation` too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import structlog
from aiokafka.errors import MessageSizeTooLargeError

from models.interface import WindowInput, WindowVectors
from streams.store.base import Point
from streams.testing import Harness
from tests.memory_store import MemoryStore
from tests.standin import StandInModel
from tests.unit.pipeline.feeding import CALM, ODD, note, say, starts
from tests.unit.pipeline.isolation import SENSORS, T0_MS, at_end, new_harness, reading


@pytest.fixture(autouse=True)
def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def spells(h: Harness, stream: str) -> list[dict[str, Any]]:
    """The stream's silent and resumed events, repeats by the same id left out, in order."""
    events = [json.loads(sent.value or b"{}") for sent in h.sent("incidents")]
    found = {e["id"]: e for e in events if e["type"].startswith("sensorium.stream.") and e["subject"] == stream}
    return list(found.values())


def kinds(events: Sequence[dict[str, Any]]) -> list[str]:
    return [event["type"].rsplit(".", 1)[1] for event in events]


# -- 1, 2, 3: windows and commits of one stream beside others -----------------------------------------------------


@pytest.mark.parametrize("lag_s", [45, 60, 120, 7_200])
async def test_1_a_stream_that_lags_gets_its_windows_while_others_run_ahead(lag_s: int) -> None:
    async with new_harness() as h:
        for second in range(300):
            await say(h, "ahead", second)
            if second >= 10:
                await say(h, "behind", second - lag_s)
            if second % 5 == 0:
                await note(h, "ahead", second)
            await h.advance(1_000)
        newest_s = 299 - lag_s
        passed = [s for s in range(-7_200, 300, 10) if 10 - lag_s < s + 10 and s + 12 <= newest_s]
        assert starts(h, "behind") == passed
        pending = sum(h.ends().values()) - sum(h.commit().values())
        assert pending < 2 * 60, "only what is not final is not committed: two streams, 44 s each"


async def test_2_a_clock_that_stands_still_pins_nothing() -> None:
    async with new_harness() as h:
        produced_by_half_time = 0
        for second in range(1_800):
            await say(h, "good", second)
            if second % 5 == 0:
                await h.push(SENSORS, "stuck", reading(T0_MS, x=float(second)))
            await h.advance(1_000)
            if second == 900:
                produced_by_half_time = h.ends()[SENSORS, 0]
        assert h.commit()[SENSORS, 0] >= produced_by_half_time
        assert starts(h, "good")[:178] == list(range(0, 1_780, 10))
        assert starts(h, "stuck") == [0], "its window closes, though its clock never passes the end"
        await h.advance(700_000)
        assert at_end(h)
        home = sum(w.events.get("sensor", 0) + w.duplicates for w in h.windows() if w.stream == "stuck")
        assert home + sum(sent.key == b"stuck" for sent in (*h.late(), *h.dead())) == 360


async def test_2_a_stream_that_ended_long_ago_does_not_hold_the_commits_of_a_backlog() -> None:
    async with new_harness(T0_MS + 10**7) as h:
        await say(h, "gone", 0, settle=False)
        for second in range(3_000):
            await say(h, "live", second, settle=False)
        await h.settle()
        assert h.commit().get((SENSORS, 0), 0) > 2_000, "still in the backlog: no time has passed"
        assert starts(h, "gone") == [0]
        assert kinds(spells(h, "gone")) == ["silent"]
        await h.advance(60_000)
        assert at_end(h)
        assert kinds(spells(h, "gone")) == ["silent"]


async def test_3_a_neighbour_whose_clock_is_ahead_blinds_nobody() -> None:
    """Notes of half a second ago are within their bound of 2 s, whatever a neighbour's clock says."""
    steps = []
    for ahead_s in (0, 5):
        async with new_harness() as h:
            for second in range(460):
                await say(h, "a", second + ahead_s)
                await note(h, "a", second + ahead_s)
                await say(h, "b", second)
                if second % 10 == 0:
                    await note(h, "b", second - 0.5, ODD if second >= 400 else CALM)
                await h.advance(1_000)
            assert [w.start_ms for w in h.windows() if w.stream == "b" and w.revision] == []
            steps.append([step for step in h.incidents() if step.stream == "b"])
    assert steps[0], "aligned, the odd notes open an incident"
    assert steps[1] == steps[0]


# -- 6: models and dead letters -----------------------------------------------------------------------------------


class Broken(StandInModel):
    """Gives vectors that no store takes for readings of 99."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self._number = number

    def embed(self, windows: Sequence[WindowInput]) -> list[WindowVectors]:
        found = super().embed(windows)
        for window, vectors in zip(windows, found, strict=True):
            if any(values.get("x") == 99 for _, values in window.readings):
                vectors.joint[:] = self._number
                for vector in vectors.unimodal.values():
                    vector[:] = self._number
        return found


@pytest.mark.parametrize("number", [np.nan, np.inf, 0.0])
async def test_6_a_model_that_returns_no_direction_costs_that_window_only(number: float) -> None:
    async with new_harness(model=Broken(number)) as h:
        for second in range(60):
            await say(h, "sick", second, 99.0 if 20 <= second < 30 else 1.0, settle=False)
            await say(h, "well", second, settle=False)
        await h.settle()
        await h.crash()
        await h.settle()
        await h.advance(60_000)
        assert starts(h, "well") == [0, 10, 20, 30, 40, 50]
        assert starts(h, "sick") == [0, 10, 30, 40, 50]
        headers = [dict(sent.headers) for sent in h.dead()]
        assert {h["sensorium-reason"] for h in headers} == {b"embed_failed"}
        assert {int(h["sensorium-offset"]) for h in headers} == set(range(40, 60, 2))
        assert at_end(h)


class _SmallBroker:
    """A producer whose cluster takes a megabyte."""

    def __init__(self) -> None:
        self.taken: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]] = []

    async def send(self, topic: str, value: bytes | None, *, key: bytes | None, headers: Any, **_: Any) -> Any:
        import asyncio

        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if len(key or b"") + len(value or b"") + sum(len(n) + len(v) for n, v in headers) > 1_000_000:
            done.set_exception(MessageSizeTooLargeError())
        else:
            self.taken.append((key, value, list(headers)))
            done.set_result(None)
        return done


@pytest.mark.parametrize("value", [None, b"not json"])
async def test_6_a_dead_letter_with_a_key_as_large_as_the_limit_is_cut_and_says_so(value: bytes | None) -> None:
    from streams.kafka.producer import KafkaOutputs

    broker = _SmallBroker()
    origin = [("sensorium-topic", SENSORS.encode()), ("sensorium-partition", b"0"), ("sensorium-offset", b"7")]
    outputs = KafkaOutputs(broker, str)
    await outputs.send("dead-letters", value, key=b"k" * 1_000_100, headers=origin)
    ((key, _, headers),) = broker.taken
    assert len(key or b"") < 1_000_000
    assert set(origin) <= set(headers)
    assert any(name.startswith("sensorium-truncated") for name, _ in headers)


# -- 8, F13b: silent and resumed ----------------------------------------------------------------------------------


async def test_8_a_meter_that_sends_once_a_minute_is_not_silent_and_survives_a_crash() -> None:
    async with new_harness() as h:
        for minute in range(20):
            await say(h, "meter", minute * 60, 20.0 + minute % 3)
            if minute == 12:
                h.commit()
                await h.crash()
                await h.settle()
            if minute == 2:
                learning = kinds(spells(h, "meter"))
                assert learning in ([], ["silent", "resumed"]), "its interval is known by its second reading"
            await h.advance(60_000)
        assert kinds(spells(h, "meter")) == learning
        await h.advance(600_000)
        assert kinds(spells(h, "meter")) == [*learning, "silent"], "it has stopped for ten of its intervals"


@pytest.mark.parametrize("interruption", ["none", "crash", "rebalance"])
async def test_8_a_stream_that_speaks_again_is_resumed_at_that_event(interruption: str) -> None:
    async with new_harness() as h:
        for second in range(0, 20, 2):
            await say(h, "p", second)
            await h.advance(2_000)
        await h.advance(100_000)
        h.commit()
        (silent,) = spells(h, "p")
        assert (silent["type"], silent["data"]["last_event_ms"]) == ("sensorium.stream.silent", T0_MS + 18_000)
        if interruption == "crash":
            await h.crash()
        elif interruption == "rebalance":
            await h.rebalance()
        await h.advance(20_000)
        await say(h, "p", 140)
        await h.advance(2_000)
        assert kinds(spells(h, "p")) == ["silent", "resumed"]
        resumed = spells(h, "p")[1]
        assert resumed["data"]["last_event_ms"] == T0_MS + 140_000
        assert resumed["time"] > silent["time"]


async def test_8_silent_is_said_once_whatever_crashes() -> None:
    async with new_harness() as h:
        for second in range(0, 20, 2):
            await say(h, "p", second)
            await h.advance(2_000)
        for _ in range(3):
            await h.advance(30_000)
            await h.crash()
            await h.settle()
        await h.advance(60_000)
        assert kinds(spells(h, "p")) == ["silent"]


# -- 9: no cliff --------------------------------------------------------------------------------


class Counting(MemoryStore):
    reads = 0

    async def get(self, ids: Sequence[str], *, vectors: bool = False) -> list[Point]:
        self.reads += vectors and bool(ids)
        return await super().get(ids, vectors=vectors)


async def test_9_eleven_hundred_streams_in_turn_do_not_read_their_banks_again_and_again() -> None:
    store = Counting()
    async with new_harness(T0_MS + 10**7, store=store) as h:
        for second in range(0, 50, 10):
            for number in range(1_100):
                await say(h, f"s{number}", second + 1, settle=False)
        await h.settle()
        await h.advance(60_000)
        assert len(h.windows()) == 5 * 1_100
        assert store.reads < 550, "at most a read for every tenth window"
