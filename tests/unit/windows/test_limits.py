"""What the operator has no room for: too many streams, too many events in one pane."""

from __future__ import annotations

from streams.events.types import Reason
from streams.windows.operator import StreamLimit
from tests.unit.windows.support import CAPTION, Partition, S, fired, refused, starts

HOUR = 3_600 * S


def test_an_event_of_one_stream_too_many_is_refused_and_the_others_go_on() -> None:
    p = Partition(limit=StreamLimit(2))
    p.push(5_000, stream="a")
    p.push(5_000, stream="b")
    (event,) = refused(p.push(5_000, stream="c"))
    assert (event.record.stream, event.reason) == ("c", Reason.TOO_MANY_STREAMS)
    assert starts(p.push(12_000, stream="a")) == [0]


def test_streams_are_counted_over_all_partitions_until_one_is_released_or_forgotten() -> None:
    limit = StreamLimit(1)
    a, b = Partition(limit=limit), Partition(limit=limit)
    a.push(5_000, stream="a")
    assert len(refused(b.push(5_000, stream="b"))) == 1
    a.operator.release()
    assert not refused(b.push(5_000, 6_000, stream="b"))
    b.wait(HOUR)
    assert b.operator.forget("b", 0)
    assert limit.held == 0


def test_what_a_pane_has_no_room_for_is_refused_and_the_rest_is_windowed() -> None:
    p = Partition(max_pane_events=3)
    out = p.push(1_000, 2_000, 3_000, 4_000)
    (event,) = refused(out)
    assert (event.record.event.time_ms, event.reason) == (4_000, Reason.TOO_MANY_EVENTS)
    assert not refused(p.push(4_000, modality=CAPTION))  # each modality of a pane has its own room
    (window,) = fired(p.push(12_000))
    assert (len(window.readings), len(window.captions)) == (3, 1)


def test_a_pane_that_has_fired_has_no_more_room_than_before() -> None:
    p = Partition(max_pane_events=2)
    p.push(1_000, 2_000, 15_000)
    assert len(refused(p.push(3_000))) == 1
