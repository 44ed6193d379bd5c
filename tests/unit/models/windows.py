"""Windows for tests of models: all subsets of modalities, and the digest and checks of their vectors."""

from __future__ import annotations

import hashlib
import random

import numpy as np

from models.encoders.sensor_tokens import SensorTokens, tokenize
from models.interface import DIM, WindowInput, WindowVectors

START, END = 1_767_225_600_000, 1_767_225_610_000
LOUD = 8_000


def sound(seed: int, seconds: float = 1.0, loudness: int = LOUD) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(int(seconds * 16_000)) * loudness / 3).clip(-32_768, 32_767).astype(np.int16)


def rows(
    channels: int = 8, count: int = 10, seed: int = 0, **fixed: float | None
) -> list[tuple[int, dict[str, float | None]]]:
    """Steady readings at even times: channel i hovers about 10 * (i + 1) within half a per cent; `fixed` overrides."""
    rng = random.Random(seed)
    out = []
    for step in range(count):
        values: dict[str, float | None] = {f"ch{i:03d}": 10 * (i + 1) * rng.gauss(1, 0.005) for i in range(channels)}
        values.update({name: value for name, value in fixed.items()})
        out.append((START + step * 10_000 // count, values))
    return out


def window(readings=(), clips=(), captions=()) -> WindowInput:
    return WindowInput(START, END, readings, clips, captions)


def clip(samples: np.ndarray, at: int = 500) -> list[tuple[int, np.ndarray]]:
    return [(START + at, samples)]


def note(text: str) -> list[tuple[int, str]]:
    return [(START + 100, text)]


def digest(vectors: WindowVectors) -> str:
    h = hashlib.sha256(vectors.joint.tobytes())
    for name in sorted(vectors.unimodal):
        h.update(name.encode() + vectors.unimodal[name].tobytes() + repr(vectors.attention[name]).encode())
    return h.hexdigest()


def mixed_windows(count: int = 22) -> list[WindowInput]:
    """All subsets of modalities, 1 to 300 channels, slow and fast, short and long clips, one to many captions."""
    out = []
    for i in range(count):
        subset = i % 7 + 1
        shape = [(8, 10), (1, 1), (3, 1_000), (70, 10), (300, 4), (8, 40)][i % 6]
        notes = [(START + k, f"note {k} of window {i} " + "with more words " * (i % 4)) for k in range(1 + i % 8)]
        out.append(
            window(
                rows(*shape, seed=i) if subset & 1 else (),
                clip(sound(i, [0.01, 1, 2.3, 5, 11][i % 5])) if subset & 2 else (),
                notes if subset & 4 else (),
            )
        )
    return out


def check(vectors: WindowVectors, present: set[str]) -> None:
    assert set(vectors.unimodal) == set(vectors.attention) == present
    for vector in (vectors.joint, *vectors.unimodal.values()):
        assert vector.dtype == np.float32
        assert vector.shape == (DIM,)
        assert np.isfinite(vector).all()
        assert abs(float(np.linalg.norm(vector.astype(np.float64))) - 1) < 1e-5
    assert abs(sum(vectors.attention.values()) - 1) < 1e-9
    assert all(share >= 0 for share in vectors.attention.values())


def tokens(readings: list[tuple[int, dict[str, float | None]]]) -> SensorTokens:
    return tokenize(readings, {}, START, END, 4_096, 64)
