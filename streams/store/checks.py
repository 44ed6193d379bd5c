"""What every store refuses, and what every store indexes."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from streams.store.base import DIM, VECTOR_NAMES, InvalidPoint, Point

INDEXES = {
    "stream": "keyword",
    "start": "integer",
    "end": "integer",
    "incident": "keyword",
    "incident_step": "bool",
    "model": "keyword",
    "bank": "bool",
}
_NORM_TOLERANCE = 1e-3


def checked(points: Sequence[Point]) -> list[tuple[Point, dict[str, Any]]]:
    """Points with their vectors as lists. Raises `InvalidPoint` before anything is written."""
    ready = []
    for point in points:
        try:
            uuid.UUID(point.id)
        except ValueError:
            raise InvalidPoint(f"{point.id!r} is not a UUID") from None
        if "joint" not in point.vectors:
            raise InvalidPoint(f"point {point.id} has no joint vector")
        vectors = {}
        for name, vector in point.vectors.items():
            if name not in VECTOR_NAMES:
                raise InvalidPoint(f"point {point.id}: no vector is called {name!r}")
            values = np.asarray(vector, dtype=np.float32)
            if values.shape != (DIM,):
                raise InvalidPoint(f"point {point.id}: {name} has shape {values.shape}, not ({DIM},)")
            norm = float(np.linalg.norm(values.astype(np.float64)))
            if not abs(norm - 1.0) <= _NORM_TOLERANCE:  # also false for NaN
                raise InvalidPoint(f"point {point.id}: {name} has length {norm}, not 1")
            vectors[name] = values.tolist()
        ready.append((point, vectors))
    return ready
