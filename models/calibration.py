"""Balance of modalities: where each lies in the shared space, and how much each contributes to the joint vector.

Contrastive training leaves modalities in regions of their own (the modality gap). Means and covariances of a version
are measured once, on its training windows, and frozen in its folder: `centre` takes a modality's mean away before
vectors are compared, `whiten` also evens out its directions. Both are options that an evaluation must justify.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.config import SHARED_DIM, BalanceKind
from models.encoders.base import content
from models.errors import ModelError
from models.interface import MODALITY_NAMES, WindowInput, WindowModel

Array = NDArray[np.float64]
JOINT = "joint"  # fused vectors are a population of their own
SHRINK = 0.1  # part of the covariance that is replaced by a round one: few windows make a poor covariance
KEPT = 0.99  # of the variance; what is left out is mostly noise, which whitening would blow up


class Moments:
    """Mean and covariance of rows that come in batches (Chan's merge: no cancellation, any split gives the same)."""

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
        """(dim, dim), shrunk towards a round one of the same trace; zeros before the second row."""
        dim = len(self.mean)
        plain = self._scatter / max(self.count - 1, 1)
        shrunk: Array = (1 - shrink) * plain + shrink * np.trace(plain) / dim * np.eye(dim)
        return shrunk


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of one version; keys are modalities and JOINT."""

    means: Mapping[str, NDArray[np.float32]]  # (SHARED_DIM,)
    covariances: Mapping[str, NDArray[np.float32]]  # (SHARED_DIM, SHARED_DIM), shrunk

    def to_tensors(self) -> dict[str, NDArray[np.float32]]:
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
    """Applies a calibration to shared parts; a name that was never seen in training is left as it is."""

    def __init__(self, kind: BalanceKind, calibration: Calibration | None) -> None:
        """Raises ModelError where there is something to apply but no calibration."""
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
        """(N, SHARED_DIM) -> as much, of length 1 (or 0 where there is no direction). A row's result is its own: one
        product a row, whatever their number."""
        if name not in self._means:
            return shared.astype(np.float64)
        moved = shared.astype(np.float64) - self._means[name]
        if name in self._maps:
            moved = np.stack([self._maps[name] @ row for row in moved])
        lengths = np.sqrt(np.sum(moved * moved, axis=-1, keepdims=True))
        return np.asarray(moved / np.where(lengths > 0, lengths, 1.0))


def whitener(covariance: NDArray[Any]) -> Array:
    """(D, D): to variance 1 along the principal axes that hold KEPT of the variance, then turned back, so that the
    axes of all modalities stay those of the shared space."""
    values, axes = np.linalg.eigh(covariance.astype(np.float64))  # ascending
    values = np.maximum(values[::-1], 0.0)
    total = values.sum()
    if total <= 0:
        return np.eye(len(values))
    kept = int(np.searchsorted(np.cumsum(values) / total, KEPT)) + 1
    chosen = axes[:, ::-1][:, :kept]
    scaled: Array = (chosen / np.sqrt(np.maximum(values[:kept], 1e-12))) @ chosen.T
    return scaled


def without(window: WindowInput, modality: str) -> WindowInput:
    """The window as if this modality had been silent."""
    if modality in MODALITY_NAMES:
        none: dict[str, Any] = {("readings", "clips", "captions")[MODALITY_NAMES.index(modality)]: ()}
        return replace(window, **none)
    return replace(window, extra={name: held for name, held in window.extra.items() if name != modality})


def contributions(model: WindowModel, windows: Sequence[WindowInput]) -> dict[str, float]:
    """How far the joint vector moves when a modality is taken away: modality -> mean of 1 - cos(F(all), F(all minus m))
    over the windows that hold it and another one. A modality without such a window is left out."""
    whole = model.embed(windows)
    cases: list[tuple[str, int]] = []
    reduced: list[WindowInput] = []
    for i, window in enumerate(windows):
        names = [*MODALITY_NAMES, *sorted(window.extra)]
        present = [name for name in names if name in whole[i].unimodal and content(window, name)]
        if len(present) > 1:
            cases += [(name, i) for name in present]
            reduced += [without(window, name) for name in present]
    moved: dict[str, list[float]] = {}
    for (name, i), less in zip(cases, model.embed(reduced), strict=True):
        moved.setdefault(name, []).append(1 - float(whole[i].joint.astype(np.float64) @ less.joint))
    return {name: float(np.mean(values)) for name, values in moved.items()}
