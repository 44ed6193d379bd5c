"""The life of an incident: opened, updated, closed, adopted; and the line of text that a person reads. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from streams.drift.config import DriftConfig
from streams.drift.state import DriftState, OpenIncident, Past
from streams.events.types import ChannelChange, IncidentEvent

Kind = Literal["opened", "updated", "closed", "adopted"]
_SEVERITY_STEP = 15
_PAST_KEPT = 4
_SHARE_NAMED = 0.25  # modalities with a smaller share in the score are not named
_RARE = 0.5  # a modality is rare that fewer of the windows have
_PLAIN = {
    "audio": "sound unlike anything heard here before",
    "caption": "words unlike anything said here before",
    "sensor": "readings that do not belong together as they used to",
}
_EVIDENCE_OF = {"audio": "sound", "caption": "caption", "sensor": "reading"}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one window contributes to an incident's life. `worst` is in units of the alarm line."""

    stream: str
    window: str
    start_ms: int
    end_ms: int
    worst: float
    scored: frozenset[str]  # modalities that this window has a score of
    score_name: str  # of the worst score; empty where there is none
    onset_ms: int | None  # where an incident would open here: start of the run that opens it
    severity: int
    shares: Mapping[str, float]
    changes: Sequence[ChannelChange]
    incident_id: str  # the id of an incident that would open here
    nearest_normal: str | None
    nearest_incident: str | None


def next_step(state: DriftState, config: DriftConfig, evidence: Evidence) -> IncidentEvent | None:
    """Move `state.incident` by one window; the step to publish, if this window causes one.

    An incident closes in one of two ways, whichever comes first after the last window that was not calm:

    - calm evidence of its own modality for `close_ms`. Windows without a score of it do not count here; of the
      time before a window that has one, at most half of `close_ms` counts;
    - no evidence of its own modality that is not calm, while all else that is scored stays calm for
      `rare_close_ms`. One odd note is not to keep a stream in alarm, and its learning frozen, until the next
      note. Where the modality came with most windows before the incident, its absence is a matter of its own, and
      it takes `absent_close_ms`.

    Open for `adopt_ms`, it becomes the new normal, also where the windows of all this time had no score at all: only
    learning anew gives them one. Silence of the stream counts for none of this: of the time before a window, at
    most half of `close_ms`.
    """
    incident = state.incident
    if incident is None:
        return None if evidence.onset_ms is None else _open(state, evidence, evidence.onset_ms)
    incident = state.incident = _count(incident, config, evidence)
    if incident.calm_ms >= config.close_ms:
        return _end("closed", state, evidence)
    rare = state.presence.get(incident.modality, 0.0) < _RARE
    limit_ms = config.rare_close_ms if rare else config.absent_close_ms
    if incident.rest_calm_ms >= limit_ms:
        what = _EVIDENCE_OF.get(incident.modality, "evidence")
        return _end("closed", state, evidence, f"no further {what}, and all else calm for {limit_ms // 1000} s")
    if incident.open_ms >= config.adopt_ms:
        return _end("adopted", state, evidence)
    dominant = _dominant(evidence.shares)
    risen = evidence.severity >= incident.severity + _SEVERITY_STEP
    other = evidence.worst >= 1.0 and dominant != incident.modality
    if (risen or other) and evidence.end_ms - incident.last_step_ms >= config.update_ms:
        incident = state.incident = replace(
            incident,
            sequence=incident.sequence + 1,
            last_step_ms=evidence.end_ms,
            severity=max(incident.severity, evidence.severity),
            modality=dominant,
        )
        return _step("updated", incident, evidence)
    return None


def late_steps(state: DriftState, config: DriftConfig, evidence: Evidence) -> tuple[IncidentEvent, ...]:
    """Steps of a window that was scored again because of a late event; `state` stays as it is.

    An open incident is updated where the window is above the line. Where none is open, a window far enough above
    the line to open one by itself has an incident of its own, opened and closed at once: the windows after it have
    been scored already.
    """
    if state.incident is not None:
        return (_step("updated", state.incident, evidence, late=True),) if evidence.worst >= 1.0 else ()
    if evidence.worst < config.open_at_once:
        return ()
    opened = _new(evidence, evidence.start_ms)
    closed = replace(opened, sequence=1)
    reason = "the windows after it have been scored already"
    return _step("opened", opened, evidence, late=True), _step("closed", closed, evidence, reason=reason, late=True)


def close_for(
    state: DriftState, reason: str, time_ms: int, *, stream: str, window: str
) -> tuple[DriftState, IncidentEvent | None]:
    """Close what is open for a reason that lies outside of the data: another model, another configuration.

    `time_ms` is the event time of the step, `window` the id of the stream's last window at that time. Returns the
    state without the incident, and the step; the state itself and None where nothing is open.
    """
    incident = state.incident
    if incident is None:
        return state, None
    state = state.copy()
    time_ms = max(time_ms, incident.last_step_ms)
    incident = _leave(state, incident)
    state.cusum = 0.0
    return state, IncidentEvent(
        kind="closed",
        id=incident.id,
        stream=stream,
        sequence=incident.sequence,
        window=window,
        time_ms=time_ms,
        opened_ms=incident.opened_ms,
        severity=incident.severity,
        text=f"{stream}: closed: {reason}",
        threshold=1.0,
        onset_ms=incident.onset_ms,
        closed_ms=time_ms,
    )


def _new(evidence: Evidence, onset_ms: int) -> OpenIncident:
    return OpenIncident(
        id=evidence.incident_id,
        opened_ms=evidence.end_ms,
        onset_ms=onset_ms,
        start_ms=evidence.start_ms,
        sequence=0,
        last_step_ms=evidence.end_ms,
        severity=evidence.severity,
        modality=_dominant(evidence.shares),
        judged_ms=evidence.end_ms,
        seen_ms=evidence.end_ms,
    )


def _open(state: DriftState, evidence: Evidence, onset_ms: int) -> IncidentEvent:
    state.incident = _new(evidence, onset_ms)
    return _step("opened", state.incident, evidence)


def _count(incident: OpenIncident, config: DriftConfig, evidence: Evidence) -> OpenIncident:
    """The incident with the time of one more window counted."""
    most = config.close_ms // 2
    since_ms = min(evidence.end_ms - incident.seen_ms, most)
    calm_ms, rest_calm_ms, judged_ms = incident.calm_ms, incident.rest_calm_ms, incident.judged_ms
    if evidence.worst >= config.close_below:
        calm_ms, rest_calm_ms, judged_ms = 0, 0, evidence.end_ms
    else:
        if incident.modality in evidence.scored:
            calm_ms += min(evidence.end_ms - judged_ms, most)
            judged_ms = evidence.end_ms
        if evidence.score_name:
            rest_calm_ms += since_ms
    return replace(
        incident,
        calm_ms=calm_ms,
        rest_calm_ms=rest_calm_ms,
        judged_ms=judged_ms,
        seen_ms=evidence.end_ms,
        open_ms=incident.open_ms + since_ms,
    )


def _leave(state: DriftState, incident: OpenIncident) -> OpenIncident:
    """Take the incident out of the state; it is returned with the number of its last step."""
    state.incident = None
    state.runs, state.run_onsets = {}, {}
    state.past = [*state.past, Past(incident.id, incident.start_ms)][-_PAST_KEPT:]
    return replace(incident, sequence=incident.sequence + 1)


def _end(kind: Kind, state: DriftState, evidence: Evidence, reason: str = "") -> IncidentEvent:
    assert state.incident is not None
    return _step(kind, _leave(state, state.incident), evidence, reason=reason)


def _dominant(shares: Mapping[str, float]) -> str:
    return max(shares, key=lambda name: (shares[name], name), default="")


def _step(
    kind: Kind, incident: OpenIncident, evidence: Evidence, *, reason: str = "", late: bool = False
) -> IncidentEvent:
    text = _text(kind, incident, evidence, reason)
    return IncidentEvent(
        kind=kind,
        id=incident.id,
        stream=evidence.stream,
        sequence=incident.sequence,
        window=evidence.window,
        time_ms=evidence.end_ms,
        opened_ms=incident.opened_ms,
        severity=evidence.severity if kind in ("opened", "updated") else incident.severity,
        text=f"{text} (found late, by an event that came after its window had been scored)" if late else text,
        modalities=dict(evidence.shares),
        channels=list(evidence.changes),
        score=round(evidence.worst, 6),
        threshold=1.0,
        onset_ms=incident.onset_ms,
        closed_ms=evidence.end_ms if kind in ("closed", "adopted") else None,
        nearest_normal=evidence.nearest_normal,
        nearest_incident=evidence.nearest_incident,
        late=late,
    )


def _text(kind: Kind, incident: OpenIncident, evidence: Evidence, reason: str) -> str:
    """One line: what, where, how much."""
    lasted = (evidence.end_ms - incident.onset_ms) // 1000
    if kind == "closed":
        return f"{evidence.stream}: " + (
            f"closed after {lasted} s: {reason}" if reason else f"back to normal after {lasted} s"
        )
    if kind == "adopted":
        return f"{evidence.stream}: unchanged for {lasted} s, taken as the new normal"
    reasons = [_change_text(change) for change in evidence.changes[:2]]
    named = [name for name, share in sorted(evidence.shares.items(), key=lambda s: -s[1]) if share >= _SHARE_NAMED]
    reasons += [_PLAIN[name] for name in named if name in _PLAIN and not (name == "sensor" and reasons)]
    if evidence.score_name == "cusum":
        reasons.insert(0, "a slow drift away from its reference")
    return f"{evidence.stream}: {'; '.join(reasons) or 'unlike its own past'}"


def _change_text(change: ChannelChange) -> str:
    unit = f" {change.unit}" if change.unit else ""
    return f"{change.channel} {change.actual:.4g}{unit}, expected {change.expected:.4g}{unit} ({change.z:+.1f} sigma)"
