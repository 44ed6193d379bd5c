"""Scores of one window against what is normal for its stream. Pure; changes nothing.

Four kinds of score, each in units of its own alarm line (1.0 alarms):

- `knn/<modality>`: distance of a modality's vector to the reference and recent banks: something never seen before;
- `joint`: the same for the fused vector, with banks and spreads of its own for every modality mask, because a missing
  modality alone moves the fused vector;
- `channel`: the channel that is farthest from its own slow baseline;
- `cusum`: the sum of what the fused vector is farther from the *reference* than it used to be: slow drift, which a
  bank that adapts would learn away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from streams.drift import baselines
from streams.drift.config import DriftConfig
from streams.drift.reference_bank import ReferenceBanks, Row, bank_keys, row_of
from streams.drift.state import DriftState
from streams.drift.types import MODALITY_BITS, Observation
from streams.events.types import ChannelChange

LEARN_REFERENCE = 60  # calm windows after which the distance to the reference is known, and frozen
_RATIO_MAX = 10.0


@dataclass(slots=True)
class Scored:
    """Everything found out about one window, before the state moves."""

    keys: list[tuple[str, str]]  # (vector name, bank key) of its vectors
    rows: dict[str, Row] = field(default_factory=dict)  # the window's vectors, by name
    ratios: dict[str, float] = field(default_factory=dict)
    distances: dict[str, float] = field(default_factory=dict)  # to both banks, by bank key
    reference_distances: dict[str, float] = field(default_factory=dict)
    changes: list[tuple[float, ChannelChange]] = field(default_factory=list)
    scales: dict[str, tuple[float, float]] = field(default_factory=dict)  # by channel: that of its past, and noise
    cusum: float = 0.0
    nearest_normal: int | None = None  # window start

    @property
    def worst(self) -> float:
        return max(self.ratios.values(), default=0.0)


def score(
    config: DriftConfig,
    state: DriftState,
    banks: ReferenceBanks,
    window: Observation,
    *,
    without: int | None = None,
) -> Scored:
    """All scores of a window; `without` leaves the window that starts then out of the banks."""
    scored = Scored(bank_keys(window), cusum=state.cusum)
    _score_vectors(config, state, banks, window, scored, without)
    _score_channels(config, state, window, scored)
    return scored


def _score_vectors(
    config: DriftConfig,
    state: DriftState,
    banks: ReferenceBanks,
    window: Observation,
    scored: Scored,
    without: int | None,
) -> None:
    for name, key in scored.keys:
        row = scored.rows[name] = row_of(window.vectors[name])
        found = banks.compare(state, key, row, without=without)
        if found is None:
            continue
        scored.reference_distances[key] = baselines.nearest(found.reference, config.neighbours)[0]
        distance, nearest = baselines.nearest(found.both, config.neighbours)
        scored.distances[key] = distance
        if name == "joint" or scored.nearest_normal is None:
            scored.nearest_normal = found.starts[nearest]
        spread = state.spreads.get(key)
        if spread is None:
            continue
        scale = baselines.scale_of(spread, config.knn_floor)
        line = scale * max(2.0, config.knn_sigmas + config.extra_sigmas)
        ratio = min(_RATIO_MAX, max(0.0, (distance - spread.mean) / line))
        scored.ratios["joint" if name == "joint" else f"knn/{name}"] = ratio
        if name == "joint":
            _score_cusum(config, state, key, scored)


def _score_cusum(config: DriftConfig, state: DriftState, key: str, scored: Scored) -> None:
    spread = state.reference_spreads.get(key)
    if spread is None or spread.n < LEARN_REFERENCE:
        return
    scale = baselines.scale_of(spread, config.knn_floor)
    z = min(4.0, (scored.reference_distances[key] - spread.mean) / scale)
    limit = config.cusum_limit + 3.0 * config.extra_sigmas
    # bounded: when a drift is mended, its incident is over in reasonable time
    scored.cusum = min(2.0 * limit, max(0.0, state.cusum + z - config.cusum_slack))
    scored.ratios["cusum"] = scored.cusum / limit


def _score_channels(config: DriftConfig, state: DriftState, window: Observation, scored: Scored) -> None:
    worst = 0.0
    line = max(3.0, config.channel_sigmas + config.extra_sigmas)
    judged = False
    for name, stats in window.channels.items():
        baseline = state.channels.get(name)
        if baseline is None or not math.isfinite(stats.mean):
            continue
        value, noise = baselines.tame(stats.mean), baselines.tame(stats.std) / math.sqrt(stats.n)
        own = baselines.channel_scale(baseline, config.channel_floor)
        z = baselines.channel_z(baseline, value, max(own, noise))
        scored.scales[name] = own, noise
        if baseline.n < config.warm_modality:
            continue
        judged = True
        if abs(z) > line * config.close_below:
            expected, actual = baselines.shown(baseline.mean), baselines.shown(stats.mean)
            shown = round(max(-999.0, min(999.0, z)), 2)
            scored.changes.append((abs(shown), ChannelChange(name, expected, actual, shown, stats.unit)))
        worst = max(worst, abs(z) / line)
    if judged:
        scored.ratios["channel"] = min(_RATIO_MAX, worst)
    scored.changes.sort(key=lambda change: (-change[0], change[1].channel))


def severity_of(ratio: float) -> int:
    """0-100 from a score in units of its alarm line: 1.0 is 40, 2.0 is 64, 4.0 is 87."""
    return round(100.0 * (1.0 - math.exp(-ratio / 1.96)))


def scored_modalities(scored: Scored) -> frozenset[str]:
    named = {name.removeprefix("knn/") for name in scored.ratios if name.startswith("knn/")}
    return frozenset(named | ({"sensor"} if "channel" in scored.ratios else set()))


def shares_of(window: Observation, scored: Scored) -> dict[str, float]:
    """How much each present modality speaks for an alarm; sums to 1. Readings speak by vector or by channel."""
    weights = {}
    for name, bit in MODALITY_BITS:
        if window.mask & bit:
            ratio = scored.ratios.get(f"knn/{name}", 0.0)
            if name == "sensor":
                ratio = max(ratio, scored.ratios.get("channel", 0.0))
            weights[name] = ratio**2
    total = math.fsum(weights.values())
    if not total:
        return {name: round(1.0 / len(weights), 4) for name in weights}
    return {name: round(weight / total, 4) for name, weight in weights.items()}
