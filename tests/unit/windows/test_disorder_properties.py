"""Every order of arrival that a stream's own bounds allow gives the same windows, to the last bit.

A stream is known to have a modality once it has brought it: each begins with one event of every modality.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from streams.events.types import Event
from streams.windows.operator import PartitionWindows
from streams.windows.types import Output, Record, WindowConfig
from tests.unit.windows.support import event, fired, late

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
STREAMS = ("pump", "fan", "mill")
END_MS = 10**9


@dataclass(frozen=True)
class Plan:
    """Events of a plant, and a way for them to arrive."""

    config: WindowConfig
    events: list[tuple[str, int, int, int]]  # stream, modality, time, what
    delays: list[int]  # arrival after the event: less than the bound of its modality
    repeats: list[tuple[int, int]]  # which event comes again, and after how long

    def arrivals(self, *, delayed: bool = True, repeated: bool = True) -> list[tuple[str, int, Event]]:
        made: list[tuple[int, int, str, int, Event]] = []
        for i, (name, modality, time_ms, what) in enumerate(self.events):
            delay = self.delays[i] % max(self.config.disorder_ms[modality], 1) if delayed else 0
            made.append((time_ms + delay, i, name, modality, event(modality, time_ms, what)))
        for n, (which, delay) in enumerate(self.repeats if repeated else []):
            name, modality, time_ms, what = self.events[which % len(self.events)]
            delay %= max(self.config.disorder_ms[modality], 1)
            made.append((time_ms + delay, len(self.events) + n, name, modality, event(modality, time_ms, what)))
        return [(name, modality, e) for _, _, name, modality, e in sorted(made, key=lambda a: a[:2])]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    hop = draw(st.sampled_from([1_000, 5_000, 10_000]))
    config = WindowConfig(
        size_ms=hop * draw(st.sampled_from([1, 1, 2, 4])),
        hop_ms=hop,
        disorder_ms=draw(st.tuples(*[st.sampled_from([0, 1, 2_000, 7_000])] * 3)),
        max_wait_ms=draw(st.tuples(*[st.sampled_from([0, 2_000, 20_000])] * 3)),
        allowed_lateness_ms=draw(st.sampled_from([0, 2_500, 30_000])),
    )
    origin = draw(st.sampled_from([0, -50_000, 1_700_000_000_000]))
    times = st.integers(origin, origin + 50_000)
    drawn = st.tuples(st.sampled_from(STREAMS), st.integers(0, 2), times, st.integers(0, 3))
    events = draw(st.lists(drawn, min_size=1, max_size=40, unique=True))
    first = sorted({(name, modality, origin - 50 + modality, 9) for name, modality, _, _ in events})
    delays = draw(st.lists(st.integers(0, 10_000), min_size=len(events), max_size=len(events)))
    repeats = draw(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 10_000)), max_size=8))
    return Plan(config, first + events, [0] * len(first) + delays, repeats)


def play(plan: Plan, *, delayed: bool = True, repeated: bool = True) -> list[Output]:
    operator, out, offsets = PartitionWindows(plan.config), [], [0, 0, 0]
    for name, modality, e in plan.arrivals(delayed=delayed, repeated=repeated):
        operator.push(modality, [Record(offsets[modality], name, e)])
        offsets[modality] += 1
        out += operator.advance()
    operator.tick(END_MS, (END_MS,) * 3)
    out += operator.advance()
    assert operator.open_panes == 0
    return out


def contents(out: list[Output]) -> dict[tuple[str, int], tuple[str, tuple[int, int, int]]]:
    """What each window held when it last fired, and the events that count in it."""
    return {(w.stream, w.start_ms): (w.content_hash(), w.home_events) for w in fired(out)}


@QUICK
@given(plans())
def test_any_order_of_arrival_within_the_bounds_gives_identical_windows(plan: Plan) -> None:
    assert contents(play(plan)) == contents(play(plan, delayed=False, repeated=False))


@QUICK
@given(plans())
def test_windows_hold_exactly_the_events_of_their_span(plan: Plan) -> None:
    size, hop = plan.config.size_ms, plan.config.hop_ms
    expected: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)
    for name, modality, time_ms, _ in plan.events:
        home = time_ms // hop * hop
        for start in range(home + hop - size, home + hop, hop):
            expected[name, start][modality] += 1
    held = {
        (w.stream, w.start_ms): +Counter({m: len(e) for m, e in enumerate((w.readings, w.clips, w.captions))})
        for w in fired(play(plan))
    }
    assert held == expected


@QUICK
@given(plans())
def test_within_the_bounds_nothing_is_late_and_every_window_fires_once(plan: Plan) -> None:
    out = play(plan)
    assert not late(out)
    assert max(Counter((w.stream, w.start_ms) for w in fired(out)).values()) == 1


@QUICK
@given(plans())
def test_repeats_are_counted_and_change_nothing(plan: Plan) -> None:
    out = play(plan)
    assert contents(out) == contents(play(plan, repeated=False))
    assert sum(w.duplicates for w in fired(out)) == len(plan.repeats)


@QUICK
@given(plans())
def test_windows_of_a_stream_fire_in_the_order_of_time(plan: Plan) -> None:
    out = play(plan)
    for name in STREAMS:
        starts = [w.start_ms for w in fired(out) if w.stream == name]
        assert starts == sorted(starts)
