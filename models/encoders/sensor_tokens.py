"""Readings of a window -> tokens: patches of one channel, with the level of each. Pure numpy.

Values are put on a signed logarithmic scale, y = asinh(x / KNEE): a step of 5 % is 0.05 there for a temperature of 300
as for a flow of 0.3, and 1e300 stays finite. A patch's *level* is the mean of exp(i w y) over its values, for several
w: coarse ones show the order of magnitude, fine ones a change of a few per cent, and a channel that is noisy at a scale
fades out at that scale (it is the empirical characteristic function of the patch).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from models.encoders.text_hashing import CHANNEL_PIECES_MAX, channel_pieces, channel_signs

SLOTS = 16  # observations of a patch
TOKENS_MAX = 64  # of one window in attention; more are averaged in order
CHANNELS_MAX = 1_024  # of one window; beyond it, neighbours by name share a token
BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1_024)  # padded lengths; the window's own count decides which
KNEE = 0.05
LEVEL_SCALES = (0.25, 1.0, 4.0, 16.0)  # radians per unit of y
_SPREAD_SCALE = 1.5
_QUIET = 0.005  # spread of y below which a channel counts as constant: half a per cent
LEVEL_DIM = 2 * len(LEVEL_SCALES) + 4  # level, spread and roughness
TIME_DIM = 10
SLOT_DIM = 3 * SLOTS
TOKEN_DIM = SLOT_DIM + LEVEL_DIM + 5 + TIME_DIM
NO_CHANNEL = "\x00none"

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Readings = Sequence[tuple[int, Mapping[str, float | None]]]


@dataclass(frozen=True, slots=True)
class SensorTokens:
    """Tokens of one window, by channel name, then time. T >= 1."""

    features: NDArray[np.float32]  # (T, TOKEN_DIM)
    levels: NDArray[np.float32]  # (T, LEVEL_DIM), zero where nothing was observed
    weights: NDArray[np.float32]  # (T,) 1 / patches of the token's channel
    pieces: NDArray[np.int64]  # (T, CHANNEL_PIECES_MAX) rows of the name table, 0 = padding
    signs: NDArray[np.float32]  # (T, sketch_dim)

    def __len__(self) -> int:
        return len(self.weights)


def log_scale(values: Floats) -> Floats:
    """Signed logarithm: about linear below KNEE, about ln beyond it; finite for every finite value."""
    return np.arcsinh(np.clip(values, -1e300, 1e300) / KNEE)


def tokenize(
    readings: Readings,
    units: Mapping[str, str],
    start_ms: int,
    end_ms: int,
    buckets: int,
    sketch_dim: int,
) -> SensorTokens:
    """Readings in canonical order -> tokens. None, NaN and infinities are missing: a slot that is not observed.

    units: by channel; start_ms, end_ms: of the window; buckets: rows of the name table; sketch_dim: of `signs`.
    """
    names, channel, at_ms, raw = _flat(readings, start_ms)
    by_name = channel
    if len(names) > CHANNELS_MAX:
        channel = channel * CHANNELS_MAX // len(names)
        names = [names[-(-i * len(names) // CHANNELS_MAX)] for i in range(CHANNELS_MAX)]
    # A channel's observations in time order, independent of the order of channels within a reading.
    order = np.lexsort((by_name, at_ms, channel))
    channel = channel[order]
    span_ms = float(max(end_ms - start_ms, 1))
    when = (at_ms.astype(np.float64)[order] - start_ms) / span_ms  # 0..1 in the window
    return _patches(names, units, channel, when, raw[order], span_ms, buckets, sketch_dim)


def _flat(readings: Readings, start_ms: int) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64], Floats]:
    """Channel names, sorted, and all values one after another: channel (N,), time in ms (N,), value (N,), NaN where
    missing; N >= 1."""
    values = [math.nan if value is None else value for _, row in readings for value in row.values()]
    if not values:
        return [NO_CHANNEL], np.zeros(1, np.int64), np.array([start_ms]), np.array([math.nan])
    first = list(readings[0][1])
    if all(list(row) == first for _, row in readings):  # as a data logger writes them
        names = sorted(first)
        index = {name: i for i, name in enumerate(names)}
        channel = np.tile(np.array([index[name] for name in first], np.int64), len(readings))
    else:
        names = sorted({name for _, row in readings for name in row})
        index = {name: i for i, name in enumerate(names)}
        channel = np.array([index[name] for _, row in readings for name in row], np.int64)
    times = np.repeat(np.array([at for at, _ in readings], np.int64), [len(row) for _, row in readings])
    return names, channel, times, np.array(values, np.float64)


@lru_cache(maxsize=128)
def _channels(
    names: tuple[str, ...], units: tuple[str, ...], buckets: int, sketch_dim: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """From the names of channels: rows of the name table (C, CHANNEL_PIECES_MAX), signs (C, sketch_dim). Cached: a
    stream has the same channels in every window."""
    pieces = np.zeros((len(names), CHANNEL_PIECES_MAX), np.int64)
    directions = np.empty((len(names), sketch_dim), np.float32)
    for i, (name, unit) in enumerate(zip(names, units, strict=True)):
        rows = channel_pieces(name, unit, buckets)
        pieces[i, : len(rows)] = rows
        directions[i] = channel_signs(name, sketch_dim)
    return pieces, directions


def _patches(
    names: list[str],
    units: Mapping[str, str],
    channel: Ints,
    when: Floats,
    raw: Floats,
    span_ms: float,
    buckets: int,
    sketch_dim: int,
) -> SensorTokens:
    """names (C,); channel (N,) index into names, ascending; when (N,) relative time, 0..1; raw (N,) values, NaN where
    missing -> tokens. N observations, T patches."""
    grid = _grid(channel, len(names))
    observed = np.isfinite(raw)
    seen = observed.astype(np.float64)
    y = log_scale(np.where(observed, raw, 0.0))
    owner = np.repeat(np.arange(len(names)), grid.patches)  # (T,) channel of a token
    n = _sums(grid.patch, seen, grid.total)  # (T,) observed values
    mean = _sums(grid.patch, y * seen, grid.total) / np.maximum(n, 1.0)
    deviation = (y - mean[grid.patch]) * seen  # (N,)
    levels, spread = _levels(grid, y, seen, observed, deviation, n)
    slots = _slots(grid, channel, y, seen, when)

    held = np.maximum(np.bincount(grid.patch, minlength=grid.total), 1).astype(np.float64)  # (T,) missing ones too
    middle = _sums(grid.patch, when, grid.total) / held
    slope = _sums(grid.patch, deviation * (when - middle[grid.patch]), grid.total) / np.maximum(n, 1.0)
    scalars = np.stack(
        [
            mean / 10.0,
            np.log((spread + 1e-3) / 1e-3) / 5.0,
            np.clip(slope / (spread + 0.005), -5.0, 5.0),
            n / held,
            np.log1p(held) / 5.0,
        ],
        1,
    )
    turns = 2.0 * np.pi * np.outer(middle, [0.5, 1.0, 2.0, 4.0])
    long = np.full((grid.total, 1), np.log10(span_ms) / 5.0)
    times = np.concatenate([np.cos(turns), np.sin(turns), middle[:, None], long], 1)  # (T, TIME_DIM)

    pieces, directions = _channels(tuple(names), tuple(units.get(name, "") for name in names), buckets, sketch_dim)
    return SensorTokens(
        features=np.concatenate([slots, levels, scalars, times], 1).astype(np.float32),
        levels=levels.astype(np.float32),
        weights=(1.0 / grid.patches[owner]).astype(np.float32),
        pieces=pieces[owner],
        signs=directions[owner],
    )


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where each of N observations of C channels lies."""

    patches: Ints  # (C,) patches of a channel
    total: int  # patches of all channels, T
    patch: Ints  # (N,) patch of an observation
    slot: Ints  # (N,) slot of an observation, patch * SLOTS + 0..SLOTS - 1
    first: Ints  # (C,) first observation of a channel


def _grid(channel: Ints, channels: int) -> _Grid:
    """Patches of SLOTS observations of one channel; of more where there would be more than TOKENS_MAX patches, with
    several observations to a slot."""
    count = np.bincount(channel, minlength=channels)  # (C,) never zero
    size = np.full(channels, SLOTS)  # (C,) observations of a patch
    if int((-(-count // SLOTS)).sum()) > TOKENS_MAX:
        most = max(1, TOKENS_MAX // channels)  # patches of a channel
        size = np.maximum(SLOTS, -(-count // most))
    patches = -(-count // size)
    first_patch = np.concatenate(([0], np.cumsum(patches)[:-1]))
    first = np.concatenate(([0], np.cumsum(count)[:-1]))
    position = np.arange(len(channel)) - first[channel]  # (N,) of an observation in its channel
    patch = first_patch[channel] + position // size[channel]
    slot = patch * SLOTS + (position % size[channel]) * SLOTS // np.maximum(size[channel], SLOTS)
    return _Grid(patches, int(patches.sum()), patch, slot, first)


def _sums(groups: Ints, values: Floats, length: int) -> Floats:
    """(N,) -> (length,) sums of the values of each group."""
    return np.asarray(np.bincount(groups, weights=values, minlength=length), np.float64)


def _levels(
    grid: _Grid, y: Floats, seen: Floats, observed: NDArray[np.bool_], deviation: Floats, n: Floats
) -> tuple[Floats, Floats]:
    """Level, spread and roughness of each patch as phases (T, LEVEL_DIM), and its spread (T,)."""
    patch, some = grid.patch, np.maximum(n, 1.0)
    spread = np.sqrt(_sums(patch, deviation * deviation, grid.total) / some)
    pair = (patch[1:] == patch[:-1]) & observed[1:] & observed[:-1]
    step = np.where(pair, y[1:] - y[:-1], 0.0)
    pairs = np.maximum(np.bincount(patch[1:], weights=pair, minlength=grid.total), 1.0)
    rough = np.sqrt(_sums(patch[1:], step * step, grid.total) / pairs)
    waves = [wave(w * y) * seen for w in LEVEL_SCALES for wave in (np.cos, np.sin)]
    level = [_sums(patch, wave, grid.total) / some for wave in waves]
    for noise in (spread, rough):
        phase = _SPREAD_SCALE * np.log((noise + _QUIET) / _QUIET)
        level += [0.5 * np.cos(phase), 0.5 * np.sin(phase)]
    return np.stack(level, 1) * (n > 0)[:, None], spread


def _slots(grid: _Grid, channel: Ints, y: Floats, seen: Floats, when: Floats) -> Floats:
    """The shape of each patch, without its channel's level and spread (T, SLOT_DIM): of each slot the normalised value,
    the gap to the previous observation, and the share that was observed."""
    channels, length = len(grid.patches), grid.total * SLOTS
    some = np.maximum(_sums(channel, seen, channels), 1.0)  # (C,)
    mean = _sums(channel, y * seen, channels) / some
    centred = (y - mean[channel]) * seen
    spread = np.sqrt(_sums(channel, centred * centred, channels) / some)
    shape = np.clip(centred / (spread[channel] + 0.005), -8.0, 8.0)
    gap = np.diff(when, prepend=when[:1])
    gap[grid.first] = 0.0
    in_slot = np.bincount(grid.slot, minlength=length).astype(np.float64)
    seen_slot = _sums(grid.slot, seen, length)
    return np.stack(
        [
            _sums(grid.slot, shape, length) / np.maximum(seen_slot, 1.0),
            _sums(grid.slot, np.log1p(np.maximum(gap, 0.0) * 10.0), length) / np.maximum(in_slot, 1.0),
            seen_slot / np.maximum(in_slot, 1.0),
        ],
        1,
    ).reshape(grid.total, SLOT_DIM)


def bucket_length(count: int) -> int:
    """The padded length for so many tokens: a function of the window alone, never of its batch mates."""
    return next(length for length in BUCKETS if count <= length)
