"""A tiny deterministic model for tests of everything around models: same window, same vectors, no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.interface import DIM, WindowInput, WindowVectors


def _direction(seed: str) -> NDArray[np.float32]:
    digest = hashlib.sha256(seed.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little")).standard_normal(DIM).astype(np.float32)


def _unit(vector: NDArray[Any]) -> NDArray[np.float32]:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class StandInModel:
    """Sensor vectors move with the mean of each channel, sounds and captions with what they hold."""

    version = "standin-1"

    def __init__(
        self, poison: str | None = None, broken: str | None = None, broken_value: float = float("nan")
    ) -> None:
        self._poison = poison  # a caption that makes `embed` raise
        self._broken = broken  # a caption whose windows get vectors of `broken_value`, without an error
        self._broken_value = np.float32(broken_value)
        self.batches: list[int] = []

    def embed(self, windows: Sequence[WindowInput]) -> list[WindowVectors]:
        self.batches.append(len(windows))
        return [self._one(window) for window in windows]

    def _one(self, window: WindowInput) -> WindowVectors:
        unimodal: dict[str, NDArray[np.float32]] = {}
        if window.readings:
            total = _direction("sensor") * 4
            channels: dict[str, list[float]] = {}
            for _, values in window.readings:
                for name, value in values.items():
                    if value is not None:
                        channels.setdefault(name, []).append(value)
            for name in sorted(channels):
                total = total + _direction(name) * np.float32(np.tanh(np.mean(channels[name]) / 10))
            unimodal["sensor"] = _unit(total)
        if window.clips:
            powers = [float(np.mean(np.abs(samples.astype(np.float64)))) for _, samples in window.clips]
            unimodal["audio"] = _unit(_direction("audio") * 4 + _direction("loud") * np.float32(np.mean(powers) / 3000))
        if window.captions:
            texts = [text for _, text in window.captions]
            if self._poison in texts:
                raise RuntimeError("poisoned caption")
            unimodal["caption"] = _unit(np.sum([_direction(word) for text in texts for word in text.split()], axis=0))
        joint = _unit(np.sum(list(unimodal.values()), axis=0))
        if self._broken is not None and any(text == self._broken for _, text in window.captions):
            joint = unimodal["caption"] = np.full(DIM, self._broken_value)
        return WindowVectors(joint, unimodal, {name: 1 / len(unimodal) for name in unimodal})

    def embed_text(self, text: str) -> NDArray[np.float32]:
        return _unit(np.sum([_direction(word) for word in text.split()], axis=0))

    def embed_audio(self, samples: NDArray[np.int16]) -> NDArray[np.float32]:
        return _unit(_direction("audio"))
