"""Windows with their streams and known states, as evaluation and the training of fusions take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.interface import MODALITY_NAMES, WindowInput

GUARD_MS = 60_000  # windows of one stream this close in time are no evidence about a model
LEAST = 8  # windows of a state that is queried
MASKS: Mapping[str, tuple[str, ...]] = {
    "full": ("sensor", "audio", "caption"),
    "no caption": ("sensor", "audio"),
    "no sound": ("sensor", "caption"),
    "no sensors": ("audio", "caption"),
    "sound only": ("audio",),
    "sensors only": ("sensor",),
    "captions only": ("caption",),
}


@dataclass(frozen=True, slots=True)
class Sign:
    """Part of a state (a kind of sound, a fault), and the modalities that it can show in."""

    name: str
    shows: frozenset[str] = frozenset(MODALITY_NAMES)


def fault_signs(kind: str, shows: Sequence[str]) -> list[Sign]:
    """The signs of a fault of labels.csv: its kind and the modalities that it shows in (none given: all). A kind that
    only names modalities ("all", "audio") is a fault in each of them: "all" sounds as "audio" does."""
    where = [name for name in MODALITY_NAMES if name in shows] or list(MODALITY_NAMES)
    if kind in ("all", *MODALITY_NAMES):
        return [Sign(f"{name} fault", frozenset((name,))) for name in where]
    return [Sign(kind, frozenset(where))]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Windows with the stream and the signs of each; no signs: its state is unknown."""

    windows: Sequence[WindowInput]
    streams: Sequence[str]
    signs: Sequence[Sequence[Sign]]

    def take(self, index: Sequence[int] | NDArray[np.int64]) -> Corpus:
        """The windows of these indices, in their order."""
        return Corpus(
            [self.windows[i] for i in index], [self.streams[i] for i in index], [self.signs[i] for i in index]
        )

    def states(self, mask: Sequence[str] = MODALITY_NAMES) -> NDArray[Any]:
        """(N,) the state: all signs that show in these modalities as one name; "calm" for none, "" for unknown."""
        return np.array(
            [
                "+".join(sign.name for sign in signs if sign.shows.intersection(mask)) or ("calm" if signs else "")
                for signs in self.signs
            ]
        )

    @property
    def starts(self) -> NDArray[np.int64]:
        """(N,) start of each window in ms."""
        return np.array([window.start_ms for window in self.windows], np.int64)

    def stretches(self, ms: int) -> NDArray[Any]:
        """(N,) a name for each window's stretch of `ms` of its stream."""
        return np.array([f"{s}/{w.start_ms // ms}" for s, w in zip(self.streams, self.windows, strict=True)])

    def apart(self, guard_ms: int = GUARD_MS) -> NDArray[np.bool_]:
        """(N, N) True where two windows are of different streams, or far enough apart in time."""
        streams, starts = np.unique(self.streams, return_inverse=True)[1], self.starts
        near = np.abs(starts[:, None] - starts[None]) <= guard_ms
        apart: NDArray[np.bool_] = ~((streams[:, None] == streams[None]) & near)
        return apart

    def complete(self) -> NDArray[np.int64]:
        """(C,) indices of the windows that hold all three modalities."""
        return np.array([i for i, w in enumerate(self.windows) if w.readings and w.clips and w.captions], np.int64)

    def queryable(self, mask: Sequence[str] = MODALITY_NAMES) -> NDArray[np.bool_]:
        """(N,) True for windows whose state is known and common enough to be queried (LEAST windows)."""
        states = self.states(mask)
        names, counts = np.unique(states, return_counts=True)
        common = {name for name, count in zip(names.tolist(), counts.tolist(), strict=True) if name and count >= LEAST}
        return np.array([state in common for state in states.tolist()])


def split_by_time(corpus: Corpus, share: float = 0.6, guard_ms: int = GUARD_MS) -> tuple[Corpus, Corpus]:
    """The earlier `share` of each stream's time and the later part, with a gap of guard_ms that neither has."""
    streams, starts = np.array(corpus.streams), corpus.starts
    early, late = [], []
    for stream in np.unique(streams):
        own = np.flatnonzero(streams == stream)
        cut = starts[own].min() + share * (starts[own].max() - starts[own].min())
        early += own[starts[own] < cut].tolist()
        late += own[starts[own] >= cut + guard_ms].tolist()
    return corpus.take(sorted(early)), corpus.take(sorted(late))
