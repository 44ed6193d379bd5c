"""Random subsets of the modalities of a batch, for training a fusion. Pure: chance comes in as a random.Random.

What is varied within one modality (words, readings, mels) is in models.encoders.augment, beside the encoders that use
it: encoders import nothing of training.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor


def random_subsets(present: Tensor, rng: random.Random) -> Tensor:
    """(B, M) bool -> (B, M) bool: each present modality dropped with probability 0.4, but never all of a row's."""
    keep = torch.tensor([[rng.random() > 0.4 for _ in row] for row in present.tolist()]).to(present.device) & present
    for row, (kept, there) in enumerate(zip(keep.any(-1).tolist(), present.tolist(), strict=True)):
        if not kept and any(there):
            keep[row, rng.choice([m for m, is_there in enumerate(there) if is_there])] = True
    return keep


def uniform_subsets(present: Tensor, rng: random.Random) -> Tensor:
    """(B, M) bool -> (B, M) bool: a subset of each row's present modalities that is not empty, all equally likely."""
    rows = []
    for row in present.tolist():
        held = [m for m, there in enumerate(row) if there]
        bits = rng.randrange(1, 1 << len(held)) if held else 0
        kept = {m for bit, m in enumerate(held) if bits >> bit & 1}
        rows.append([m in kept for m in range(len(row))])
    return torch.tensor(rows, dtype=torch.bool)


def subset_of_bits(bits: int, present: Tensor) -> Tensor:
    """(B, M) bool: in every row the modalities whose bits are set in `bits`, whatever is present."""
    return torch.tensor([bool(bits >> m & 1) for m in range(present.shape[1])]).expand_as(present)
