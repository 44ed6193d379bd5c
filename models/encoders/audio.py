"""Audio encoder: a small CNN on log-mel frames of one second, and a pool over the frames of a window."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.blocks import masked_mean, unit
from models.config import PRIVATE_DIM, SHARED_DIM, ModelConfig
from models.features import MEL_BANDS

FRAME_DIM = 256
_LEVEL, _SPREAD = -2.0, 2.0  # middle and width of log10 mel power of everyday sound


class _Block(nn.Module):
    """Depthwise 5x5, then two 1x1: space first, channels after."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(dim, dim, 5, padding=2, groups=dim, bias=False), nn.BatchNorm2d(dim),
            nn.Conv2d(dim, 3 * dim, 1), nn.GELU(), nn.Conv2d(3 * dim, dim, 1, bias=False), nn.BatchNorm2d(dim),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)  # type: ignore[no-any-return]


class FrameEncoder(nn.Module):
    """Log-mel frames -> one vector each; a function of the frame alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for stage, (dim, depth) in enumerate(zip(config.audio_dims, config.audio_depths, strict=True)):
            kernel = 4 if stage == 0 else 2
            layers += [nn.Conv2d(before, dim, kernel, stride=kernel, bias=False), nn.BatchNorm2d(dim)]
            layers += [_Block(dim) for _ in range(depth)]
            before = dim
        self.net = nn.Sequential(*layers)
        self.out = nn.Sequential(nn.LayerNorm(2 * before), nn.Dropout(0.2), nn.Linear(2 * before, FRAME_DIM), nn.GELU())

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """(B, MEL_BANDS, FRAME_COLUMNS) log10 mel power -> (B, FRAME_DIM), and band levels (B, 2 * MEL_BANDS)."""
        x = (mel - _LEVEL) / _SPREAD
        levels = torch.cat([x.mean(-1), x.std(-1)], -1)
        h = self.net(x.unsqueeze(1)).mean(2)  # (B, C, columns)
        return self.out(torch.cat([h.mean(-1), h.amax(-1)], -1)), levels


class AudioPool(nn.Module):
    """Frames of a window -> one vector: the mean, and what the loudest evidence says."""

    projection: Tensor  # (2 * MEL_BANDS, PRIVATE_DIM), drawn once, never trained

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.score = nn.Linear(FRAME_DIM, 1)
        self.shared = nn.Linear(2 * FRAME_DIM, SHARED_DIM)
        self.register_buffer("projection", torch.randn(2 * MEL_BANDS, PRIVATE_DIM) / (2 * MEL_BANDS) ** 0.5)

    def forward(self, frames: Tensor, levels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F, FRAME_DIM), (B, F, 2 * MEL_BANDS), (B, F) -> shared (B, SHARED_DIM), private (B, PRIVATE_DIM)."""
        hidden = torch.where(mask, self.score(frames).squeeze(-1), -1e9)
        weights = hidden.softmax(-1) * mask  # a row of nothing is all zero
        attended = (frames * weights.unsqueeze(-1)).sum(1)
        loudest = torch.where(mask.unsqueeze(-1), frames, -1e9).amax(1) * mask.any(-1, keepdim=True)
        shared = unit(self.shared(torch.cat([attended, loudest], -1)))
        return shared, unit(masked_mean(levels, mask) @ self.projection)
