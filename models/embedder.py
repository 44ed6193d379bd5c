"""Windows -> vectors, in batches whose shape never depends on what is in them.

A matrix product may round its last bit differently at another size, so every batch here has BATCH rows and a padded
shape that each item picks by itself: a window's vectors are the same to the last bit alone, in company, in any order.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models.calibration import JOINT, Balancer
from models.config import SHARED_DIM
from models.encoders.base import Encoded, Item, content
from models.errors import ModelError
from models.interface import DIM, Vector, WindowInput, WindowVectors
from models.network import Network

BATCH = 16  # rows of every batch: 8 leave a tenth of the time to overhead, 32 make a lone window dear
Array = NDArray[np.float32]


class Embedder:
    """A WindowModel: see models.interface. May be called from several threads; torch itself uses one each."""

    def __init__(self, network: Network, version: str) -> None:
        torch.set_num_threads(1)
        self._network = network
        self._config = network.config
        self._version = version
        self._balance = Balancer(network.config.balance, network.calibration)

    @property
    def version(self) -> str:
        return self._version

    def embed(self, windows: Sequence[WindowInput]) -> list[WindowVectors]:
        """Vectors of each window, in order. Raises ModelError for a window without any content."""
        names = self._network.modalities
        for window in windows:
            if not any(content(window, name) for name in names):
                raise ModelError(f"the window {window.start_ms}..{window.end_ms} ms is empty: nothing to embed")
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        with torch.inference_mode():
            parts = {name: self._encode(name, windows) for name in names}
            vectors: list[WindowVectors] = []
            for start in range(0, len(windows), BATCH):
                vectors += self._fuse(range(start, min(start + BATCH, len(windows))), parts)
        return vectors

    def embed_text(self, text: str) -> Vector:
        """(DIM,) of length 1: the shared part of a caption's vector, to compare with any stored vector."""
        return self._query("caption", WindowInput(0, 1_000, captions=[(0, text)]))

    def embed_audio(self, samples: NDArray[np.int16]) -> Vector:
        """(DIM,) of length 1: the shared part of a sound's vector, to compare with any stored vector."""
        return self._query("audio", WindowInput(0, 1_000, clips=[(0, samples)]))

    def _query(self, modality: str, window: WindowInput) -> Vector:
        vector = self.embed([window])[0].unimodal[modality].astype(np.float64)
        vector[SHARED_DIM:] = 0.0  # another modality's private part says nothing about this one
        return _unit(vector)

    def _encode(self, modality: str, windows: Sequence[WindowInput]) -> tuple[dict[int, int], Encoded | None]:
        """Where each window that has the modality lies, and all of their encodings."""
        encoder = self._network.encoder(modality)
        by_bucket: dict[Hashable, list[tuple[int, Item]]] = {}
        for i, window in enumerate(windows):
            if content(window, modality):
                item = encoder.read(window)
                by_bucket.setdefault(encoder.bucket(item), []).append((i, item))
        where: dict[int, int] = {}
        done: list[Encoded] = []
        for items in by_bucket.values():
            for start in range(0, len(items), BATCH):
                chunk = items[start : start + BATCH]
                encoded = encoder([item for _, item in chunk], BATCH)
                done.append(_cut(encoded, len(chunk), encoder.tokens))
                where.update({i: len(where) + row for row, (i, _) in enumerate(chunk)})
        if not done:
            return where, None
        return where, Encoded(*(torch.cat([getattr(e, name) for e in done]) for name in Encoded.__slots__))

    def _fuse(self, chunk: range, parts: dict[str, tuple[dict[int, int], Encoded | None]]) -> list[WindowVectors]:
        gathered: dict[str, tuple[Tensor, Encoded]] = {}
        own: dict[str, tuple[dict[int, int], Array]] = {}  # row of the chunk -> row of the vectors
        sketches = np.zeros((BATCH, DIM - SHARED_DIM))
        for name, (where, encoded) in parts.items():
            rows = [row for row, i in enumerate(chunk) if i in where]
            if rows and encoded is not None:
                some = encoded.rows(torch.tensor([where[chunk[row]] for row in rows]))
                gathered[name] = torch.tensor(rows), some
                private = some.private.numpy()
                sketches[rows] += private
                vectors = join(
                    self._balance(name, some.shared.numpy()), private, self._network.encoder(name).private_share
                )
                own[name] = {row: k for k, row in enumerate(rows)}, vectors
        fused, attention = self._network.fusion(self._network.gather(BATCH, gathered))
        joints = join(self._balance(JOINT, fused.numpy()), _unit(sketches), self._config.joint_private)
        seen = attention.numpy()
        out = []
        for row in range(len(chunk)):
            found = {name: vectors[places[row]] for name, (places, vectors) in own.items() if row in places}
            shares = {name: float(seen[row, self._network.modalities.index(name)]) for name in found}
            total = sum(shares.values())
            out.append(WindowVectors(joints[row], found, {name: part / total for name, part in shares.items()}))
        return out


def _cut(encoded: Encoded, rows: int, tokens: int) -> Encoded:
    """The first rows, padded to the encoder's full number of tokens."""
    more = tokens - encoded.tokens.shape[1]
    return Encoded(
        encoded.shared[:rows],
        encoded.private[:rows],
        F.pad(encoded.tokens[:rows], (0, 0, 0, more)),
        F.pad(encoded.mask[:rows], (0, more)),
        F.pad(encoded.when[:rows], (0, more)),
    )


def join(shared: NDArray[Any], private: NDArray[Any], share: float) -> Array:
    """Shared (N, SHARED_DIM) and private (N, PRIVATE_DIM) parts in vectors of length 1, `share` of their square in the
    private part. (N, DIM)"""
    parts = (shared.astype(np.float64) * (1 - share) ** 0.5, private.astype(np.float64) * share**0.5)
    return _unit(np.concatenate(parts, axis=1))


def _unit(vectors: NDArray[Any]) -> Array:
    """Length 1 along the last axis, or zeros where there is no direction."""
    lengths = np.sqrt(np.sum(vectors * vectors, axis=-1, keepdims=True))
    return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


__all__ = ["BATCH", "DIM", "Embedder"]
