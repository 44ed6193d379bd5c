"""What the operator takes from the store when a partition is assigned, and what it asks for."""

from __future__ import annotations

from streams.windows.operator import PartitionWindows
from streams.windows.types import Output, Record, StoredWindow, WindowConfig
from tests.unit.windows.support import SENSOR, final, fired, late, reading, starts

HOUR = 3_600_000


class Restarted:
    """An operator that asks the store, which knows what a test says."""

    def __init__(self, resume: tuple[int, int, int] = (0, 0, 0)) -> None:
        self.operator = PartitionWindows(WindowConfig(), resume, lookup=True)

    def push(self, *records: tuple[int, int]) -> tuple[list[Record], list[Output]]:
        """(offset, time) of readings; returns what is not known yet, and what follows."""
        unknown = self.operator.push(SENSOR, [Record(offset, "pump", reading(t)) for offset, t in records])
        return unknown, self.operator.advance()


def stored(start_ms: int, *offsets: int, foreign: bool = False) -> StoredWindow:
    return StoredWindow(start_ms, 0, "hash", (frozenset(offsets), frozenset(), frozenset()), foreign=foreign)


def test_a_stream_met_for_the_first_time_is_looked_up_once() -> None:
    r = Restarted()
    unknown, out = r.push((0, 5_000), (1, 6_000))
    assert ([record.offset for record in unknown], out) == ([0, 1], [])
    assert r.operator.unknown(unknown) == {"pump": {0}}
    assert not r.operator.is_restored("pump")
    r.operator.restore("pump", None, [])
    assert r.operator.is_restored("pump")
    assert r.push((0, 5_000), (1, 6_000))[0] == []


def test_a_window_found_in_the_store_is_handed_on_with_its_firing() -> None:
    r = Restarted()
    r.operator.restore("pump", None, [stored(0, 0)])
    r.push((0, 5_000))
    (window,) = fired(r.push((1, 12_000))[1])
    assert window.stored is not None
    assert window.stored.content_hash == "hash"


def test_records_of_windows_that_were_final_are_final_when_read_again() -> None:
    r = Restarted(resume=(3, 0, 0))
    r.operator.restore("pump", 10_000, [stored(0, 3, 4)], looked_up=[0])
    unknown, out = r.push((3, 5_000), (4, 6_000))
    assert unknown == []
    assert [f.offsets for f in final(out)] == [((3,), (), ()), ((4,), (), ())]


def test_a_new_event_for_a_window_that_was_final_before_is_late() -> None:
    r = Restarted()
    r.operator.restore("pump", 20_000, [stored(0, 3)], looked_up=[0, 10_000])
    unknown, out = r.push((7, 5_000), (8, 11_000))
    assert unknown == []
    assert [event.late_ms for event in late(out)] == [40_000, 30_000]


def test_panes_before_what_was_final_are_looked_up_pane_by_pane() -> None:
    r = Restarted()
    r.operator.restore("pump", 100_000, [])
    unknown, _ = r.push((7, 5_000), (8, 25_000), (9, 105_000))
    assert r.operator.unknown(unknown) == {"pump": {0, 20_000}}


def test_a_stored_window_with_a_record_before_the_resume_offset_was_final() -> None:
    r = Restarted(resume=(5, 0, 0))
    r.operator.restore("pump", None, [stored(0, 4, 6), stored(10_000, 5, 7)])
    assert r.operator.final_before("pump") == 10_000


def test_a_stored_window_of_foreign_records_was_final_and_is_never_replaced_by_a_part_of_itself() -> None:
    r = Restarted()
    r.operator.restore("pump", None, [stored(0, foreign=True)], looked_up=[0])
    _, out = r.push((0, 5_000), (1, 11_000), (2, 22_000))
    assert [event.record.offset for event in late(out)] == [0]
    assert 0 not in starts(out)


def test_nothing_was_final_in_a_store_that_knows_nothing() -> None:
    r = Restarted()
    assert r.operator.final_before("pump") is None
    r.operator.restore("pump", None, [])
    assert r.operator.final_before("pump") is None


def test_what_was_final_stays_final() -> None:
    r = Restarted()
    r.operator.restore("pump", 50_000, [])
    r.operator.restore("pump", 10_000, [])
    assert r.operator.final_before("pump") == 50_000


def test_a_forgotten_stream_is_looked_up_again_and_its_past_stays_final() -> None:
    r = Restarted()
    r.operator.restore("pump", None, [])
    r.push((0, 5_000), (1, 6_000))
    r.operator.tick(HOUR, (HOUR,) * 3)
    assert len(final(r.operator.advance())) == 1
    assert r.operator.forget("pump", 0)
    unknown, _ = r.push((2, 15_000))
    assert r.operator.unknown(unknown) == {"pump": {10_000}}
    r.operator.restore("pump", None, [stored(0, 0, 1)])
    assert r.operator.final_before("pump") == 10_000


def test_of_a_far_past_only_so_many_lookups_are_kept() -> None:
    r = Restarted()
    r.operator.restore("pump", 10**9, [])
    for start in range(0, 10**8, 10_000):
        r.operator.restore("pump", 10**9, [], looked_up=[start])
    assert len(r.operator._streams["pump"].stored) <= 4097
