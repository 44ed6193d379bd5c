"""Attention on masked sets: the blocks that encoders and fusion are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B, T, D), (B, T) bool -> (B, D); a row that is fully masked gives zeros."""
    weights = mask.to(values.dtype).unsqueeze(-1)  # (B, T, 1)
    return (values * weights).sum(1) / weights.sum(1).clamp_min(1.0)


def unit(values: Tensor) -> Tensor:
    """(..., D) scaled to length 1 along the last axis; zeros stay zeros, with a finite gradient."""
    return values * torch.rsqrt(values.square().sum(-1, keepdim=True).clamp_min(1e-12))


class Attention(nn.Module):
    """Multi-head attention of queries on keys. Masked keys have no weight; the result of a fully masked row is zero.

    (torch's own encoder layer gives NaN for such a row in its inference path, and only there.)
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        return x.reshape(b, t, self.heads, d // self.heads).transpose(1, 2)  # (B, H, T, d)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """(B, Q, D), (B, T, D), (B, T) bool, True where a key is present -> (B, Q, D)."""
        key, value = self.key_value(memory).chunk(2, -1)
        visible, some = self._visible(mask)
        query = self._split(self.query(x))
        mixed = F.scaled_dot_product_attention(query, self._split(key), self._split(value), visible)
        return self._join(mixed, some)

    def weighed(self, x: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As forward, and the attention weights averaged over heads (B, Q, T), zero on masked keys."""
        key, value = self.key_value(memory).chunk(2, -1)
        visible, some = self._visible(mask)
        query = self._split(self.query(x))
        scores = query @ self._split(key).transpose(-2, -1) / math.sqrt(query.shape[-1])
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)  # (B, H, Q, T)
        seen = weights.mean(1) * mask.unsqueeze(1)
        return self._join(weights @ self._split(value), some), seen

    @staticmethod
    def _visible(mask: Tensor) -> tuple[Tensor, Tensor]:
        some = mask.any(-1)  # (B,)
        # A softmax over nothing is NaN: such a row attends to everything, and its result is zeroed afterwards.
        return (mask | ~some.unsqueeze(-1))[:, None, None, :], some

    def _join(self, mixed: Tensor, some: Tensor) -> Tensor:
        b, h, q, d = mixed.shape
        joined: Tensor = self.out(mixed.transpose(1, 2).reshape(b, q, h * d))
        return joined * some[:, None, None]


class FeedForward(nn.Module):
    """Linear, GELU, Linear; `out`: width of the result, by default that of the input."""

    def __init__(self, dim: int, wide: int, dropout: float, out: int | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, wide), nn.GELU(), nn.Dropout(dropout), nn.Linear(wide, out or dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


class SelfBlock(nn.Module):
    """Pre-norm transformer layer on a masked set."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm_forward = nn.LayerNorm(dim)
        self.forward_net = FeedForward(dim, 3 * dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D), (B, T) bool -> (B, T, D)."""
        h = self.norm_attention(x)
        x = x + self.dropout(self.attention(h, h, mask))
        return x + self.dropout(self.forward_net(self.norm_forward(x)))  # type: ignore[no-any-return]


class CrossBlock(nn.Module):
    """Cross-attention of queries on a masked set; returns the attention weights too."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(dim)
        self.norm_memory = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm_forward = nn.LayerNorm(dim)
        self.forward_net = FeedForward(dim, 2 * dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Q, D), (B, T, D), (B, T) bool -> (B, Q, D), weights (B, Q, T)."""
        mixed, weights = self.attention.weighed(self.norm_query(x), self.norm_memory(memory), mask)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.forward_net(self.norm_forward(x))), weights
