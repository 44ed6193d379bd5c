"""What goes into a model and what comes out; the only types the service shares with `models`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]  # (DIM,)
DIM = 256
SAMPLE_RATE_HZ = 16_000
MODALITY_NAMES = ("sensor", "audio", "caption")


@dataclass(frozen=True, slots=True)
class WindowInput:
    """The content of one event-time window, in canonical order (by time, then content).

    readings: (time_ms, {channel: value or None}); clips: (time_ms, int16 mono PCM at 16 kHz, (n,));
    captions: (time_ms, text). `units`: channel -> unit, where known. An absent modality is an empty sequence.
    extra: modalities that others brought (models.encoders.registry), by name: (time_ms, whatever their encoder reads).
    """

    start_ms: int
    end_ms: int
    readings: Sequence[tuple[int, Mapping[str, float | None]]] = ()
    clips: Sequence[tuple[int, NDArray[np.int16]]] = ()
    captions: Sequence[tuple[int, str]] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Sequence[tuple[int, Any]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WindowVectors:
    """Unit float32 vectors of one window. `unimodal` holds the present modalities; `attention` sums to 1 over them."""

    joint: Vector
    unimodal: Mapping[str, Vector]
    attention: Mapping[str, float]


class WindowModel(Protocol):
    """A loaded model. Same window, same vectors to the last bit, whatever its batch mates (on one machine type)."""

    @property
    def version(self) -> str:
        """Short stable name: preset and a hash of weights and config; kept with every vector."""
        ...

    def embed(self, windows: Sequence[WindowInput]) -> list[WindowVectors]:
        """Encode and fuse. Any length; internally in fixed-size padded batches. CPU-bound: call in an executor."""
        ...

    def embed_text(self, text: str) -> Vector:
        """A caption's vector in the shared space, for search."""
        ...

    def embed_audio(self, samples: NDArray[np.int16]) -> Vector:
        """A sound's vector in the shared space, for search."""
        ...
