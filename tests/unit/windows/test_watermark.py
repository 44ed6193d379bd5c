"""The clock of one stream: which events it believes, how far its watermark is, and what its usual interval is."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from streams.windows.types import WindowConfig
from streams.windows.watermark import LONG_AGO, StreamClock
from tests.unit.windows.support import AUDIO, CAPTION, SENSOR, S

HOUR = 3_600 * S


def clock(**config: Any) -> StreamClock:
    return StreamClock(WindowConfig(**config))


def observe(stream: StreamClock, *times_ms: int, modality: int = SENSOR) -> StreamClock:
    for time_ms in times_ms:
        stream.observe(modality, time_ms)
    return stream


# -- what is believed ---------------------------------------------------------------------------------------------


def test_a_first_event_alone_moves_no_clock() -> None:
    assert observe(clock(), 5_000).own_ms == LONG_AGO


def test_a_first_event_is_believed_with_the_second() -> None:
    assert observe(clock(), 5_000, 6_000).own_ms == 6_000


def test_the_second_event_may_be_of_another_modality() -> None:
    stream = observe(clock(), 5_000)
    stream.observe(CAPTION, 6_000)
    assert stream.newest == [5_000, LONG_AGO, 6_000]


def test_of_two_first_events_that_contradict_each_other_the_earlier_is_believed() -> None:
    assert observe(clock(max_jump_ms=60 * S), 10 * HOUR, 5_000).own_ms == 5_000


def test_a_repeat_of_the_first_event_does_not_confirm_it() -> None:
    assert observe(clock(), 5_000, 5_000).own_ms == LONG_AGO


def test_a_jump_of_exactly_the_limit_is_believed_and_one_more_millisecond_is_not() -> None:
    assert observe(clock(max_jump_ms=60 * S), 0, 1, 60_001).own_ms == 60_001
    assert observe(clock(max_jump_ms=60 * S), 0, 1, 60_002).own_ms == 1


def test_one_reading_from_the_future_moves_nothing() -> None:
    assert observe(clock(), 5_000, 6_000, 10 * HOUR, 7_000).own_ms == 7_000


def test_a_repeat_of_a_reading_from_the_future_does_not_confirm_it() -> None:
    assert observe(clock(), 5_000, 6_000, 10 * HOUR, 10 * HOUR, 10 * HOUR).own_ms == 6_000


def test_a_second_event_of_another_time_confirms_a_gap() -> None:
    assert observe(clock(), 5_000, 6_000, 10 * HOUR, 10 * HOUR + 1).own_ms == 10 * HOUR + 1


def test_two_events_far_ahead_and_far_apart_confirm_the_earlier_one_only() -> None:
    assert observe(clock(max_jump_ms=60 * S), 5_000, 6_000, 50 * HOUR, 10 * HOUR).own_ms == 10 * HOUR


def test_an_event_of_another_modality_confirms_a_gap() -> None:
    stream = observe(clock(), 5_000, 6_000, 10 * HOUR)
    stream.observe(AUDIO, 10 * HOUR + 5)
    assert (stream.newest[SENSOR], stream.newest[AUDIO]) == (10 * HOUR, 10 * HOUR + 5)


def test_a_modality_that_goes_on_has_contradicted_its_reading_from_the_future() -> None:
    stream = observe(clock(), 5_000, 6_000, 10 * HOUR, 7_000, 10 * HOUR + 1)
    assert stream.own_ms == 7_000


def test_a_stream_that_reports_each_hour_jumps_by_an_hour() -> None:
    stream = observe(clock(max_stream_lag_ms=2 * HOUR), 0, 1)
    stream.restore_interval(HOUR)
    assert observe(stream, 3 * HOUR).own_ms == 3 * HOUR


# -- the watermark ------------------------------------------------------------------------------------------------


def watermark(newest: tuple[int | None, int | None, int | None], *quiet: int, **config: Any) -> int:
    """Of a stream whose modalities came to these times, the inputs of `quiet` being idle."""
    stream = clock(**config)
    stream.newest[:] = [LONG_AGO if time_ms is None else time_ms for time_ms in newest]
    return stream.watermark_ms([modality in quiet for modality in range(3)])


UNEQUAL: dict[str, Any] = {"disorder_ms": (1 * S, 3 * S, 20 * S), "max_wait_ms": (0, 100 * S, 100 * S)}


def test_a_stream_without_events_has_no_watermark() -> None:
    assert watermark((None, None, None)) == LONG_AGO


def test_one_modality_alone_is_waited_for_by_its_own_bound() -> None:
    assert watermark((50_000, None, None), **UNEQUAL) == 49_000
    assert watermark((None, None, 50_000), **UNEQUAL) == 30_000


def test_the_modality_that_is_furthest_behind_holds_the_watermark() -> None:
    assert watermark((50_000, 45_000, None), **UNEQUAL) == 42_000


def test_a_modality_is_waited_for_only_so_long() -> None:
    assert watermark((500_000, 45_000, None), **UNEQUAL) == 400_000


def test_the_wait_is_never_shorter_than_the_disorder_bound() -> None:
    assert watermark((50_000, 50_000, 50_000), disorder_ms=(0, 0, 20 * S), max_wait_ms=(0, 0, 0)) == 30_000


def test_a_modality_not_brought_within_the_memory_is_one_that_the_stream_has_not() -> None:
    config = {**UNEQUAL, "modality_memory_ms": 60 * S}
    assert watermark((110_000, 50_000, None), **config) == 47_000
    assert watermark((110_001, 50_000, None), **config) == 109_001


def test_an_idle_modality_is_not_waited_for() -> None:
    assert watermark((50_000, 30_000, None), AUDIO, **UNEQUAL) == 49_000


def test_with_every_modality_idle_the_own_clock_is_the_watermark() -> None:
    assert watermark((50_000, 30_000, 10_000), SENSOR, AUDIO, CAPTION, **UNEQUAL) == 50_000


@given(
    st.tuples(*[st.one_of(st.none(), st.integers(0, 1_000_000))] * 3),
    st.tuples(*[st.integers(0, 50_000)] * 3),
    st.tuples(*[st.integers(0, 50_000)] * 3),
    st.sets(st.integers(0, 2)),
    st.integers(0, 1_000_000),
)
def test_a_window_may_fire_when_each_modality_has_passed_or_is_past_waiting_for_or_idle_or_not_had(
    newest: tuple[int | None, ...],
    disorder: tuple[int, ...],
    wait: tuple[int, ...],
    quiet: set[int],
    end_ms: int,
) -> None:
    """The sentence of DESIGN section 5, one clause a modality."""
    had = [time_ms for time_ms in newest if time_ms is not None]
    own = max(had, default=None)
    allowed = own is not None and own >= end_ms
    for modality, time_ms in enumerate(newest):
        if own is None or time_ms is None or own - time_ms > 600_000 or modality in quiet:
            continue
        passed = time_ms - disorder[modality] >= end_ms
        waited = own - max(wait[modality], disorder[modality]) >= end_ms
        allowed = allowed and (passed or waited)
    level = watermark(newest, *quiet, disorder_ms=disorder, max_wait_ms=wait)  # type: ignore[arg-type]
    assert (level >= end_ms) == allowed


# -- the usual interval -------------------------------------------------------------------------------------------


def learnt(*gaps_ms: int, **config: Any) -> StreamClock:
    stream = clock(**config)
    for gap_ms in gaps_ms:
        stream.learn_interval(gap_ms)
    return stream


def test_nothing_is_known_of_a_new_stream() -> None:
    assert clock().interval_ms is None


def test_one_long_gap_alone_tells_nothing_and_a_short_one_does() -> None:
    assert learnt(60_000, idle_timeout_ms=10 * S).interval_ms is None
    assert learnt(60_000, 60_000, idle_timeout_ms=10 * S).interval_ms == 60_000
    assert learnt(1_000, idle_timeout_ms=10 * S).interval_ms == 1_000


def test_a_single_pause_is_not_usual_and_two_are() -> None:
    assert learnt(1_000, 1_000, 300_000, 1_000).interval_ms == 1_000
    assert learnt(1_000, 1_000, 300_000, 1_000, 300_000).interval_ms == 300_000


def test_what_was_usual_long_ago_is_not_any_more() -> None:
    assert learnt(300_000, 300_000, *[1_000] * 8).interval_ms == 1_000


def test_a_window_of_one_event_tells_no_gap() -> None:
    assert learnt(0).interval_ms is None


def test_no_gap_counts_for_more_than_the_longest_lag() -> None:
    assert learnt(10**9, 10**9, max_stream_lag_ms=600_000).interval_ms == 600_000


@pytest.mark.parametrize("interval_ms", [1, 60_000, HOUR])
def test_a_restored_interval_is_usual_and_one_pause_does_not_change_it(interval_ms: int) -> None:
    stream = clock(max_stream_lag_ms=10 * HOUR)
    stream.restore_interval(interval_ms)
    stream.learn_interval(5 * HOUR)
    assert stream.interval_ms == interval_ms


def test_nothing_restored_leaves_a_new_stream_new() -> None:
    stream = clock()
    stream.restore_interval(None)
    assert stream.interval_ms is None


def test_a_stream_is_quiet_after_the_timeout_and_at_least_a_few_of_its_intervals() -> None:
    assert clock(idle_timeout_ms=10 * S).quiet_after_ms() == 10 * S
    assert learnt(1 * S, idle_timeout_ms=10 * S).quiet_after_ms() == 10 * S
    assert learnt(60 * S, 60 * S, idle_timeout_ms=10 * S).quiet_after_ms() > 2 * 60 * S


def test_the_windows_of_a_slow_stream_are_not_held_for_longer_than_the_longest_lag() -> None:
    stream = learnt(HOUR, HOUR, max_stream_lag_ms=2 * HOUR)
    assert stream.quiet_after_ms() == 2 * HOUR
    assert stream.silent_after_ms() > 2 * HOUR  # it is not reported as silent for reporting each hour


def test_a_new_stream_is_not_reported_before_the_longest_lag() -> None:
    assert clock(idle_timeout_ms=10 * S, max_stream_lag_ms=600 * S).silent_after_ms() == 600 * S
