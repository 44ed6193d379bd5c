"""Running spreads, alarm scales, channel baselines: small functions on plain numbers. Pure."""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from streams.drift.state import Baseline, Spread

_MEMORY = 200  # windows after which a spread forgets
_TAME = 1e150  # squares of this are finite
_SMALLEST = 1e-150  # numbers nearer than this are the same: squares of smaller ones vanish
_UNCLIPPED = 8  # values a baseline takes as they are, before it knows its own scale


def tame(value: float) -> float:
    """A value whose square is finite."""
    return max(-_TAME, min(_TAME, value))


def shown(value: float) -> float:
    """Nine significant digits: these come through every JSON unchanged."""
    return float(f"{value:.9g}")


def nearest(found: NDArray[Any], neighbours: int) -> tuple[float, int]:
    """Mean of the smallest `neighbours` of some distances (n,), and the place of the smallest."""
    order = found.argsort(kind="stable")[:neighbours]
    mean = math.fsum(found[order].tolist()) / len(order)
    return max(0.0, mean), int(order[0])


def scale_of(spread: Spread, floor: float) -> float:
    """The standard deviation to judge by: little data and very even data are not trusted to be narrow."""
    confidence = 1.0 + 2.0 / max(1, spread.n)
    return max(math.sqrt(spread.var) * confidence, 0.25 * spread.mean, floor)


def learn(spread: Spread, value: float, clip: float, memory: int = _MEMORY) -> Spread:
    """The spread with one more calm value; one far value widens it only so much."""
    if spread.n:
        value = min(value, spread.mean + clip)
    n = spread.n + 1
    rate = max(1.0 / n, 1.0 / memory)
    delta = value - spread.mean
    return Spread(n, spread.mean + rate * delta, (1.0 - rate) * (spread.var + rate * delta * delta))


def channel_scale(baseline: Baseline, floor: float) -> float:
    """The standard deviation of a channel by its own past alone; 0 for one that was always 0."""
    return max(math.sqrt(baseline.var) * (1.0 + 2.0 / max(1, baseline.n)), floor * abs(baseline.mean))


def channel_z(baseline: Baseline, value: float, scale: float) -> float:
    """How many scales a value is off its baseline; infinite for any other value where the scale is 0."""
    delta = value - baseline.mean
    if scale < _SMALLEST:
        return 0.0 if abs(delta) < _SMALLEST else math.copysign(math.inf, delta)
    return delta / scale


def channel_learn(
    baseline: Baseline, value: float, rate: float, *, own_scale: float, noise: float, calm: bool
) -> Baseline:
    """The baseline moved towards a value; residuals are clipped at three scales, and only calm ones widen it.

    `own_scale`: `channel_scale` of the baseline; `noise`: standard error of the value. The noise of a value that is
    not calm is no excuse for a longer step: a baseline of scale 0 then stays where it is, or the value that was
    normal before would be infinitely far from it afterwards. A calm value may differ from such a baseline only by
    its own noise, or while the stream is warming: there the step is taken whole, and the variance grows with it.
    """
    n = baseline.n + 1
    if n == 1:
        return Baseline(1, value, baseline.var)
    rate = max(rate, 1.0 / n) if calm else rate
    delta = value - baseline.mean
    scale = max(own_scale, noise) if calm else own_scale
    if not calm or (n > _UNCLIPPED and scale >= _SMALLEST):
        delta = max(-3.0 * scale, min(3.0 * scale, delta))
    mean = baseline.mean + rate * delta
    return Baseline(n, mean, (1.0 - rate) * (baseline.var + rate * delta * delta) if calm else baseline.var)
