"""Fusion of any subset of modalities into one vector: attention through a few latents, or two plain baselines."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.blocks import CrossBlock, FeedForward, masked_mean, unit
from models.config import SHARED_DIM, ModelConfig
from models.encoders.audio import FRAME_DIM
from models.encoders.caption import CAPTIONS_MAX
from models.encoders.sensor import POOLED
from models.features import FRAMES_MAX
from models.interface import MODALITY_NAMES

TOKENS = POOLED + FRAMES_MAX + CAPTIONS_MAX  # 18
TIME_DIM = 8
MODALITIES = len(MODALITY_NAMES)
_OWNER = [0] * POOLED + [1] * FRAMES_MAX + [2] * CAPTIONS_MAX  # modality of a token, in the order of MODALITY_NAMES


def time_features(when: Tensor) -> Tensor:
    """(..., ) place in the window, 0..1 -> (..., TIME_DIM)."""
    turns = when.unsqueeze(-1) * torch.tensor([0.5, 1.0, 2.0, 4.0]) * (2 * torch.pi)
    return torch.cat([turns.cos(), turns.sin()], -1)


class Fusion(nn.Module):
    """One of three kinds, chosen by the config. Each adds to the masked mean of the unimodal vectors, so that even an
    untrained one is sane, every subset is legal, and no modality can be ignored altogether."""

    owner: Tensor  # (TOKENS,) int

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.fusion
        self.register_buffer("owner", torch.tensor(_OWNER), persistent=False)
        if self.kind == "attention":
            dim = config.fusion_dim
            heads = max(1, dim // 32)
            self.sensor_in = nn.Linear(config.sensor_dim, dim)
            self.audio_in = nn.Linear(FRAME_DIM, dim)
            self.caption_in = nn.Linear(SHARED_DIM, dim)
            self.modality = nn.Parameter(torch.randn(MODALITIES, dim) * 0.2)
            self.time = nn.Linear(TIME_DIM, dim)
            self.latents = nn.Parameter(torch.randn(config.latents, dim) * 0.5)
            self.blocks = nn.ModuleList(CrossBlock(dim, heads) for _ in range(config.fusion_layers))
            self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, SHARED_DIM))
        elif self.kind == "concat":
            self.head = nn.Sequential(FeedForward(MODALITIES * (SHARED_DIM + 1), 2 * SHARED_DIM, 0.1))
            self.head.append(nn.Linear(MODALITIES * (SHARED_DIM + 1), SHARED_DIM))

    def forward(
        self, sensor: Tensor, audio: Tensor, caption: Tensor, when: Tensor, mask: Tensor,
        unimodal: Tensor, present: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """sensor (B, POOLED, sensor_dim), audio (B, FRAMES_MAX, FRAME_DIM), caption (B, CAPTIONS_MAX, SHARED_DIM),
        when (B, TOKENS) 0..1, mask (B, TOKENS), unimodal (B, 3, SHARED_DIM), present (B, 3)
        -> (B, SHARED_DIM) of length 1, and each modality's part of the attention (B, 3), sum 1 over the present.
        """
        mean = masked_mean(unimodal, present)
        there = present.to(mean.dtype)
        even = there / there.sum(-1, keepdim=True).clamp_min(1.0)
        if self.kind == "mean":
            return unit(mean), even
        if self.kind == "concat":
            flat = torch.cat([unimodal * there.unsqueeze(-1), there.unsqueeze(-1)], -1).flatten(1)
            return unit(unit(mean) + 0.5 * unit(self.head(flat))), even
        tokens = torch.cat([self.sensor_in(sensor), self.audio_in(audio), self.caption_in(caption)], 1)
        tokens = tokens + self.modality[self.owner] + self.time(time_features(when))  # (B, TOKENS, dim)
        latents = self.latents.expand(len(tokens), -1, -1)
        shares = torch.zeros_like(even)
        member = (self.owner.unsqueeze(-1) == torch.arange(MODALITIES)).to(mean.dtype)  # (TOKENS, 3)
        for block in self.blocks:
            latents, weights = block(latents, tokens, mask)
            shares = shares + weights.mean(1) @ member
        attention = shares / shares.sum(-1, keepdim=True).clamp_min(1e-12)
        return unit(unit(mean) + 0.5 * unit(self.head(latents.mean(1)))), attention
