"""What goes into a model and what comes out: the only types that the service shares with `models`. No torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]  # (DIM,)
DIM = 256
SAMPLE_RATE_HZ = 16_000
MODALITY_NAMES = ("sensor", "audio", "caption")
NORM_TOLERANCE = 1e-3  # on a vector's length and on the sum of attention; float32 itself is within 1e-6


@dataclass(frozen=True, slots=True)
class WindowInput:
    """The content of one event-time window, in canonical order (by time, then content).

    start_ms, end_ms: event time, half-open. readings: (time_ms, {channel: value or None}); clips: (time_ms, int16 mono
    PCM at 16 kHz, (n,)); captions: (time_ms, text). `units`: channel -> unit, where known. An absent modality is an
    empty sequence. extra: modalities of third-party encoders (models.encoders.registry), by name: (time_ms, whatever
    their encoder reads).
    """

    start_ms: int
    end_ms: int
    readings: Sequence[tuple[int, Mapping[str, float | None]]] = ()
    clips: Sequence[tuple[int, NDArray[np.int16]]] = ()
    captions: Sequence[tuple[int, str]] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Sequence[tuple[int, Any]]] = field(default_factory=dict)

    def content(self, modality: str) -> Sequence[tuple[int, Any]]:
        """(time_ms, content) of one modality, built in or third-party; empty where it is absent."""
        match modality:
            case "sensor":
                return self.readings
            case "audio":
                return self.clips
            case "caption":
                return self.captions
        return self.extra.get(modality, ())

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the modalities that this window holds: the built-in ones in their order, then the others by name."""
        return tuple(name for name in (*MODALITY_NAMES, *sorted(self.extra)) if self.content(name))

    def only(self, modalities: Collection[str]) -> WindowInput:
        """The same window with the content of these modalities alone; the others are absent."""
        return replace(
            self,
            readings=self.readings if "sensor" in modalities else (),
            clips=self.clips if "audio" in modalities else (),
            captions=self.captions if "caption" in modalities else (),
            extra={name: content for name, content in self.extra.items() if name in modalities},
        )


@dataclass(frozen=True, slots=True)
class WindowVectors:
    """Unit float32 vectors (DIM,) of one window. `unimodal`: by modality present; `attention` sums to 1 over them."""

    joint: Vector
    unimodal: Mapping[str, Vector]
    attention: Mapping[str, float]


def check_vectors(vectors: WindowVectors, window: WindowInput | None = None) -> str | None:
    """Why these vectors must not be stored or compared, as a clause for a message; None where they are sound.

    Sound: every vector is (DIM,), finite and of length 1 within NORM_TOLERANCE; there is at least one unimodal vector;
    attention has the same names, is finite, not negative, and sums to 1. With `window`, the names must also be those
    that it holds; only the model's own modalities are required, since a model may lack an encoder for another one.

    Encoders come from third parties by entry points, and one NaN that is stored breaks every later search (the
    embedded store accepts it): so what leaves a model is checked, whatever the model is.
    """
    for name, vector in (("joint", vectors.joint), *vectors.unimodal.items()):
        reason = check_vector(vector)
        if reason is not None:
            return f"the {name} vector {reason}"
    if not vectors.unimodal:
        return "there is no unimodal vector"
    if vectors.attention.keys() != vectors.unimodal.keys():
        return f"attention is over {_names(vectors.attention)}, the vectors are of {_names(vectors.unimodal)}"
    shares = list(vectors.attention.values())
    if not all(math.isfinite(share) and share >= 0 for share in shares) or abs(sum(shares) - 1) > NORM_TOLERANCE:
        return "attention is not a set of shares that sum to 1"
    if window is not None:
        required = {name for name in window.present if name in MODALITY_NAMES}
        if not required <= vectors.unimodal.keys() <= set(window.present):
            return f"the vectors are of {_names(vectors.unimodal)}, the window holds {_names(window.present)}"
    return None


def check_vector(vector: Any) -> str | None:
    """Why one vector is not sound, as the rest of a sentence about it; None where it is (DIM,), finite and of length 1
    within NORM_TOLERANCE. For the vectors of queries (`embed_text`, `embed_audio`)."""
    if not isinstance(vector, np.ndarray) or vector.shape != (DIM,) or not np.issubdtype(vector.dtype, np.floating):
        kind = f"{vector.dtype} {vector.shape}" if isinstance(vector, np.ndarray) else type(vector).__name__
        return f"is {kind}, not float32 ({DIM},)"
    if not np.isfinite(vector).all():
        return "holds NaN or infinite values"
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return f"has length {length:.4g}, not 1" if abs(length - 1) > NORM_TOLERANCE else None


def _names(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


class WindowModel(Protocol):
    """A loaded model. Same window, same vectors to the last bit, whatever its batch mates (on one machine type)."""

    @property
    def version(self) -> str:
        """Short stable name: preset and a hash of weights and config; kept with every vector."""
        ...

    def embed(self, windows: Sequence[WindowInput]) -> list[WindowVectors]:
        """Encode and fuse. Any length; internally in fixed-size padded batches. CPU-bound: call in an executor.

        Raises ModelError for a window without any content. The vectors of a third-party encoder are passed on as they
        are: see `check_vectors`.
        """
        ...

    def embed_text(self, text: str) -> Vector:
        """A caption's vector in the shared space, (DIM,) of length 1, for search."""
        ...

    def embed_audio(self, samples: NDArray[np.int16]) -> Vector:
        """The vector of a sound, (n,) mono PCM at 16 kHz, in the shared space: (DIM,) of length 1, for search."""
        ...
