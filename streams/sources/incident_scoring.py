"""Scores incidents against labelled faults. Pure.

An incident [onset or opening, closing or end) matches a label of its stream when it overlaps [start, end + 60 s): an
incident may outlast its cause. A label is found when at least one incident matches it, with the delay from its start
to the first opening; an incident that matches no label is false.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from streams.sources.recording import Label

_AFTER_MS = 60_000  # an incident may begin so long after the end of its label


@dataclass(frozen=True, slots=True)
class IncidentSpan:
    """Begin and end of an incident (epoch ms); `closed_ms` None: still open."""

    id: str
    stream: str
    opened_ms: int
    onset_ms: int | None = None
    closed_ms: int | None = None


@dataclass(frozen=True, slots=True)
class KindScore:
    """Labels of one kind: how many, how many found, and the delay of each found one."""

    total: int
    found: int
    delays_s: tuple[float, ...]

    @property
    def median_delay_s(self) -> float | None:
        """Median delay in seconds; None where nothing was found."""
        return round(median(self.delays_s), 3) if self.delays_s else None

    def to_json(self) -> dict[str, Any]:
        missed = self.total - self.found
        return {"total": self.total, "found": self.found, "missed": missed, "median_delay_s": self.median_delay_s}


@dataclass(frozen=True, slots=True)
class LabelScore:
    """Scores over all labels and by kind. `false`: ids of incidents that match no label."""

    all: KindScore
    false: tuple[str, ...]
    by_kind: dict[str, KindScore] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        kinds = {kind: score.to_json() for kind, score in sorted(self.by_kind.items())}
        whole = self.all.to_json()
        return {
            "total": whole["total"],
            "found": whole["found"],
            "missed": whole["missed"],
            "false": len(self.false),
            "median_delay_s": whole["median_delay_s"],
            "by_kind": kinds,
        }


def score_incidents(labels: Sequence[Label], incidents: Sequence[IncidentSpan]) -> LabelScore:
    """Labels found and missed, and false incidents, by the rule of this module."""
    matched: set[str] = set()
    delays: dict[str, list[float]] = {label.kind: [] for label in labels}
    for label in labels:
        hits = [i for i in incidents if i.stream == label.stream and _overlap(i, label)]
        matched.update(hit.id for hit in hits)
        if hits:
            first = min(hit.opened_ms for hit in hits)
            delays[label.kind].append(max(0.0, (first - label.start_ms) / 1000))
    by_kind = {
        kind: KindScore(sum(label.kind == kind for label in labels), len(found), tuple(found))
        for kind, found in delays.items()
    }
    found = tuple(delay for kind in delays.values() for delay in kind)
    false = tuple(incident.id for incident in incidents if incident.id not in matched)
    return LabelScore(KindScore(len(labels), len(found), found), false, by_kind)


def _overlap(incident: IncidentSpan, label: Label) -> bool:
    begins_ms = incident.opened_ms if incident.onset_ms is None else incident.onset_ms
    open_at_start = incident.closed_ms is None or incident.closed_ms > label.start_ms
    return begins_ms < label.end_ms + _AFTER_MS and open_at_start


def label_table(score: LabelScore | dict[str, Any]) -> Table:
    """A table for the terminal, from a score or from its JSON."""
    from rich.table import Table

    rows = score.to_json() if isinstance(score, LabelScore) else score
    table = Table("labels", "total", "found", "missed", "median delay", box=None)
    for kind, row in [*sorted(rows["by_kind"].items()), ("together", rows)]:
        delay = row["median_delay_s"]
        shown = "-" if delay is None else f"{delay:.0f} s"
        table.add_row(kind, str(row["total"]), str(row["found"]), str(row["missed"]), shown)
    table.caption = f"{rows['false']} incidents match no label"
    return table
