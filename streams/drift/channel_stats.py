"""Statistics of every channel over one window. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from streams.events.types import Reading


class ChannelStats(msgspec.Struct, frozen=True, gc=False):
    """One channel over one window, in the channel's own unit; `n` is the number of values."""

    mean: float
    std: float
    low: float
    high: float
    n: int
    unit: str | None = None


def channel_stats(readings: Sequence[Reading]) -> dict[str, ChannelStats]:
    """Statistics by channel name, names in order; missing values are left out, so are channels with no value."""
    values: dict[str, list[float]] = {}
    units: dict[str, str] = {}
    for reading in readings:
        for channel, value in reading.values.items():
            if value is None:
                continue
            if channel in values:
                values[channel].append(value)
            else:
                values[channel] = [value]
        if reading.units:
            units.update(reading.units)
    return {channel: _stats_of(values[channel], units.get(channel)) for channel in sorted(values)}


def _stats_of(numbers: list[float], unit: str | None) -> ChannelStats:
    n, low, high = len(numbers), min(numbers), max(numbers)
    # fsum and scaling: exact whatever the order, finite for numbers up to 1e308
    scale = max(abs(low), abs(high)) or 1.0
    scaled = [v / scale for v in numbers]
    mean = math.fsum(scaled) / n
    variance = math.fsum([(v - mean) ** 2 for v in scaled]) / n
    return ChannelStats(mean * scale, math.sqrt(variance) * scale, low, high, n, unit)
