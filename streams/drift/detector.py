"""The detector of one stream: window in, verdict out. Pure: the state after a window follows from it and the window."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace

from streams.drift import baselines
from streams.drift.config import DriftConfig
from streams.drift.incidents import Evidence, close_for, late_steps, next_step
from streams.drift.reference_bank import ReferenceBanks
from streams.drift.scoring import LEARN_REFERENCE, Scored, score, scored_modalities, severity_of, shares_of
from streams.drift.state import Baseline, DriftState, Past, Spread
from streams.drift.types import MODALITY_BITS, Observation, Vector, Verdict

_NAMESPACE = uuid.UUID("5e450b1a-0f1c-5d2e-9c55-d21f70000001")
_CHANNELS_NAMED = 5  # in a step
_PRESENCE_MEMORY = 60  # windows over which the share of those with a modality is taken
_MISSING = "reference windows are missing from the store: learning anew"
_ADOPTED = "the last incident became the new normal: learning anew"


class Detector:
    """Scores one stream's windows.

    `vectors`: by window start, those that `bank_starts(state)` names; `window_id` names windows in incidents.

    A state that was learnt with other numbers (`DriftConfig.fingerprint`), or whose reference windows are not in
    `vectors`, cannot be continued: the stream starts anew as `warming`, its verdicts give the reason, and the first
    of them closes an incident that the old state had open.
    """

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
        self._window_id = window_id
        self._version = config.version
        self._replaced: DriftState | None = None  # a state that cannot be continued, until the next window
        self._replaced_bank: frozenset[int] = frozenset()
        if state is None:
            self.state = DriftState(fingerprint=config.fingerprint)
            self._banks = ReferenceBanks(config)
        else:
            self.state, self._banks = self._continued(state, vectors or {})

    def _continued(
        self, state: DriftState, vectors: Mapping[int, Mapping[str, Vector]]
    ) -> tuple[DriftState, ReferenceBanks]:
        reason = self.config.why_not(state.fingerprint)
        if reason is None:
            state = state.copy()
            banks = ReferenceBanks.load(self.config, state, vectors)
            if banks is not None:
                return state, banks
            reason = _MISSING
        self._replaced, self._replaced_bank = state, state.bank_starts() & vectors.keys()
        return DriftState(fingerprint=self.config.fingerprint, reason=reason), ReferenceBanks(self.config)

    @staticmethod
    def bank_starts(state: DriftState) -> list[int]:
        """Starts of all windows whose vectors the detector needs."""
        return sorted(state.bank_starts())

    @property
    def bank(self) -> frozenset[int]:
        """Starts of all windows whose vectors the detector holds, made anew at every call.

        Until the first window after a start anew, those that the replaced state held: the difference to those after
        that window are the windows that retention need not spare any longer.
        """
        return self.state.bank_starts() if self._replaced is None else self._replaced_bank

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes, to within a quarter or so: vectors, and what Python takes for the state."""
        state = self.state
        starts = sum(len(bank) for bank in (*state.reference.values(), *state.recent.values()))
        small = len(state.spreads) + len(state.reference_spreads) + 2 * len(state.runs)
        return 4_000 + self._banks.nbytes + 300 * len(state.channels) + 40 * starts + 150 * small

    def replace_vectors(self, start_ms: int, vectors: Mapping[str, Vector]) -> None:
        """A window was stored anew (a late event): the banks must hold what the store holds."""
        self._banks.replace(self.state, start_ms, vectors)

    # -- verdicts ------------------------------------------------------------------------------------------------

    def observe(self, window: Observation) -> Verdict:
        """Score the next window of the stream, learn from it, and move the incident's life on."""
        # a state that was given away is never touched again
        state = self.state = self.state.copy()
        config = self.config
        scored = score(config, state, self._banks, window)
        warming = state.windows < config.warm_windows
        state.windows += 1
        incident, step, ended = state.incident, None, False
        if not warming:
            state.reason = None
            self._count_runs(window, scored)
            onset_ms = None if incident is not None else self._onset(window, scored)
            if incident is not None or onset_ms is not None:
                step = next_step(state, config, self._evidence(window, scored, onset_ms))
            ended = step is not None and step.kind in ("closed", "adopted")
            if incident is None and state.incident is not None:
                self._banks.open_incident(state, window)
            elif ended:
                self._banks.end_incident(state)
                if step is not None and step.kind == "adopted":
                    state = self._forget()
        state.cusum = 0.0 if ended else scored.cusum  # what was summed up belongs to the incident that is over
        self._learn(window, scored, warming)
        open_id = None if state.incident is None else state.incident.id
        if ended and step is not None:
            open_id = step.id  # the last window of an incident still belongs to it
        verdict = self._verdict(window, scored, warming, open_id)
        if self._replaced is not None:
            reason = state.reason or _MISSING
            _, step = close_for(self._replaced, reason, window.end_ms, stream=self.stream, window=window.window)
            self._replaced = None
        return verdict if step is None else replace(verdict, steps=(step,))

    def review(self, window: Observation, *, previous_score: float | None = None) -> Verdict:
        """Score a window that was scored before and has changed since, or one out of order. Changes nothing.

        The window itself, where a bank holds it, is no evidence for its own normality and left out. A window above
        the line causes steps marked late (`incidents.late_steps`), unless it was above the line before the change
        as well: `previous_score`, if known.
        """
        state = self.state
        scored = score(self.config, state, self._banks, window, without=window.start_ms)
        warming = state.windows < self.config.warm_windows
        incident = state.incident
        if warming or scored.worst < 1.0:
            inside = incident is not None and window.start_ms >= incident.onset_ms
            return self._verdict(window, scored, warming, incident.id if inside and incident is not None else None)
        steps = late_steps(state, self.config, self._evidence(window, scored, None, late=True))
        if previous_score is not None and previous_score >= 1.0:
            steps = ()
        open_id = incident.id if incident is not None else steps[0].id if steps else None
        return replace(self._verdict(window, scored, warming, open_id), steps=steps)

    def _verdict(self, window: Observation, scored: Scored, warming: bool, incident: str | None) -> Verdict:
        unwatched = self._unwatched(window)
        if warming:
            return Verdict("warming", None, 0, incident, (), {}, {}, self.state.reason, unwatched)
        worst = scored.worst
        return Verdict(
            status="alarm" if incident is not None or worst >= 1.0 else "ok",
            score=round(worst, 6),
            severity=severity_of(worst),
            incident=incident,
            steps=(),
            parts={name: round(ratio, 6) for name, ratio in sorted(scored.ratios.items())},
            modalities=shares_of(window, scored),
            unwatched_channels=unwatched,
        )

    def _unwatched(self, window: Observation) -> int:
        """Channels for which there is no room."""
        return max(0, len(window.channels.keys() - self.state.channels.keys()) - self._room)

    @property
    def _room(self) -> int:
        return self.config.channels_max - len(self.state.channels)

    # -- incidents -----------------------------------------------------------------------------------------------

    def _count_runs(self, window: Observation, scored: Scored) -> None:
        """Consecutive windows above the line, counted over the windows in which a score could be taken at all."""
        runs, onsets = self.state.runs, self.state.run_onsets
        for name, ratio in scored.ratios.items():
            if ratio < 1.0:
                runs.pop(name, None)
                onsets.pop(name, None)
            else:
                runs[name] = runs.get(name, 0) + 1
                onsets.setdefault(name, window.start_ms)

    def _onset(self, window: Observation, scored: Scored) -> int | None:
        """Where an incident would open with this window, the start of the run that opens it; None for no incident.

        A run opens one by its length, or by how far above the line it is now. Of several, the first to begin.
        """
        runs, config = self.state.runs, self.config
        opening = [
            self.state.run_onsets[name]
            for name, ratio in scored.ratios.items()
            if ratio >= 1.0 and (runs[name] >= config.open_windows or ratio >= config.open_at_once)
        ]
        return min(opening, default=None)

    def _evidence(self, window: Observation, scored: Scored, onset_ms: int | None, *, late: bool = False) -> Evidence:
        name = f"{self.stream}\x1f{window.window}\x1f{self._version}" + ("\x1flate" if late else "")
        return Evidence(
            stream=self.stream,
            window=window.window,
            start_ms=window.start_ms,
            end_ms=window.end_ms,
            worst=scored.worst,
            scored=scored_modalities(scored),
            score_name=max(scored.ratios, key=lambda key: (scored.ratios[key], key), default=""),
            onset_ms=onset_ms,
            severity=severity_of(scored.worst),
            shares=shares_of(window, scored),
            changes=[change for _, change in scored.changes[:_CHANNELS_NAMED]],
            incident_id=str(uuid.uuid5(_NAMESPACE, name)),
            nearest_normal=None if scored.nearest_normal is None else self._window_id(scored.nearest_normal),
            nearest_incident=self._banks.nearest_incident(self.state, window.vectors["joint"]),
        )

    def _forget(self) -> DriftState:
        """The new normal: everything is learnt anew."""
        past: list[Past] = self.state.past
        self.state = DriftState(fingerprint=self.config.fingerprint, reason=_ADOPTED, windows=1, past=past)
        self._banks.forget_normal()
        return self.state

    # -- learning ------------------------------------------------------------------------------------------------

    def _learn(self, window: Observation, scored: Scored, warming: bool) -> None:
        config, state = self.config, self.state
        calm = scored.worst < config.close_below and state.incident is None
        for _, key in scored.keys:
            spread = state.spreads.get(key)
            if spread is not None and key in scored.distances and calm:
                clip = 4.0 * baselines.scale_of(spread, config.knn_floor)
                state.spreads[key] = baselines.learn(spread, scored.distances[key], clip)
                frozen = state.reference_spreads.get(key, Spread())
                if frozen.n < LEARN_REFERENCE:
                    clip = 4.0 * baselines.scale_of(frozen, config.knn_floor)
                    state.reference_spreads[key] = baselines.learn(frozen, scored.reference_distances[key], clip)
        self._learn_channels(window, scored, slow=not (calm or warming))
        if state.incident is None:
            self._learn_presence(window)
        if warming or calm:
            self._banks.learn(state, window.start_ms, scored.keys, scored.rows)

    def _learn_channels(self, window: Observation, scored: Scored, *, slow: bool) -> None:
        config, state = self.config, self.state
        rate = 1.0 - math.exp(-(window.end_ms - window.start_ms) / config.channel_tau_ms)
        # where there is room for a part of the new channels, their names decide, not the order they come in
        admitted = sorted(window.channels.keys() - state.channels.keys())[: self._room]
        for name, stats in window.channels.items():
            baseline = state.channels.get(name)
            if not math.isfinite(stats.mean):
                continue
            if baseline is None:
                if name not in admitted:
                    continue
                baseline = Baseline()
            calm = not slow or baseline.n < config.warm_modality
            own_scale, noise = scored.scales.get(name, (0.0, 0.0))
            state.channels[name] = baselines.channel_learn(
                baseline,
                baselines.tame(stats.mean),
                rate if calm else rate * config.alarm_learning,
                own_scale=own_scale,
                noise=noise,
                calm=calm,
            )

    def _learn_presence(self, window: Observation) -> None:
        """How many of the last windows had each modality: one that seldom comes is not missed."""
        presence = self.state.presence
        rate = 1.0 / min(self.state.windows, _PRESENCE_MEMORY)
        for name, bit in MODALITY_BITS:
            had = presence.get(name, 0.0)
            presence[name] = had + rate * (bool(window.mask & bit) - had)
