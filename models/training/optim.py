"""What every training run here shares: the optimizer, its schedule, and the moving average of the weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from models.network import Network

WEIGHT_DECAY = 0.05


def optimizer_of(network: Network) -> torch.optim.AdamW:
    """AdamW that decays matrices only: not norms, not biases, not the tables of hashed words."""
    tables = [id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)]
    trained = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.dim() >= 2 and id(p) not in tables]
    chosen = {id(p) for p in decayed}
    others = [p for p in trained if id(p) not in chosen]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    )


def set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, peak: float, warm_up: int = 15) -> None:
    """Learning rate of step `step` (from 0): linear warm-up to `peak`, then a cosine to 0 at `steps`."""
    rate = peak * min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, step: int) -> None:
    """Exponential moving average of the weights after step `step` (from 0), with a short memory at first; integers (a
    batch norm's counter) are copied."""
    keep = min(0.98, (step + 1) / (step + 11))
    for old, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1.0 - keep)
        else:
            old.copy_(new)
