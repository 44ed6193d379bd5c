"""Windows rule by rule on a fake clock: what they hold, when they fire, what is late, what is refused."""

from __future__ import annotations

import pytest

from streams.events.types import Caption
from streams.windows.operator import PartitionWindows
from streams.windows.types import Record, WindowConfig, window_id
from tests.unit.windows.support import (
    AUDIO,
    CAPTION,
    SENSOR,
    Partition,
    S,
    final,
    fired,
    idle,
    late,
    reading,
    spans,
    starts,
)

HOUR = 3_600 * S


# -- what a window is ---------------------------------------------------------------------------------------------


def test_windows_are_half_open_and_aligned_to_the_epoch() -> None:
    p = Partition()
    out = p.push(9_999, 10_000, 19_999, 20_000) + p.push(32_000)
    assert [(w.start_ms, [r.time_ms for r in w.readings]) for w in fired(out)] == [
        (0, [9_999]),
        (10_000, [10_000, 19_999]),
        (20_000, [20_000]),
    ]


@pytest.mark.parametrize("around", [-1_000_000_000, -10_000, 0, 253_402_300_790_000, 1 << 50])
def test_negative_and_huge_times_are_times_like_others(around: int) -> None:
    p = Partition()
    p.push(around, around + 1)
    start = around // 10_000 * 10_000
    assert spans(p.push(around + 22_000)) == [(start, start + 10_000)]


def test_the_id_of_a_window_is_that_of_its_stream_span_and_model_and_never_changes() -> None:
    assert window_id("pump", 0, 10_000, "m1") == "c44cfaa7-0974-54d4-a3d1-9a011818129b"
    others = {window_id(*a) for a in [("pump", 0, 10_000, "m1"), ("pump", 0, 5_000, "m1"), ("pump", 0, 10_000, "m2")]}
    assert len(others | {window_id("fan", 0, 10_000, "m1"), window_id("pump", 10_000, 10_000, "m1")}) == 5


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [0.0, -0.0, 1.0]])
def test_contents_are_in_canonical_order_whatever_the_order_of_arrival(values: list[float]) -> None:
    hashes = set()
    for order in (values, values[::-1], values[1:] + values[:1]):
        p = Partition()
        p.operator.push(SENSOR, [Record(i, "pump", reading(5_000, v)) for i, v in enumerate(order)])
        (window,) = fired(p.push(20_000))
        assert (len(window.readings), window.duplicates) == (3, 0)
        hashes.add(window.content_hash())
    assert len(hashes) == 1


# -- when it fires ------------------------------------------------------------------------------------------------


def test_a_window_fires_when_its_own_clock_and_the_disorder_bound_have_passed() -> None:
    p = Partition()
    assert p.push(5_000, 11_999) == []
    assert spans(p.push(12_000)) == [(0, 10_000)]


def test_a_window_fires_within_the_batch_that_completes_it() -> None:
    p = Partition()
    p.push(5_000)
    out = p.push(12_000, 6_000, 13_000)  # the third event completes nothing, it comes too late for the first firing
    assert [(w.firing, len(w.readings)) for w in fired(out)] == [(0, 1), (1, 2)]


def test_each_modality_is_waited_for_by_its_own_bound() -> None:
    p = Partition(disorder_ms=(0, 3 * S, 20 * S), max_wait_ms=(HOUR,) * 3, max_jump_ms=HOUR)
    p.push(5_000, 6_000)
    p.push(6_000, modality=AUDIO)
    p.push(6_000, modality=CAPTION)
    assert spans(p.push(50_000)) == []
    assert spans(p.push(29_999, modality=CAPTION)) == []
    assert spans(p.push(12_999, modality=AUDIO)) == []
    assert spans(p.push(30_000, modality=CAPTION)) == []
    assert spans(p.push(13_000, modality=AUDIO)) == [(0, 10_000)]


def test_a_modality_that_does_not_come_is_waited_for_only_so_long() -> None:
    p = Partition(max_wait_ms=(2 * S, 2 * S, 7 * S))
    p.push(5_000, 6_000)
    p.push(6_000, modality=CAPTION)
    assert spans(p.push(16_999)) == []
    assert spans(p.push(17_000)) == [(0, 10_000)]


def test_a_modality_that_the_stream_never_brought_is_not_waited_for() -> None:
    p = Partition(max_wait_ms=(HOUR,) * 3)
    p.push(5_000)
    assert spans(p.push(12_000)) == [(0, 10_000)]


def test_a_modality_is_forgotten_after_the_memory_and_had_again_when_it_comes() -> None:
    p = Partition(max_wait_ms=(HOUR,) * 3, modality_memory_ms=30 * S)
    p.push(5_000, modality=CAPTION)
    p.push(6_000)
    assert spans(p.push(35_000)) == []  # captions came 30 s ago
    assert spans(p.push(35_001)) == [(0, 10_000)]
    p.push(36_000, modality=CAPTION)
    assert spans(p.push(60_000)) == []  # and are waited for again
    assert spans(p.push(42_000, modality=CAPTION)) == [(30_000, 40_000)]


def test_the_own_clock_is_the_newest_time_in_any_modality() -> None:
    p = Partition(disorder_ms=(0, 0, 0), max_wait_ms=(0, 0, 0))
    p.push(5_000)
    assert fired(p.push(9_999, modality=CAPTION)) == []
    (window,) = fired(p.push(10_000, modality=CAPTION))
    assert (len(window.readings), len(window.captions)) == (1, 1)


def test_no_stream_is_moved_by_the_clock_of_another() -> None:
    p = Partition()
    p.push(5_000, 6_000, stream="slow")
    out = p.push(HOUR, HOUR + 1, HOUR + 22_000, stream="fast")
    assert {w.stream for w in fired(out)} == {"fast"}
    assert not late(p.push(7_000, stream="slow"))
    assert [len(w.readings) for w in fired(p.push(12_000, stream="slow"))] == [3]


def test_a_caught_up_input_of_which_nothing_comes_is_not_waited_for() -> None:
    p = Partition(max_wait_ms=(HOUR,) * 3, idle_timeout_ms=10 * S)
    p.push(5_000, 6_000)
    p.push(6_000, modality=CAPTION)
    assert p.push(12_000) == []
    assert p.wait(9_999, inputs=(CAPTION,)) == []
    assert spans(p.wait(1, inputs=(CAPTION,))) == [(0, 10_000)]


def test_a_backlogged_input_is_never_taken_for_idle() -> None:
    p = Partition(max_wait_ms=(HOUR,) * 3, idle_timeout_ms=10 * S)
    p.push(5_000, 6_000)
    p.push(6_000, modality=CAPTION)
    p.push(12_000)
    assert p.wait(10 * HOUR, inputs=(AUDIO,)) == []  # the clock of captions stands still: there are more to read


def test_the_watermark_never_goes_back() -> None:
    p = Partition(max_wait_ms=(HOUR,) * 3, allowed_lateness_ms=0)
    p.push(5_000, 6_000, 40_000)  # the watermark is 38 s
    p.push(30_000, modality=CAPTION)  # a modality that is had from now on, and is behind
    assert len(late(p.push(27_000))) == 1


# -- one reading from the future ----------------------------------------------------------------------------------


def test_one_reading_from_the_future_fires_no_window_and_makes_nothing_late() -> None:
    p = Partition()
    p.push(5_000, 6_000)
    assert p.push(10 * HOUR) == []
    assert spans(p.push(7_000, 12_000)) == [(0, 10_000)]


def test_a_repeat_of_a_reading_from_the_future_confirms_nothing() -> None:
    p = Partition()
    p.push(5_000, 6_000)
    assert p.push(10 * HOUR, 10 * HOUR) == []


def test_a_second_reading_confirms_a_gap() -> None:
    p = Partition()
    p.push(5_000, 6_000, 10 * HOUR)
    assert starts(p.push(10 * HOUR + 1_000)) == [0]


def test_two_readings_from_the_future_with_ordinary_ones_between_them_confirm_nothing() -> None:
    p = Partition()
    p.push(5_000, 6_000)
    for second in range(7, 12):
        assert p.push(second * S, second * HOUR) == []


def test_a_stream_that_reports_less_often_than_the_jump_limit_still_moves() -> None:
    p = Partition(max_jump_ms=60 * S)
    out = p.push(*range(0, 10 * HOUR, HOUR))
    assert starts(out) == [h * HOUR for h in range(9)] or starts(out) == [h * HOUR for h in range(8)]


def test_a_first_reading_from_the_future_does_not_make_its_successors_late() -> None:
    p = Partition()
    out = p.push(10 * HOUR) + p.push(5_000) + p.push(6_000) + p.push(12_000)
    assert not late(out)
    assert starts(out) == [0]


def test_after_a_silence_a_reading_from_the_future_has_made_nothing_late() -> None:
    p = Partition()
    p.push(5_000, 6_000, 10 * HOUR)
    out = p.wait(HOUR)
    assert starts(out) == [0, 10 * HOUR]
    assert sorted(o for f in final(out) for o in f.offsets[SENSOR]) == [0, 1, 2]
    out = p.push(50_000, 51_000, 62_000)
    assert not late(out)
    assert starts(out) == [50_000]


def test_after_a_silence_a_first_reading_from_the_future_has_made_nothing_late() -> None:
    p = Partition()
    p.push(10 * HOUR)
    assert len(final(p.wait(HOUR))) == 1
    assert not late(p.push(5_000, 6_000))


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_window_from_the_future_that_is_final_stays_final(forgotten: bool) -> None:
    p = Partition()
    p.push(5_000, 6_000, 10 * HOUR)
    p.wait(HOUR)
    assert not forgotten or p.operator.forget("pump", 10 * HOUR)
    out = p.push(10 * HOUR + 1, 10 * HOUR + 2, 10 * HOUR + 12_000)  # it has come, and is stored without these
    assert [event.record.event.time_ms - 10 * HOUR for event in late(out)] == [1, 2]
    assert starts(out + p.push(10 * HOUR + 23_000)) == [10 * HOUR + 10_000]


# -- late events --------------------------------------------------------------------------------------------------


def test_every_late_event_fires_its_window_again() -> None:
    p = Partition()
    p.push(5_000, 15_000)
    assert [(w.start_ms, w.firing, len(w.readings)) for w in fired(p.push(6_000))] == [(0, 1, 2)]
    assert [(w.start_ms, w.firing, len(w.readings)) for w in fired(p.push(7_000))] == [(0, 2, 3)]
    assert fired(p.push(15_001)) == []


def test_a_late_event_where_no_window_was_makes_one() -> None:
    p = Partition()
    p.push(5_000, 35_000)
    assert [(w.start_ms, w.firing) for w in fired(p.push(15_000) + p.push(35_001))] == [(10_000, 0)]


def test_what_has_fired_is_not_changed_by_what_comes_later() -> None:
    p = Partition()
    p.push(5_000)
    (first,) = fired(p.push(15_000))
    p.push(1_000, 15_001)
    assert [r.time_ms for r in first.readings] == [5_000]


def test_the_allowed_lateness_ends_when_the_watermark_has_passed_it() -> None:
    p = Partition(allowed_lateness_ms=30 * S)
    p.push(5_000)
    p.push(41_999)  # the watermark is 39.999 s
    assert not late(p.push(6_000))
    p.push(42_000)
    (event,) = late(p.push(7_000))
    assert (event.modality, event.record.event.time_ms, event.late_ms) == (SENSOR, 7_000, 30_000)


def test_late_says_by_how_much() -> None:
    p = Partition(max_jump_ms=HOUR)
    p.push(5_000, 102_000)
    (event,) = late(p.push(6_000))
    assert event.late_ms == 90_000  # the watermark is 100 s, the window ended at 10 s


def test_late_is_late_where_no_window_ever_was() -> None:
    p = Partition(max_jump_ms=HOUR)
    p.push(5_000, 102_000)
    assert len(late(p.push(55_000))) == 1  # [50, 60) would have been final at 90 s
    assert len(late(p.push(65_000))) == 1  # and [60, 70) at 100 s, where the watermark is
    assert not late(p.push(70_000))


def test_without_lateness_a_window_is_final_when_it_fires() -> None:
    p = Partition(allowed_lateness_ms=0)
    p.push(5_000)
    out = p.push(12_000)
    assert [type(o).__name__ for o in out] == ["Fired", "PaneFinal"]
    assert len(late(p.push(9_999))) == 1
    assert not late(p.push(10_000))


def test_within_one_batch_nothing_is_late_that_keeps_to_the_bound() -> None:
    p = Partition(allowed_lateness_ms=0, size_ms=1 * S, hop_ms=1 * S)
    assert not late(p.push(100_000, 105_000, 103_001, 104_500))


def test_a_late_flood_into_the_past_leaves_nothing_behind() -> None:
    p = Partition()
    p.push(100_000_000, 100_000_001)
    for start in range(0, 1_000_000, 10_000):
        assert len(late(p.push(start))) == 1
    assert p.operator.open_panes == 1


# -- repeats ------------------------------------------------------------------------------------------------------


def test_repeats_are_counted_and_are_members_and_change_nothing_else() -> None:
    once, twice = Partition(), Partition()
    once.push(1_000, 2_000)
    twice.push(1_000, 2_000, 1_000, 2_000, 1_000)
    (a,), (b,) = fired(once.push(15_000)), fired(twice.push(15_000))
    assert a.content_hash() == b.content_hash()
    assert (a.duplicates, b.duplicates) == (0, 3)
    assert b.members == ((0, 1, 2, 3, 4), (), ())


def test_a_repeat_after_the_firing_tells_the_new_count_with_the_same_content() -> None:
    p = Partition()
    p.push(1_000)
    (first,) = fired(p.push(15_000))
    (again,) = fired(p.push(1_000) + p.push(15_001))
    assert (again.firing, again.duplicates) == (1, 1)
    assert again.content_hash() == first.content_hash()


def test_the_same_words_from_another_source_are_no_repeat() -> None:
    p = Partition()
    captions = [Caption(1_000, "hot"), Caption(1_000, "hot", "anna"), Caption(1_000, "hot", "anna", "en")]
    p.operator.push(CAPTION, [Record(i, "pump", c) for i, c in enumerate(captions)])
    (window,) = fired(p.push(15_000, modality=CAPTION))
    assert (len(window.captions), window.duplicates) == (3, 0)


# -- taking outputs -----------------------------------------------------------------------------------------------


def test_outputs_can_be_taken_in_portions_and_none_is_lost() -> None:
    operator = PartitionWindows(WindowConfig())
    for i in range(50):
        operator.push(SENSOR, [Record(i, f"s{i}", reading(5_000)), Record(100 + i, f"s{i}", reading(15_000))])
    portions = []
    while out := operator.advance(at_most=7):
        portions.append(len(out))
    assert (sum(portions), max(portions)) == (50, 7)


def test_streams_that_go_quiet_together_are_taken_in_portions() -> None:
    p = Partition()
    for i in range(50):
        p.push(5_000, 6_000, stream=f"s{i}")
    p.operator.tick(10 * HOUR, (10 * HOUR,) * 3)
    out, portions = [], []
    while some := p.operator.advance(at_most=7):
        out += some
        portions.append(len(some))
    assert (len(fired(out)), len(final(out)), len(idle(out)), max(portions)) == (50, 50, 50, 7)


def test_the_delay_of_the_watermark_is_that_of_a_typical_stream() -> None:
    p = Partition()
    assert p.operator.watermark_delay_ms() is None
    p.push(50_000, 51_000, 62_000)
    assert p.operator.watermark_delay_ms() == 2_000
