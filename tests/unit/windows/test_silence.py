"""Streams that stop: quiet, silent, with a clock that stands still, left behind in a backlog, forgotten, back again."""

from __future__ import annotations

from streams.windows.operator import PartitionWindows
from streams.windows.types import Output, Record, WindowConfig
from tests.unit.windows.support import AUDIO, CAPTION, SENSOR, Partition, S, final, fired, idle, late, reading, starts

MINUTE, HOUR = 60 * S, 3_600 * S


def quick(**config: int) -> Partition:
    """Of a partition whose streams have been heard long enough to know that they come each second."""
    p = Partition(**config)
    p.push(*range(0, 30_000, 1_000))
    return p


# -- caught up ----------------------------------------------------------------------------------------------------


def test_a_quiet_stream_fires_its_open_windows_and_is_reported_once() -> None:
    p = quick(idle_timeout_ms=10 * S)
    assert p.wait(9_999) == []
    out = p.wait(1)
    assert starts(out) == [20_000]
    assert idle(out) == [("pump", 29_000, False)]
    assert not idle(p.wait(HOUR))


def test_the_windows_of_a_quiet_stream_are_final_after_the_allowed_lateness() -> None:
    p = quick(idle_timeout_ms=10 * S, allowed_lateness_ms=30 * S)
    p.wait(10 * S)
    assert final(p.wait(29_999)) == []
    assert [f.start_ms for f in final(p.wait(1))] == [0, 10_000, 20_000]
    (event,) = late(p.push(29_500))
    assert event.late_ms == 30_000


def test_a_silent_stream_that_resumes_is_reported_with_the_event_that_ended_the_silence() -> None:
    p = quick()
    p.wait(10 * S)
    assert idle(p.push(45_000)) == [("pump", 45_000, True)]
    assert idle(p.push(46_000)) == []


def test_a_late_event_does_not_end_a_silence() -> None:
    p = quick()
    p.wait(HOUR)
    out = p.push(5_000)
    assert (len(late(out)), idle(out)) == (1, [])


def test_after_a_quiet_time_an_event_of_the_same_window_fires_it_again() -> None:
    p = quick()
    p.wait(10 * S)
    p.push(29_500)
    assert [(w.start_ms, w.firing, len(w.readings)) for w in fired(p.wait(10 * S))] == [(20_000, 1, 11)]


def test_a_stream_that_goes_on_after_a_silence_gets_whole_windows() -> None:
    p = quick()
    p.wait(HOUR)
    assert fired(p.push(41_000, 42_000)) == []
    (window,) = fired(p.push(53_000))
    assert [r.time_ms for r in window.readings] == [41_000, 42_000]


def test_one_stream_is_silent_while_another_goes_on() -> None:
    p = quick()
    out = []
    for second in range(12):
        out += p.push(second * S, stream="other") + p.wait(1_000)
    assert {s.stream for s in idle(out)} == {"pump"}
    assert 20_000 in [w.start_ms for w in fired(out) if w.stream == "pump"]


def test_no_stream_is_quiet_while_an_input_is_behind() -> None:
    p = quick()
    assert p.wait(HOUR, inputs=(SENSOR, AUDIO)) == []  # the input of captions is not caught up


def test_one_event_from_the_future_does_not_hide_that_a_stream_stopped() -> None:
    p = quick()
    p.push(10 * HOUR)
    assert idle(p.wait(10 * S)) == [("pump", 29_000, False)]


# -- the usual interval -------------------------------------------------------------------------------------------


def minutely(p: Partition, minutes: range, stream: str = "meter") -> list[Output]:
    """A stream that reports once a minute, on a clock that runs along."""
    out: list[Output] = []
    for minute in minutes:
        out += p.push(minute * MINUTE, stream=stream)
        out += p.wait(MINUTE)
    return out


def test_a_stream_that_reports_once_a_minute_is_never_silent() -> None:
    p = Partition(idle_timeout_ms=10 * S)
    assert idle(minutely(p, range(60))) == []


def test_a_stream_that_reports_once_a_minute_is_silent_after_a_few_minutes() -> None:
    p = Partition(idle_timeout_ms=10 * S)
    minutely(p, range(10))
    out = p.wait(MINUTE)
    assert idle(out) == []
    assert len(idle(p.wait(2 * MINUTE))) == 1


def test_a_single_pause_is_not_usual() -> None:
    p = quick()
    p.wait(5 * MINUTE)
    p.push(*range(330_000, 360_000, 1_000))  # it paused for five minutes, and goes on each second
    assert len(idle(p.wait(10 * S))) == 1


def test_a_stream_of_which_one_event_came_is_not_silent_until_the_longest_lag() -> None:
    p = Partition(idle_timeout_ms=10 * S, max_stream_lag_ms=600 * S)
    p.push(5_000)
    out = p.wait(599_999)
    assert (starts(out), idle(out)) == ([0], [])
    assert idle(p.wait(1)) == [("pump", 5_000, False)]


def test_a_fired_window_tells_the_usual_interval() -> None:
    p = quick()
    p.push(*range(30_000, 50_000, 1_000))
    (*_, window) = fired(p.push(52_000))
    assert window.interval_ms == 1_000


# -- a clock that stands still ------------------------------------------------------------------------------------


def test_a_stream_whose_clock_stands_still_is_closed_after_the_longest_lag_of_the_idle_clock() -> None:
    """A device whose clock stopped sends all the same: it is never quiet, and its own clock closes nothing."""
    p = Partition(max_stream_lag_ms=600 * S)
    p.push(5_000, 6_000)
    out: list[Output] = []
    waited = 0
    while not final(out) and waited < HOUR:
        waited += S
        p.push(6_000)
        out = p.wait(S)
    assert 600 * S <= waited <= 600 * S + 30 * S
    assert len(final(out)[0].offsets[SENSOR]) == p.offsets[SENSOR]
    assert not idle(out)


def test_a_stream_whose_clock_moves_is_not_closed_by_the_idle_clock() -> None:
    p = Partition(max_stream_lag_ms=600 * S, allowed_lateness_ms=HOUR)
    for second in range(0, 1_500, 5):
        assert not final(p.push(second * S) + p.wait(5 * S))


# -- left behind in a backlog -------------------------------------------------------------------------------------


def backlog(p: Partition, from_ms: int, until_ms: int, stream: str = "other") -> list[Output]:
    """Batches of another stream, each 10 s further in the time of reading."""
    out: list[Output] = []
    for read_ms in range(from_ms, until_ms, 10 * S):
        out += p.push(read_ms, stream=stream, read_ms=read_ms)
    return out


def test_in_a_backlog_a_stream_that_ended_is_closed_once_the_partition_is_read_on_without_it() -> None:
    p = Partition(max_stream_lag_ms=600 * S)
    p.push(5_000, 6_000, read_ms=0)
    assert not [o for o in final(backlog(p, 0, 600 * S)) if o.stream == "pump"]
    out = backlog(p, 600 * S, 800 * S)
    assert [(o.stream, o.start_ms) for o in final(out) if o.stream == "pump"] == [("pump", 0)]
    assert [w.start_ms for w in fired(out) if w.stream == "pump"] == [0]


def test_a_stream_that_was_left_behind_is_reported_as_silent() -> None:
    p = quick(max_stream_lag_ms=600 * S)
    out = backlog(p, 0, 800 * S)
    assert idle(out) == [("pump", 29_000, False)]


def test_a_stream_hours_behind_by_its_own_clock_is_not_left_behind_while_it_is_read() -> None:
    p = Partition(max_stream_lag_ms=600 * S, allowed_lateness_ms=HOUR)
    out: list[Output] = []
    for read_ms in range(10 * HOUR, 11 * HOUR, 10 * S):
        out += p.push(read_ms - 5 * HOUR, stream="late-clock", read_ms=read_ms)
        out += p.push(read_ms, stream="other", read_ms=read_ms)
    assert [o for o in final(out) if o.stream == "late-clock"] == []


def test_in_a_backlog_a_stream_whose_clock_stands_still_is_closed_as_well() -> None:
    p = Partition(max_stream_lag_ms=600 * S)
    p.push(5_000, 6_000)
    out: list[Output] = []
    for read_ms in range(0, 800 * S, 10 * S):
        out += p.push(6_000, read_ms=read_ms)
        out += p.push(read_ms, stream="other", read_ms=read_ms)
    assert [(o.start_ms, o.offsets[SENSOR][:3]) for o in final(out) if o.stream == "pump"][:1] == [(0, (0, 1, 2))]


def test_a_stream_that_reports_its_past_at_once_closes_no_other() -> None:
    """Hours of one stream's event time, read in one moment: the others are where they were."""
    p = Partition(max_stream_lag_ms=600 * S)
    p.push(5_000, 6_000, read_ms=0)
    out = p.push(*range(0, 10 * HOUR, MINUTE), stream="bulk", read_ms=1)
    assert "pump" not in {f.stream for f in final(out)}


def test_one_timestamp_from_the_future_leaves_nobody_behind() -> None:
    p = Partition(max_stream_lag_ms=600 * S)
    p.push(5_000, 6_000, read_ms=0)
    for read_ms in range(10):
        p.push(read_ms, stream="other", read_ms=read_ms)
    assert not final(p.push(11, stream="other", read_ms=10 * HOUR))


# -- memory -------------------------------------------------------------------------------------------------------


def test_only_a_quiet_stream_with_nothing_open_and_everything_stored_is_forgotten() -> None:
    p = Partition(idle_timeout_ms=10 * S, allowed_lateness_ms=30 * S, max_stream_lag_ms=60 * S)
    p.push(5_000, 6_000)
    assert not p.operator.forget("pump", 0)  # it may have more
    p.wait(10 * S)
    assert not p.operator.forget("pump", 0)  # its window is not final
    p.wait(30 * S)
    assert not p.operator.forget("pump", -10_000)  # an older window is not the last
    assert p.operator.forget("pump", 0)
    assert p.operator.streams == 0


def test_a_forgotten_stream_begins_anew_and_its_past_stays_final() -> None:
    p = Partition()
    p.push(5_000, 6_000)
    p.wait(HOUR)
    assert p.operator.forget("pump", 0)
    assert len(late(p.push(6_000))) == 1
    out = p.push(10_000, 11_000, 22_000)
    assert (late(out), starts(out)) == ([], [10_000])


def test_streams_that_ended_are_not_looked_at_again() -> None:
    p = Partition()
    for i in range(200):
        p.push(5_000, 6_000, stream=f"ended-{i}")
    p.wait(HOUR)
    assert p.operator.open_panes == 0
    assert (p.operator._stopping._quiet, p.operator._waiting) == ([], {})


def test_a_restored_silence_is_not_reported_again_and_its_end_is() -> None:
    operator = PartitionWindows(WindowConfig(), lookup=True)
    operator.restore("pump", 10_000, [], silent_since_ms=40_000, interval_ms=1_000)
    operator.tick(HOUR, (HOUR,) * 3)
    assert operator.advance() == []
    assert operator.silent_streams == 1
    operator.push(CAPTION, [])
    operator.push(SENSOR, [Record(0, "pump", reading(50_000))])
    assert operator.advance() == [("pump", 50_000, True)]


def test_a_restored_interval_decides_when_a_stream_is_silent() -> None:
    operator = PartitionWindows(WindowConfig(idle_timeout_ms=10 * S), lookup=True)
    operator.restore("meter", None, [], interval_ms=MINUTE)
    operator.push(SENSOR, [Record(0, "meter", reading(50_000)), Record(1, "meter", reading(50_500))])
    operator.tick(2 * MINUTE, (2 * MINUTE,) * 3)
    assert idle(operator.advance()) == []
    operator.tick(10 * MINUTE, (10 * MINUTE,) * 3)
    assert idle(operator.advance()) == [("meter", 50_500, False)]
