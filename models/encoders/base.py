"""The base of all encoders: a window's content of one modality in, a vector of two parts and tokens for fusion out."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.config import DEFAULT_PRIVATE, ModelConfig, Options
from models.interface import WindowInput

Item = Any  # the result of an encoder's `read`: any immutable type of its own


@dataclass(frozen=True, slots=True)
class Encoded:
    """The encodings of one modality for a batch of windows."""

    shared: Tensor  # (B, SHARED_DIM) of length 1: the part that training aligns across modalities
    private: Tensor  # (B, PRIVATE_DIM) of length 1, or 0 where there is nothing to sketch
    tokens: Tensor  # (B, T, width) for fusion, T at most the encoder's `tokens`
    mask: Tensor  # (B, T) bool
    when: Tensor  # (B, T) time of a token, relative to the window, 0..1

    def rows(self, index: Tensor) -> Encoded:
        """The rows (K,) alone."""
        return Encoded(*(getattr(self, name)[index] for name in self.__slots__))


class Encoder(nn.Module, ABC):
    """Base of all encoders; register one with `registry.register_encoder`. A subclass sets `tokens` and `width`."""

    tokens: int  # most tokens of one window for fusion
    width: int  # of a token
    private_share: float  # of the squared length of this modality's vector, for its private part

    def __init__(self, config: ModelConfig, modality: str, options: Options) -> None:
        super().__init__()
        self.modality = modality
        given = options.get("private", getattr(config, f"{modality}_private", DEFAULT_PRIVATE))
        self.private_share = float(given)

    def content(self, window: WindowInput) -> Sequence[tuple[int, Any]]:
        """(time_ms, content) of this modality in a window."""
        return window.content(self.modality)

    @abstractmethod
    def read(self, window: WindowInput) -> Item:
        """Prepare a window that has content of this modality. A pure function of the window alone."""

    def bucket(self, item: Item) -> Hashable:
        """The padded shape that an item needs, decided by the item alone. Stored vectors come from batches of one
        bucket, so that no batch mate changes a bit of them."""
        return 0

    def augment(self, item: Item, rng: random.Random) -> Item:
        """A random variation of the item, for training; by default the item itself."""
        return item

    @abstractmethod
    def forward(self, items: Sequence[Item], rows: int) -> Encoded:
        """At most `rows` items -> their vectors and tokens, padded to `rows` rows, on this module's device."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def relative_time(window: WindowInput, time_ms: int) -> float:
    """Time relative to the window: 0 at its start, 1 at its end."""
    return (time_ms - window.start_ms) / max(window.end_ms - window.start_ms, 1)
