"""Distances to banks of vectors, running spreads, channel baselines: small functions on plain numbers. Pure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.drift.state import Baseline, Spread

_MEMORY = 200  # windows after which a spread forgets
_TAME = 1e150  # squares of this are finite


def tame(value: float) -> float:
    """A value whose square is finite."""
    return max(-_TAME, min(_TAME, value))


def shown(value: float) -> float:
    """Nine significant digits: these come through every JSON unchanged."""
    return float(f"{value:.9g}")


def distances(vector: NDArray[Any], bank: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine distances (n,) of a unit vector (DIM,) to the unit rows of `bank` (n, DIM)."""
    # products are summed row by row, not by BLAS: the result must not depend on alignment or blocking
    return np.asarray(1.0 - np.add.reduce(bank * vector.astype(np.float64), axis=1))


def nearest(found: NDArray[np.float64], neighbours: int) -> tuple[float, int]:
    """Mean of the smallest `neighbours` distances, and the place of the smallest."""
    order = np.argsort(found, kind="stable")[:neighbours]
    mean = math.fsum(found[order].tolist()) / len(order)
    return max(0.0, mean), int(order[0])


def knn_distance(vector: NDArray[Any], bank: NDArray[np.float64], neighbours: int) -> tuple[float, int]:
    """Mean of the smallest `neighbours` cosine distances to the unit rows of `bank` (n, DIM), and the nearest row."""
    return nearest(distances(vector, bank), neighbours)


def scale_of(spread: Spread, floor: float) -> float:
    """The standard deviation to judge by: little data and very even data are not trusted to be narrow."""
    confidence = 1.0 + 2.0 / max(1, spread.n)
    return max(math.sqrt(spread.var) * confidence, 0.25 * spread.mean, floor)


def learn(spread: Spread, value: float, clip: float, memory: int = _MEMORY) -> None:
    """Take a calm value into a spread; one far value widens it only so much."""
    if spread.n:
        value = min(value, spread.mean + clip)
    spread.n += 1
    rate = max(1.0 / spread.n, 1.0 / memory)
    delta = value - spread.mean
    spread.mean += rate * delta
    spread.var = (1.0 - rate) * (spread.var + rate * delta * delta)


def channel_z(baseline: Baseline, value: float, noise: float, floor: float) -> tuple[float, float]:
    """(z, scale) of a value against its baseline. `noise`: standard error of the value itself."""
    scale = max(math.sqrt(baseline.var) * (1.0 + 2.0 / max(1, baseline.n)), noise, floor)
    if scale == 0.0 or not math.isfinite(scale):
        return (0.0 if value == baseline.mean else math.inf), scale
    return (value - baseline.mean) / scale, scale


def channel_learn(baseline: Baseline, value: float, scale: float, rate: float, *, calm: bool) -> None:
    """Move a baseline towards a value; residuals are clipped at three scales, and only calm ones widen it."""
    baseline.n += 1
    if baseline.n == 1:
        baseline.mean = value
        return
    rate = max(rate, 1.0 / baseline.n) if calm else rate
    delta = value - baseline.mean
    if baseline.n > 8 and scale > 0.0:
        delta = max(-3.0 * scale, min(3.0 * scale, delta))
    baseline.mean += rate * delta
    if calm:
        baseline.var = (1.0 - rate) * (baseline.var + rate * delta * delta)
