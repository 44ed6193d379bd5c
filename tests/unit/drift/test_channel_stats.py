"""Statistics of a window's channels: no order of readings and no size of number can hurt them."""

from __future__ import annotations

import math
import random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from streams.drift import channel_stats
from streams.events.types import Reading

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
