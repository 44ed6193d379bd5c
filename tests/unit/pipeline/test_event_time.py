"""One stream, its own clock: what fires when, what is late, and where every event ends. Oracle: brute force.

The oracle is written from the sentences of DESIGN section 5. Where they leave a margin (whether a window stays for
`allowed_lateness` from its end or from its firing) it leaves the same: an event in the margin may go either way.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from streams.store.base import Filter
from streams.testing import Harness
from tests.unit.pipeline.isolation import (
    CAPTIONS,
    CLIPS,
    MODALITY,
    SENSORS,
    T0_MS,
    caption,
    new_harness,
    reading,
    sound,
    time_header,
)

DISORDER_MS, LATENESS_MS = 2_000, 30_000


@pytest.fixture(autouse=True)
def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


@dataclass(frozen=True)
class Arrival:
    """A record in the order of arrival. No time lies within 100 ms of a bound of a window."""

    topic: str
    time_ms: int
    value: bytes
    offset: int  # in its topic

    @property
    def headers(self) -> dict[str, bytes]:
        return time_header(self.time_ms) if self.topic == CLIPS else {}


# -- the oracle ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """An arrival and what may become of it in one window."""

    arrival: Arrival
    must_be_in: bool
    must_be_out: bool
    after_firing: bool  # the window had certainly fired


def judged(arrivals: Sequence[Arrival], start_ms: int, end_ms: int) -> list[Judged]:
    """The events of window [start, end) in order of arrival, by the stream's own clock, the newest event time seen.

    The window fires when the clock has passed its end by `disorder` (= `max_wait`), stays for `allowed_lateness` of
    that clock, and takes nothing after.
    """
    clock_ms, fired_ms, found = 0, None, []
    for arrival in arrivals:
        if start_ms <= arrival.time_ms < end_ms:
            out = fired_ms is not None and clock_ms > fired_ms + LATENESS_MS + DISORDER_MS
            found.append(Judged(arrival, clock_ms < end_ms + LATENESS_MS, out, fired_ms is not None))
        clock_ms = max(clock_ms, arrival.time_ms)
        if fired_ms is None and clock_ms > end_ms + DISORDER_MS:
            fired_ms = clock_ms
    return found


def disorderly(rng: random.Random, topics: Iterable[str], seconds: int) -> list[Arrival]:
    """Events of one stream in order of arrival: most within their bounds, some late, some too late, some twice."""
    timed: list[tuple[int, int, str, int, bytes]] = []
    for topic in topics:
        interval_s = {SENSORS: rng.choice([1, 3]), CAPTIONS: rng.choice([4, 9]), CLIPS: 13}[topic]
        for second in range(0, seconds, interval_s):
            time_ms = T0_MS + second * 1000 + rng.randint(100, 900)
            value = {SENSORS: reading(time_ms, flow=rng.gauss(5, 1)), CAPTIONS: caption(time_ms, "all quiet")}
            for _ in range(2 if rng.random() < 0.05 else 1):
                delay_ms = rng.choice([0, 0, 0, rng.randint(0, 1_900), rng.randint(0, 1_900), rng.randint(0, 60_000)])
                content = value.get(topic) or sound(second % 4)
                timed.append((time_ms + delay_ms, len(timed), topic, time_ms, content))
    offsets: Counter[str] = Counter()
    arrivals = []
    for _, _, topic, time_ms, content in sorted(timed):
        arrivals.append(Arrival(topic, time_ms, content, offsets[topic]))
        offsets[topic] += 1
    return arrivals


# -- the harness --------------------------------------------------------------------------------------------------


async def read_one_by_one(h: Harness, arrivals: Iterable[Arrival]) -> None:
    """Every record is worked off before the next one comes; no time passes."""
    for arrival in arrivals:
        await h.push(arrival.topic, "pump", arrival.value, headers=arrival.headers)


def set_aside(h: Harness) -> set[tuple[str, int]]:
    """Topic and offset of every record in late-events."""
    headers = [dict(sent.headers) for sent in h.late()]
    return {(h["sensorium-topic"].decode(), int(h["sensorium-offset"])) for h in headers}


async def stored(h: Harness) -> dict[int, dict[str, Any]]:
    return {point.payload["start"]: dict(point.payload) async for point in h.store.scroll(Filter())}


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(
    seed=st.integers(0, 2**32),
    topics=st.sampled_from([(SENSORS,), (CAPTIONS,), (SENSORS, CAPTIONS), (SENSORS, CAPTIONS, CLIPS)]),
    panes=st.sampled_from([1, 1, 2]),
)
async def test_every_event_is_in_its_windows_or_repeated_or_late(
    seed: int, topics: tuple[str, ...], panes: int
) -> None:
    arrivals = disorderly(random.Random(seed), topics, 150)
    size_ms, hop_ms = 10_000, 10_000 // panes
    async with new_harness(T0_MS + 10**7, hop_ms=hop_ms) as h:
        await read_one_by_one(h, arrivals)
        await h.advance(100_000)
        late, points, home = set_aside(h), await stored(h), {w.start_ms: w for w in h.windows()}
        assert h.dead() == []
        assert h.commit() == {tp: end for tp, end in h.ends().items() if end}

    own: dict[int, list[Arrival]] = defaultdict(list)  # by home window: what was not late
    for arrival in arrivals:
        if (arrival.topic, arrival.offset) not in late:
            own[arrival.time_ms // hop_ms * hop_ms].append(arrival)
    for start_ms in own.keys() | {start for start, w in home.items() if w.events}:
        distinct = {(a.topic, a.time_ms, a.value) for a in own[start_ms]}
        assert home[start_ms].events == Counter(MODALITY[topic] for topic, _, _ in distinct)
        assert home[start_ms].duplicates == len(own[start_ms]) - len(distinct)

    first = min(a.time_ms for a in arrivals) // hop_ms * hop_ms - size_ms
    for start_ms in range(first, max(a.time_ms for a in arrivals), hop_ms):
        events = judged(arrivals, start_ms, start_ms + size_ms)
        for event in events:
            aside = (event.arrival.topic, event.arrival.offset) in late
            if event.arrival.time_ms < start_ms + hop_ms:  # this is its last window
                assert not (aside and event.must_be_in), f"late, though within lateness: {event}"
                assert aside or not event.must_be_out, f"not late, though its window was final: {event}"
        holds = points.get(start_ms, {}).get("events", {})
        for topic in topics:
            of = [e for e in events if e.arrival.topic == topic]
            least = {(e.arrival.time_ms, e.arrival.value) for e in of if e.must_be_in}
            most = {(e.arrival.time_ms, e.arrival.value) for e in of if not e.must_be_out}
            assert len(least) <= holds.get(MODALITY[topic], 0) <= len(most)
        on_time = {(e.arrival.topic, e.arrival.value) for e in events if not e.after_firing}
        revising = [e for e in events if e.after_firing and e.must_be_in and on_time]
        if {(e.arrival.topic, e.arrival.value) for e in revising} - on_time:
            assert points[start_ms]["revision"] >= 1
        if all(not e.after_firing for e in events) and start_ms in points:
            assert points[start_ms]["revision"] == 0


# -- when a window fires ------------------------------------------------------------------------------------------


async def readings(h: Harness, *seconds: float) -> None:
    for second in seconds:
        time_ms = T0_MS + int(second * 1000)
        await h.push(SENSORS, "pump", reading(time_ms, flow=5.0))


async def notes(h: Harness, *seconds: float) -> None:
    for second in seconds:
        await h.push(CAPTIONS, "pump", caption(T0_MS + int(second * 1000), "all quiet"))


def fired(h: Harness) -> list[float]:
    return [(window.start_ms - T0_MS) / 1000 for window in h.windows()]


async def test_a_window_waits_for_the_disorder_of_its_modality_and_no_longer() -> None:
    async with new_harness(T0_MS + 10**7) as h:
        await readings(h, 1, 9, 11.9)
        assert fired(h) == []
        await readings(h, 12.1)
        assert fired(h) == [0], "a modality that the stream does not have is not waited for"


async def test_a_modality_that_does_not_come_is_waited_for_only_so_long() -> None:
    async with new_harness(T0_MS + 10**7, max_wait_ms={"sensor": 6_000, "audio": 2_000, "caption": 6_000}) as h:
        await notes(h, 3)
        await readings(h, 1, 9, 15.9)
        assert fired(h) == [], "the stream has captions, and they may still come"
        await readings(h, 16.1)
        assert fired(h) == [0]
        await readings(h, 25, 29)
        await notes(h, 32.1)
        assert fired(h) == [0, 10], "readings are waited for in their turn"
        await readings(h, 32.2)
        assert fired(h) == [0, 10, 20], "both clocks have passed the end and the disorder"


async def test_a_modality_that_stopped_coming_long_ago_is_no_longer_waited_for() -> None:
    async with new_harness(
        T0_MS + 10**7,
        max_wait_ms={"sensor": 2_000, "audio": 2_000, "caption": 20_000},
        modality_memory_ms=60_000,
    ) as h:
        await notes(h, 3)
        await readings(h, *range(1, 100, 2))
        before = fired(h)
        await readings(h, 102.1)
        assert before == [0, 10, 20, 30, 40, 50, 60, 70, 80]
        assert fired(h) == [*before, 90]


async def test_an_input_that_is_caught_up_and_brings_nothing_is_not_waited_for() -> None:
    async with new_harness(T0_MS + 10**7, max_wait_ms={"sensor": 2_000, "audio": 2_000, "caption": 60_000}) as h:
        await notes(h, 3)
        await readings(h, 1, 9, 12.1)
        assert fired(h) == []
        await h.advance(9_000)
        assert fired(h) == []
        await readings(h, 13)
        await h.advance(1_500)
        assert fired(h) == [0]


# -- a clock that is wrong once -----------------------------------------------------------------------------------


def steady(seconds: int) -> list[tuple[str, int, bytes]]:
    """Readings once a second and notes now and then, as (topic, time, value)."""
    events = []
    for second in range(seconds):
        time_ms = T0_MS + second * 1000 + 500
        events.append((SENSORS, time_ms, reading(time_ms, flow=5.0)))
        if second % 7 == 3:
            events.append((CAPTIONS, time_ms, caption(time_ms, "all quiet")))
    return events


def glitching(seconds: int, ahead_s: int) -> list[tuple[str, int, bytes]]:
    """The same, with the clock of one reading that far ahead."""
    events = steady(seconds)
    position = [topic for topic, _, _ in events].index(CAPTIONS, 70) + 1
    time_ms = events[position][1] + ahead_s * 1000
    events[position] = (SENSORS, time_ms, reading(time_ms, flow=6.0))
    return events


async def played(events: list[tuple[str, int, bytes]], *, live: bool) -> tuple[dict[float, int], list[Any], set[Any]]:
    """Readings by window, revisions and late records of one stream with these records, in this order."""
    async with new_harness(T0_MS if live else T0_MS + 10**6) as h:
        for topic, _, value in events:
            await h.push(topic, "pump", value, settle=live)
            if live and topic == SENSORS:
                await h.advance(1_000)
        await h.settle()
        await h.advance(700_000)
        assert h.dead() == []
        assert h.commit() == {tp: end for tp, end in h.ends().items() if end}
        counts = {(w.start_ms - T0_MS) / 1000: w.events.get("sensor", 0) for w in h.windows()}
        return counts, [w.start_ms for w in h.windows() if w.revision], set_aside(h)


@pytest.mark.parametrize("live", [True, False], ids=["live", "backlog"])
@pytest.mark.parametrize("ahead_s", [61, 75, 140, 295])
async def test_one_reading_from_the_future_moves_no_window(ahead_s: int, live: bool) -> None:
    events = glitching(420, ahead_s)
    counts, revised, late = await played(events, live=live)
    assert (late, revised) == (set(), [])
    expected = Counter((t - T0_MS) // 10_000 * 10 for topic, t, _ in events if topic == SENSORS)
    assert counts == dict(expected)


@pytest.mark.parametrize("ahead_s", [5, 20, 28])
async def test_a_reading_less_ahead_than_lateness_makes_no_other_late(ahead_s: int) -> None:
    _, _, late = await played(glitching(120, ahead_s), live=True)
    assert late == set()


@pytest.mark.parametrize("live", [True, False], ids=["live", "backlog"])
async def test_a_repeat_of_a_reading_from_the_future_confirms_nothing(live: bool) -> None:
    """A repeat changes nothing, so it cannot be the second reading that makes a jump believed."""
    events = steady(300)
    far = (SENSORS, T0_MS + 250_000, reading(T0_MS + 250_000, flow=5.0))
    events[50:50] = [far, far]
    _, revised, late = await played(events, live=live)
    assert (late, revised) == (set(), [])


@pytest.mark.parametrize("live", [True, False], ids=["live", "backlog"])
async def test_even_a_first_reading_from_the_future_makes_no_other_late(live: bool) -> None:
    events = steady(300)
    events.insert(0, (SENSORS, T0_MS + 200_000, reading(T0_MS + 200_000, flow=5.0)))
    _, _, late = await played(events, live=live)
    assert late == set()


async def test_a_jump_that_is_confirmed_moves_the_clock() -> None:
    """A pause of hours is no glitch: from the second event after it windows fire as before it."""
    async with new_harness(T0_MS + 10**8) as h:
        await readings(h, *range(1, 30, 2))
        await readings(h, *range(10_001, 10_030, 2))
        assert fired(h) == [0, 10, 20, 10_000, 10_010]
        assert h.late() == []
