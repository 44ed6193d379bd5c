"""Calibration of modalities: means and covariances in the shared space, and each one's share of the joint vector.

Contrastive training leaves modalities in regions of their own (the modality gap). Means and covariances of a version
are measured once, on its training windows, and kept in its folder: `centre` subtracts a modality's mean before vectors
are compared, `whiten` also scales its principal axes to variance 1. Both are options that an evaluation must justify.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.config import SHARED_DIM, BalanceKind
from models.errors import ModelError
from models.interface import WindowInput, WindowModel

Array = NDArray[np.float64]
JOINT = "joint"  # fused vectors are a population of their own
SHRINK = 0.1  # of the covariance towards a multiple of the identity: few windows make a poor estimate
KEPT = 0.99  # of the variance; the rest is mostly noise, which whitening would amplify


class Moments:
    """Mean and covariance of rows in batches (Chan's parallel algorithm: no cancellation, the same for any split)."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean: Array = np.zeros(dim)
        self._scatter: Array = np.zeros((dim, dim))

    def update(self, rows: NDArray[Any]) -> None:
        """rows (N, dim)."""
        if not len(rows):
            return
        data = np.asarray(rows, np.float64)
        mean = data.mean(0)
        centred = data - mean
        total = self.count + len(data)
        delta = mean - self.mean
        self._scatter += centred.T @ centred + np.outer(delta, delta) * self.count * len(data) / total
        self.mean = self.mean + delta * len(data) / total
        self.count = total

    def covariance(self, shrink: float = SHRINK) -> Array:
        """(dim, dim), shrunk towards the multiple of the identity with the same trace; zeros before the second row."""
        dim = len(self.mean)
        plain = self._scatter / max(self.count - 1, 1)
        shrunk: Array = (1 - shrink) * plain + shrink * np.trace(plain) / dim * np.eye(dim)
        return shrunk


@dataclass(frozen=True, slots=True)
class Calibration:
    """Statistics of one version's shared parts, by modality and JOINT."""

    means: Mapping[str, NDArray[np.float32]]  # (SHARED_DIM,)
    covariances: Mapping[str, NDArray[np.float32]]  # (SHARED_DIM, SHARED_DIM), shrunk

    def to_tensors(self) -> dict[str, NDArray[np.float32]]:
        """Named arrays for a safetensors file: "mean.<name>", "covariance.<name>"."""
        named = {f"mean.{name}": mean for name, mean in self.means.items()}
        return {**named, **{f"covariance.{name}": matrix for name, matrix in self.covariances.items()}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]], source: str) -> Calibration:
        """Raises ModelError naming `source` where shapes or values are wrong."""
        parts: dict[str, dict[str, NDArray[np.float32]]] = {"mean": {}, "covariance": {}}
        shapes = {"mean": (SHARED_DIM,), "covariance": (SHARED_DIM, SHARED_DIM)}
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            if kind not in parts or tensor.shape != shapes[kind] or not np.isfinite(tensor).all():
                raise ModelError(f"{source} is damaged at {key}; train again with: sensorium train --help")
            parts[kind][name] = tensor.astype(np.float32)
        if parts["mean"].keys() != parts["covariance"].keys():
            raise ModelError(f"{source} is incomplete; train again with: sensorium train --help")
        return cls(parts["mean"], parts["covariance"])


def calibrate(vectors: Mapping[str, NDArray[Any]]) -> Calibration:
    """From the shared parts of many windows' vectors, name -> (N, SHARED_DIM); names without a row are left out."""
    means, covariances = {}, {}
    for name, rows in vectors.items():
        if len(rows):
            moments = Moments(SHARED_DIM)
            moments.update(rows)
            means[name] = moments.mean.astype(np.float32)
            covariances[name] = moments.covariance().astype(np.float32)
    return Calibration(means, covariances)


class Balancer:
    """Applies a calibration to shared parts; those of a name without statistics are unchanged."""

    def __init__(self, kind: BalanceKind, calibration: Calibration | None) -> None:
        """Raises ModelError where `kind` needs a calibration and there is none."""
        if kind != "none" and calibration is None:
            raise ModelError(
                f"balance {kind!r} needs calibration.safetensors beside the weights; train again with: "
                f"sensorium train --balance {kind}"
            )
        self._means: dict[str, Array] = {}
        self._maps: dict[str, Array] = {}
        if kind != "none" and calibration is not None:
            self._means = {name: mean.astype(np.float64) for name, mean in calibration.means.items()}
            if kind == "whiten":
                self._maps = {name: whitener(matrix) for name, matrix in calibration.covariances.items()}

    def __call__(self, name: str, shared: NDArray[Any]) -> Array:
        """(N, SHARED_DIM) -> (N, SHARED_DIM) of length 1 (0 for a row of zeros). Each row is a matrix product of its
        own, so that its bits do not depend on the other rows."""
        if name not in self._means:
            return shared.astype(np.float64)
        moved = shared.astype(np.float64) - self._means[name]
        if name in self._maps:
            moved = np.stack([self._maps[name] @ row for row in moved])
        lengths = np.sqrt(np.sum(moved * moved, axis=-1, keepdims=True))
        return np.asarray(moved / np.where(lengths > 0, lengths, 1.0))


def whitener(covariance: NDArray[Any]) -> Array:
    """(D, D): ZCA whitening, to variance 1 along the principal axes that hold KEPT of the variance and back to the
    original axes, so that all modalities stay in the axes of the shared space."""
    values, axes = np.linalg.eigh(covariance.astype(np.float64))  # ascending
    values = np.maximum(values[::-1], 0.0)
    total = values.sum()
    if total <= 0:
        return np.eye(len(values))
    kept = int(np.searchsorted(np.cumsum(values) / total, KEPT)) + 1
    chosen = axes[:, ::-1][:, :kept]
    scaled: Array = (chosen / np.sqrt(np.maximum(values[:kept], 1e-12))) @ chosen.T
    return scaled


def contributions(model: WindowModel, windows: Sequence[WindowInput]) -> dict[str, float]:
    """How far the joint vector moves without a modality: modality -> mean of 1 - cos(F(all), F(all but it)) over the
    windows that hold it and another one. A modality without such a window is left out."""
    whole = model.embed(windows)
    cases: list[tuple[str, int]] = []
    reduced: list[WindowInput] = []
    for i, window in enumerate(windows):
        present = [name for name in window.present if name in whole[i].unimodal]
        if len(present) > 1:
            cases += [(name, i) for name in present]
            reduced += [window.only(set(window.present) - {name}) for name in present]
    moved: dict[str, list[float]] = {}
    for (name, i), rest in zip(cases, model.embed(reduced), strict=True):
        moved.setdefault(name, []).append(1 - float(whole[i].joint.astype(np.float64) @ rest.joint))
    return {name: float(np.mean(values)) for name, values in moved.items()}
