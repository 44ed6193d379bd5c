"""Event time, rule by rule, on a fake clock. Seconds in the names, milliseconds in the code."""

from __future__ import annotations

import pytest

from streams.events.types import Caption, Reading
from streams.windows.operator import PartitionWindows
from streams.windows.types import Record, StoredWindow, WindowConfig, window_id
from tests.unit.windows.support import (
    ALL,
    AUDIO,
    CAPTION,
    NONE,
    SENSOR,
    Partition,
    finished,
    fired,
    late,
    reading,
    silences,
    spans,
)

S = 1000


# -- what a window is ---------------------------------------------------------------------------------------------


def test_windows_are_half_open_and_aligned_to_the_epoch() -> None:
    p = Partition()
    out = p.push(9_999, 10_000, 19_999, 20_000) + p.push(32 * S)
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


def test_contents_are_in_canonical_order_whatever_the_order_of_arrival() -> None:
    hashes = set()
    for values in ([3.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 3.0, 1.0]):
        p = Partition()
        p.operator.push(SENSOR, [Record(i, "pump", reading(5_000, v)) for i, v in enumerate(values)])
        (window,) = fired(p.push(20_000))
        hashes.add(window.content_hash())
        assert [r.values["flow"] for r in window.readings] == [1.0, 2.0, 3.0]
    assert len(hashes) == 1


def test_minus_zero_and_zero_are_two_readings_in_any_order_of_arrival() -> None:
    hashes = set()
    for values in ([0.0, -0.0], [-0.0, 0.0]):
        p = Partition()
        p.operator.push(SENSOR, [Record(i, "pump", reading(5_000, v)) for i, v in enumerate(values)])
        (window,) = fired(p.push(20_000))
        assert (len(window.readings), window.duplicates) == (2, 0)
        hashes.add(window.content_hash())
    assert len(hashes) == 1


def test_a_missing_value_is_another_content_than_a_zero_and_sorts_beside_it() -> None:
    p = Partition()
    events = [Reading(5, {"a": None}), Reading(5, {"a": 0.0}), Reading(5, {"a": None})]
    p.operator.push(SENSOR, [Record(i, "pump", event) for i, event in enumerate(events)])
    (window,) = fired(p.push(20_000))
    assert (len(window.readings), window.duplicates) == (2, 1)


# -- when it fires ------------------------------------------------------------------------------------------------


def test_a_window_fires_when_its_own_clock_and_the_disorder_bound_have_passed() -> None:
    p = Partition()
    assert p.push(5_000, 11_999) == []
    assert spans(p.push(12_000)) == [(0, 10_000)]


def test_the_disorder_bound_is_that_of_each_modality() -> None:
    p = Partition(idle=NONE, disorder_ms=(0, 3 * S, 20 * S))
    p.push(5_000, 12_000)
    p.push(12_999, modality=AUDIO)
    p.push(30_000, modality=CAPTION)
    assert spans(p.push(12_000, modality=SENSOR)) == []  # sounds are read to 12.999 s, 1 ms short of the bound
    assert spans(p.push(13_000, modality=AUDIO)) == [(0, 10_000)]


def test_a_stream_is_driven_by_its_own_clock_not_by_those_of_others() -> None:
    p = Partition()
    p.push(5_000, stream="slow")
    assert spans(p.push(5_000, 100_000, stream="fast")) == [(0, 10_000)]
    assert p.wait(0) == []
    assert [w.stream for w in fired(p.push(10_000, stream="slow"))] == ["slow"]


def test_the_own_clock_is_the_newest_time_in_any_modality() -> None:
    p = Partition(idle=NONE, disorder_ms=(0, 0, 0))
    p.push(5_000)
    for modality in (SENSOR, AUDIO):
        p.push(60_000, stream="other", modality=modality)
    assert fired(p.push(9_999, modality=CAPTION)) == []
    (window,) = fired(p.push(10_000, modality=CAPTION))
    assert (len(window.readings), len(window.captions)) == (1, 1)


def test_a_modality_that_says_nothing_of_a_stream_holds_it_only_until_its_partition_is_read_past() -> None:
    p = Partition(idle=(False, True, False))
    p.push(5_000, 30_000)
    assert spans(p.push(11_999, stream="talker", modality=CAPTION)) == []
    assert spans(p.push(12_000, stream="talker", modality=CAPTION)) == [(0, 10_000)]


def test_an_input_without_any_data_holds_everything_until_it_is_known_to_be_quiet() -> None:
    p = Partition(idle=(False, True, False))
    assert spans(p.push(5_000, 50_000)) == []
    assert spans(p.wait(0, idle=(False, True, True))) == [(0, 10_000)]


def test_a_quiet_input_counts_as_read_up_to_now_and_no_further() -> None:
    """FLINK-40234 and a half: what arrives in one burst after a quiet time is not overtaken."""
    p = Partition()
    p.push(5_000)
    p.operator.tick(0, (False, True, True))
    p.operator.push(SENSOR, [Record(1, "pump", reading(300_000))])  # the burst begins with readings,
    assert p.operator.advance() == []
    p.operator.push(CAPTION, [Record(0, "pump", Caption(6_000, "odd noise"))])  # and captions follow
    p.operator.push(CAPTION, [Record(1, "pump", Caption(299_000, "all quiet"))])
    out = p.operator.advance() + p.wait(0)
    assert not late(out)
    assert [(len(w.readings), len(w.captions)) for w in fired(out)] == [(1, 1)]


def test_an_input_that_speaks_is_not_quiet_any_more() -> None:
    p = Partition(idle=ALL)
    p.push(100_000)
    p.operator.push(SENSOR, [Record(1, "pump", reading(112_000))])
    p.operator.push(CAPTION, [Record(0, "pump", Caption(101_000, "noise"))])
    assert p.operator.advance() == []  # captions are read to 101 s only


def test_the_watermark_never_goes_back() -> None:
    p = Partition()
    p.push(5_000, 142_000)
    p.push(141_000, modality=CAPTION, stream="other")
    p.wait(0, idle=NONE)  # sounds, never heard of, are not idle any more
    assert len(late(p.push(6_000))) == 1


def test_a_stream_from_the_past_waits_for_itself_not_for_what_was_read_of_others() -> None:
    p = Partition(idle=NONE, disorder_ms=(0, 0, 0))
    for modality in (SENSOR, AUDIO, CAPTION):
        p.push(10_000_000, modality=modality, stream="live")
    p.push(5_000, 60_000, stream="old")
    assert p.wait(0, idle=(False, True, False)) == []  # its captions may be on their way
    out = p.push(6_000, modality=CAPTION, stream="old") + p.push(12_000, modality=CAPTION, stream="old")
    (window,) = fired(out + p.wait(0))
    assert (window.stream, len(window.readings), len(window.captions)) == ("old", 1, 1)
    assert not late(p.push(30_000, modality=CAPTION, stream="old"))


def test_of_a_stream_from_the_past_an_idle_input_has_nothing_more() -> None:
    p = Partition(disorder_ms=(0, 0, 0))
    p.push(10_000_000, stream="live")
    out = p.push(5_000, stream="old") + p.push(11_000, stream="old") + p.push(50_000, stream="old")
    assert [w.start_ms for w in fired(out) if w.stream == "old"] == [0, 10_000]
    assert [f.start_ms for f in finished(out)] == [0, 10_000]


def test_a_stream_from_the_past_that_has_caught_up_is_one_like_others() -> None:
    p = Partition()
    p.push(1_000_000, stream="live")
    p.push(5_000, stream="old")
    assert "old" in p.operator._past
    out = p.push(999_000, 1_011_000, stream="old")
    assert p.operator._past == {}
    assert [w.start_ms for w in fired(out) if w.stream == "old"] == [0, 990_000]
    assert spans(p.push(1_100_000, stream="live")) == [(1_000_000, 1_010_000)]
    assert spans(p.push(1_025_000, stream="old")) == [(1_010_000, 1_020_000)]  # by what was read of the other


# -- hopping windows ----------------------------------------------------------------------------------------------


def hopping(**more: int) -> Partition:
    return Partition(size_ms=20 * S, hop_ms=5 * S, **more)


def test_a_hopping_window_holds_an_event_size_over_hop_times() -> None:
    p = hopping()
    p.push(17_000)
    assert spans(p.push(60_000)) == [(0, 20_000), (5_000, 25_000), (10_000, 30_000), (15_000, 35_000)]


def test_an_event_counts_in_its_home_window_only() -> None:
    p = hopping()
    p.push(17_000, 17_000, 18_000)
    out = p.push(60_000)
    assert [(w.start_ms, len(w.readings), w.home_events[0], w.duplicates) for w in fired(out)] == [
        (0, 2, 0, 0),
        (5_000, 2, 0, 0),
        (10_000, 2, 0, 0),
        (15_000, 2, 2, 1),
    ]


def test_hopping_windows_fire_one_by_one_as_their_ends_pass() -> None:
    p = hopping()
    p.push(17_000)
    assert spans(p.push(22_000)) == [(0, 20_000)]
    assert spans(p.push(26_999)) == []
    assert spans(p.push(27_000)) == [(5_000, 25_000)]


def test_a_late_event_revises_every_hopping_window_that_holds_it_and_is_not_final() -> None:
    p = hopping(allowed_lateness_ms=10 * S)
    p.push(17_000, 41_000)
    out = p.push(16_000)  # the watermark is 39 s: [0, 20) and [5, 25) are final, [10, 30) and [15, 35) are not
    assert [(w.start_ms, w.firing) for w in fired(out)] == [(10_000, 1), (15_000, 1)]


def test_a_pane_is_finished_when_its_home_window_is_final() -> None:
    p = hopping(allowed_lateness_ms=10 * S)
    p.push(17_000)
    assert finished(p.push(46_999)) == []
    assert [(f.start_ms, f.offsets[0]) for f in finished(p.push(47_000))] == [(15_000, (0,))]


def test_ten_hops_a_second_cost_no_more_than_they_must() -> None:
    p = Partition(size_ms=10 * S, hop_ms=100, allowed_lateness_ms=30 * S)
    total = 0
    for second in range(60):
        total += len(fired(p.push(second * S)))
    assert total + len(fired(p.wait(60 * S, idle=ALL))) == 690
    assert p.operator.open_panes == 0


# -- late events --------------------------------------------------------------------------------------------------


def test_a_late_event_fires_its_window_again_with_the_next_number() -> None:
    p = Partition()
    p.push(5_000, 15_000)
    out = p.push(6_000, 13_000)
    assert [(w.start_ms, w.firing, len(w.readings)) for w in fired(out)] == [(0, 1, 2)]
    assert [(w.firing, len(w.readings)) for w in fired(p.push(7_000))] == [(2, 3)]


def test_what_has_fired_is_not_changed_by_what_comes_later() -> None:
    p = Partition()
    p.push(5_000)
    (first,) = fired(p.push(15_000))
    p.push(1_000)
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
    p = Partition()
    p.push(5_000, 102_000)
    (event,) = late(p.push(6_000))
    assert event.late_ms == 90_000  # the watermark is 100 s, the window ended at 10 s


def test_late_is_late_where_no_window_ever_was() -> None:
    p = Partition()
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
    p = Partition(idle=ALL, allowed_lateness_ms=0, size_ms=1 * S, hop_ms=1 * S)
    p.push(100_000)
    assert not late(p.push(105_000, 103_001, 104_500))


def test_a_late_flood_into_the_past_leaves_nothing_behind() -> None:
    p = Partition()
    p.push(100_000_000)
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
    (again,) = fired(p.push(1_000))
    assert (again.firing, again.duplicates) == (1, 1)
    assert again.content_hash() == first.content_hash()


def test_the_same_words_from_another_source_are_no_repeat() -> None:
    p = Partition(idle=(False, True, False))
    captions = [Caption(1_000, "hot"), Caption(1_000, "hot", "anna"), Caption(1_000, "hot", "anna", "en")]
    p.operator.push(CAPTION, [Record(i, "pump", c) for i, c in enumerate(captions)])
    (window,) = fired(p.push(15_000) + p.push(15_000, modality=CAPTION))
    assert (len(window.captions), window.duplicates) == (3, 0)


# -- silence ------------------------------------------------------------------------------------------------------


def test_a_silent_stream_closes_its_open_windows_and_says_so_once() -> None:
    p = Partition(idle=ALL)
    p.push(5_000, 11_000)
    assert p.wait(9_999) == []
    out = p.wait(1)
    assert spans(out) == [(0, 10_000), (10_000, 20_000)]
    assert silences(out) == [("pump", 11_000, True)]
    assert p.wait(5_000) == []


def test_the_windows_of_a_silent_stream_are_final_after_the_allowed_lateness() -> None:
    p = Partition(idle=ALL)
    p.push(5_000)
    p.wait(10_000)
    assert p.wait(29_999) == []
    assert [f.offsets for f in finished(p.wait(1))] == [((0,), (), ())]
    (event,) = late(p.push(6_000))
    assert event.late_ms == 30_000


def test_a_silent_stream_that_speaks_again_says_so_and_goes_on() -> None:
    p = Partition(idle=ALL)
    p.push(5_000)
    p.wait(10_000)
    out = p.push(6_000)
    assert silences(out) == [("pump", 5_000, False)]
    out = p.wait(10_000)
    assert [(w.start_ms, w.firing) for w in fired(out)] == [(0, 1)]
    assert silences(out) == [("pump", 6_000, True)]
    assert not late(p.push(70_000))


def test_a_stream_that_goes_on_in_time_after_a_silence_gets_whole_windows() -> None:
    p = Partition(idle=ALL)
    p.push(5_000)
    p.wait(60_000)
    assert fired(p.push(21_000)) == []
    assert fired(p.push(22_000)) == []
    (window,) = fired(p.push(33_000))
    assert [r.time_ms for r in window.readings] == [21_000, 22_000]


def test_one_stream_is_silent_while_others_speak() -> None:
    p = Partition()
    out = p.push(1_000, stream="gone")
    for second in range(1, 12):
        p.push(second * S, stream="here")
        out += p.wait(1_000)
    assert [s.stream for s in silences(out)] == ["gone"]
    assert [w.stream for w in fired(out)] == ["gone"]


def test_a_stream_is_not_silent_while_the_idle_clock_stands_still() -> None:
    p = Partition(idle=NONE)
    p.push(5_000)
    for _ in range(100):
        assert p.wait(0) == []


# -- memory -------------------------------------------------------------------------------------------------------


def test_a_forgotten_stream_begins_anew_and_its_past_stays_final() -> None:
    p = Partition(idle=ALL)
    p.push(5_000)
    assert not p.operator.forget("pump", 0)  # it may have more to say
    p.wait(10_000)
    assert not p.operator.forget("pump", 0)  # its window is not final
    p.wait(30_000)
    assert not p.operator.forget("pump", -10_000)  # an older window is not the last
    assert p.operator.forget("pump", 0)
    assert p.operator.streams == 0
    assert len(late(p.push(6_000))) == 1
    assert not late(p.push(10_000))


def test_streams_that_ended_cost_nothing_while_others_go_on() -> None:
    p = Partition(idle=NONE)
    for modality in (AUDIO, CAPTION):
        p.push(10**9, modality=modality, stream="clock")
    for i in range(2_000):
        p.push(5_000, stream=f"ended-{i}")
    p.push(500_000, stream="alive")
    # whoever waits for its own clock stands in no queue that anybody walks
    assert {name for _, name in p.operator._due} == {"alive", "clock"}
    assert {p.operator._streams[f"ended-{i}"].wake_ms for i in range(2_000)} == {10_000}


def test_outputs_can_be_taken_in_portions_and_none_is_lost() -> None:
    p = Partition()
    for i in range(50):
        p.operator.push(SENSOR, [Record(i, f"s{i}", reading(5_000)), Record(100 + i, f"s{i}", reading(15_000))])
    p.operator.tick(0, (False, True, True))
    portions = []
    while out := p.operator.advance(at_most=7):
        portions.append(len(out))
    assert sum(portions) == 50
    assert max(portions) == 7


# -- inputs that run ahead ----------------------------------------------------------------------------------------


def test_an_input_that_runs_ahead_of_the_slowest_is_to_be_paused() -> None:
    p = Partition(idle=(False, True, False), max_drift_ms=60 * S)
    p.push(0, modality=CAPTION)
    p.push(60_000)
    assert p.operator.ahead() == [False, False, False]
    p.push(60_001, 60_001)
    assert p.operator.ahead() == [True, False, False]
    p.push(1_000, 1_000, modality=CAPTION)
    assert p.operator.ahead() == [False, False, False]


def test_an_input_without_data_pauses_the_others_only_until_it_is_known_to_be_quiet() -> None:
    p = Partition(idle=(False, True, False), max_drift_ms=60 * S)
    p.push(0)
    p.push(*[100_000] * 3)
    assert p.operator.ahead() == [True, False, False]
    p.wait(0, idle=(False, True, True))
    assert p.operator.ahead() == [False, False, False]


@pytest.mark.parametrize("idle", [NONE, (False, True, True), ALL, (True, False, False)])
def test_the_slowest_busy_input_is_never_paused(idle: tuple[bool, ...]) -> None:
    p = Partition(idle=NONE)
    for modality, time_ms in enumerate((10**12, 0, 10**15)):
        p.push(time_ms, modality=modality, stream=f"s{modality}")
    p.wait(0, idle=idle)
    busy = [m for m in range(3) if not idle[m]]
    if busy:
        slowest = min(busy, key=lambda m: (10**12, 0, 10**15)[m])
        assert p.operator.ahead()[slowest] is False


def test_one_fast_clock_pauses_nobody() -> None:
    p = Partition(idle=NONE, max_drift_ms=60 * S)
    p.push(*range(0, 30_000, 1_000), modality=CAPTION)
    p.push(*range(0, 30_000, 1_000), modality=AUDIO)
    p.push(*range(0, 30_000, 1_000), stream="good")
    p.push(*range(250_000, 280_000, 3_000), stream="fast")
    assert p.operator.ahead() == [False, False, False]


def test_before_anything_is_read_nobody_is_ahead() -> None:
    assert Partition().operator.ahead() == [False, False, False]


def test_the_watermarks_delay_is_told_once_there_is_one() -> None:
    p = Partition(idle=NONE)
    p.push(50_000)
    assert p.operator.watermark_delay_ms() is None
    p.push(40_000, modality=CAPTION)
    p.push(45_000, modality=AUDIO)
    assert p.operator.watermark_delay_ms() == 12_000


# -- after a restart ----------------------------------------------------------------------------------------------


class Restarted:
    """An operator that asks the store, which knows what a test says."""

    def __init__(self, resume: tuple[int, int, int] = (0, 0, 0)) -> None:
        self.operator = PartitionWindows(WindowConfig(), resume, lookup=True)
        self.operator.tick(0, (False, True, True))

    def push(self, *records: tuple[int, int]) -> tuple[list[Record], list[object]]:
        """(offset, time) of readings; returns what is not known yet, and what follows."""
        unknown = self.operator.push(SENSOR, [Record(offset, "pump", reading(t)) for offset, t in records])
        self.operator.tick(0, (False, True, True))
        return unknown, list(self.operator.advance())


def stored(start_ms: int, *offsets: int, revision: int = 0) -> StoredWindow:
    return StoredWindow(start_ms, revision, "hash", (frozenset(offsets), frozenset(), frozenset()))


def test_a_stream_met_for_the_first_time_is_looked_up_once() -> None:
    r = Restarted()
    unknown, out = r.push((0, 5_000), (1, 6_000))
    assert (len(unknown), out) == (2, [])
    assert r.operator.unknown(unknown) == {"pump": {0}}
    assert not r.operator.is_restored("pump")
    r.operator.restore("pump", None, [])
    assert r.operator.is_restored("pump")
    assert r.push((0, 5_000), (1, 6_000))[0] == []


def test_a_window_found_in_the_store_is_handed_on_with_its_firing() -> None:
    r = Restarted()
    r.operator.restore("pump", None, [stored(0, 0)])
    r.push((0, 5_000))
    (window,) = fired(r.push((1, 12_000))[1])  # type: ignore[arg-type]
    assert window.stored is not None
    assert window.stored.content_hash == "hash"


def test_records_of_windows_that_were_final_are_finished_when_read_again() -> None:
    r = Restarted(resume=(3, 0, 0))
    r.operator.restore("pump", 10_000, [stored(0, 3, 4)], looked_up=[0])
    unknown, out = r.push((3, 5_000), (4, 6_000))
    assert unknown == []
    assert [f.offsets for f in finished(out)] == [((3,), (), ()), ((4,), (), ())]  # type: ignore[arg-type]


def test_a_new_event_for_a_window_that_was_final_before_is_late() -> None:
    r = Restarted()
    r.operator.restore("pump", 20_000, [stored(0, 3)], looked_up=[0, 10_000])
    unknown, out = r.push((7, 5_000), (8, 11_000))
    assert unknown == []
    assert [event.late_ms for event in late(out)] == [40_000, 30_000]  # type: ignore[arg-type]


def test_panes_before_the_seal_are_looked_up_pane_by_pane() -> None:
    r = Restarted()
    r.operator.restore("pump", 100_000, [])
    unknown, _ = r.push((7, 5_000), (8, 25_000), (9, 105_000))
    assert r.operator.unknown(unknown) == {"pump": {0, 20_000}}


def test_a_stored_window_with_a_record_before_the_resume_offset_was_final() -> None:
    r = Restarted(resume=(5, 0, 0))
    r.operator.restore("pump", None, [stored(0, 4, 6), stored(10_000, 5, 7)])
    assert r.operator.sealed_before("pump") == 10_000


def test_nothing_is_sealed_by_a_store_that_knows_nothing() -> None:
    r = Restarted()
    assert r.operator.sealed_before("pump") is None
    r.operator.restore("pump", None, [])
    assert r.operator.sealed_before("pump") is None


def test_the_seal_only_grows() -> None:
    r = Restarted()
    r.operator.restore("pump", 50_000, [])
    r.operator.restore("pump", 10_000, [])
    assert r.operator.sealed_before("pump") == 50_000


def test_a_forgotten_stream_is_looked_up_again_and_its_past_stays_final() -> None:
    r = Restarted()
    r.operator.restore("pump", None, [])
    r.push((0, 5_000))
    r.operator.tick(10_000, ALL)
    r.operator.advance()
    r.operator.tick(40_000, ALL)
    r.operator.advance()
    assert r.operator.forget("pump", 0)
    unknown, _ = r.push((1, 15_000))
    assert r.operator.unknown(unknown) == {"pump": {10_000}}
    r.operator.restore("pump", None, [stored(0, 0)])
    assert r.operator.sealed_before("pump") == 10_000


def test_lookups_of_the_past_are_not_kept_for_ever() -> None:
    r = Restarted()
    r.operator.restore("pump", 10**9, [])
    for start in range(0, 10**8, 10_000):
        r.operator.restore("pump", 10**9, [], looked_up=[start])
    assert len(r.operator._streams["pump"].stored) <= 4097
