"""Contrastive losses as small pure functions of two sets of unit vectors and labels.

left (N, D), right (M, D); labels (N, M): +1 a positive pair, -1 a negative one, 0 ignored.
All are finite on any labels: a batch without a pair to compare gives 0, with a gradient of 0.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

LossKind = Literal["siglip", "infonce", "triplet"]
LOSSES = get_args(LossKind)
_MASKED = -1e9  # a logit without weight in any softmax


def siglip(left: Tensor, right: Tensor, labels: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Sigmoid loss over all pairs (Zhai et al. 2023).

    Each pair is a binary decision of its own, so leaving pairs out needs no other normalisation. Positives and
    negatives have the same total weight: otherwise the many negatives would outweigh the few positives.
    """
    logits = left @ right.T * scale + bias  # (N, M)
    losses = -F.logsigmoid(labels * logits)
    return (_mean_where(losses, labels > 0) + _mean_where(losses, labels < 0)) / 2


def infonce(left: Tensor, right: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of each positive among the negatives of its row and of its column (CLIP, Radford et al. 2021).

    Ignored pairs, and other positives of the same row, are left out of the denominator.
    """
    logits = left @ right.T * scale  # (N, M)
    return (_cross_entropy(logits, labels) + _cross_entropy(logits.T, labels.T)) / 2


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over all positives (i, j) of -log(e^l_ij / (e^l_ij + sum over negatives k of e^l_ik)); rows without a
    negative are left out."""
    against = torch.logsumexp(torch.where(labels < 0, logits, _MASKED), 1, keepdim=True)  # (N, 1)
    losses = torch.logaddexp(logits, against) - logits
    return _mean_where(losses, (labels > 0) & (labels < 0).any(1, keepdim=True))


def triplet(left: Tensor, right: Tensor, labels: Tensor, margin: float = 0.2) -> Tensor:
    """Semi-hard triplets (FaceNet, Schroff et al. 2015) on cosine distance, both ways.

    For each positive the nearest negative that is farther than it; where none is farther, the farthest negative. Rows
    without a positive or a negative are left out.
    """
    distance = 1 - left @ right.T
    return (_semi_hard(distance, labels, margin) + _semi_hard(distance.T, labels.T, margin)) / 2


def _semi_hard(distance: Tensor, labels: Tensor, margin: float) -> Tensor:
    negative = (labels < 0)[:, None, :]  # (N, 1, M)
    far = distance[:, None, :]
    farther = negative & (far > distance[:, :, None])  # (N, M positives, M negatives)
    nearest = torch.where(farther, far, torch.inf).amin(-1)
    farthest = torch.where(negative, far, -torch.inf).amax(-1)
    chosen = torch.where(farther.any(-1), nearest, farthest)  # (N, M)
    usable = (labels > 0) & negative.any(-1)
    losses = F.relu(torch.where(usable, distance - chosen + margin, 0.0))
    return _mean_where(losses, usable)


def variance(vectors: Tensor, target: float | None = None) -> Tensor:
    """Hinge on the standard deviation of each dimension (VICReg, Bardes et al. 2022): no collapse in small batches.

    vectors (N, D) of length 1; target: the least standard deviation of a dimension, by default half of that of evenly
    spread directions. 0 for fewer than two rows.
    """
    if len(vectors) < 2:
        return vectors.sum() * 0.0
    least = 0.5 * vectors.shape[1] ** -0.5 if target is None else target
    spread = (vectors.var(0) + 1e-8).sqrt()
    return F.relu(least - spread).mean() / least


def contrast(kind: LossKind, left: Tensor, right: Tensor, labels: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The loss named `kind`."""
    if kind == "siglip":
        return siglip(left, right, labels, scale, bias)
    if kind == "infonce":
        return infonce(left, right, labels, scale)
    return triplet(left, right, labels)


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, values, torch.zeros_like(values)).sum() / chosen.sum().clamp_min(1)


def agreement(left: Tensor, right: Tensor) -> Tensor:
    """Labels from class numbers, (N,), (M,) -> (N, M): +1 same, -1 different, 0 where either is negative (unknown)."""
    same = left[:, None] == right[None, :]
    known = (left[:, None] >= 0) & (right[None, :] >= 0)
    return torch.where(known, torch.where(same, 1.0, -1.0), 0.0)


def co_occurrence(stream: Tensor, time_ms: Tensor, caption: Tensor, guard_ms: int) -> Tensor:
    """Labels of windows against each other (N, N): +1 a window with itself; 0 for neighbours in time of the same
    stream (starts less than guard_ms apart: near-duplicates) and for windows with the same caption words; -1 for all
    others. stream (N,) int, time_ms (N,) int64, caption (N,) int: a hash of the words, negative without a caption."""
    near = (stream[:, None] == stream[None]) & ((time_ms[:, None] - time_ms[None]).abs() < guard_ms)
    same_text = (caption[:, None] == caption[None]) & (caption[:, None] >= 0)
    labels = torch.where(near | same_text, 0.0, -1.0)
    return labels.fill_diagonal_(1.0)
