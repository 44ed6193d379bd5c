"""Many windows through one encoder, in batches of one padded shape."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch.nn import functional as F

from models.encoders.base import Encoded, Encoder, Item
from models.interface import WindowInput


def encode_windows(
    encoder: Encoder, windows: Sequence[WindowInput], batch: int, *, fixed: bool
) -> tuple[list[int], Encoded | None]:
    """Indices (K,) of the windows that hold the encoder's modality, in the order of the rows, and their encodings
    (K rows, tokens padded to `encoder.tokens`); None where no window holds it.

    batch: most rows of a batch. fixed: every batch is padded to exactly so many rows, so that an encoding is the same
    to the last bit whatever its batch mates (a matrix product may round differently at another size); otherwise a batch
    has as many rows as items.
    """
    by_bucket: dict[Hashable, list[tuple[int, Item]]] = {}
    for i, window in enumerate(windows):
        if encoder.content(window):
            item = encoder.read(window)
            by_bucket.setdefault(encoder.bucket(item), []).append((i, item))
    order: list[int] = []
    done: list[Encoded] = []
    for items in by_bucket.values():
        for start in range(0, len(items), batch):
            chunk = items[start : start + batch]
            encoded = encoder([item for _, item in chunk], batch if fixed else len(chunk))
            done.append(_fitted(encoded, len(chunk), encoder.tokens))
            order += [i for i, _ in chunk]
    if not done:
        return order, None
    return order, Encoded(*(torch.cat([getattr(one, name) for one in done]) for name in Encoded.__slots__))


def _fitted(encoded: Encoded, rows: int, tokens: int) -> Encoded:
    """The first `rows` rows, their tokens padded to `tokens`, so that batches of any bucket can be concatenated."""
    missing = tokens - encoded.tokens.shape[1]
    return Encoded(
        encoded.shared[:rows],
        encoded.private[:rows],
        F.pad(encoded.tokens[:rows], (0, 0, 0, missing)),
        F.pad(encoded.mask[:rows], (0, missing)),
        F.pad(encoded.when[:rows], (0, missing)),
    )
