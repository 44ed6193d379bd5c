"""Sensor encoder: a transformer over the set of a window's patches, whatever channels there are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.blocks import CrossBlock, SelfBlock, unit
from models.config import PRIVATE_DIM, SHARED_DIM, ModelConfig, Options
from models.encoders.augment import vary_readings
from models.encoders.base import Encoded, Encoder
from models.encoders.collate import stack_sensors
from models.encoders.registry import register_encoder
from models.encoders.sensor_tokens import (
    LEVEL_DIM,
    TOKEN_DIM,
    TOKENS_MAX,
    Readings,
    SensorTokens,
    bucket_length,
    tokenize,
)
from models.interface import WindowInput

POOLED = 4  # tokens for fusion


class PatchEncoder(nn.Module):
    """Patches of channels -> a vector of two parts, and POOLED tokens."""

    projection: Tensor  # (LEVEL_DIM, PRIVATE_DIM), drawn once, never trained

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.sensor_dim
        heads = max(1, dim // 32)
        self.names = nn.Embedding(config.channel_buckets, config.channel_dim)
        nn.init.normal_(self.names.weight, std=1.0)
        self.token = nn.Sequential(
            nn.Linear(TOKEN_DIM + config.channel_dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )
        self.blocks = nn.ModuleList(SelfBlock(dim, heads) for _ in range(config.sensor_layers))
        self.queries = nn.Parameter(torch.randn(POOLED, dim) * 0.5)
        self.pool = CrossBlock(dim, heads)
        self.norm = nn.LayerNorm(dim)
        self.shared = nn.Linear(POOLED * dim, SHARED_DIM)
        # Orthonormal rows, so that distances between levels are kept.
        turned, _ = torch.linalg.qr(torch.randn(LEVEL_DIM, PRIVATE_DIM).T)
        self.register_buffer("projection", turned.T.contiguous())

    def forward(
        self, features: Tensor, levels: Tensor, weights: Tensor, pieces: Tensor, signs: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """features (B, T, TOKEN_DIM), levels (B, T, LEVEL_DIM), weights (B, T), pieces (B, T, P) int,
        signs (B, T, PRIVATE_DIM), mask (B, T) -> shared (B, SHARED_DIM), private (B, PRIVATE_DIM), both of length 1
        (private is 0 where nothing was observed), and tokens (B, POOLED, sensor_dim) for fusion.
        """
        b, t, p = pieces.shape
        some = (pieces > 0).to(features.dtype)
        rows = self.names(pieces.reshape(b, t * p)).reshape(b, t, p, -1)
        # Summed pieces over the root of their number: long names have the same norm as short ones.  (B, T, channel_dim)
        name = (rows * some.unsqueeze(-1)).sum(2) / some.sum(2, keepdim=True).clamp_min(1.0).sqrt()
        x = self.token(torch.cat([features, name], -1))  # (B, T, D)
        inner = mask
        if t > TOKENS_MAX:
            x, inner = _merge(x, mask)
        for block in self.blocks:
            x = block(x, inner)
        queries = self.queries.expand(b, -1, -1)
        pooled, _ = self.pool(queries, x, inner)
        pooled = self.norm(pooled)  # (B, POOLED, D)
        shared = unit(self.shared(pooled.reshape(b, -1)))
        # Each channel's level along its own direction, so that a step of one channel is not hidden by another's.
        sketch = ((levels @ self.projection) * signs * (weights * mask).unsqueeze(-1)).sum(1)
        return shared, unit(sketch), pooled


def _merge(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, D), (B, T) -> (B, TOKENS_MAX, D) and its mask: token i of n is averaged into group i * TOKENS_MAX // n."""
    b, t, _ = x.shape
    count = mask.sum(1, keepdim=True).clamp_min(1)  # (B, 1)
    group = torch.arange(t, device=x.device).expand(b, t) * TOKENS_MAX // count
    groups = torch.arange(TOKENS_MAX, device=x.device)
    member = (group.unsqueeze(1) == groups[None, :, None]) & mask.unsqueeze(1)  # (B, TOKENS_MAX, T)
    weights = member.to(x.dtype)
    held = weights.sum(-1, keepdim=True)
    return weights @ x / held.clamp_min(1.0), held.squeeze(-1) > 0


@dataclass(frozen=True, slots=True)
class SensorItem:
    """The readings of one window as tokens, and the window they are from."""

    window: WindowInput
    tokens: SensorTokens


@register_encoder("sensor", "set")
class SensorEncoder(Encoder):
    """Readings of a window: patches of channels (sensor_tokens) through PatchEncoder."""

    tokens = POOLED

    def __init__(self, config: ModelConfig, modality: str, options: Options) -> None:
        super().__init__(config, modality, options)
        self.width = config.sensor_dim
        self.buckets = config.channel_buckets
        self.patches = PatchEncoder(config)

    def read(self, window: WindowInput) -> SensorItem:
        return SensorItem(window, self._read(window, window.readings))

    def _read(self, window: WindowInput, readings: Readings) -> SensorTokens:
        return tokenize(readings, window.units, window.start_ms, window.end_ms, self.buckets, PRIVATE_DIM)

    def bucket(self, item: SensorItem) -> int:
        return bucket_length(len(item.tokens))

    def augment(self, item: SensorItem, rng: random.Random) -> SensorItem:
        return SensorItem(item.window, self._read(item.window, vary_readings(item.window.readings, rng)))

    def forward(self, items: Sequence[SensorItem], rows: int) -> Encoded:
        length = max(self.bucket(item) for item in items)
        batch = stack_sensors([item.tokens for item in items], rows, length)
        shared, private, pooled = self.patches(*(part.to(self.device) for part in batch))
        there = torch.arange(rows, device=self.device) < len(items)
        mask = there[:, None].expand(rows, POOLED)
        return Encoded(shared, private, pooled, mask, torch.full((rows, POOLED), 0.5, device=self.device))
