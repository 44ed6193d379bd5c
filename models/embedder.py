"""Windows -> vectors, in batches whose shape never depends on their content.

A matrix product may round its last bit differently at another size, so every batch has BATCH rows and a padded shape
that is a function of each item alone: a window's vectors are the same to the last bit alone, in any batch and order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.calibration import JOINT, Balancer
from models.config import SHARED_DIM
from models.encoders.base import Encoded
from models.encoders.batching import encode_windows
from models.errors import ModelError
from models.interface import DIM, Vector, WindowInput, WindowVectors
from models.network import Network

BATCH = 16  # rows of every batch: 8 spend a tenth of the time on overhead, 32 double the latency of a single window
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
            if not any(window.content(name) for name in names):
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
        """(DIM,) of length 1: the shared part of a caption's vector, comparable with any stored vector."""
        return self._query("caption", WindowInput(0, 1_000, captions=[(0, text)]))

    def embed_audio(self, samples: NDArray[np.int16]) -> Vector:
        """samples (n,) mono PCM at 16 kHz -> (DIM,) of length 1: the shared part of a sound's vector, comparable with
        any stored vector."""
        return self._query("audio", WindowInput(0, 1_000, clips=[(0, samples)]))

    def _query(self, modality: str, window: WindowInput) -> Vector:
        vector = self.embed([window])[0].unimodal[modality].astype(np.float64)
        vector[SHARED_DIM:] = 0.0  # private parts of different modalities are not comparable
        return _unit(vector)

    def _encode(self, modality: str, windows: Sequence[WindowInput]) -> tuple[dict[int, int], Encoded | None]:
        """Window -> row of its encoding, for the windows that hold the modality; and all these encodings."""
        order, encoded = encode_windows(self._network.encoder(modality), windows, BATCH, fixed=True)
        return {i: row for row, i in enumerate(order)}, encoded

    def _fuse(self, chunk: range, parts: dict[str, tuple[dict[int, int], Encoded | None]]) -> list[WindowVectors]:
        gathered: dict[str, tuple[Tensor, Encoded]] = {}
        own: dict[str, tuple[dict[int, int], Array]] = {}  # by modality: row of the chunk -> row of the vectors
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
        weights = attention.numpy()  # (BATCH, M)
        out = []
        for row in range(len(chunk)):
            found = {name: vectors[places[row]] for name, (places, vectors) in own.items() if row in places}
            shares = {name: float(weights[row, self._network.modalities.index(name)]) for name in found}
            total = sum(shares.values())
            out.append(WindowVectors(joints[row], found, {name: part / total for name, part in shares.items()}))
        return out


def join(shared: NDArray[Any], private: NDArray[Any], share: float) -> Array:
    """Shared (N, SHARED_DIM) and private (N, PRIVATE_DIM) parts -> vectors (N, DIM) of length 1 with `share` of their
    squared length in the private part."""
    parts = (shared.astype(np.float64) * (1 - share) ** 0.5, private.astype(np.float64) * share**0.5)
    return _unit(np.concatenate(parts, axis=1))


def _unit(vectors: NDArray[Any]) -> Array:
    """(..., D) -> (..., D) of length 1; zeros stay zeros."""
    lengths = np.sqrt(np.sum(vectors * vectors, axis=-1, keepdims=True))
    return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


__all__ = ["BATCH", "DIM", "Embedder"]
