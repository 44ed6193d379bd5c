"""The life of an incident: opened, updated, closed, adopted; and the line of text that a person reads. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from streams.drift.config import DriftConfig
from streams.drift.state import DriftState, OpenIncident, Past
from streams.events.types import ChannelChange, IncidentEvent

Kind = Literal["opened", "updated", "closed", "adopted"]
_SEVERITY_STEP = 15
_PAST_KEPT = 4
_SHARE_TOLD = 0.25
_PLAIN = {
    "audio": "sound unlike anything heard here before",
    "caption": "words unlike anything said here before",
    "sensor": "readings that do not belong together as they used to",
}


@dataclass(frozen=True, slots=True)
class Told:
    """What one window says to an incident's life. `worst` is in units of the alarm line."""

    stream: str
    window: str
    start_ms: int
    end_ms: int
    worst: float
    scored: frozenset[str]  # modalities that this window says something of
    score_name: str
    opening: bool
    severity: int
    shares: Mapping[str, float]
    changes: Sequence[ChannelChange]
    incident_id: str  # the id of an incident that would open here
    nearest_normal: str | None
    nearest_incident: str | None


def next_step(state: DriftState, config: DriftConfig, told: Told) -> IncidentEvent | None:
    """Move `state.incident` by one window; the step to announce, if this window causes one.

    A window that says nothing of the modality that the incident is about is no evidence of recovery, and no more is
    silence: of the time before a window in which nothing was seen, at most half of `close_ms` counts.
    """
    incident = state.incident
    if incident is None:
        if not told.opening:
            return None
        onset = told.start_ms if state.run_onset_ms is None else state.run_onset_ms
        incident = OpenIncident(
            id=told.incident_id,
            opened_ms=told.end_ms,
            onset_ms=onset,
            start_ms=told.start_ms,
            sequence=0,
            told_ms=told.end_ms,
            severity=told.severity,
            modality=_dominant(told.shares),
            judged_ms=told.end_ms,
        )
        state.incident = incident
        return _step("opened", incident, told)
    hot = told.worst >= config.close_below
    if hot or incident.modality in told.scored:
        seen_ms = min(told.end_ms - incident.judged_ms, config.close_ms // 2)
        incident.judged_ms = told.end_ms
        incident.open_ms += seen_ms
        incident.calm_ms = 0 if hot else incident.calm_ms + seen_ms
        if incident.calm_ms >= config.close_ms:
            return _end("closed", state, incident, told)
        if incident.open_ms >= config.adopt_ms:
            return _end("adopted", state, incident, told)
    dominant = _dominant(told.shares)
    risen = told.severity >= incident.severity + _SEVERITY_STEP
    other = told.worst >= 1.0 and dominant != incident.modality
    if (risen or other) and told.end_ms - incident.told_ms >= config.update_ms:
        incident.sequence += 1
        incident.told_ms = told.end_ms
        incident.severity = max(incident.severity, told.severity)
        incident.modality = dominant
        return _step("updated", incident, told)
    return None


def _end(kind: Kind, state: DriftState, incident: OpenIncident, told: Told) -> IncidentEvent:
    incident.sequence += 1
    state.incident = None
    state.runs = {}
    state.run_onset_ms = None
    state.past = [*state.past, Past(incident.id, incident.start_ms)][-_PAST_KEPT:]
    return _step(kind, incident, told)


def _dominant(shares: Mapping[str, float]) -> str:
    return max(shares, key=lambda name: (shares[name], name), default="")


def _step(kind: Kind, incident: OpenIncident, told: Told) -> IncidentEvent:
    return IncidentEvent(
        kind=kind,
        id=incident.id,
        stream=told.stream,
        sequence=incident.sequence,
        window=told.window,
        time_ms=told.end_ms,
        opened_ms=incident.opened_ms,
        severity=told.severity if kind in ("opened", "updated") else incident.severity,
        text=_text(kind, incident, told),
        modalities=dict(told.shares),
        channels=list(told.changes),
        score=round(told.worst, 6),
        threshold=1.0,
        onset_ms=incident.onset_ms,
        closed_ms=told.end_ms if kind in ("closed", "adopted") else None,
        nearest_normal=told.nearest_normal,
        nearest_incident=told.nearest_incident,
    )


def _text(kind: Kind, incident: OpenIncident, told: Told) -> str:
    """One line: what, where, how much."""
    lasted = (told.end_ms - incident.onset_ms) // 1000
    if kind == "closed":
        return f"{told.stream}: back to normal after {lasted} s"
    if kind == "adopted":
        return f"{told.stream}: unchanged for {lasted} s, taken as the new normal"
    reasons = [_change_text(change) for change in told.changes[:2]]
    named = [name for name, share in sorted(told.shares.items(), key=lambda s: -s[1]) if share >= _SHARE_TOLD]
    reasons += [_PLAIN[name] for name in named if name in _PLAIN and not (name == "sensor" and reasons)]
    if told.score_name == "cusum":
        reasons.insert(0, "a slow drift away from its reference")
    return f"{told.stream}: {'; '.join(reasons) or 'unlike its own past'}"


def _change_text(change: ChannelChange) -> str:
    unit = f" {change.unit}" if change.unit else ""
    return f"{change.channel} {change.actual:.4g}{unit}, expected {change.expected:.4g}{unit} ({change.z:+.1f} sigma)"
