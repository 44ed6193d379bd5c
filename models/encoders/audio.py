"""Audio encoder: a small CNN on log-mel frames of one second, and a pool over the frames of a window."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.blocks import masked_mean, unit
from models.config import PRIVATE_DIM, SHARED_DIM, ModelConfig, Options
from models.encoders.augment import vary_mels
from models.encoders.base import Encoded, Encoder, relative_time
from models.encoders.log_mel import FRAME_COLUMNS, FRAMES_MAX, MEL_BANDS, log_mel, window_frames
from models.encoders.registry import register_encoder
from models.interface import WindowInput

FRAME_DIM = 256
_MEAN, _SCALE = -2.0, 2.0  # of log10 mel power of everyday sound


def _scaled(mel: Tensor) -> Tensor:
    return (mel - _MEAN) / _SCALE


def band_levels(mel: Tensor) -> Tensor:
    """(N, MEL_BANDS, columns) log10 mel power -> mean and spread of each band (N, 2 * MEL_BANDS)."""
    x = _scaled(mel)
    return torch.cat([x.mean(-1), x.std(-1)], -1)


class _Block(nn.Module):
    """Depthwise 5x5, then two 1x1: space first, channels after."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(dim, dim, 5, padding=2, groups=dim, bias=False),
            nn.BatchNorm2d(dim),
            nn.Conv2d(dim, 3 * dim, 1),
            nn.GELU(),
            nn.Conv2d(3 * dim, dim, 1, bias=False),
            nn.BatchNorm2d(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)  # type: ignore[no-any-return]


def _fold(layers: list[nn.Module]) -> nn.Sequential:
    out: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            convolution = out.pop()
            assert isinstance(convolution, nn.Conv2d)
            out.append(fuse_conv_bn_eval(convolution, layer))
        elif isinstance(layer, _Block):
            block = copy.deepcopy(layer)
            block.net = _fold(list(layer.net))
            out.append(block)
        else:
            out.append(layer)
    return nn.Sequential(*out).eval().requires_grad_(False).to(memory_format=torch.channels_last)


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
        self.net = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self._ready: list[nn.Sequential] | None = None  # in a list, so that it is no submodule and not saved
        self.out = nn.Sequential(nn.LayerNorm(2 * before), nn.Dropout(0.2), nn.Linear(2 * before, FRAME_DIM), nn.GELU())

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """(N, MEL_BANDS, FRAME_COLUMNS) log10 mel power -> (N, FRAME_DIM), and band levels (N, 2 * MEL_BANDS)."""
        x = _scaled(mel)
        levels = band_levels(mel)
        net = self.net if self.training else self._folded()
        first = net[0](x.unsqueeze(1))
        # Channels last in memory: the same sums in three quarters of the time.
        h = net[1:](first.contiguous(memory_format=torch.channels_last)).mean(2)  # (N, C, columns)
        return self.out(torch.cat([h.mean(-1), h.amax(-1)], -1)), levels

    def train(self, mode: bool = True) -> FrameEncoder:
        self._ready = None  # the weights may change from here on
        super().train(mode)
        return self

    def _folded(self) -> nn.Sequential:
        """The net with every batch norm folded into the convolution before it, made once after `eval()`."""
        if self._ready is None:
            self._ready = [_fold(list(self.net))]
        return self._ready[0]


class AudioPool(nn.Module):
    """Frames of a window -> one vector: their attention-weighted mean, and the maximum of each feature."""

    projection: Tensor  # (2 * MEL_BANDS, PRIVATE_DIM), drawn once, never trained

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.score = nn.Linear(FRAME_DIM, 1)
        self.shared = nn.Linear(2 * FRAME_DIM, SHARED_DIM)
        self.register_buffer("projection", torch.randn(2 * MEL_BANDS, PRIVATE_DIM) / (2 * MEL_BANDS) ** 0.5)

    def forward(self, frames: Tensor, levels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F, FRAME_DIM), (B, F, 2 * MEL_BANDS), (B, F) -> shared (B, SHARED_DIM), private (B, PRIVATE_DIM)."""
        hidden = torch.where(mask, self.score(frames).squeeze(-1), -1e9)
        weights = hidden.softmax(-1) * mask  # all zero in a row without frames
        attended = (frames * weights.unsqueeze(-1)).sum(1)
        maximum = torch.where(mask.unsqueeze(-1), frames, -1e9).amax(1) * mask.any(-1, keepdim=True)
        shared = unit(self.shared(torch.cat([attended, maximum], -1)))
        return shared, unit(masked_mean(levels, mask) @ self.projection)


@dataclass(frozen=True, slots=True)
class AudioItem:
    """The frames of one window, 1 to FRAMES_MAX of them."""

    mels: Tensor  # (F, MEL_BANDS, FRAME_COLUMNS) log10 mel power
    when: tuple[float, ...]  # time of each, relative to the window, 0..1


@register_encoder("audio", "cnn")
class AudioEncoder(Encoder):
    """Clips of a window: log-mel frames of one second through FrameEncoder, then AudioPool. Frames are the tokens."""

    tokens = FRAMES_MAX
    width = FRAME_DIM

    def __init__(self, config: ModelConfig, modality: str, options: Options) -> None:
        super().__init__(config, modality, options)
        self.frames = FrameEncoder(config)
        self.pool = AudioPool(config)

    def read(self, window: WindowInput) -> AudioItem:
        frames = window_frames(list(window.clips))
        mels = log_mel(torch.stack([torch.from_numpy(samples) for _, samples in frames]))
        return AudioItem(mels, tuple(relative_time(window, time_ms) for time_ms, _ in frames))

    def bucket(self, item: AudioItem) -> int:
        return len(item.when)

    def augment(self, item: AudioItem, rng: random.Random) -> AudioItem:
        return replace(item, mels=vary_mels(item.mels, rng))

    def forward(self, items: Sequence[AudioItem], rows: int) -> Encoded:
        counts = [len(item.when) for item in items]
        most = max(counts)
        mels = torch.cat([item.mels for item in items])
        if len(items) < rows:
            mels = torch.cat([mels, mels.new_zeros((rows - len(items)) * most, MEL_BANDS, FRAME_COLUMNS)])
        frames, levels = self.frames(mels.to(self.device))
        mask = torch.zeros(rows, most, dtype=torch.bool, device=self.device)
        when = torch.zeros(rows, most, device=self.device)
        for row, item in enumerate(items):
            mask[row, : counts[row]] = True
            when[row, : counts[row]] = torch.tensor(item.when, device=self.device)
        # `frames` are the rows' frames one after another; the positions beyond a row's own frames stay zero.
        total = sum(counts)
        held = frames.new_zeros(rows, most, FRAME_DIM).masked_scatter(mask.unsqueeze(-1), frames[:total])
        held_levels = levels.new_zeros(rows, most, 2 * MEL_BANDS).masked_scatter(mask.unsqueeze(-1), levels[:total])
        shared, private = self.pool(held, held_levels, mask)
        return Encoded(shared, private, held, mask, when)
