"""Items of different length -> one padded, masked batch of a given shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.config import PRIVATE_DIM
from models.encoders.sensor_tokens import LEVEL_DIM, TOKEN_DIM, SensorTokens
from models.encoders.text_hashing import CHANNEL_PIECES_MAX, PIECES_MAX, CaptionWords

SensorBatch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def stack_sensors(items: Sequence[SensorTokens], rows: int, length: int) -> SensorBatch:
    """At most `rows` items of at most `length` tokens -> the arguments of PatchEncoder.forward, in its order."""
    features = torch.zeros(rows, length, TOKEN_DIM)
    levels = torch.zeros(rows, length, LEVEL_DIM)
    weights = torch.zeros(rows, length)
    pieces = torch.zeros(rows, length, CHANNEL_PIECES_MAX, dtype=torch.int64)
    signs = torch.zeros(rows, length, PRIVATE_DIM)
    mask = torch.zeros(rows, length, dtype=torch.bool)
    for row, tokens in enumerate(items):
        n = len(tokens)
        features[row, :n] = torch.from_numpy(tokens.features)
        levels[row, :n] = torch.from_numpy(tokens.levels)
        weights[row, :n] = torch.from_numpy(tokens.weights)
        pieces[row, :n] = torch.from_numpy(tokens.pieces)
        signs[row, :n] = torch.from_numpy(tokens.signs)
        mask[row, :n] = True
    return features, levels, weights, pieces, signs, mask


def stack_captions(items: Sequence[CaptionWords], rows: int, length: int) -> tuple[Tensor, Tensor]:
    """At most `rows` captions of at most `length` words -> pieces (rows, length, PIECES_MAX), mask (rows, length)."""
    pieces = torch.zeros(rows, length, PIECES_MAX, dtype=torch.int64)
    mask = torch.zeros(rows, length, dtype=torch.bool)
    for row, caption in enumerate(items):
        pieces[row, : len(caption)] = torch.from_numpy(caption.pieces)
        mask[row, : len(caption)] = True
    return pieces, mask
