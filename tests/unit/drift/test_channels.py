"""Baselines of channels: constant ones, crowded ones, numbers of every size."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings

from streams.drift import DriftState, Observation
from tests.unit.drift.battery import constants, crowded
from tests.unit.drift.support import Watched, level, observation, stats, well


def test_streams_that_only_look_odd_raise_nothing() -> None:
    assert Watched().see_all(constants()).kinds == []
    assert Watched().see_all(crowded()).kinds == []


def test_a_channel_that_was_constant_and_moves_is_noticed() -> None:
    w = Watched().see_all(constants())
    moved = {"zero": stats(0.0, 0.0), "one": stats(2.0, 0.0), "single": stats(4.0, 0.0, n=1)}
    verdict = w.see(observation(120, np.eye(8)[0], channels=moved))
    assert verdict.status == "alarm"
    assert w.steps[0].channels[0].channel == "one"


def test_no_more_channels_are_kept_than_a_payload_can_bear() -> None:
    w = Watched().see_all(crowded())
    assert len(w.detector.state.channels) == 128
    assert len(w.detector.state.to_payload()) < 16_384


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_left_out(bad: float) -> None:
    w = well(60)
    window = observation(60, np.eye(8)[0], channels={"flow": stats(bad)})
    assert "channel" not in w.see(window).parts
    assert "nan" not in repr(msgspec.to_builtins(w.detector.state)).lower()


FINITE = st.floats(allow_nan=False, allow_infinity=False, width=64)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(FINITE, FINITE.map(abs)), min_size=30, max_size=60))
def test_any_finite_values_keep_the_state_finite_and_exact(values: list[tuple[float, float]]) -> None:
    w = Watched(warm_windows=10, warm_modality=3)
    for i, (mean, std) in enumerate(values):
        w.see(observation(i, np.eye(8)[0], channels={"a": stats(mean, std)}))
    text = repr(msgspec.to_builtins(w.detector.state))
    assert "inf" not in text
    assert "nan" not in text
    assert DriftState.from_payload(w.detector.state.to_payload()) == w.detector.state


# -- baselines of scale 0 -----------------------------------------------------------------------------------------


def channel(i: int, value: float, std: float = 0.0) -> Observation:
    return observation(i, np.eye(8)[0], channels={"leak": stats(value, std)})


CONSTANTS = [0.0, -0.0, 7.0, -3.0, 1e-9, -1e-9, 1e-300, 5e-324, 1e300]


@pytest.mark.parametrize("std", [0.0, 0.01])
@pytest.mark.parametrize("blip", [0.2, 1.0, -1.0, 1e6])
@pytest.mark.parametrize("normal", CONSTANTS)
def test_a_constant_channel_is_well_again_a_minute_after_a_blip(normal: float, blip: float, std: float) -> None:
    w = Watched().see_all(channel(i, normal) for i in range(60)).see_all([channel(60, blip, std)])
    w.see_all(channel(i, normal) for i in range(61, 120))
    assert w.kinds == ["opened", "closed"]
    assert w.steps[1].time_ms - 610_000 == w.config.close_ms
    assert {v.status for v in w.verdicts[67:]} == {"ok"}


@pytest.mark.parametrize("normal", CONSTANTS)
def test_a_constant_channel_that_changes_its_level_is_found_and_later_adopted(normal: float) -> None:
    w = Watched().see_all(channel(i, normal) for i in range(60)).see_all(channel(i, 2.0) for i in range(60, 500))
    assert w.kinds == ["opened", "adopted"]
    assert w.steps[0].time_ms == 610_000
    assert w.steps[0].channels[0].channel == "leak"
    assert w.steps[1].time_ms - w.steps[0].time_ms == w.config.adopt_ms
    assert w.verdicts[-1].status == "ok"


def test_a_rain_gauge_is_in_alarm_for_its_showers_only() -> None:
    """Four hours, a shower of a minute in each half of an hour."""
    w = Watched().see_all(channel(i, 0.4 if i % 180 in range(90, 96) else 0.0) for i in range(1440))
    assert w.kinds == ["opened", "closed"] * 8
    assert all(b.time_ms - a.time_ms <= 120_000 for a, b in zip(w.steps[::2], w.steps[1::2], strict=True))


def test_a_channel_that_starts_up_while_the_stream_is_warming_is_learnt() -> None:
    w = Watched().see_all(channel(i, 0.0 if i < 12 else 5.0) for i in range(120))
    assert w.kinds == []


NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=64)


@settings(max_examples=60, deadline=None)
@given(NUMBERS, NUMBERS, st.one_of(st.just(0.0), NUMBERS.map(abs)), st.integers(1, 6))
def test_whatever_a_constant_channel_shows_for_a_minute_it_recovers(
    normal: float, blip: float, std: float, windows: int
) -> None:
    w = Watched(warm_windows=10).see_all(channel(i, normal) for i in range(20))
    w.see_all(channel(i, blip, std) for i in range(20, 20 + windows))
    w.see_all(channel(i, normal) for i in range(20 + windows, 30 + windows))
    assert w.detector.state.incident is None
    assert w.verdicts[-1].status == "ok"


# -- more channels than can be watched ----------------------------------------------------------------------------


def test_channels_without_room_are_counted() -> None:
    w = Watched().see_all(crowded())
    assert {v.unwatched_channels for v in w.verdicts} == {500 - w.config.channels_max}


def test_the_first_channels_by_name_are_watched_in_whatever_order_a_window_has_them() -> None:
    names = [f"c{k:02d}" for k in range(20)]
    for order in (names, names[::-1]):
        w = Watched(channels_max=8)
        verdict = w.see(observation(0, np.eye(8)[0], channels={name: stats(1.0) for name in order}))
        assert verdict.unwatched_channels == 12
        assert sorted(w.detector.state.channels) == names[:8]


def test_a_review_counts_the_same_channels() -> None:
    w = Watched(channels_max=8)
    window = observation(0, np.eye(8)[0], channels={f"c{k}": stats(1.0) for k in range(9)})
    assert w.detector.review(window).unwatched_channels == w.see(window).unwatched_channels == 1
    assert w.see(level(1)).unwatched_channels == 1
    assert w.see(observation(2, np.eye(8)[0])).unwatched_channels == 0
