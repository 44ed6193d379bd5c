"""Fusion of any subset of modalities into one vector: attention through a few latents, or two plain baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.blocks import CrossBlock, FeedForward, masked_mean, unit
from models.config import SHARED_DIM, ModelConfig

TIME_DIM = 8


def time_features(when: Tensor) -> Tensor:
    """(..., ) place in the window, 0..1 -> (..., TIME_DIM)."""
    turns = when.unsqueeze(-1) * torch.tensor([0.5, 1.0, 2.0, 4.0], device=when.device) * (2 * torch.pi)
    return torch.cat([turns.cos(), turns.sin()], -1)


@dataclass(frozen=True, slots=True)
class FusionInput:
    """What fusion gets of a batch of windows; T counts the tokens of all modalities, M the modalities."""

    tokens: Mapping[str, Tensor]  # modality -> (B, its tokens, its width)
    when: Tensor  # (B, T) 0..1
    mask: Tensor  # (B, T)
    unimodal: Tensor  # (B, M, SHARED_DIM)
    present: Tensor  # (B, M)


class Fusion(nn.Module):
    """One of three kinds, chosen by the config. Each adds to the masked mean of the unimodal vectors, so that even an
    untrained one is sane, every subset is legal, and no modality can be ignored altogether."""

    owner: Tensor  # (T,) int: the modality of a token

    def __init__(self, config: ModelConfig, sizes: Mapping[str, tuple[int, int]]) -> None:
        """`sizes`: modality -> most tokens of a window, and their width; the order is the order of modalities."""
        super().__init__()
        self.kind = config.fusion
        self.modalities = tuple(sizes)
        owner = [m for m, (count, _) in enumerate(sizes.values()) for _ in range(count)]
        self.register_buffer("owner", torch.tensor(owner), persistent=False)
        count = len(sizes)
        if self.kind == "attention":
            dim = config.fusion_dim
            heads = max(1, dim // 32)
            self.inputs = nn.ModuleDict({modality: nn.Linear(width, dim) for modality, (_, width) in sizes.items()})
            self.modality = nn.Parameter(torch.randn(count, dim) * 0.2)
            self.time = nn.Linear(TIME_DIM, dim)
            self.latents = nn.Parameter(torch.randn(config.latents, dim) * 0.5)
            self.blocks = nn.ModuleList(CrossBlock(dim, heads) for _ in range(config.fusion_layers))
            self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, SHARED_DIM))
        elif self.kind == "concat":
            self.head = nn.Sequential(FeedForward(count * (SHARED_DIM + 1), 2 * SHARED_DIM, 0.1))
            self.head.append(nn.Linear(count * (SHARED_DIM + 1), SHARED_DIM))

    def subset(self, given: FusionInput, keep: Tensor) -> FusionInput:
        """The same windows with only the modalities of `keep` (B, M) left of them."""
        return replace(given, mask=given.mask & keep[:, self.owner], present=given.present & keep)

    def forward(self, given: FusionInput) -> tuple[Tensor, Tensor]:
        """-> (B, SHARED_DIM) of length 1 (0 where nothing is present), and each modality's part of the attention
        (B, M), sum 1 over the present."""
        mean = masked_mean(given.unimodal, given.present)
        there = given.present.to(mean.dtype)
        even = there / there.sum(-1, keepdim=True).clamp_min(1.0)
        if self.kind == "mean":
            return unit(mean), even
        some = given.present.any(-1, keepdim=True)
        if self.kind == "concat":
            flat = torch.cat([given.unimodal * there.unsqueeze(-1), there.unsqueeze(-1)], -1).flatten(1)
            return unit(unit(mean) + 0.5 * unit(self.head(flat))) * some, even
        tokens = torch.cat([self.inputs[m](given.tokens[m]) for m in self.modalities], 1)
        tokens = tokens + self.modality[self.owner] + self.time(time_features(given.when))  # (B, T, dim)
        latents = self.latents.expand(len(tokens), -1, -1)
        shares = torch.zeros_like(even)
        kinds = torch.arange(len(self.modalities), device=mean.device)
        member = (self.owner.unsqueeze(-1) == kinds).to(mean.dtype)  # (T, M)
        for block in self.blocks:
            latents, weights = block(latents, tokens, given.mask)
            shares = shares + weights.mean(1) @ member
        attention = shares / shares.sum(-1, keepdim=True).clamp_min(1e-12)
        return unit(unit(mean) + 0.5 * unit(self.head(latents.mean(1)))) * some, attention
