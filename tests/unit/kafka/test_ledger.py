"""Which offsets may be committed: never one past an event that is in flight, always all that is finished."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streams.kafka.ledger import OffsetLedger

TP = ("sensor-readings", 0)


def ledger(*offsets: int, epoch: int = 1) -> OffsetLedger:
    made = OffsetLedger()
    made.begin(TP, epoch)
    made.track(TP, epoch, offsets)
    return made


def test_nothing_is_committable_before_anything_is_finished() -> None:
    assert ledger(5, 6, 7).committable(TP) is None


def test_the_finished_prefix_is_committable_and_nothing_past_it() -> None:
    made = ledger(5, 6, 7, 8)
    made.release(TP, 1, [6, 8])
    assert made.committable(TP) is None
    made.release(TP, 1, [5])
    assert made.committable(TP) == 7
    made.release(TP, 1, [7])
    assert made.committable(TP) == 9


def test_offsets_that_the_log_never_held_are_no_obstacle() -> None:
    made = ledger(5, 9, 1_000)  # compacted away, or control records
    made.release(TP, 1, [5, 9])
    assert made.committable(TP) == 10


def test_a_record_of_several_events_is_finished_with_the_last_of_them() -> None:
    made = ledger(5, 6)
    made.expect(TP, 1, 5, 3)
    made.release(TP, 1, [5, 6, 5])
    assert made.committable(TP) is None
    made.release(TP, 1, [5])
    assert made.committable(TP) == 7


def test_what_an_older_assignment_finishes_changes_nothing() -> None:
    made = ledger(5, 6)
    made.begin(TP, 2)
    made.track(TP, 2, [5, 6])
    made.release(TP, 1, [5, 6])
    assert made.committable(TP) is None
    assert made.pending(TP) == 2


def test_what_an_older_assignment_reads_is_not_tracked() -> None:
    made = ledger()
    made.track(TP, 0, [1, 2])
    made.expect(TP, 0, 1, 2)
    assert made.pending(TP) == 0


def test_a_revoked_partition_has_nothing_to_commit_and_accepts_nothing() -> None:
    made = ledger(5)
    made.forget(TP)
    made.track(TP, 1, [6])
    made.release(TP, 1, [5])
    assert (made.committable(TP), made.pending(TP)) == (None, 0)


def test_records_are_tracked_in_the_order_of_the_log() -> None:
    made = ledger(5, 6)
    with pytest.raises(ValueError, match="offset 6 tracked after 6"):
        made.track(TP, 1, [6])


def test_a_release_too_many_is_not_remembered() -> None:
    made = ledger(5, 6)
    made.release(TP, 1, [5, 6])
    assert made.committable(TP) == 7
    for _ in range(100):
        made.release(TP, 1, [5, 6])
    assert made.committable(TP) == 7
    assert len(made._partitions[TP].done) == 0


def test_partitions_know_nothing_of_each_other() -> None:
    made, other = ledger(5), ("captions", 0)
    made.begin(other, 1)
    made.track(other, 1, [5])
    made.release(TP, 1, [5])
    assert (made.committable(TP), made.committable(other)) == (6, None)


class LedgerAgainstModel(RuleBasedStateMachine):
    """The model keeps, per assignment, every record and how many of its events are not finished."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = OffsetLedger()
        self.epoch = 0
        self.left: dict[int, int] = {}  # offset -> events in flight
        self.next_offset = 0
        self.stale: list[tuple[int, int]] = []  # (epoch, offset) of assignments that are over
        self.assigned = False

    @rule(back=st.integers(0, 6), chance=st.integers(0, 7))
    def assign(self, back: int, chance: int) -> None:
        if self.assigned and chance:
            return  # assignments last for a while
        self.stale += [(self.epoch, offset) for offset, left in self.left.items() if left]
        self.epoch += 1
        self.left = {}
        self.next_offset = max(0, self.next_offset - back)  # what was not committed is read again
        self.ledger.begin(TP, self.epoch)
        self.assigned = True

    @rule(chance=st.integers(0, 7))
    def revoke(self, chance: int) -> None:
        if chance:
            return
        self.stale += [(self.epoch, offset) for offset, left in self.left.items() if left]
        self.left = {}
        self.ledger.forget(TP)
        self.assigned = False

    @precondition(lambda self: self.assigned)
    @rule(events=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2)), max_size=5))
    def read(self, events: list[tuple[int, int]]) -> None:
        offsets = []
        for _, gap in events:
            self.next_offset += gap
            offsets.append(self.next_offset)
            self.next_offset += 1
        self.ledger.track(TP, self.epoch, offsets)
        for offset, (count, _) in zip(offsets, events, strict=True):
            self.ledger.expect(TP, self.epoch, offset, count)
            self.left[offset] = count

    @precondition(lambda self: any(self.left.values()))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        open_offsets = sorted(offset for offset, left in self.left.items() if left)
        some = data.draw(st.lists(st.sampled_from(open_offsets), min_size=1, max_size=4))
        some = [o for i, o in enumerate(some) if some[: i + 1].count(o) <= self.left[o]]
        self.ledger.release(TP, self.epoch, some)
        for offset in some:
            self.left[offset] -= 1

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def finish_something_stale(self, data: st.DataObject) -> None:
        epoch, offset = data.draw(st.sampled_from(self.stale))
        self.ledger.release(TP, epoch, [offset])

    @invariant()
    def what_may_be_committed_is_the_finished_prefix(self) -> None:
        committable = None
        for offset in sorted(self.left):
            if self.left[offset]:
                break
            committable = offset + 1
        assert self.ledger.committable(TP) == committable

    @invariant()
    def the_rest_is_pending(self) -> None:
        offsets = sorted(self.left)
        first = next((i for i, offset in enumerate(offsets) if self.left[offset]), len(offsets))
        assert self.ledger.pending(TP) == len(offsets) - first


TestLedgerAgainstModel = LedgerAgainstModel.TestCase
TestLedgerAgainstModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("committed", [None, 5])
def test_faust_would_commit_past_an_event_in_flight_and_the_ledger_does_not(committed: int | None) -> None:
    """Issue 606 of Faust, as it is in 0.15.3: the reason for the ledger. Where this fails, an upgrade has mended it."""
    from faust.transport.consumer import Consumer

    # offset 5 is in flight; 6 and 7 are acknowledged
    consumer: Any = SimpleNamespace(
        _acked={TP: [6, 7]}, _acked_index={TP: {6, 7}}, _gap={TP: []}, _committed_offset={TP: committed}
    )
    assert Consumer._new_offset(consumer, TP) == 8
    made = ledger(5, 6, 7)
    made.release(TP, 1, [6, 7])
    assert made.committable(TP) is None
