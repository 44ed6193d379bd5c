"""Caption encoder: hashed words and 3-grams through a small transformer; no tokenizer file, any language."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.blocks import SelfBlock, masked_mean, unit
from models.config import PRIVATE_DIM, SHARED_DIM, ModelConfig, Options
from models.encoders.augment import drop_words
from models.encoders.base import Encoded, Encoder, relative_time
from models.encoders.collate import stack_captions
from models.encoders.log_mel import spread
from models.encoders.registry import register_encoder
from models.encoders.text_hashing import PIECES_MAX, WORDS_MAX, CaptionWords, word_pieces, word_signs, words
from models.interface import WindowInput

CAPTIONS_MAX = 6  # of one window
LENGTHS = (8, 16, WORDS_MAX)  # padded word counts; the caption's own count decides which


def read_caption(text: str, buckets: int) -> CaptionWords:
    """A caption hashed: rows of a table of `buckets` rows, and the sketch of its words."""
    found = words(text)
    pieces = np.zeros((len(found), PIECES_MAX), np.int64)
    sketch = np.zeros(PRIVATE_DIM, np.float32)
    for i, word in enumerate(found):
        rows = word_pieces(word, buckets)
        pieces[i, : len(rows)] = rows
        sketch += word_signs(word, PRIVATE_DIM)
    return CaptionWords(pieces, sketch)


def window_captions(captions: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """At most CAPTIONS_MAX (time_ms, text) of a window's captions: repeats are dropped first, then evenly spread."""
    first: dict[str, int] = {}
    for time_ms, text in captions:
        first.setdefault(text, time_ms)
    kept = [(time_ms, text) for text, time_ms in first.items()]
    return [kept[i] for i in spread(len(kept), CAPTIONS_MAX)]


class SentenceEncoder(nn.Module):
    """One caption -> one vector."""

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
        bag = masked_mean(x, mask)  # words without their context generalise best from little text
        for block in self.blocks:
            x = block(x, mask)
        return unit(self.shared(self.norm_out(torch.cat([bag, masked_mean(x, mask)], -1))))


@dataclass(frozen=True, slots=True)
class CaptionItem:
    """The captions of one window, 1 to CAPTIONS_MAX of them."""

    texts: tuple[str, ...]
    read: tuple[CaptionWords, ...]
    when: tuple[float, ...]  # time of each, relative to the window, 0..1


def sketch_of(captions: Sequence[CaptionWords]) -> Tensor:
    """(PRIVATE_DIM,) of length 1: a sketch of the bag of words."""
    return unit(torch.from_numpy(np.stack([caption.sketch for caption in captions]).sum(axis=0)))


@register_encoder("caption", "hash")
class CaptionEncoder(Encoder):
    """Captions of a window: each through SentenceEncoder, then their mean. Captions are the tokens."""

    tokens = CAPTIONS_MAX
    width = SHARED_DIM

    def __init__(self, config: ModelConfig, modality: str, options: Options) -> None:
        super().__init__(config, modality, options)
        self.buckets = config.text_buckets
        self.sentence = SentenceEncoder(config)

    def read(self, window: WindowInput) -> CaptionItem:
        kept = window_captions(window.captions)
        texts = tuple(text for _, text in kept)
        return CaptionItem(texts, self._read(texts), tuple(relative_time(window, time_ms) for time_ms, _ in kept))

    def _read(self, texts: Sequence[str]) -> tuple[CaptionWords, ...]:
        return tuple(read_caption(text, self.buckets) for text in texts)

    def bucket(self, item: CaptionItem) -> tuple[int, int]:
        return len(item.texts), _length(item.read)

    def augment(self, item: CaptionItem, rng: random.Random) -> CaptionItem:
        texts = tuple(drop_words(text, rng) for text in item.texts)
        return CaptionItem(texts, self._read(texts), item.when)

    def forward(self, items: Sequence[CaptionItem], rows: int) -> Encoded:
        most = max(len(item.texts) for item in items)
        flat = [caption for item in items for caption in item.read]
        padded = len(flat) + (rows - len(items)) * most
        pieces, words_there = stack_captions(flat, padded, max(_length(item.read) for item in items))
        each = self.sentence(pieces.to(self.device), words_there.to(self.device))  # (padded, SHARED_DIM)
        mask = torch.zeros(rows, most, dtype=torch.bool)
        when = torch.zeros(rows, most)
        private = torch.zeros(rows, PRIVATE_DIM)
        for row, item in enumerate(items):
            mask[row, : len(item.texts)] = True
            when[row, : len(item.texts)] = torch.tensor(item.when)
            private[row] = sketch_of(item.read)
        mask = mask.to(self.device)
        tokens = each.new_zeros(rows, most, SHARED_DIM).masked_scatter(mask.unsqueeze(-1), each[: len(flat)])
        shared = unit(masked_mean(tokens, mask))
        return Encoded(shared, private.to(self.device), tokens, mask, when.to(self.device))


def _length(captions: Sequence[CaptionWords]) -> int:
    """The padded number of words for these captions."""
    longest = max(len(caption) for caption in captions)
    return next(length for length in LENGTHS if longest <= length)
