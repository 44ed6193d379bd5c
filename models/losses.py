"""Contrastive losses as pure functions of similarities and labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def siglip(left: Tensor, right: Tensor, labels: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Sigmoid loss over all pairs of two sets of unit vectors (Zhai et al. 2023), with an ignore mask.

    left (N, D), right (M, D); labels (N, M): +1 belongs together, -1 does not, 0 says nothing about this pair.
    Each pair is a question of its own, so leaving pairs out needs no new normalisation. Positives and negatives
    weigh the same in all, or the many negatives would drown the few positives. A batch without any label gives 0.
    """
    logits = left @ right.T * scale + bias  # (N, M)
    losses = -F.logsigmoid(labels * logits)
    positive, negative = labels > 0, labels < 0
    return (_mean_where(losses, positive) + _mean_where(losses, negative)) / 2


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, values, torch.zeros_like(values)).sum() / chosen.sum().clamp_min(1)


def agreement(left: Tensor, right: Tensor) -> Tensor:
    """Labels from class numbers, (N,), (M,) -> (N, M): +1 same, -1 different, 0 where either is negative (unknown)."""
    same = left[:, None] == right[None, :]
    known = (left[:, None] >= 0) & (right[None, :] >= 0)
    return torch.where(known, torch.where(same, 1.0, -1.0), 0.0)
