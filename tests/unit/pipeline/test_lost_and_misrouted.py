"""Lost and misrouted records on logs in memory, and limits: every event is accounted for."""

from __future__ import annotations

from collections import Counter

import pytest
import structlog

from streams.testing import Harness
from tests.lost_and_misrouted_suite import LostAndMisroutedSuite, MakeHarness
from tests.unit.pipeline.isolation import SENSORS, T0_MS, at_end, new_harness, reading


@pytest.fixture(autouse=True)
def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


@pytest.fixture
def harness() -> MakeHarness:
    return new_harness


class TestOnLogsInMemory(LostAndMisroutedSuite):
    """The whole suite, without a broker."""


# -- limits -------------------------------------------------------------------------------------------------------


def reasons(h: Harness) -> Counter[str]:
    return Counter(dict(sent.headers)["sensorium-reason"].decode() for sent in h.dead())


async def test_streams_beyond_the_limit_are_refused_and_the_others_go_on() -> None:
    async with new_harness(max_streams=3) as h:
        for second in range(30):
            for number in range(5):
                await h.push(SENSORS, f"s{number}", reading(T0_MS + second * 1000, flow=5.0), settle=False)
            await h.settle()
            await h.advance(1_000)
        await h.advance(5_000)
        assert reasons(h) == {"too_many_streams": 60}
        assert {sent.key for sent in h.dead()} == {b"s3", b"s4"}
        await h.advance(60_000)
        assert Counter(w.stream for w in h.windows()) == {"s0": 3, "s1": 3, "s2": 3}
        assert at_end(h)


@pytest.mark.parametrize("crash", [False, True])
async def test_a_window_holds_so_many_events_and_no_more(crash: bool) -> None:
    async with new_harness(max_pane_events=20) as h:
        for number in range(50):
            await h.push(SENSORS, "fast", reading(T0_MS + 100 * number, flow=float(number)), settle=False)
            if number < 20:
                await h.push(SENSORS, "slow", reading(T0_MS + 100 * number, flow=1.0), settle=False)
        await h.settle()
        if crash:
            await h.crash()
            await h.settle()
        await h.advance(60_000)
        assert {w.stream: w.events["sensor"] for w in h.windows()} == {"fast": 20, "slow": 20}
        headers = [dict(sent.headers) for sent in h.dead()]
        assert {h["sensorium-reason"] for h in headers} == {b"too_many_events"}
        assert len({h["sensorium-offset"] for h in headers}) == 30
        assert at_end(h)
