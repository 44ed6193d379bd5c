"""Windows against a model that looks at everything, and under every order of arrival that the bounds allow."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from streams.events.types import Caption, Clip, Event, Reading
from streams.windows.operator import PartitionWindows
from streams.windows.types import Fired, Late, Output, PaneFinal, Record, WindowConfig
from tests.unit.windows.support import ALL, Naive, as_told

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
STREAMS = ("pump", "fan", "mill")


def event(modality: int, time_ms: int, what: int) -> Event:
    if modality == 0:
        return Reading(time_ms, {"flow": float(what)})
    if modality == 1:
        return Clip(time_ms, f"{what:064x}", b"")  # type: ignore[arg-type]  # samples are not looked at
    return Caption(time_ms, f"words {what}")


# -- against the model --------------------------------------------------------------------------------------------

CONFIGS = st.builds(
    lambda size, disorder, lateness, idle: WindowConfig(size, size, disorder, lateness, idle),
    st.sampled_from([100, 1_000, 10_000]),
    st.tuples(*[st.sampled_from([0, 1, 500, 2_000, 15_000])] * 3),
    st.sampled_from([0, 1, 700, 15_000, 30_000]),
    st.sampled_from([500, 10_000]),
)
TIMES = st.one_of(
    st.integers(-3_000, 3_000),
    st.integers(0, 60_000),
    st.sampled_from([-1, 0, 9_999, 10_000, 12_000, 20_000, 42_000, 10**6, 10**14]),
)
PUSHES = st.tuples(
    st.integers(0, 2),
    st.lists(st.tuples(st.sampled_from(STREAMS), TIMES, st.integers(0, 1)), min_size=0, max_size=6),
)
TICKS = st.tuples(st.sampled_from([0, 1, 499, 500, 9_999, 10_000, 40_000]), st.tuples(*[st.booleans()] * 3))


@settings(QUICK, max_examples=250)
@given(CONFIGS, st.lists(st.one_of(PUSHES, TICKS), max_size=25))
def test_the_operator_says_what_the_model_says(config: WindowConfig, steps: list[Any]) -> None:
    operator, model = PartitionWindows(config), Naive(config)
    offsets, clock = [0, 0, 0], 0
    for first, second in steps:
        if isinstance(second, list):
            records = []
            for name, time_ms, what in second:
                records.append(Record(offsets[first], name, event(first, time_ms, what)))
                offsets[first] += 1
            assert operator.push(first, records) == []
            model.push(first, records)
        else:
            clock += first
            operator.tick(clock, second)
            model.tick(clock, second)
        told, expected = as_told(operator.advance()), model.advance()
        for name in STREAMS:  # between streams the order is free
            assert [o for o in told if o[1] == name] == [o for o in expected if o[1] == name]
        assert sorted(map(repr, told)) == sorted(map(repr, expected))


# -- every order of arrival ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Events of a plant, and a way for them to arrive."""

    config: WindowConfig
    events: list[tuple[str, int, int, int]]  # stream, modality, time, what
    delays: list[int]  # arrival after the event, less than the bound of its modality
    repeats: list[tuple[int, int]]  # which event comes again, and after how long
    turns: list[int]  # which modality is read next
    batch: int

    def logs(self, *, repeated: bool = True) -> list[list[tuple[str, Event]]]:
        """What each modality's partition holds, in order of arrival."""
        arrivals: list[list[tuple[int, int, str, Event]]] = [[], [], []]
        for i, (name, modality, time_ms, what) in enumerate(self.events):
            bound = self.config.disorder_ms[modality]
            arrival = time_ms + (self.delays[i] % bound if bound else 0)
            arrivals[modality].append((arrival, i, name, event(modality, time_ms, what)))
        for which, delay in self.repeats if repeated else []:
            name, modality, time_ms, what = self.events[which % len(self.events)]
            bound = self.config.disorder_ms[modality]
            arrival = time_ms + (delay % bound if bound else 0)
            arrivals[modality].append((arrival, 10**6 + which, name, event(modality, time_ms, what)))
        return [[(name, e) for _, _, name, e in sorted(log, key=lambda a: a[:2])] for log in arrivals]

    def orderly(self) -> Plan:
        return Plan(self.config, self.events, [0] * len(self.events), [], [0], 1)


@st.composite
def plans(draw: st.DrawFn, *, hopping: bool = True) -> Plan:
    hop = draw(st.sampled_from([1_000, 5_000, 10_000]))
    size = hop * (draw(st.sampled_from([1, 1, 2, 4])) if hopping else 1)
    disorder = draw(st.tuples(*[st.sampled_from([0, 1, 2_000, 7_000])] * 3))
    config = WindowConfig(size, hop, disorder, draw(st.sampled_from([0, 2_500, 30_000])))
    origin = draw(st.sampled_from([0, -50_000, 1_700_000_000_000]))
    events = draw(
        st.lists(
            st.tuples(
                st.sampled_from(STREAMS), st.integers(0, 2), st.integers(origin, origin + 60_000), st.integers(0, 3)
            ),
            min_size=1,
            max_size=40,
            unique=True,
        )
    )
    several = st.lists(st.integers(0, 10_000), min_size=len(events), max_size=len(events))
    repeats = draw(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 10_000)), max_size=8))
    turns = draw(st.lists(st.integers(0, 2), min_size=1))
    return Plan(config, events, draw(several), repeats, turns, draw(st.integers(1, 9)))


def play(plan: Plan, *, repeated: bool = True) -> tuple[list[Output], list[list[tuple[str, Event]]]]:
    """Read the logs in the plan's turns and batches, then let everything fall silent."""
    operator, logs = PartitionWindows(plan.config), plan.logs(repeated=repeated)
    position, out, turn = [0, 0, 0], [], 0
    while any(position[m] < len(logs[m]) for m in range(3)):
        modality = plan.turns[turn % len(plan.turns)]
        while position[modality] >= len(logs[modality]):
            modality = (modality + 1) % 3
        turn += 1
        start = position[modality]
        chunk = logs[modality][start : start + plan.batch]
        position[modality] += len(chunk)
        operator.push(modality, [Record(start + i, name, e) for i, (name, e) in enumerate(chunk)])
        for output in operator.advance():
            out.append(output)
            if isinstance(output, Fired):
                assert_allowed(output, logs, position, plan.config)
    for clock in (plan.config.idle_timeout_ms, plan.config.idle_timeout_ms + plan.config.allowed_lateness_ms):
        operator.tick(clock, ALL)
        out += operator.advance()
    assert operator.open_panes == 0
    return out, logs


def assert_allowed(
    window: Fired, logs: list[list[tuple[str, Event]]], position: list[int], config: WindowConfig
) -> None:
    """A window has fired: its stream's clock and every input must have passed its end."""
    read = [[(name, e.time_ms) for name, e in log[:at]] for log, at in zip(logs, position, strict=True)]
    own = max(time_ms for log in read for name, time_ms in log if name == window.stream)
    assert own >= window.end_ms
    for log, disorder in zip(read, config.disorder_ms, strict=True):
        assert max(time_ms for _, time_ms in log) >= window.end_ms + disorder


def contents(out: list[Output]) -> dict[tuple[str, int], tuple[str, tuple[int, int, int]]]:
    """Every window's last word: its content, and the events that count in it."""
    return {(w.stream, w.start_ms): (w.content_hash(), w.home_events) for w in out if isinstance(w, Fired)}


@QUICK
@given(plans())
def test_any_order_of_arrival_within_the_bounds_gives_identical_windows(plan: Plan) -> None:
    out, _ = play(plan, repeated=False)
    assert contents(out) == contents(play(plan.orderly())[0])


@QUICK
@given(plans())
def test_windows_hold_exactly_the_events_of_their_span(plan: Plan) -> None:
    out, _ = play(plan)
    size, hop = plan.config.size_ms, plan.config.hop_ms
    expected: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)
    for name, modality, time_ms, _ in plan.events:
        home = time_ms // hop * hop
        for start in range(home + hop - size, home + hop, hop):
            expected[name, start][modality] += 1
    held = {
        (w.stream, w.start_ms): Counter({m: len(e) for m, e in enumerate((w.readings, w.clips, w.captions))})
        for w in out
        if isinstance(w, Fired)
    }
    assert {key: +counts for key, counts in held.items()} == expected


@QUICK
@given(plans())
def test_within_the_bounds_nothing_is_late_and_only_repeats_fire_a_window_again(plan: Plan) -> None:
    out, _ = play(plan)
    assert not [o for o in out if isinstance(o, Late)]
    first: dict[tuple[str, int], str] = {}
    for window in (o for o in out if isinstance(o, Fired)):
        assert first.setdefault((window.stream, window.start_ms), window.content_hash()) == window.content_hash()


@QUICK
@given(plans())
def test_repeats_are_counted_and_change_nothing(plan: Plan) -> None:
    out, logs = play(plan)
    assert contents(out) == contents(play(plan, repeated=False)[0])
    last = {(w.stream, w.start_ms): w.duplicates for w in out if isinstance(w, Fired)}
    assert sum(last.values()) == sum(map(len, logs)) - len(plan.events)


@QUICK
@given(plans())
def test_every_event_counts_in_one_window_and_every_offset_is_finished_once(plan: Plan) -> None:
    out, logs = play(plan)
    assert sum(sum(counts) for _, counts in contents(out).values()) == len(plan.events)
    done: Counter[tuple[int, int]] = Counter()
    for output in out:
        if isinstance(output, PaneFinal):
            done.update((m, offset) for m, offsets in enumerate(output.offsets) for offset in offsets)
    assert done == Counter((m, offset) for m, log in enumerate(logs) for offset in range(len(log)))


@QUICK
@given(plans(hopping=False), st.lists(st.tuples(st.sampled_from(STREAMS), st.integers(-50_000, 70_000)), max_size=10))
def test_every_event_is_windowed_or_a_repeat_or_late_whatever_the_order(plan: Plan, strays: list[Any]) -> None:
    """Out of all bounds: nothing is lost, nothing counts twice, and every offset is finished or late, once."""
    operator = PartitionWindows(plan.config)
    events = [(name, event(0, time_ms, what)) for name, _, time_ms, what in plan.events]
    events += [(name, Reading(time_ms, {"stray": 1.0})) for name, time_ms in strays]
    out: list[Output] = []
    for offset, (name, e) in enumerate(events):
        operator.push(0, [Record(offset, name, e)])
        operator.tick(0, (False, True, True))
        out += operator.advance()
    for clock in (10_000, 40_000):
        operator.tick(clock, ALL)
        out += operator.advance()
    last = {(w.stream, w.start_ms): w for w in out if isinstance(w, Fired)}
    late = [o.record.offset for o in out if isinstance(o, Late)]
    done = [offset for o in out if isinstance(o, PaneFinal) for offset in o.offsets[0]]
    assert sum(sum(w.home_events) + w.duplicates for w in last.values()) + len(late) == len(events)
    assert sorted(late + done) == list(range(len(events)))
    assert sorted(offset for w in last.values() for offset in w.members[0]) == sorted(done)


@QUICK
@given(plans())
def test_a_window_is_final_only_after_all_its_firings(plan: Plan) -> None:
    out, _ = play(plan)
    finished: set[tuple[str, int]] = set()
    for output in out:
        if isinstance(output, PaneFinal):
            finished.add((output.stream, output.start_ms))
        elif isinstance(output, Fired):
            assert (output.stream, output.start_ms) not in finished


@QUICK
@given(plans())
def test_windows_of_a_stream_fire_in_the_order_of_time(plan: Plan) -> None:
    out, _ = play(plan, repeated=False)
    for name in STREAMS:
        starts = [w.start_ms for w in out if isinstance(w, Fired) and w.stream == name]
        assert starts == sorted(starts)
