"""The inputs of a partition in the order of production: nothing lost, nothing doubled, whatever the batches.

Times are Kafka timestamps in ms unless they are called event times. A record is a letter of its input and its offset.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from streams.events.types import Reading
from streams.pipeline.merge import InputMerge
from streams.windows.types import Record

SENSOR, AUDIO, CAPTION = 0, 1, 2
NAMES = "sac"
NEVER = (None, None, None)


class Feed:
    """A merge, and the offsets of its three inputs."""

    def __init__(self, **kwargs: Any) -> None:
        self.merge = InputMerge(**kwargs)
        self.offsets = [0, 0, 0]

    def add(self, modality: int, *times_ms: int, arrived_ms: int = 1_000) -> None:
        """Records whose events have the time of their timestamps."""
        self.add_events(modality, [(time_ms, time_ms) for time_ms in times_ms], arrived_ms)

    def add_events(
        self, modality: int, events: Sequence[tuple[int, int]], arrived_ms: int = 1_000, stream: str = "pump"
    ) -> None:
        """Records by (Kafka timestamp, event time)."""
        offsets = range(self.offsets[modality], self.offsets[modality] + len(events))
        self.offsets[modality] += len(events)
        records = [
            Record(offset, stream, Reading(event, {})) for offset, (_, event) in zip(offsets, events, strict=True)
        ]
        raws = [f"{NAMES[modality]}{offset}" for offset in offsets]
        self.merge.add(modality, records, raws, [timestamp for timestamp, _ in events], arrived_ms)

    def release(self, *confirmed_ms: int | None) -> list[str]:
        runs = list(self.merge.release(confirmed_ms or NEVER))
        for run in runs:
            assert {raw[0] for raw in run.raws} == {NAMES[run.modality]}
            assert [event.offset for event in run.events] == [int(raw[1:]) for raw in run.raws]
        return [raw for run in runs for raw in run.raws]


@pytest.fixture
def feed() -> Feed:
    return Feed()


# -- the order of production --------------------------------------------------------------------------------------


def test_inputs_are_merged_by_their_timestamps(feed: Feed) -> None:
    feed.add(SENSOR, 10, 20, 30, 40)
    feed.add(AUDIO, 15, 35)
    feed.add(CAPTION, 25)
    assert feed.release(1_000, 1_000, 1_000) == ["s0", "a0", "s1", "c0", "s2", "a1", "s3"]
    assert feed.merge.held == 0


def test_a_run_says_how_far_its_input_has_been_read(feed: Feed) -> None:
    feed.add(SENSOR, 10, 20, 30)
    feed.add(AUDIO, 25)
    runs = list(feed.merge.release((1_000, 1_000, 1_000)))
    assert [(run.modality, run.read_ms, len(run.events)) for run in runs] == [
        (SENSOR, 20, 2),
        (AUDIO, 25, 1),
        (SENSOR, 30, 1),
    ]


def test_records_wait_until_every_other_input_has_been_read_past_them(feed: Feed) -> None:
    feed.add(SENSOR, 10, 20, 30, 40)
    assert feed.release() == []
    feed.add(AUDIO, 22, 23, 24)  # the least of the last three says how far: past 20
    assert feed.release() == []
    feed.add(CAPTION, 100, 101, 102)
    assert feed.release() == ["s0", "s1"]
    assert feed.merge.held == 8


def test_an_input_of_which_nothing_was_read_holds_all_until_it_is_confirmed_to_be_empty(feed: Feed) -> None:
    feed.add(SENSOR, 10, 20)
    feed.add(AUDIO, 30, 31, 32)
    assert feed.release(1_000, 1_000, None) == []
    assert feed.release(1_000, 1_000, 1_000) == ["s0", "s1", "a0", "a1", "a2"]


def test_what_is_released_is_released_once(feed: Feed) -> None:
    feed.add(SENSOR, 10, 20)
    assert feed.release(1_000, 1_000, 1_000) == ["s0", "s1"]
    assert feed.release(1_000, 1_000, 1_000) == []


def test_with_nothing_held_nothing_is_released(feed: Feed) -> None:
    assert feed.release(1_000, 1_000, 1_000) == []
    feed.add_events(SENSOR, [])
    assert feed.release(1_000, 1_000, 1_000) == []


def test_records_of_the_timestamp_that_another_input_was_read_to_wait_for_more_of_it(feed: Feed) -> None:
    feed.add(AUDIO, 20, 20, 20)
    assert feed.release(1_000, 1_000, 1_000) == ["a0", "a1", "a2"]
    feed.add(SENSOR, 20, arrived_ms=5_000)
    assert feed.release(None, 1_000, 5_000) == []
    assert feed.release(None, 5_000, 5_000) == ["s0"]


# -- confirmations ------------------------------------------------------------------------------------------------


def test_a_confirmation_from_before_the_records_arrived_says_nothing_of_what_was_produced_with_them(feed: Feed) -> None:
    feed.add(SENSOR, 10, arrived_ms=5_000)
    assert feed.release(None, 4_000, 4_000) == []
    assert feed.release(None, 5_000, 4_000) == []
    assert feed.release(None, 5_000, 5_000) == ["s0"]


def test_partitions_of_one_answer_are_noted_a_moment_apart(feed: Feed) -> None:
    feed.add(SENSOR, 10, arrived_ms=5_000)
    assert feed.release(None, 4_990, 4_995) == ["s0"]


def test_records_that_arrive_later_need_a_newer_confirmation(feed: Feed) -> None:
    feed.add(SENSOR, 10, arrived_ms=5_000)
    assert feed.release(None, 5_000, 5_000) == ["s0"]
    feed.add(SENSOR, 20, arrived_ms=6_000)
    assert feed.release(None, 5_000, 5_000) == []
    assert feed.release(None, 6_000, 6_000) == ["s1"]


def test_an_inputs_own_confirmation_is_not_asked_for(feed: Feed) -> None:
    """More of the same input comes later in its offsets, whenever it comes."""
    feed.add(SENSOR, 10, arrived_ms=5_000)
    assert feed.release(None, 5_000, 5_000) == ["s0"]


def test_a_record_that_follows_after_a_confirmation_is_not_held_for_being_older(feed: Feed) -> None:
    """A producer that lags: nothing is thrown away, and nothing stands still."""
    feed.add(SENSOR, 1_000)
    assert feed.release(1_000, 1_000, 1_000) == ["s0"]
    feed.add(AUDIO, 500, arrived_ms=2_000)
    assert feed.release(2_000, 2_000, 2_000) == ["a0"]


# -- timestamps that are wrong --------------------------------------------------------------------------------------


def test_one_timestamp_from_the_future_does_not_hold_what_follows_it(feed: Feed) -> None:
    """Within an input the order is that of the offsets: the timestamp counts as that of the next record."""
    feed.add(SENSOR, 10, 9_999_999, 30, 40)
    feed.add(AUDIO, 20, 35)
    assert feed.release(1_000, 1_000, 1_000) == ["s0", "a0", "s1", "s2", "a1", "s3"]


def test_one_timestamp_from_the_future_does_not_say_that_its_input_was_read_so_far(feed: Feed) -> None:
    feed.add(SENSOR, 10, 20, 30, 40, 50)
    feed.add(AUDIO, 11, 12, 9_999_999)
    feed.add(CAPTION, 500, 501, 502)
    assert feed.release() == ["s0", "a0", "a1"]  # before s1 more sounds may follow
    feed.add(AUDIO, 13, 14)
    assert feed.release() == ["a2", "a3", "a4"]
    feed.add(AUDIO, 31, 32, 33)
    assert feed.release() == ["s1", "s2"]


def test_a_timestamp_from_the_future_at_the_end_is_put_right_by_the_record_after_it(feed: Feed) -> None:
    feed.add(SENSOR, 10, 9_999_999)
    feed.add(SENSOR, 20)
    feed.add(AUDIO, 15)
    assert feed.release(1_000, 1_000, 1_000) == ["s0", "a0", "s1", "s2"]


def test_a_timestamp_from_the_past_draws_those_before_it_along(feed: Feed) -> None:
    """Its input's records come before it in any case: then all of them are read when it is."""
    feed.add(SENSOR, 10, 20, 5)
    feed.add(AUDIO, 7)
    assert feed.release(1_000, 1_000, 1_000) == ["s0", "s1", "s2", "a0"]


# -- inputs that run far ahead --------------------------------------------------------------------------------------


def test_an_input_that_runs_ahead_is_full_and_another_that_waits_is_not() -> None:
    feed = Feed(most=(3, 3, 3))
    feed.add(SENSOR, 10, 20)
    assert [feed.merge.is_full(m) for m in range(3)] == [False, False, False]
    feed.add(SENSOR, 30)
    assert [feed.merge.is_full(m) for m in range(3)] == [True, False, False]
    feed.add(AUDIO, 25)
    feed.release(1_000, 1_000, 1_000)
    assert not feed.merge.is_full(SENSOR)


def test_a_full_input_is_paused_and_holds_no_other() -> None:
    """It is not read while it is full: waiting for it would be for ever."""
    feed = Feed(most=(2, 100, 100))
    feed.add(SENSOR, 10, 20)
    feed.add(AUDIO, 5, 15, 16, 17)
    feed.add(CAPTION, 16, 17, 18)
    assert feed.release() == ["a0", "s0"]  # sounds and captions have been read past 10; of readings no more are read


def test_a_full_input_is_not_waited_for_though_it_was_read_no_further_than_another() -> None:
    feed = Feed(most=(1, 100, 100))
    for time_ms in (1, 2):
        feed.add(SENSOR, time_ms)
        feed.release(1_000, 1_000, 1_000)
    feed.add(SENSOR, 9, arrived_ms=2_000)  # of the last three timestamps, the least is 1
    feed.add(AUDIO, 5, arrived_ms=2_000)
    assert feed.release(None, None, 2_000) == ["a0"]
    feed.add(AUDIO, 9, arrived_ms=2_000)
    assert feed.release(None, 2_000, 2_000) == ["s2", "a1"]


def test_two_full_inputs_do_not_wait_for_each_other() -> None:
    feed = Feed(most=(2, 2, 2))
    feed.add(SENSOR, 10, 30)
    feed.add(AUDIO, 20, 40)
    feed.add(CAPTION, 25, 35)
    released = feed.release()
    assert released[:1] == ["s0"]
    assert not all(feed.merge.is_full(m) for m in range(3))


# -- ties ---------------------------------------------------------------------------------------------------------


def test_records_of_one_timestamp_are_aligned_by_event_time(feed: Feed) -> None:
    """A producer that writes a whole past at once: all of it has one timestamp."""
    feed.add_events(SENSOR, [(7, 100), (7, 200), (7, 300), (7, 400)])
    feed.add_events(AUDIO, [(7, 150), (7, 350)])
    feed.add_events(CAPTION, [(7, 250)])
    assert feed.release(1_000, 1_000, 1_000) == ["s0", "a0", "s1", "c0", "s2", "a1", "s3"]


def test_a_tie_begins_where_the_timestamps_are_the_same(feed: Feed) -> None:
    feed.add_events(SENSOR, [(5, 50), (7, 300)])
    feed.add_events(AUDIO, [(7, 150)])
    assert feed.release(1_000, 1_000, 1_000) == ["s0", "a0", "s1"]


def test_ties_are_aligned_within_each_stream_whatever_its_clock(feed: Feed) -> None:
    hour = 3_600_000
    feed.add_events(SENSOR, [(7, 100), (7, 200)], stream="pump")
    feed.add_events(SENSOR, [(7, hour + 100), (7, hour + 200)], stream="fan")
    feed.add_events(CAPTION, [(7, hour + 150)], stream="fan")
    feed.add_events(CAPTION, [(7, 150)], stream="pump")
    runs = list(feed.merge.release((1_000, 1_000, 1_000)))
    by_stream: dict[str, list[int]] = {}
    for run in runs:
        for one in run.events:
            by_stream.setdefault(one.stream, []).append(one.event.time_ms)
    assert by_stream == {"pump": [100, 150, 200], "fan": [hour + 100, hour + 150, hour + 200]}


def test_events_of_one_input_keep_their_order_in_a_tie(feed: Feed) -> None:
    feed.add_events(SENSOR, [(7, 300), (7, 100), (7, 200)])
    feed.add_events(AUDIO, [(7, 150)])
    released = feed.release(1_000, 1_000, 1_000)
    assert [name for name in released if name[0] == "s"] == ["s0", "s1", "s2"]
    assert sorted(released) == ["a0", "s0", "s1", "s2"]


def test_one_event_from_the_future_draws_no_other_along_in_a_tie(feed: Feed) -> None:
    feed.add_events(SENSOR, [(7, 100), (7, 9_999_999), (7, 200), (7, 300)])
    feed.add_events(AUDIO, [(7, 150), (7, 250)])
    released = feed.release(1_000, 1_000, 1_000)
    assert [name for name in released if name != "s1"] == ["s0", "a0", "s2", "a1", "s3"]


def test_a_repeat_of_an_event_from_the_future_confirms_it_no_more_in_a_tie(feed: Feed) -> None:
    feed.add_events(SENSOR, [(7, 100), (7, 9_999_999), (7, 9_999_999), (7, 200), (7, 300)])
    feed.add_events(AUDIO, [(7, 150), (7, 250)])
    released = feed.release(1_000, 1_000, 1_000)
    assert [name for name in released if name not in ("s1", "s2")] == ["s0", "a0", "s3", "a1", "s4"]


def test_a_tie_waits_for_an_input_that_may_have_more_of_it(feed: Feed) -> None:
    feed.add_events(SENSOR, [(7, 100), (7, 200)])
    feed.add_events(AUDIO, [(7, 150)])
    assert feed.release(1_000, 1_000, None) == []
    assert feed.release(1_000, None, 1_000) == []
    assert feed.release(1_000, 1_000, 1_000) == ["s0", "a0", "s1"]


# -- whatever comes -------------------------------------------------------------------------------------------------


@st.composite
def inputs(draw: st.DrawFn, *, distinct: bool) -> list[tuple[int, int, str]]:
    """(modality, Kafka timestamp, stream) of records, per input in the order of its offsets."""
    times = draw(st.lists(st.integers(0, 60), max_size=40, unique=distinct))
    if distinct:
        times.sort()
    names = st.sampled_from(["pump", "fan"])
    return [(draw(st.integers(0, 2)), time, draw(names)) for time in times]


def batches(records: Iterable[tuple[int, int, str]], rng: random.Random) -> list[tuple[int, list[tuple[int, str]]]]:
    """The inputs cut into batches, which arrive in any order that keeps that of each input."""
    logs: list[list[tuple[int, str]]] = [[], [], []]
    for modality, time_ms, stream in records:
        logs[modality].append((time_ms, stream))
    found, left = [], [0, 0, 0]
    while open_ := [m for m in range(3) if left[m] < len(logs[m])]:
        modality = rng.choice(open_)
        end = left[modality] + rng.randint(1, 6)
        found.append((modality, logs[modality][left[modality] : end]))
        left[modality] = end
    return found


def play(
    records: Sequence[tuple[int, int, str]], rng: random.Random, *, confirm: str, most: int = 10_000
) -> list[tuple[int, int, int, str]]:
    """What comes out: (modality, offset, timestamp, stream).

    `confirm`: `at the end` only; `truly`: as soon as all of an input was delivered; `at random`: wrongly, too.
    """
    merge, offsets, out = InputMerge((most,) * 3), [0, 0, 0], []

    def take(confirmed: tuple[int | None, ...]) -> None:
        for run in merge.release(confirmed):
            for event, raw in zip(run.events, run.raws, strict=True):
                out.append((run.modality, event.offset, raw, event.stream))

    now, cut = 0, batches(records, rng)
    for i, (modality, batch) in enumerate(cut):
        now += 1_000
        events = [
            Record(offsets[modality] + i, stream, Reading(time_ms, {})) for i, (time_ms, stream) in enumerate(batch)
        ]
        offsets[modality] += len(batch)
        times_ms = [time_ms for time_ms, _ in batch]
        merge.add(modality, events, times_ms, times_ms, now)
        left = {m for m, _ in cut[i + 1 :]}
        share = {"at the end": 0.0, "truly": 0.7, "at random": 0.3}[confirm]
        confirmed = [rng.random() < share and not (confirm == "truly" and m in left) for m in range(3)]
        take(tuple(now if one else None for one in confirmed))
    take((now + 1_000,) * 3)
    assert merge.held == 0
    return out


@given(
    inputs(distinct=False),
    st.randoms(use_true_random=False),
    st.sampled_from(["at the end", "truly", "at random"]),
    st.sampled_from([1, 3, 10_000]),
)
def test_nothing_is_lost_or_doubled_and_a_stream_keeps_the_order_of_its_input(
    records: list[tuple[int, int, str]], rng: random.Random, confirm: str, most: int
) -> None:
    out = play(records, rng, confirm=confirm, most=most)
    for modality in range(3):
        expected = [(time_ms, stream) for m, time_ms, stream in records if m == modality]
        found = [entry for entry in out if entry[0] == modality]
        assert sorted(offset for _, offset, _, _ in found) == list(range(len(expected)))
        assert all(expected[offset] == (time_ms, stream) for _, offset, time_ms, stream in found)
        for name in ("pump", "fan"):
            order = [offset for _, offset, _, stream in found if stream == name]
            assert order == sorted(order)


@given(inputs(distinct=True), st.randoms(use_true_random=False), st.sampled_from(["at the end", "truly"]))
def test_records_with_timestamps_of_their_own_come_out_in_their_order_whatever_the_batches(
    records: list[tuple[int, int, str]], rng: random.Random, confirm: str
) -> None:
    out = play(records, rng, confirm=confirm)
    times = [time_ms for _, _, time_ms, _ in out]
    assert times == sorted(times)
    assert len(times) == len(records)
