"""What every encoder is: a window's content of one modality in, a vector of two parts and tokens for fusion out."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.config import DEFAULT_PRIVATE, ModelConfig, Options
from models.interface import MODALITY_NAMES, WindowInput

Item = Any  # what an encoder's `read` makes of a window's content: its own affair, but immutable


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch of windows as one encoder sees them."""

    shared: Tensor  # (B, SHARED_DIM) of length 1: the part that training aligns across modalities
    private: Tensor  # (B, PRIVATE_DIM) of length 1, or 0 where there is nothing to sketch
    tokens: Tensor  # (B, T, width) for fusion, T at most the encoder's `tokens`
    mask: Tensor  # (B, T) bool
    when: Tensor  # (B, T) place in the window, 0..1

    def rows(self, index: Tensor) -> Encoded:
        return Encoded(*(getattr(self, name)[index] for name in self.__slots__))


class Encoder(nn.Module, ABC):
    """Base of all encoders; register a new one with `registry.register_encoder`. Set `tokens` and `width`."""

    tokens: int  # most tokens that fusion gets of one window
    width: int  # of a token
    private_share: float  # of the squared length of this modality's vector that its private part is given

    def __init__(self, config: ModelConfig, modality: str, options: Options) -> None:
        super().__init__()
        self.modality = modality
        given = options.get("private", getattr(config, f"{modality}_private", DEFAULT_PRIVATE))
        self.private_share = float(given)

    def content(self, window: WindowInput) -> Sequence[tuple[int, Any]]:
        return content(window, self.modality)

    @abstractmethod
    def read(self, window: WindowInput) -> Item:
        """A window that has content of this modality, prepared. A pure function of the window: no batch mates here."""

    def bucket(self, item: Item) -> Hashable:
        """The padded shape that an item needs, decided by itself alone; only items of one bucket meet in a batch when
        vectors are made for keeps, so that no batch mate changes a bit of them."""
        return 0

    def vary(self, item: Item, rng: random.Random) -> Item:
        """The item as it might as well have been, for training."""
        return item

    @abstractmethod
    def forward(self, items: Sequence[Item], rows: int) -> Encoded:
        """At most `rows` items, padded to `rows` -> their vectors and tokens on this module's device."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def content(window: WindowInput, modality: str) -> Sequence[tuple[int, Any]]:
    """What a window holds of a modality, built in or brought by somebody else."""
    if modality in MODALITY_NAMES:
        own: Sequence[tuple[int, Any]] = (window.readings, window.clips, window.captions)[
            MODALITY_NAMES.index(modality)
        ]
        return own
    return window.extra.get(modality, ())


def place(window: WindowInput, time_ms: int) -> float:
    """Where in the window a moment lies, 0..1."""
    return (time_ms - window.start_ms) / max(window.end_ms - window.start_ms, 1)
