"""Points with the payload that queries read, for tests that fill a store by hand."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from streams.store.base import DIM, Point


def unit(seed: int) -> Any:
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def window(
    number: int, stream: str = "pump", start: int | None = None, steps: Sequence[Any] = (), **more: Any
) -> Point:
    """The window of that number; `start` in ms, 1 s long."""
    start = number * 1000 if start is None else start
    vector = more.pop("vector", None)
    payload: dict[str, Any] = {
        "stream": stream,
        "start": start,
        "end": start + 1000,
        "model": "m",
        "revision": 0,
        "mask": 1,
        "modalities": ["sensor"],
        "events": {"sensor": 1},
        "status": "ok",
        "score": 0.5,
        "severity": 0,
        "incident": None,
        "incident_step": bool(steps),
        "steps": list(steps),
        "captions": [],
    }
    vectors = {"joint": unit(number) if vector is None else vector}
    return Point(str(uuid.UUID(int=number + 1)), vectors, payload | more)


def step(id: str, opened_ms: int, sequence: int, kind: str) -> dict[str, Any]:
    """A step of an incident."""
    return {
        "id": id,
        "stream": "pump",
        "sequence": sequence,
        "kind": kind,
        "opened_ms": opened_ms,
        "severity": 50,
        "text": "pump: odd",
        "closed_ms": opened_ms + 5 if kind == "closed" else None,
    }
