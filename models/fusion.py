"""Fusion of any subset of modalities into one vector: attention through a few latents, or two plain baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.blocks import CrossBlock, FeedForward, masked_mean, unit
from models.config import SHARED_DIM, ModelConfig
from models.interface import DIM

TIME_DIM = 8
_LOUD = 8.0  # brings the coordinates of a unit vector to about what a linear layer expects
_TOKENS_LOST = 0.8  # of the fine tokens, in training: a fusion that leans on them knows its windows by heart, no others


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
    private: Tensor  # (B, M, PRIVATE_DIM)
    present: Tensor  # (B, M)

    def rows(self, index: Tensor | slice) -> FusionInput:
        return FusionInput(
            {name: held[index] for name, held in self.tokens.items()},
            *(getattr(self, name)[index] for name in self.__slots__[1:]),
        )


class Fusion(nn.Module):
    """One of three kinds, chosen by the config. Each adds to the masked mean of the unimodal vectors, so that even an
    untrained one is sane, every subset is legal, and no modality can be ignored altogether.

    `concat` and `attention` see shared and private parts alike. `attention` sees the encoders' fine tokens as well, and
    says two things of them: what its latents have gathered, and each modality's own value, weighed by the attention
    that it got. The first finds what shows between modalities; the second stays exact where little is left of a window.
    """

    owner: Tensor  # (T,) int: the modality of a token
    head: nn.Module

    def __init__(self, config: ModelConfig, sizes: Mapping[str, tuple[int, int]]) -> None:
        """`sizes`: modality -> most tokens of a window, and their width; the order is the order of modalities."""
        super().__init__()
        self.kind = config.fusion
        self.modalities = tuple(sizes)
        owner = [m for m, (count, _) in enumerate(sizes.values()) for _ in range(count)]
        self.register_buffer("owner", torch.tensor(owner), persistent=False)
        count = len(sizes)
        if self.kind == "mean":
            return
        self.gain = nn.Parameter(torch.tensor(1.0))  # of what is learnt, beside the mean
        if self.kind == "attention":
            dim = config.fusion_dim
            heads = max(1, dim // 32)
            self.inputs = nn.ModuleDict({modality: nn.Linear(width, dim) for modality, (_, width) in sizes.items()})
            self.summaries = nn.ModuleDict({modality: nn.Linear(DIM, dim) for modality in sizes})
            self.values = nn.ModuleDict({m: FeedForward(DIM, 2 * SHARED_DIM, 0.1, SHARED_DIM) for m in sizes})
            self.modality = nn.Parameter(torch.randn(count, dim) * 0.2)
            self.time = nn.Linear(TIME_DIM, dim)
            self.latents = nn.Parameter(torch.randn(config.latents, dim) * 0.5)
            self.blocks = nn.ModuleList(CrossBlock(dim, heads) for _ in range(config.fusion_layers))
            self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, SHARED_DIM))
        else:
            self.head = FeedForward(count * (DIM + 1), 2 * SHARED_DIM, 0.1, SHARED_DIM)

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
        vectors = torch.cat([given.unimodal, given.private], -1) * there.unsqueeze(-1) * _LOUD  # (B, M, DIM)
        if self.kind == "concat":
            learnt, attention = self.head(torch.cat([vectors, there.unsqueeze(-1)], -1).flatten(1)), even
        else:
            learnt, attention = self._attend(given, vectors)
        some = given.present.any(-1, keepdim=True)
        return unit(unit(mean) + self.gain * unit(learnt)) * some, attention

    def _attend(self, given: FusionInput, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """-> (B, SHARED_DIM) and each modality's part of the attention (B, M). What is looked at: the fine tokens of
        each encoder, each with its time, and one token that sums a modality up: its vector (`vectors`, (B, M, DIM))."""
        fine = torch.cat([self.inputs[m](given.tokens[m]) for m in self.modalities], 1)
        fine = fine + self.modality[self.owner] + self.time(time_features(given.when))  # (B, T, dim)
        sums = torch.stack([self.summaries[m](vectors[:, i]) for i, m in enumerate(self.modalities)], 1) + self.modality
        seen = given.mask
        if self.training:
            seen = seen & (torch.rand(seen.shape, device=seen.device) >= _TOKENS_LOST)
        tokens, mask = torch.cat([fine, sums], 1), torch.cat([seen, given.present], 1)  # (B, T + M, dim)
        kinds = torch.arange(len(self.modalities), device=fine.device)
        member = (torch.cat([self.owner, kinds]).unsqueeze(-1) == kinds).to(fine.dtype)  # (T + M, M)
        latents = self.latents.expand(len(tokens), -1, -1)
        shares = torch.zeros_like(vectors[..., 0])
        for block in self.blocks:
            latents, weights = block(latents, tokens, mask)
            shares = shares + weights.mean(1) @ member
        shares = shares / shares.sum(-1, keepdim=True).clamp_min(1e-12)
        # The encoders learn nothing from here: finding a window by its own vector would teach them to keep its noise.
        values = torch.stack([self.values[m](vectors[:, i].detach()) for i, m in enumerate(self.modalities)], 1)
        weighed = (values * shares.unsqueeze(-1)).sum(1)  # (B, SHARED_DIM): what is absent has no share
        return unit(self.head(latents.mean(1))) + unit(weighed), shares
