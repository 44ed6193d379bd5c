"""What a stream's windows hold, how they score and which incidents they raise depends on no other stream.

The oracle of every stream is that stream alone, delivered in the same way, and, for streams within their own bounds,
the windows that the times of its events name. `SENSORIUM_FUZZ=200` tries that many sets of streams of every kind.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.unit.pipeline.isolation import (
    JITTER_MS,
    Produced,
    StreamPlan,
    differences,
    records_of,
    run,
    unlike_the_promise,
)

FUZZ = os.environ.get("SENSORIUM_FUZZ")
LAGS_MS = (0, 0, 700, 5_000, 45_000, 60_000, 120_000, 900_000, 7_200_000)
INTERVALS_S = (  # of readings, captions and clips; None: the stream does not have it
    (1, None, None),
    (1, 5, None),
    (1, 20, 40),
    (2, 45, None),
    (5, None, 30),
    (20, None, None),
    (30, 60, None),
    (60, None, None),
    (None, 15, None),
    (None, 20, 25),
    (None, None, 12),
)


def tried(examples: int) -> hypothesis_settings:
    """Every set is small or cannot be made smaller to any use, so that failures are not shrunk."""
    return hypothesis_settings(
        max_examples=int(FUZZ) if FUZZ else examples,
        derandomize=not FUZZ,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True)
def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


Pick = Callable[[Sequence[Any]], Any]


def plan_of(pick: Pick, name: str, seconds: int) -> StreamPlan:
    """A stream of about `seconds`, every trait picked from what a trait may be."""
    sensor_s, caption_s, clip_s = pick(INTERVALS_S)
    pause_from, pause_for = pick(range(seconds // 4, seconds // 2)), pick((12, 25, 70, 150))
    return StreamPlan(
        name,
        seed=pick(range(2**32)),
        seconds=pick((seconds, seconds, seconds // 2, seconds // 5)),  # the others end early
        lag_ms=pick((pick(LAGS_MS), pick(range(7_200_000)))),
        jitter_ms=pick((0, 400, JITTER_MS)),
        sensor_s=sensor_s,
        caption_s=caption_s,
        clip_s=clip_s,
        starts_s=pick((0, 0, 0, seconds // 3)),
        pause_s=pick((None, (pause_from, pause_from + pause_for))),
        caption_ends=pick((False, True)),
        future=pick((0, 0.001, 0.003)),
        repeats=pick((0, 0.02)),
        fault=pick((False, True)),
    )


@st.composite
def sets_of(draw: st.DrawFn, fewest: int, most: int, *seconds: int) -> list[StreamPlan]:
    count, length = draw(st.integers(fewest, most)), draw(st.sampled_from(seconds))
    return [plan_of(lambda of: draw(st.sampled_from(of)), f"stream-{number}", length) for number in range(count)]


async def assert_isolated(streams: list[StreamPlan], *, live: bool, partitions: int) -> None:
    """Every stream among the others equals itself alone, holds what its events say, and commits reach the end."""
    records = {plan.name: records_of(plan) for plan in streams}
    everything: list[Produced] = [record for of_one in records.values() for record in of_one]
    together = await run(records, everything, live=live, partitions=partitions)
    wrong = []
    for plan in streams:
        alone = await run([plan.name], records[plan.name], live=live, partitions=1)
        one, other = alone.streams[plan.name], together.streams[plan.name]
        found = {"among others": differences(one, other, live=live)}
        if not plan.late:
            found["among others, against its events"] = unlike_the_promise(records[plan.name], other)
            found["alone, against its events"] = unlike_the_promise(records[plan.name], one)
        wrong += [f"{plan}\n   {title}: {d[:5]} ({len(d)} in all)" for title, d in found.items() if d]
        wrong += [f"{plan}\n   alone, not committed: {at}" for at in alone.uncommitted()]
    wrong += [f"not committed: {at}" for at in together.uncommitted()]
    assert not wrong, "\n".join([f"{len(streams)} streams", *wrong])


# -- pairs that are known to be hard ------------------------------------------------------------------------------

NOTES = StreamPlan("notes", seed=1, seconds=500, caption_s=5, jitter_ms=JITTER_MS)
HARD: dict[str, list[StreamPlan]] = {
    "a minute behind one that writes captions": [NOTES, StreamPlan("behind", 2, 500, lag_ms=60_000, fault=True)],
    "two hours behind": [NOTES, StreamPlan("behind", 3, 500, lag_ms=7_200_000, caption_s=20, fault=True)],
    "five seconds behind": [
        StreamPlan("ahead", 4, 500, caption_s=5),
        StreamPlan("behind", 5, 500, lag_ms=5_000, jitter_ms=JITTER_MS, caption_s=10, clip_s=30, fault=True),
    ],
    "one ends early": [NOTES, StreamPlan("ends", 6, 60, lag_ms=20_000, caption_s=20)],
    "one ends early in a long past": [
        StreamPlan("goes on", 7, 1_500, sensor_s=2, caption_s=30, jitter_ms=JITTER_MS),
        StreamPlan("ends", 8, 60, caption_s=15),
    ],
    "a reading from the future": [
        StreamPlan("glitch", 9, 600, future=0.01, jitter_ms=JITTER_MS, fault=True),
        StreamPlan("steady", 10, 600, caption_s=10, lag_ms=3_000, jitter_ms=JITTER_MS, fault=True),
    ],
    "a reading from the future and a pause": [
        StreamPlan("glitch", 11, 600, future=0.01, caption_s=20, pause_s=(200, 300)),
        StreamPlan("steady", 12, 600, caption_s=10),
    ],
    "once a minute": [NOTES, StreamPlan("meter", 13, 900, sensor_s=60, lag_ms=30_000)],
    "no sensor": [NOTES, StreamPlan("camera", 14, 500, sensor_s=None, caption_s=12, clip_s=12, lag_ms=90_000)],
    "captions stop, readings go on": [
        StreamPlan("a", 15, 500, caption_s=8, caption_ends=True, jitter_ms=JITTER_MS),
        StreamPlan("b", 16, 500, caption_s=8, lag_ms=100_000, jitter_ms=JITTER_MS),
    ],
    "pauses": [
        StreamPlan("a", 17, 500, pause_s=(100, 250), caption_s=20, jitter_ms=JITTER_MS, fault=True),
        StreamPlan("b", 18, 500, pause_s=(150, 165), lag_ms=10_000, repeats=0.05, jitter_ms=JITTER_MS),
    ],
}


@pytest.mark.parametrize("live", [True, False], ids=["live", "backlog"])
@pytest.mark.parametrize("name", HARD)
async def test_a_stream_beside_another_is_what_it_is_alone(name: str, live: bool) -> None:
    await assert_isolated(HARD[name], live=live, partitions=1)


LATE = [
    StreamPlan("late", 19, 400, lag_ms=30_000, late=0.05, repeats=0.02, fault=True),
    StreamPlan("later", 20, 400, late=0.3, sensor_s=2),
    StreamPlan("steady", 21, 400, caption_s=10, clip_s=30, lag_ms=4_000, jitter_ms=JITTER_MS),
]


async def test_what_is_late_depends_on_no_other_stream_live() -> None:
    await assert_isolated(LATE, live=True, partitions=1)


async def test_what_is_late_depends_on_no_other_stream_in_a_backlog() -> None:
    """Where batches of records end depends on the others; what is late, and what a window holds, does not."""
    records = {plan.name: records_of(plan) for plan in LATE}
    together = await run(records, [r for of_one in records.values() for r in of_one], live=False, partitions=1)
    for name, of_one in records.items():
        alone = (await run([name], of_one, live=False, partitions=1)).streams[name]
        among = together.streams[name]
        assert among.late == alone.late
        assert {w["start"]: w["hash"] for w in among.windows.values()} == {
            w["start"]: w["hash"] for w in alone.windows.values()
        }


# -- random sets --------------------------------------------------------------------------------------------------


@tried(6)
@given(streams=sets_of(2, 5, 300, 500), partitions=st.integers(1, 3))
async def test_a_few_streams_live_are_what_each_is_alone(streams: list[StreamPlan], partitions: int) -> None:
    await assert_isolated(streams, live=True, partitions=partitions)


@tried(15)
@given(streams=sets_of(2, 6, 300, 500, 1_500), partitions=st.integers(1, 3))
async def test_a_few_streams_in_a_backlog_are_what_each_is_alone(streams: list[StreamPlan], partitions: int) -> None:
    await assert_isolated(streams, live=False, partitions=partitions)


@pytest.mark.parametrize("seed", range(int(FUZZ or 1)))
@pytest.mark.parametrize("live", [True, False], ids=["live", "backlog"])
async def test_fifty_streams_are_what_each_is_alone(seed: int, live: bool) -> None:
    rng = random.Random(seed)
    streams = [plan_of(rng.choice, f"stream-{number}", 300) for number in range(50)]
    await assert_isolated(streams, live=live, partitions=1 + seed % 3)
