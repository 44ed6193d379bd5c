"""Random variations of one modality's content, for training. Pure: chance comes in as a random.Random."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.encoders.log_mel import FRAME_COLUMNS, MEL_BANDS, SILENCE

Reading = tuple[int, Mapping[str, float | None]]  # time in ms, {channel: value or None}


def drop_words(text: str, rng: random.Random) -> str:
    """A caption without about a tenth of its words, but never without all."""
    kept = [word for word in text.split() if rng.random() > 0.1]
    return " ".join(kept) or text


def vary_readings(readings: Sequence[Reading], rng: random.Random) -> list[Reading]:
    """Readings of a window with some channels dropped, never all, and levels and values a little off (up to 1 %).
    Without a channel they are returned as they are."""
    names = sorted({name for _, values in readings for name in values})
    if not names:
        return list(readings)
    dropped = rng.choice((0.0, 0.0, 0.15, 0.3))
    gains = {name: 1 + rng.gauss(0, 0.01) for name in names if rng.random() >= dropped} or {rng.choice(names): 1.0}
    noise = rng.choice((0.0, 0.002, 0.01))
    varied: list[Reading] = []
    for time_ms, values in readings:
        row: dict[str, float | None] = {}
        for name, value in values.items():
            if name in gains:
                fine = value is not None and math.isfinite(value)
                row[name] = value * gains[name] * (1 + rng.gauss(0, noise)) if fine and value is not None else value
        varied.append((time_ms, row))
    return varied


def vary_mels(mels: Tensor, rng: random.Random) -> Tensor:
    """Log-mel frames of one window (F, MEL_BANDS, FRAME_COLUMNS) -> the same shape: stretched and rolled in time,
    shifted in pitch, louder or softer, with another frequency response, with bands and columns masked."""
    count = len(mels)
    columns = count * FRAME_COLUMNS
    whole = mels.transpose(0, 1).reshape(MEL_BANDS, columns)
    if rng.random() < 0.5:
        stretched = int(columns * rng.uniform(0.85, 1.18))
        whole = F.interpolate(whole[None], size=stretched, mode="linear")[0]
        whole = torch.cat([whole, whole], -1)[:, :columns]
    whole = whole.roll(rng.randrange(columns), -1)
    shift = rng.randint(-4, 4)  # in bands, each about a sixth of an octave
    if shift:
        whole = whole[(torch.arange(MEL_BANDS) - shift).clamp(0, MEL_BANDS - 1)]
    points = torch.tensor([[[rng.uniform(-0.6, 0.6) for _ in range(rng.randint(2, 5))]]])
    response = F.interpolate(points, size=MEL_BANDS, mode="linear", align_corners=True)[0, 0, :, None]
    whole = (whole + response + rng.uniform(-0.8, 0.8)).clamp_min(SILENCE)
    mean = whole.mean()
    if rng.random() < 0.7:
        band = rng.randrange(MEL_BANDS - 10)
        whole[band : band + rng.randrange(1, 10)] = mean
    for _ in range(2):
        column = rng.randrange(columns - 40)
        whole[:, column : column + rng.randrange(1, 40)] = mean
    return whole.reshape(MEL_BANDS, count, FRAME_COLUMNS).transpose(0, 1).contiguous()
