"""Baselines of channels: constant ones, crowded ones, numbers of every size."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings

from streams.drift import DriftState
from tests.unit.drift.battery import constants, crowded
from tests.unit.drift.support import Watched, observation, stats, well


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
