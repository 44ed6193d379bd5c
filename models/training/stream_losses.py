"""The losses of training on a stream: windows prepared once, and the loss of one batch of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from models.encoders.base import Encoded, Item
from models.encoders.text_hashing import stable_hash, words
from models.interface import WindowInput
from models.network import Network
from models.training.augment import random_subsets
from models.training.losses import LossKind, co_occurrence, contrast, variance
from models.training.stream_windows import StreamWindow


@dataclass(slots=True)
class WindowKeys:
    """What decides which windows are negatives of each other."""

    stream: Tensor  # (N,) int
    time_ms: Tensor  # (N,) int64
    caption: Tensor  # (N,) int64, a hash of the set of words, -1 without a caption

    def labels(self, rows: Tensor, guard_ms: int) -> Tensor:
        """(R,) rows -> (R, R) labels, see `co_occurrence`."""
        return co_occurrence(self.stream[rows], self.time_ms[rows], self.caption[rows], guard_ms)


def window_keys(windows: Sequence[StreamWindow]) -> WindowKeys:
    """The keys of N windows, in their order."""
    numbers = {name: i for i, name in enumerate(sorted({w.stream for w in windows}))}
    return WindowKeys(
        torch.tensor([numbers[w.stream] for w in windows]),
        torch.tensor([w.window.start_ms for w in windows]),
        torch.tensor([_caption_key(w.window) for w in windows]),
    )


def _caption_key(window: WindowInput) -> int:
    used = sorted({word for _, text in window.captions for word in words(text)})
    return stable_hash(" ".join(used)) >> 1 if window.captions else -1


@dataclass(slots=True)
class PreparedWindows:
    """Windows with all that does not change from epoch to epoch."""

    keys: WindowKeys
    items: dict[str, dict[int, Item]]  # modality -> index of a window -> what its encoder has read of it


def prepare(windows: Sequence[StreamWindow], network: Network) -> PreparedWindows:
    """Read every window by the network's encoders, once for all epochs."""
    return PreparedWindows(
        window_keys(windows),
        {
            m: {i: network.encoder(m).read(w.window) for i, w in enumerate(windows) if w.window.content(m)}
            for m in network.modalities
        },
    )


def step_losses(
    network: Network,
    prepared: PreparedWindows,
    chosen: list[int],
    loss: LossKind,
    small_batches: bool,
    guard_ms: int,
    rng: random.Random,
) -> dict[str, Tensor]:
    """Named parts of the loss of one batch of windows (`chosen`, indices), scalars; empty where no two windows of the
    batch share two modalities. small_batches: adds the variance loss."""
    device = network.logit_bias.device
    labels = prepared.keys.labels(torch.tensor(chosen), guard_ms).to(device)  # (R, R)
    scale, bias = network.scale(), network.logit_bias
    parts: dict[str, tuple[Tensor, Encoded]] = {}
    for modality in network.modalities:
        held, encoder = prepared.items[modality], network.encoder(modality)
        rows = [row for row, i in enumerate(chosen) if i in held]
        if rows:
            items = [encoder.augment(held[chosen[row]], rng) for row in rows]
            parts[modality] = torch.tensor(rows, device=device), encoder(items, len(items))
    where = {m: {int(row): k for k, row in enumerate(index.tolist())} for m, (index, _) in parts.items()}
    out: dict[str, Tensor] = {}
    for one, two in combinations(parts, 2):
        both = [row for row in where[one] if row in where[two]]
        if len(both) > 1:
            left = parts[one][1].shared[[where[one][row] for row in both]].float()  # (K, SHARED_DIM)
            right = parts[two][1].shared[[where[two][row] for row in both]].float()
            out[f"{one}-{two}"] = contrast(loss, left, right, labels[both][:, both], scale, bias)
    if not out:
        return out
    whole = network.gather(len(chosen), parts)
    views = [  # two of (R, SHARED_DIM)
        network.fusion(network.fusion.subset(whole, random_subsets(whole.present, rng)))[0].float() for _ in range(2)
    ]
    out["fused-fused"] = contrast(loss, views[0], views[1], labels, scale, bias)
    for modality, (index, encoded) in parts.items():
        if len(index) > 1:
            among = labels[index][:, index]
            out[f"fused-{modality}"] = 0.5 * contrast(loss, views[0][index], encoded.shared.float(), among, scale, bias)
    if small_batches:
        spread = [variance(encoded.shared.float()) for _, encoded in parts.values()]
        out["variance"] = 0.1 * torch.stack(spread).mean()
    return out
