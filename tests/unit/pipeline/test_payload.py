"""A window as a point and back: offsets, statistics that no order and no size of number can hurt, payloads."""

from __future__ import annotations

import json
import math
import random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from streams.drift import Verdict
from streams.events.types import Caption, Reading, WindowRecord
from streams.pipeline.payload import (
    bookkeeping,
    channel_stats,
    decode_offsets,
    encode_offsets,
    mask_of,
    payload_of,
    stored_window,
    window_record,
)
from streams.windows.types import Fired

VERDICT = Verdict("ok", 0.5, 22, None, (), {"joint": 0.5}, {"sensor": 1.0})


def window(**changes: object) -> Fired:
    made = Fired(
        stream="pump",
        start_ms=10_000,
        end_ms=20_000,
        firing=0,
        readings=[Reading(11_000, {"flow": 3.0}), Reading(12_000, {"flow": 5.0})],
        clips=[],
        captions=[Caption(13_000, "all quiet"), Caption(14_000, "all quiet"), Caption(15_000, "x" * 500)],
        home_events=(2, 0, 3),
        duplicates=1,
        members=((7, 8, 8), (), (1, 2, 300)),
        stored=None,
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def payload(of: Fired, *, origin: str = "cluster-a") -> dict[str, object]:
    made = payload_of(
        of,
        revision=2,
        content_hash="abc",
        model="m1",
        verdict=VERDICT,
        attention={"sensor": 1.0},
        drift="c3RhdGU=",
        origin=origin,
        sealed_before_ms=5_000,
    )
    return json.loads(json.dumps(made))  # as a store would give it back


@given(st.lists(st.integers(0, 1 << 62)))
def test_offsets_come_back_as_they_went_in(offsets: list[int]) -> None:
    assert decode_offsets(encode_offsets(offsets)) == frozenset(offsets)


def test_offsets_that_follow_each_other_take_little_room() -> None:
    assert len(encode_offsets(range(10**9, 10**9 + 600))) < 830
    assert encode_offsets([]) == ""


def test_a_payload_says_what_the_operator_must_know_after_a_restart() -> None:
    found = stored_window(payload(window()), "cluster-a")
    assert (found.start_ms, found.revision, found.content_hash) == (10_000, 2, "abc")
    assert found.members == (frozenset({7, 8}), frozenset(), frozenset({1, 2, 300}))


def test_offsets_of_another_cluster_say_nothing() -> None:
    found = stored_window(payload(window(), origin="cluster-b"), "cluster-a")
    assert found.members == (frozenset(), frozenset(), frozenset())


def test_a_mask_has_a_bit_for_every_modality_present() -> None:
    assert mask_of(window()) == 0b101
    assert mask_of(window(captions=[])) == 0b001
    assert payload(window())["modalities"] == ["sensor", "caption"]


def test_captions_are_shown_once_each_and_cut() -> None:
    assert payload(window())["captions"] == ["all quiet", "x" * 200]


def test_bookkeeping_is_all_that_repeats_may_change() -> None:
    once, twice = window(), window(duplicates=5, members=((7, 8, 9), (), (1, 2, 300)))
    before, after = payload(once), payload(twice)
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"duplicates", "members"}
    assert set(bookkeeping(once, "c", None)) == {"home", "duplicates", "members", "origin", "sealed"}


def test_a_window_record_counts_the_events_whose_home_it_is() -> None:
    record = window_record("id", payload(window(home_events=(1, 0, 0))))
    assert isinstance(record, WindowRecord)
    assert (record.events, record.duplicates, record.modalities) == ({"sensor": 1}, 1, ["sensor", "caption"])


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.one_of(st.none(), NUMBERS), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_statistics_are_finite_and_the_same_in_any_order(values: list[float | None], rng: random.Random) -> None:
    shuffled = list(values)
    rng.shuffle(shuffled)
    first = channel_stats([Reading(i, {"a": v}) for i, v in enumerate(values)])
    second = channel_stats([Reading(i, {"a": v}) for i, v in enumerate(shuffled)])
    assert first == second
    held = [v for v in values if v is not None]
    assert set(first) == ({"a"} if held else set())
    if held:
        stats = first["a"]
        assert stats.n == len(held)
        assert stats.low <= stats.mean <= stats.high or math.isclose(stats.mean, stats.low) or stats.low == stats.high
        assert math.isfinite(stats.std)
        assert stats.std >= 0.0


def test_statistics_are_those_of_the_textbook() -> None:
    stats = channel_stats([Reading(i, {"a": v, "b": None}) for i, v in enumerate([1.0, 2.0, 3.0, 6.0])])
    assert set(stats) == {"a"}
    assert (stats["a"].mean, stats["a"].low, stats["a"].high) == (3.0, 1.0, 6.0)
    assert stats["a"].std == pytest.approx(math.sqrt(3.5))


def test_the_unit_of_a_channel_is_the_one_last_given() -> None:
    readings = [Reading(1, {"a": 1.0}, {"a": "m3/h"}), Reading(2, {"a": 1.0}), Reading(3, {"b": 1.0})]
    stats = channel_stats(readings)
    assert (stats["a"].unit, stats["b"].unit) == ("m3/h", None)
