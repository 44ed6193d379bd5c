"""A pane: canonical order, repeats, and what it tells of the gaps between its events."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from streams.events.types import Caption, Event, Reading
from streams.windows.pane import Pane, canonical
from tests.unit.windows.support import AUDIO, CAPTION, SENSOR, event, reading


def add(pane: Pane, modality: int, offset: int, event: Any) -> None:
    pane.arrived[modality][0].append(event)
    pane.arrived[modality][1].append(offset)


def pane(*events: Event, modality: int = SENSOR) -> Pane:
    pane = Pane()
    pane.arrived[modality] = (list(events), list(range(len(events))))
    return pane


EVENTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 2)).map(lambda made: (made[0], event(*made))),
    max_size=20,
)


def tidied(events: list[tuple[int, Event]]) -> Pane:
    made = Pane()
    for offset, (modality, e) in enumerate(events):
        add(made, modality, offset, e)
    made.tidy()
    return made


@given(EVENTS, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_show(events: list[tuple[int, Event]], rng: random.Random) -> None:
    shuffled = list(events)
    rng.shuffle(shuffled)
    a, b = tidied(events), tidied(shuffled)
    assert repr((a.events, a.counts, a.duplicates, a.largest_gap_ms)) == repr(
        (b.events, b.counts, b.duplicates, b.largest_gap_ms)
    )


@given(EVENTS)
def test_every_distinct_event_is_kept_once_in_order_of_time(events: list[tuple[int, Event]]) -> None:
    made = tidied(events)
    for modality in (SENSOR, AUDIO, CAPTION):
        expected = {repr(e) for m, e in events if m == modality}
        kept = made.events[modality]
        assert sorted(expected) == sorted(repr(e) for e in kept)
        assert [e.time_ms for e in kept] == sorted(e.time_ms for e in kept)
    assert sum(made.counts) + made.duplicates == len(events)


@given(EVENTS)
def test_every_record_is_a_member_repeats_included(events: list[tuple[int, Event]]) -> None:
    members = tidied(events).members
    for modality in (SENSOR, AUDIO, CAPTION):
        assert sorted(members[modality]) == [offset for offset, (m, _) in enumerate(events) if m == modality]


@given(EVENTS)
def test_the_largest_gap_is_that_of_neighbours_of_one_modality(events: list[tuple[int, Event]]) -> None:
    gaps = [0]
    for modality in (SENSOR, AUDIO, CAPTION):
        times = sorted({e.time_ms for m, e in events if m == modality})
        gaps += [b - a for a, b in pairwise(times)]
    assert tidied(events).largest_gap_ms == max(gaps)


def test_tidy_tells_what_came_since_the_last_time() -> None:
    made = pane(reading(1))
    assert made.tidy() == (True, False)
    assert made.tidy() == (False, False)
    add(made, SENSOR, 1, reading(1))
    assert made.tidy() == (False, True)
    add(made, SENSOR, 2, reading(2))
    assert made.tidy() == (True, False)


def test_what_was_handed_on_is_not_changed_by_what_comes_later() -> None:
    made = pane(reading(2))
    made.tidy()
    handed_on, members = made.events[SENSOR], made.members
    add(made, SENSOR, 1, reading(1))
    made.tidy()
    assert ([e.time_ms for e in handed_on], members) == ([2], ((0,), (), ()))


def identities(*events: Event) -> set[tuple[Any, ...]]:
    return {canonical(e) for e in events}


def test_minus_zero_and_zero_are_two_contents() -> None:
    assert len(identities(reading(5, 0.0), reading(5, -0.0))) == 2


def test_a_missing_value_is_another_content_than_a_zero_and_sorts_beside_it() -> None:
    made = pane(Reading(5, {"a": None}), Reading(5, {"a": 0.0}), Reading(5, {"a": None}))
    made.tidy()
    assert (made.counts[SENSOR], made.duplicates) == (2, 1)


def test_the_order_of_channels_is_not_content_and_units_are() -> None:
    assert len(identities(Reading(5, {"a": 1.0, "b": 2.0}), Reading(5, {"b": 2.0, "a": 1.0}))) == 1
    assert len(identities(Reading(5, {"a": 1.0}), Reading(5, {"a": 1.0}, {"a": "K"}))) == 2


def test_the_same_words_from_another_source_or_in_another_language_are_no_repeat() -> None:
    assert len(identities(Caption(5, "hot"), Caption(5, "hot", "anna"), Caption(5, "hot", "anna", "en"))) == 3
