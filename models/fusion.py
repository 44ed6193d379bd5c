"""Fusion of any subset of modalities into one vector: attention through a few latents, or two simple baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.blocks import CrossBlock, FeedForward, masked_mean, unit
from models.config import SHARED_DIM, ModelConfig
from models.interface import DIM

TIME_DIM = 8
_INPUT_SCALE = 8.0  # of the coordinates of unit vectors, to the range that a linear layer expects
_SHRINKAGE = 0.01  # of the neighbours' covariance towards a multiple of the identity: bounds the whitening
_TOKEN_DROPOUT = 0.8  # of the encoders' tokens, in training: a fusion that relies on them overfits to its windows


def time_features(when: Tensor) -> Tensor:
    """(..., ) time relative to the window, 0..1 -> (..., TIME_DIM)."""
    turns = when.unsqueeze(-1) * torch.tensor([0.5, 1.0, 2.0, 4.0], device=when.device) * (2 * torch.pi)
    return torch.cat([turns.cos(), turns.sin()], -1)


class Whitened(nn.Module):
    """A modality's vector whitened by the differences between neighbours in time.

    These differences are noise, however large: states are separated better along the other directions (relevant
    component analysis, Shental et al. 2002). All zeros before the noise has been measured.
    """

    centre: Tensor  # (DIM,)
    turn: Tensor  # (DIM, DIM), to the axes of the noise, scaled: optimisers by coordinate (Adam) do better along them

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(DIM))
        self.register_buffer("turn", torch.zeros(DIM, DIM))

    def measure(self, vectors: NDArray[np.float64], differences: NDArray[np.float64]) -> None:
        """vectors (N, DIM) of windows; differences (K, DIM) between neighbours. With fewer differences than dimensions,
        or only zeros, nothing is measured."""
        noise = differences.T @ differences / max(len(differences), 1)
        size = np.trace(noise) / DIM
        if len(differences) < DIM or size < 1e-12:
            return
        values, axes = np.linalg.eigh((1 - _SHRINKAGE) * noise / size + _SHRINKAGE * np.eye(DIM))
        self.centre.copy_(torch.from_numpy(vectors.mean(0)))
        self.turn.copy_(torch.from_numpy(axes / np.sqrt(values)))

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., DIM) -> (..., DIM) of length 1."""
        return unit((vectors - self.centre) @ self.turn)


@dataclass(frozen=True, slots=True)
class FusionInput:
    """The input of fusion for a batch of windows; T counts the tokens of all modalities, M the modalities."""

    tokens: Mapping[str, Tensor]  # modality -> (B, its tokens, its width)
    when: Tensor  # (B, T) time relative to the window, 0..1
    mask: Tensor  # (B, T)
    unimodal: Tensor  # (B, M, SHARED_DIM)
    private: Tensor  # (B, M, PRIVATE_DIM)
    present: Tensor  # (B, M)

    def vectors(self) -> Tensor:
        """(B, M, DIM), shared and private parts."""
        return torch.cat([self.unimodal, self.private], -1)

    def rows(self, index: Tensor | slice) -> FusionInput:
        """The rows (K,) alone."""
        return FusionInput(
            {name: held[index] for name, held in self.tokens.items()},
            *(getattr(self, name)[index] for name in self.__slots__[1:]),
        )


class Fusion(nn.Module):
    """One of three kinds, chosen by the config. Each adds to the masked mean of the unimodal vectors, so that the
    result is usable before training, every subset is valid, and no modality is ignored altogether.

    `concat` and `attention` see both shared and private parts. `attention` also sees the encoders' tokens, and its
    output has two terms: the mean of its latents, and each modality's own value, weighted by the attention on that
    modality. The first captures relations between modalities; the second stays exact where a window holds little.
    Where refining by time has measured the noise between neighbours, the second also sees the whitened vectors.
    """

    owner: Tensor  # (T,) int: the modality of a token
    head: nn.Module

    def __init__(self, config: ModelConfig, sizes: Mapping[str, tuple[int, int]]) -> None:
        """`sizes`: modality -> most tokens of a window, and their width; in the order of the modalities."""
        super().__init__()
        self.kind = config.fusion
        self.modalities = tuple(sizes)
        owner = [m for m, (count, _) in enumerate(sizes.values()) for _ in range(count)]
        self.register_buffer("owner", torch.tensor(owner), persistent=False)
        count = len(sizes)
        whitens = config.whitened and self.kind == "attention"
        self.whitened = nn.ModuleDict({modality: Whitened() for modality in sizes} if whitens else {})
        if self.kind == "mean":
            return
        self.gain = nn.Parameter(torch.tensor(1.0))  # of the learnt part, beside the mean
        if self.kind == "attention":
            dim = config.fusion_dim
            heads = max(1, dim // 32)
            self.inputs = nn.ModuleDict({modality: nn.Linear(width, dim) for modality, (_, width) in sizes.items()})
            self.summaries = nn.ModuleDict({modality: nn.Linear(DIM, dim) for modality in sizes})
            own = 2 * DIM if whitens else DIM
            self.values = nn.ModuleDict({m: FeedForward(own, 2 * SHARED_DIM, 0.1, SHARED_DIM) for m in sizes})
            self.modality = nn.Parameter(torch.randn(count, dim) * 0.2)
            self.time = nn.Linear(TIME_DIM, dim)
            self.latents = nn.Parameter(torch.randn(config.latents, dim) * 0.5)
            self.blocks = nn.ModuleList(CrossBlock(dim, heads) for _ in range(config.fusion_layers))
            self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, SHARED_DIM))
        else:
            self.head = FeedForward(count * (DIM + 1), 2 * SHARED_DIM, 0.1, SHARED_DIM)

    def load_from(self, other: Fusion) -> None:
        """Copy the weights of a fusion of the same kind. Where only this one whitens, the weights on the whitened
        vectors are 0: the output is what it was."""
        state = other.state_dict()
        if self.whitened and not other.whitened:
            own = self.state_dict()
            state |= {name: own[name] for name in own if name.startswith("whitened.")}
            for modality in self.modalities:
                first = f"values.{modality}.net.0.weight"
                state[first] = functional.pad(state[first], (0, DIM))
        self.load_state_dict(state)

    def subset(self, inputs: FusionInput, keep: Tensor) -> FusionInput:
        """The same windows with only the modalities of `keep` (B, M) present."""
        return replace(inputs, mask=inputs.mask & keep[:, self.owner], present=inputs.present & keep)

    def forward(self, inputs: FusionInput) -> tuple[Tensor, Tensor]:
        """-> (B, SHARED_DIM) of length 1 (0 where nothing is present), and each modality's share of the attention
        (B, M), which sum to 1 over those present."""
        mean = masked_mean(inputs.unimodal, inputs.present)
        there = inputs.present.to(mean.dtype)
        even = there / there.sum(-1, keepdim=True).clamp_min(1.0)
        if self.kind == "mean":
            return unit(mean), even
        vectors = inputs.vectors() * there.unsqueeze(-1) * _INPUT_SCALE  # (B, M, DIM)
        if self.kind == "concat":
            learnt, attention = self.head(torch.cat([vectors, there.unsqueeze(-1)], -1).flatten(1)), even
        else:
            learnt, attention = self._attend(inputs, vectors)
        some = inputs.present.any(-1, keepdim=True)
        return unit(unit(mean) + self.gain * unit(learnt)) * some, attention

    def _attend(self, inputs: FusionInput, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """-> (B, SHARED_DIM) and each modality's share of the attention (B, M). The keys are the tokens of each
        encoder, with their times, and one summary token for each modality: its vector (`vectors`, (B, M, DIM))."""
        fine = torch.cat([self.inputs[m](inputs.tokens[m]) for m in self.modalities], 1)
        fine = fine + self.modality[self.owner] + self.time(time_features(inputs.when))  # (B, T, dim)
        sums = torch.stack([self.summaries[m](vectors[:, i]) for i, m in enumerate(self.modalities)], 1) + self.modality
        seen = inputs.mask
        if self.training:
            seen = seen & (torch.rand(seen.shape, device=seen.device) >= _TOKEN_DROPOUT)
        tokens, mask = torch.cat([fine, sums], 1), torch.cat([seen, inputs.present], 1)  # (B, T + M, dim)
        kinds = torch.arange(len(self.modalities), device=fine.device)
        member = (torch.cat([self.owner, kinds]).unsqueeze(-1) == kinds).to(fine.dtype)  # (T + M, M)
        latents = self.latents.expand(len(tokens), -1, -1)
        shares = torch.zeros_like(vectors[..., 0])
        for block in self.blocks:
            latents, weights = block(latents, tokens, mask)
            shares = shares + weights.mean(1) @ member
        shares = shares / shares.sum(-1, keepdim=True).clamp_min(1e-12)
        # Detached: a gradient from here would teach the encoders to keep the noise by which a window finds itself.
        own = vectors.detach()
        if self.whitened:
            even = torch.stack([self.whitened[m](own[:, i] / _INPUT_SCALE) for i, m in enumerate(self.modalities)], 1)
            own = torch.cat([own, even * _INPUT_SCALE], -1)  # (B, M, 2 DIM)
        values = torch.stack([self.values[m](own[:, i]) for i, m in enumerate(self.modalities)], 1)
        weighed = (values * shares.unsqueeze(-1)).sum(1)  # (B, SHARED_DIM): an absent modality has share 0
        return unit(self.head(latents.mean(1))) + unit(weighed), shares
