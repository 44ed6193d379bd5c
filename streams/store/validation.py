"""What every store refuses, and what every store indexes."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    ready: list[tuple[Point, dict[str, Any]]] = []
    names: list[tuple[int, str]] = []  # place of the point, name of the vector
    rows: list[NDArray[np.float32]] = []
    for place, point in enumerate(points):
        try:
            uuid.UUID(point.id)
        except ValueError:
            raise InvalidPoint(f"{point.id!r} is not a UUID") from None
        if "joint" not in point.vectors:
            raise InvalidPoint(f"point {point.id} has no joint vector")
        for name, vector in point.vectors.items():
            if name not in VECTOR_NAMES:
                raise InvalidPoint(f"point {point.id}: no vector is called {name!r}")
            values = np.asarray(vector, dtype=np.float32)
            if values.shape != (DIM,):
                raise InvalidPoint(f"point {point.id}: {name} has shape {values.shape}, not ({DIM},)")
            names.append((place, name))
            rows.append(values)
        ready.append((point, {}))
    if not rows:
        return ready
    matrix = np.stack(rows)  # (n, DIM): one call for all costs a fraction of one for each
    exact = matrix.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.add.reduce(exact * exact, axis=1))
    for (place, name), values, length in zip(names, matrix.tolist(), lengths.tolist(), strict=True):
        if not abs(length - 1.0) <= _NORM_TOLERANCE:  # also false for NaN
            raise InvalidPoint(f"point {points[place].id}: {name} has length {length}, not 1")
        ready[place][1][name] = values
    return ready
