"""Streams of made-up vectors for tests of drift: operating modes, autocorrelated jitter, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.drift import ChannelStats, Detector, DriftConfig, DriftState, Observation, Verdict
from streams.events.types import IncidentEvent

SIZE_MS = 10_000
NAMES = {1: "sensor", 2: "audio", 4: "caption"}
WARM = DriftConfig().warm_windows


def unit(vector: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def normal_stream(seed: int, windows: int, *, d: int = 128, modes: int = 3) -> NDArray[np.float64]:
    """(windows, d): three operating modes around a common centre, AR(.7) jitter."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((modes, d))
    centres = unit(rng.standard_normal(d)) + 0.6 * centres / np.linalg.norm(centres, axis=1, keepdims=True)
    jitter, mode, rows = np.zeros(d), 0, []
    for _ in range(windows):
        if rng.random() < 0.7:
            mode = int(rng.integers(modes))
        jitter = 0.7 * jitter + rng.standard_normal(d) * 0.25 / np.sqrt(d)
        rows.append(centres[mode] + jitter)
    return np.array(rows)


def drifted(rows: NDArray[np.float64], since: int, *, over: int, by: float, seed: int = 99) -> NDArray[np.float64]:
    """The same, turned into a direction never seen; fully so after `over` windows."""
    away = unit(np.random.default_rng(seed).standard_normal(rows.shape[1]))
    share = np.clip((np.arange(len(rows)) - since) / max(1, over), 0.0, 1.0)
    return rows + by * share[:, np.newaxis] * np.linalg.norm(rows, axis=1, keepdims=True) * away


def stats(mean: float, std: float = 0.1, n: int = 10, unit: str | None = None) -> ChannelStats:
    return ChannelStats(mean, std, mean - std, mean + std, n, unit)


def observation(
    i: int,
    vectors: Mapping[str, NDArray[Any]] | NDArray[Any] | None = None,
    *,
    mask: int | None = None,
    channels: Mapping[str, ChannelStats] | None = None,
    gap_ms: int = 0,
) -> Observation:
    """The window number `i`. A single vector is that of the sensors; the joint one is the mean of those given."""
    if vectors is None:
        vectors = {}
    elif not isinstance(vectors, Mapping):
        vectors = {"sensor": vectors}
    if not vectors:
        vectors = {"sensor": np.eye(8)[0]}
    mask = sum(bit for bit, name in NAMES.items() if name in vectors) if mask is None else mask
    joint = unit(np.sum([unit(v) for v in vectors.values()], axis=0))
    start = i * SIZE_MS + gap_ms
    held = {"joint": joint, **{name: unit(v) for name, v in vectors.items()}}
    return Observation("pump", f"w{start}", start, start + SIZE_MS, mask, held, channels or {})


class Watched:
    """A detector, all its verdicts and steps, and the vectors that a store would hold."""

    def __init__(self, config: DriftConfig | None = None, **changes: Any) -> None:
        self.config = config or DriftConfig(**changes)
        self.detector = Detector("pump", self.config)
        self.verdicts: list[Verdict] = []
        self.steps: list[IncidentEvent] = []
        self.store: dict[int, Mapping[str, Any]] = {}

    def see(self, window: Observation) -> Verdict:
        verdict = self.detector.observe(window)
        self.verdicts.append(verdict)
        self.steps += verdict.steps
        self.store[window.start_ms] = window.vectors
        return verdict

    def see_all(self, windows: Iterable[Observation]) -> Watched:
        for window in windows:
            self.see(window)
        return self

    def restarted(self) -> Detector:
        """The detector as a worker would restore it: state out of the payload, vectors out of the store."""
        state = DriftState.from_payload(self.detector.state.to_payload())
        vectors = {start: self.store[start] for start in Detector.bank_starts(state)}
        return Detector("pump", self.config, state, vectors)

    @property
    def kinds(self) -> list[str]:
        return [step.kind for step in self.steps]


def level(i: int, value: float = 20.0, *, n: int = 10) -> Observation:
    """A window of one channel, with a little deterministic noise."""
    rng = np.random.default_rng(i)
    vector = np.eye(8)[0] + 0.02 * rng.standard_normal(8)
    return observation(i, vector, channels={"flow": stats(value + 0.05 * rng.standard_normal(), n=n, unit="m3/h")})


def well(windows: int, **changes: Any) -> Watched:
    return Watched(**changes).see_all(level(i) for i in range(windows))


AWAY = {"sensor": 0, "audio": 1, "caption": 2}


def plant(i: int, *present: str, odd: str | None = None, channels: dict[str, Any] | None = None) -> Observation:
    """A window with these modalities; each has a direction of its own, `odd` is turned into another one."""
    rng = np.random.default_rng(i * 7 + 1)
    vectors = {}
    for name in present:
        direction = np.eye(16)[AWAY[name] + (8 if name == odd else 0)]
        vectors[name] = direction + 0.02 * rng.standard_normal(16)
    return observation(i, vectors, channels=channels)
