"""Caption encoder: hashed words and 3-grams through a small transformer; no tokenizer file, any language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.blocks import SelfBlock, masked_mean, unit
from models.config import PRIVATE_DIM, SHARED_DIM, ModelConfig
from models.features import spread
from models.hashing import PIECES_MAX, WORDS_MAX, word_pieces, word_signs, words

CAPTIONS_MAX = 6  # of one window
LENGTHS = (8, 16, WORDS_MAX)  # padded word counts; the caption's own count picks one


@dataclass(frozen=True, slots=True)
class CaptionWords:
    """One caption, W >= 1 words."""

    pieces: NDArray[np.int64]  # (W, PIECES_MAX) rows of the table, 0 = padding
    sketch: NDArray[np.float32]  # (PRIVATE_DIM,)

    def __len__(self) -> int:
        return len(self.pieces)


def read_caption(text: str, buckets: int) -> CaptionWords:
    found = words(text)
    pieces = np.zeros((len(found), PIECES_MAX), np.int64)
    sketch = np.zeros(PRIVATE_DIM, np.float32)
    for i, word in enumerate(found):
        rows = word_pieces(word, buckets)
        pieces[i, : len(rows)] = rows
        sketch += word_signs(word, PRIVATE_DIM)
    return CaptionWords(pieces, sketch)


def window_captions(captions: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """At most CAPTIONS_MAX of a window's captions: repeats dropped first, then evenly spread."""
    first: dict[str, int] = {}
    for time_ms, text in captions:
        first.setdefault(text, time_ms)
    kept = [(time_ms, text) for text, time_ms in first.items()]
    return [kept[i] for i in spread(len(kept), CAPTIONS_MAX)]


class CaptionEncoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.text_dim
        heads = max(1, dim // 32)
        self.table = nn.Embedding(config.text_buckets, dim)
        nn.init.normal_(self.table.weight, std=1.0)
        self.place = nn.Parameter(torch.randn(WORDS_MAX, dim) * 0.1)
        self.norm_in = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(SelfBlock(dim, heads) for _ in range(config.text_layers))
        self.norm_out = nn.LayerNorm(2 * dim)
        self.shared = nn.Linear(2 * dim, SHARED_DIM)

    def forward(self, pieces: Tensor, mask: Tensor) -> Tensor:
        """(B, W, PIECES_MAX) int, (B, W) -> (B, SHARED_DIM) of length 1."""
        b, w, p = pieces.shape
        some = (pieces > 0).to(torch.float32)
        rows = self.table(pieces.reshape(b, w * p)).reshape(b, w, p, -1)
        word = (rows * some.unsqueeze(-1)).sum(2) / some.sum(2, keepdim=True).clamp_min(1.0).sqrt()  # (B, W, D)
        x = self.norm_in(word) + self.place[:w]
        bag = masked_mean(x, mask)  # what a word says without its neighbours generalises best from little text
        for block in self.blocks:
            x = block(x, mask)
        return unit(self.shared(self.norm_out(torch.cat([bag, masked_mean(x, mask)], -1))))
