"""The detector of one stream: window in, verdict out. Pure: the state after a window follows from it and the window.

Four kinds of score, each in units of its own alarm line (1.0 alarms):

- `knn/<modality>`: distance of a modality's vector to the reference and recent banks: something never seen or heard;
- `joint`: the same for the fused vector, with banks and spreads of its own for every modality mask, because a missing
  modality alone moves the fused vector;
- `channel`: the channel that is farthest from its own slow baseline;
- `cusum`: the sum of what the fused vector is farther from the *reference* than it used to be: slow drift, which a
  bank that adapts would learn away.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streams.drift import scores
from streams.drift.config import DriftConfig
from streams.drift.incidents import Told, next_step
from streams.drift.state import Baseline, DriftState, Spread
from streams.drift.types import Observation, Vector, Verdict
from streams.events.types import MODALITIES, MODALITY_BIT, ChannelChange, IncidentEvent

_NAMESPACE = uuid.UUID("5e450b1a-0f1c-5d2e-9c55-d21f70000001")
_RATIO_MAX = 10.0
_CHANNELS_KEPT = 128
_CHANNELS_TOLD = 5
_LEARN_REFERENCE = 60  # calm windows after which the distance to the reference is known, and frozen


@dataclass(slots=True)
class _Scored:
    """Everything found out about one window, before the state moves."""

    ratios: dict[str, float] = field(default_factory=dict)
    distances: dict[str, float] = field(default_factory=dict)  # to both banks, by bank key
    reference_distances: dict[str, float] = field(default_factory=dict)
    changes: list[tuple[float, ChannelChange]] = field(default_factory=list)
    scales: dict[str, float] = field(default_factory=dict)  # of channel features
    cusum: float = 0.0
    nearest_normal: int | None = None  # window start

    @property
    def worst(self) -> float:
        return max(self.ratios.values(), default=0.0)


class _Bank(NamedTuple):
    """A bank as a matrix: `rows` (n, DIM) of the windows `starts`, those of `wanted` that have such a vector."""

    wanted: tuple[int, ...]
    starts: tuple[int, ...]
    rows: NDArray[np.float64]


class Detector:
    """`vectors`: by window start, those that `bank_starts(state)` names; `window_id` names windows in incidents."""

    def __init__(
        self,
        stream: str,
        config: DriftConfig,
        state: DriftState | None = None,
        vectors: Mapping[int, Mapping[str, Vector]] | None = None,
        *,
        window_id: Callable[[int], str] = str,
    ) -> None:
        self.stream = stream
        self.config = config
        self.state = state or DriftState()
        self._window_id = window_id
        self._vectors: dict[int, Mapping[str, Vector]] = dict(vectors or {})
        self._matrices: dict[tuple[str, bool], _Bank] = {}
        self._version = config.version
        self.bank = _starts(self.state)  # kept from window to window

    @staticmethod
    def bank_starts(state: DriftState) -> list[int]:
        """Starts of all windows whose vectors the detector needs."""
        return sorted(_starts(state))

    def replace_vectors(self, start_ms: int, vectors: Mapping[str, Vector]) -> None:
        """A window was stored anew (a late event): the banks must hold what the store holds."""
        if start_ms in self._vectors:
            self._vectors[start_ms] = vectors
            self._matrices.clear()

    # -- verdicts ------------------------------------------------------------------------------------------------

    def peek(self, window: Observation) -> Verdict:
        """What `observe` would say of the score, with no step in an incident's life and no change of state."""
        scored = self._score(window)
        warming = self.state.windows < self.config.warm_windows
        return self._verdict(window, scored, warming, self.state.incident.id if self.state.incident else None)

    def observe(self, window: Observation) -> Verdict:
        """Score the next window of the stream, learn from it, and tell what became of incidents."""
        # the state that went into the last window's payload is never touched again
        state = self.state = self.state.copy()
        config = self.config
        scored = self._score(window)
        warming = state.windows < config.warm_windows
        state.windows += 1
        told = None
        steps: tuple[IncidentEvent, ...] = ()
        if not warming:
            self._count_runs(window, scored)
            told = self._told(window, scored)
            before = state.incident
            step = next_step(state, config, told)
            steps = (step,) if step is not None else ()
            if before is None and state.incident is not None:
                self._vectors[window.start_ms] = window.vectors  # what later ones may be most like
            elif step is not None and step.kind == "adopted":
                self._forget()
        ended = bool(steps) and steps[0].kind in ("closed", "adopted")
        self.state.cusum = 0.0 if ended else scored.cusum  # what was summed up belongs to the incident that is over
        self._learn(window, scored, warming)
        incident = state.incident.id if state.incident else None
        if ended:
            incident = steps[0].id  # its last window still belongs to it
        self._prune()
        verdict = self._verdict(window, scored, warming, incident)
        return Verdict(
            status=verdict.status,
            score=verdict.score,
            severity=verdict.severity,
            incident=verdict.incident,
            steps=steps,
            parts=verdict.parts,
            modalities=verdict.modalities,
        )

    def _verdict(self, window: Observation, scored: _Scored, warming: bool, incident: str | None) -> Verdict:
        if warming:
            return Verdict("warming", None, 0, incident, (), {}, {})
        worst = scored.worst
        return Verdict(
            status="alarm" if incident is not None or worst >= 1.0 else "ok",
            score=round(worst, 6),
            severity=severity_of(worst),
            incident=incident,
            steps=(),
            parts={name: round(ratio, 6) for name, ratio in sorted(scored.ratios.items())},
            modalities=_shares(window, scored),
        )

    # -- scores --------------------------------------------------------------------------------------------------

    def _score(self, window: Observation) -> _Scored:
        scored = _Scored(cusum=self.state.cusum)
        self._score_vectors(window, scored)
        self._score_channels(window, scored)
        return scored

    def _score_vectors(self, window: Observation, scored: _Scored) -> None:
        config, state = self.config, self.state
        for name, key in _banks_of(window):
            vector = window.vectors.get(name)
            reference = self._reference(key, name)
            if vector is None or reference is None:
                continue
            recent = self._recent(key, name)
            to_reference = scores.distances(vector, reference.rows)
            distance, nearest = scores.nearest(to_reference, config.neighbours)
            scored.reference_distances[key] = distance
            if recent is not None:
                to_both = np.concatenate((to_reference, scores.distances(vector, recent.rows)))
                distance, nearest = scores.nearest(to_both, config.neighbours)
            scored.distances[key] = distance
            if name == "joint" or scored.nearest_normal is None:
                starts = reference.starts if recent is None else reference.starts + recent.starts
                scored.nearest_normal = starts[nearest]
            spread = state.spreads.get(key)
            if spread is None:
                continue
            scale = scores.scale_of(spread, config.knn_floor)
            line = scale * max(2.0, config.knn_sigmas + config.extra_sigmas)
            ratio = min(_RATIO_MAX, max(0.0, (distance - spread.mean) / line))
            scored.ratios["joint" if name == "joint" else f"knn/{name}"] = ratio
            if name == "joint":
                self._score_cusum(key, scored)

    def _score_cusum(self, key: str, scored: _Scored) -> None:
        spread = self.state.reference_spreads.get(key)
        if spread is None or spread.n < _LEARN_REFERENCE:
            return
        config = self.config
        scale = scores.scale_of(spread, config.knn_floor)
        z = min(4.0, (scored.reference_distances[key] - spread.mean) / scale)
        limit = config.cusum_limit + 3.0 * config.extra_sigmas
        # bounded: when a drift is mended, its incident is over in reasonable time
        scored.cusum = min(2.0 * limit, max(0.0, self.state.cusum + z - config.cusum_slack))
        scored.ratios["cusum"] = scored.cusum / limit

    def _score_channels(self, window: Observation, scored: _Scored) -> None:
        config, worst = self.config, 0.0
        line = max(3.0, config.channel_sigmas + config.extra_sigmas)
        judged = False
        for name, stats in window.channels.items():
            baseline = self.state.channels.get(name)
            if baseline is None or not math.isfinite(stats.mean):
                continue
            value, noise = scores.tame(stats.mean), scores.tame(stats.std) / math.sqrt(stats.n)
            z, scale = scores.channel_z(baseline, value, noise, config.channel_floor * abs(baseline.mean))
            scored.scales[name] = scale
            if baseline.n < config.warm_modality:
                continue
            judged = True
            if abs(z) > line * config.close_below:
                z = max(-999.0, min(999.0, z))
                expected, actual = scores.shown(baseline.mean), scores.shown(stats.mean)
                change = ChannelChange(name, expected, actual, round(z, 2), stats.unit)
                scored.changes.append((abs(z), change))
            worst = max(worst, abs(z) / line)
        if judged:
            scored.ratios["channel"] = min(_RATIO_MAX, worst)
        scored.changes.sort(key=lambda change: (-change[0], change[1].channel))

    # -- incidents -----------------------------------------------------------------------------------------------

    def _count_runs(self, window: Observation, scored: _Scored) -> None:
        """Consecutive windows above the line, counted over the windows in which a score could be taken at all."""
        runs = self.state.runs
        for name, ratio in scored.ratios.items():
            runs[name] = runs.get(name, 0) + 1 if ratio >= 1.0 else 0
        if any(runs.values()):
            if self.state.run_onset_ms is None:
                self.state.run_onset_ms = window.start_ms
        else:
            self.state.run_onset_ms = None

    def _told(self, window: Observation, scored: _Scored) -> Told:
        opening = max(self.state.runs.values(), default=0) >= self.config.open_windows
        shares = _shares(window, scored)
        name = f"{self.stream}\x1f{window.window}\x1f{self._version}"
        return Told(
            stream=self.stream,
            window=window.window,
            start_ms=window.start_ms,
            end_ms=window.end_ms,
            worst=scored.worst,
            scored=_scored_modalities(scored),
            score_name=max(scored.ratios, key=lambda key: (scored.ratios[key], key), default=""),
            opening=opening or scored.worst >= self.config.open_at_once,
            severity=severity_of(scored.worst),
            shares=shares,
            changes=[change for _, change in scored.changes[:_CHANNELS_TOLD]],
            incident_id=str(uuid.uuid5(_NAMESPACE, name)),
            nearest_normal=None if scored.nearest_normal is None else self._window_id(scored.nearest_normal),
            nearest_incident=self._nearest_incident(window),
        )

    def _nearest_incident(self, window: Observation) -> str | None:
        best: tuple[float, str] | None = None
        for past in self.state.past:
            vector = self._vectors.get(past.start_ms, {}).get("joint")
            if vector is not None:
                row = vector.astype(np.float64)[np.newaxis]
                distance = scores.knn_distance(window.vectors["joint"], row, 1)[0]
                if best is None or distance < best[0]:
                    best = (distance, past.id)
        return best[1] if best else None

    def _forget(self) -> None:
        """The new normal: everything is learnt anew."""
        state = self.state
        self.state = DriftState(past=state.past)
        self.state.windows = 1
        self._matrices.clear()

    # -- learning ------------------------------------------------------------------------------------------------

    def _learn(self, window: Observation, scored: _Scored, warming: bool) -> None:
        config, state = self.config, self.state
        calm = scored.worst < config.close_below and state.incident is None
        for _, key in _banks_of(window):
            spread = state.spreads.get(key)
            if spread is not None and key in scored.distances and calm:
                scores.learn(spread, scored.distances[key], 4.0 * scores.scale_of(spread, config.knn_floor))
                frozen = state.reference_spreads.setdefault(key, Spread())
                if frozen.n < _LEARN_REFERENCE:
                    clip = 4.0 * scores.scale_of(frozen, config.knn_floor)
                    scores.learn(frozen, scored.reference_distances[key], clip)
        self._learn_channels(window, scored, slow=not (calm or warming))
        if warming or calm:
            self._learn_vectors(window)

    def _learn_channels(self, window: Observation, scored: _Scored, *, slow: bool) -> None:
        config, state = self.config, self.state
        rate = 1.0 - math.exp(-(window.end_ms - window.start_ms) / config.channel_tau_ms)
        for name, stats in window.channels.items():
            baseline = state.channels.get(name)
            if not math.isfinite(stats.mean):
                continue
            if baseline is None:
                if len(state.channels) >= _CHANNELS_KEPT:
                    continue
                baseline = state.channels[name] = Baseline()
            calm = not slow or baseline.n < config.warm_modality
            learnt = rate if calm else rate * config.alarm_learning
            scores.channel_learn(baseline, scores.tame(stats.mean), scored.scales.get(name, 0.0), learnt, calm=calm)

    def _learn_vectors(self, window: Observation) -> None:
        """A reference bank takes windows until it is complete; later ones wait in quarantine for the recent bank."""
        config, state = self.config, self.state
        waiting = []
        for name, key in _banks_of(window):
            if key in state.spreads:
                waiting.append(key)
                continue
            reference = state.reference.setdefault(key, [])
            if len(reference) < config.bank_size:
                reference.append(window.start_ms)
                self._vectors[window.start_ms] = window.vectors
            if state.windows >= config.warm_windows and len(reference) >= config.warm_modality:
                self._complete(name, key)
        if waiting:
            state.waiting.append(window.start_ms)
            state.waiting_keys.append(waiting)
            self._vectors[window.start_ms] = window.vectors
        while state.waiting and state.waiting[0] <= window.start_ms - config.quarantine_ms:
            start, keys = state.waiting.pop(0), state.waiting_keys.pop(0)
            for key in keys:
                bank = state.recent.setdefault(key, [])
                bank.append(start)
                del bank[: -config.recent_size]

    def _complete(self, name: str, key: str) -> None:
        """The reference is frozen; what its own members are apart, each against the others, is the first yardstick."""
        found = self._reference(key, name)
        if found is None:
            return
        spread, matrix = Spread(), found.rows
        for i in range(len(matrix)):
            others = np.delete(matrix, i, axis=0)
            distance, _ = scores.knn_distance(matrix[i], others, self.config.neighbours)
            scores.learn(spread, distance, math.inf)
        self.state.spreads[key] = spread

    def _prune(self) -> None:
        state = self.state
        if state.incident is not None and state.waiting:
            # what was seen shortly before an incident may be its beginning
            state.waiting.clear()
            state.waiting_keys.clear()
        self.bank = _starts(state)
        for start in self._vectors.keys() - self.bank:
            del self._vectors[start]

    def _reference(self, key: str, name: str) -> _Bank | None:
        """A reference bank that can be compared with, or None."""
        bank = self._matrix(key, name, self.state.reference.get(key, ()), recent=False)
        return bank if bank is not None and len(bank.starts) > self.config.neighbours else None

    def _recent(self, key: str, name: str) -> _Bank | None:
        return self._matrix(key, name, self.state.recent.get(key, ()), recent=True)

    def _matrix(self, key: str, name: str, members: Sequence[int], *, recent: bool) -> _Bank | None:
        """Vectors of a bank's windows, built anew when the bank has changed; None for none."""
        wanted = tuple(members)
        cached = self._matrices.get((key, recent))
        if cached is not None and cached.wanted == wanted:
            return cached
        rows = [(s, self._vectors[s][name]) for s in wanted if name in self._vectors.get(s, {})]
        if not rows:
            return None
        matrix = np.array([row for _, row in rows], dtype=np.float64)
        bank = self._matrices[key, recent] = _Bank(wanted, tuple(start for start, _ in rows), matrix)
        return bank


def _starts(state: DriftState) -> frozenset[int]:
    banks = (*state.reference.values(), *state.recent.values(), state.waiting)
    incident = () if state.incident is None else (state.incident.start_ms,)
    return frozenset().union(*banks, incident, (past.start_ms for past in state.past))


def severity_of(ratio: float) -> int:
    """0-100 from a score in units of its alarm line: 1.0 is 40, 2.0 is 64, 4.0 is 87."""
    return round(100.0 * (1.0 - math.exp(-ratio / 1.96)))


def _banks_of(window: Observation) -> list[tuple[str, str]]:
    """(vector name, bank key) of everything in a window that is compared with a bank."""
    present = [(m.value, m.value) for m in MODALITIES if window.mask & MODALITY_BIT[m] and m.value in window.vectors]
    return [*present, ("joint", f"joint/{window.mask}")]


def _scored_modalities(scored: _Scored) -> frozenset[str]:
    named = {name.removeprefix("knn/") for name in scored.ratios if name.startswith("knn/")}
    return frozenset(named | ({"sensor"} if "channel" in scored.ratios else set()))


def _shares(window: Observation, scored: _Scored) -> dict[str, float]:
    """How much each present modality speaks for an alarm; sums to 1. Readings speak by vector or by channel."""
    weights = {}
    for modality in MODALITIES:
        if window.mask & MODALITY_BIT[modality]:
            ratio = scored.ratios.get(f"knn/{modality.value}", 0.0)
            if modality.value == "sensor":
                ratio = max(ratio, scored.ratios.get("channel", 0.0))
            weights[modality.value] = ratio**2
    total = math.fsum(weights.values())
    if not total:
        return {name: round(1.0 / len(weights), 4) for name in weights}
    return {name: round(weight / total, 4) for name, weight in weights.items()}
