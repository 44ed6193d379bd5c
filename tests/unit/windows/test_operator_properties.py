"""Windows against a model that looks at everything, each stream against itself alone, and what holds for any steps."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from streams.windows.operator import PartitionWindows
from streams.windows.types import Fired, Output, PaneFinal, Record, WindowConfig
from tests.unit.windows.naive import Naive
from tests.unit.windows.support import as_tuples, event, final, fired, late, refused

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
STREAMS = ("pump", "fan", "mill")
LONG_MS = 10**9  # longer than any interval that the steps can show

# -- steps: batches of events, and ticks of the clocks --------------------------------------------------------------

TIMES = st.one_of(
    st.integers(-3_000, 3_000),
    st.integers(0, 60_000),
    st.integers(0, 60_000),
    st.sampled_from([-1, 0, 9_999, 10_000, 12_000, 20_000, 42_000, 200_000, 201_000, 10**6]),
)
EVENTS = st.tuples(st.sampled_from(STREAMS), TIMES, st.integers(0, 1))
PUSHES = st.tuples(st.integers(0, 2), st.lists(EVENTS, max_size=6))
CAUGHT_UP = st.tuples(*[st.booleans()] * 3)
TICKS = st.tuples(st.sampled_from([0, 1, 499, 500, 9_999, 10_000, 40_000, 2 * LONG_MS]), CAUGHT_UP)
STEPS = st.lists(st.one_of(PUSHES, PUSHES, TICKS), max_size=25)


@st.composite
def configs(draw: st.DrawFn, *, hopping: bool = False) -> WindowConfig:
    hop = draw(st.sampled_from([100, 1_000, 10_000]))
    bounds = st.tuples(*[st.sampled_from([0, 1, 500, 2_000, 15_000])] * 3)
    return WindowConfig(
        size_ms=hop * (draw(st.sampled_from([1, 2, 4])) if hopping else 1),
        hop_ms=hop,
        disorder_ms=draw(bounds),
        max_wait_ms=draw(bounds),
        allowed_lateness_ms=draw(st.sampled_from([0, 1, 700, 15_000, 30_000])),
        idle_timeout_ms=draw(st.sampled_from([500, 10_000])),
        max_jump_ms=draw(st.sampled_from([1_000, 60_000])),
        modality_memory_ms=draw(st.sampled_from([10_000, 600_000])),
        max_stream_lag_ms=LONG_MS,
        max_pane_events=draw(st.sampled_from([2, 100])),
    )


class Clocks:
    """The idle clocks as steps move them: the partition's moves while all inputs are caught up."""

    def __init__(self) -> None:
        self.idle_ms, self.inputs_ms = 0, [0, 0, 0]

    def pass_by(self, ms: int, caught_up: tuple[bool, ...]) -> tuple[int, list[int]]:
        self.inputs_ms = [clock + ms * up for clock, up in zip(self.inputs_ms, caught_up, strict=True)]
        self.idle_ms += ms * all(caught_up)
        return self.idle_ms, self.inputs_ms


def numbered(steps: list[Any]) -> list[tuple[int, Any]]:
    """Steps with events made into records, each with the next offset of its modality."""
    offsets, made = [0, 0, 0], []
    for first, second in steps:
        if isinstance(second, list):
            records = []
            for name, time_ms, what in second:
                records.append(Record(offsets[first], name, event(first, time_ms, what)))
                offsets[first] += 1
            made.append((first, records))
        else:
            made.append((first, second))
    return made


def play(config: WindowConfig, steps: list[tuple[int, Any]], *, to_the_end: bool = False) -> list[Output]:
    """What follows from numbered steps; `to_the_end`: and from a long time without anything."""
    operator, clocks, out = PartitionWindows(config), Clocks(), []
    for first, second in [*steps, *([(2 * LONG_MS, (True, True, True))] if to_the_end else [])]:
        if isinstance(second, list):
            assert operator.push(first, second) == []
        else:
            operator.tick(*clocks.pass_by(first, second))
        out += operator.advance()
    assert not to_the_end or operator.open_panes == 0
    return out


def records_of(steps: list[tuple[int, Any]]) -> list[tuple[int, Record]]:
    return [(m, record) for m, records in steps if isinstance(records, list) for record in records]


# -- against the model --------------------------------------------------------------------------------------------


@settings(QUICK, max_examples=300)
@given(configs(), STEPS)
def test_the_operator_does_what_the_model_does(config: WindowConfig, steps: list[Any]) -> None:
    operator, model, clocks = PartitionWindows(config), Naive(config), Clocks()
    for first, second in numbered(steps):
        if isinstance(second, list):
            assert operator.push(first, second) == []
            model.push(first, second)
        else:
            ticks = clocks.pass_by(first, second)
            operator.tick(*ticks)
            model.tick(*ticks)
        did, expected = as_tuples(operator.advance()), model.advance()
        for name in STREAMS:  # between streams the order is free
            assert [o for o in did if o[1] == name] == [o for o in expected if o[1] == name]


# -- each stream is alone -----------------------------------------------------------------------------------------


def interleaved(steps: list[tuple[int, Any]], rng: random.Random) -> list[tuple[int, Any]]:
    """The same steps with the streams shuffled among each other between ticks: each keeps its own order."""
    made: list[tuple[int, Any]] = []
    queues: dict[str, list[tuple[int, Record]]] = {}

    def mix() -> None:
        while queues:
            name = rng.choice(sorted(queues))
            modality, record = queues[name].pop(0)
            if not queues[name]:
                del queues[name]
            if made and isinstance(made[-1][1], list) and made[-1][0] == modality and rng.random() < 0.5:
                made[-1][1].append(record)
            else:
                made.append((modality, [record]))

    for first, second in steps:
        if isinstance(second, list):
            for record in second:
                queues.setdefault(record.stream, []).append((first, record))
        else:
            mix()
            made.append((first, second))
    mix()
    return made


@settings(QUICK, max_examples=150)
@given(configs(hopping=True), STEPS, st.randoms(use_true_random=False))
def test_each_stream_among_others_equals_that_stream_alone(
    config: WindowConfig, steps: list[Any], rng: random.Random
) -> None:
    made = numbered(steps)
    among = as_tuples(play(config, interleaved(made, rng), to_the_end=True))
    for name in STREAMS:
        own = [(a, [r for r in b if r.stream == name] if isinstance(b, list) else b) for a, b in made]
        alone = as_tuples(play(config, own, to_the_end=True))
        assert [o for o in among if o[1] == name] == alone


# -- whatever the steps -------------------------------------------------------------------------------------------


@QUICK
@given(configs(hopping=True), STEPS)
def test_every_event_is_windowed_or_a_repeat_or_late_or_refused_once(config: WindowConfig, steps: list[Any]) -> None:
    made = numbered(steps)
    out = play(config, made, to_the_end=True)
    last = {(w.stream, w.start_ms): w for w in fired(out)}
    counted = sum(sum(w.home_events) + w.duplicates for w in last.values())
    assert counted + len(late(out)) + len(refused(out)) == len(records_of(made))


@QUICK
@given(configs(hopping=True), STEPS)
def test_every_offset_is_final_or_late_or_refused_once(config: WindowConfig, steps: list[Any]) -> None:
    made = numbered(steps)
    out = play(config, made, to_the_end=True)
    done = Counter((o.modality, o.record.offset) for o in late(out))
    done.update((o.modality, o.record.offset) for o in refused(out))
    done.update((m, offset) for o in final(out) for m, offsets in enumerate(o.offsets) for offset in offsets)
    assert done == Counter((m, record.offset) for m, record in records_of(made))


@QUICK
@given(configs(hopping=True), STEPS)
def test_a_window_is_final_only_after_all_its_firings_and_once(config: WindowConfig, steps: list[Any]) -> None:
    closed: set[tuple[str, int]] = set()
    for output in play(config, numbered(steps), to_the_end=True):
        if isinstance(output, Fired | PaneFinal):
            assert (output.stream, output.start_ms) not in closed
        if isinstance(output, PaneFinal):
            closed.add((output.stream, output.start_ms))


@QUICK
@given(configs(hopping=True), STEPS)
def test_what_is_released_is_what_its_window_last_told(config: WindowConfig, steps: list[Any]) -> None:
    last: dict[tuple[str, int], tuple[tuple[int, ...], ...]] = {}
    for output in play(config, numbered(steps), to_the_end=True):
        if isinstance(output, Fired):
            last[output.stream, output.start_ms] = output.members
        elif isinstance(output, PaneFinal):
            assert last[output.stream, output.start_ms] == output.offsets


@QUICK
@given(configs(hopping=True), STEPS)
def test_firings_of_a_window_are_numbered_and_each_tells_something_new(config: WindowConfig, steps: list[Any]) -> None:
    seen: dict[tuple[str, int], list[Fired]] = {}
    for window in fired(play(config, numbered(steps), to_the_end=True)):
        earlier = seen.setdefault((window.stream, window.start_ms), [])
        assert window.firing == len(earlier)
        if earlier:
            before = earlier[-1]
            assert (before.content_hash(), before.duplicates) != (window.content_hash(), window.duplicates)
        earlier.append(window)


@QUICK
@given(configs(), STEPS)
def test_streams_stop_and_resume_in_turns(config: WindowConfig, steps: list[Any]) -> None:
    active = dict.fromkeys(STREAMS, True)
    for kind, name, *more in as_tuples(play(config, numbered(steps), to_the_end=True)):
        if kind == "idle":
            assert more[1] is not active[name]
            active[name] = more[1]
