"""The report of a replay: what became of every event that was produced. Pure.

A window counts the events whose last window it is, so that a sum over windows counts every event once; a window that
is published again replaces its earlier record. Dead letters and late events are identified by the origin of their
record (topic, partition, offset).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streams.events.dead_letter import parse_letter
from streams.events.types import IncidentEvent, RawRecord, WindowRecord
from streams.sources.incident_scoring import IncidentSpan, score_incidents

if TYPE_CHECKING:
    from streams.sources.recording import Label

_Origin = tuple[str, int, int]


@dataclass(slots=True)
class ReplayReport:
    """Counts the records of the output topics; `produced` is set by the sender."""

    produced: int = 0
    seconds: float = 0.0
    since: Mapping[tuple[str, int], int] = field(default_factory=dict)  # first offset of this replay by partition
    _baseline: dict[str, tuple[int, int]] = field(default_factory=dict)
    _windows: dict[str, WindowRecord] = field(default_factory=dict)
    _dead: dict[_Origin, int] = field(default_factory=dict)
    _late: dict[_Origin, int] = field(default_factory=dict)
    _steps: dict[str, dict[tuple[int, str], IncidentEvent]] = field(default_factory=dict)
    _windowed: int = 0
    _duplicate: int = 0

    def add_baseline(self, window: WindowRecord) -> None:
        """A window as it was before this replay: its events are not counted."""
        self._baseline[window.id] = (sum(window.events.values()), window.duplicates)

    def add_window(self, window: WindowRecord) -> None:
        """A window record; the last one of the highest revision counts."""
        earlier = self._windows.get(window.id)
        if earlier is not None:
            if earlier.revision > window.revision:
                return
            self._count(earlier, -1)
        else:
            windowed, duplicate = self._baseline.get(window.id, (0, 0))
            self._windowed -= windowed
            self._duplicate -= duplicate
        self._windows[window.id] = window
        self._count(window, 1)

    def _count(self, window: WindowRecord, sign: int) -> None:
        self._windowed += sign * sum(window.events.values())
        self._duplicate += sign * window.duplicates

    def add_dead_letter(self, record: RawRecord, *, late: bool) -> None:
        """A record of `dead-letters`, or with `late` of `late-events`. Raises `ValueError` if it is neither."""
        letter = parse_letter(record)
        if letter.offset < self.since.get((letter.topic, letter.partition), 0):
            return
        (self._late if late else self._dead)[letter.origin] = letter.events

    def add_incident_step(self, step: IncidentEvent) -> None:
        """A step of an incident; repeats count once."""
        self._steps.setdefault(step.id, {})[step.sequence, step.window if step.late else ""] = step

    @property
    def has_results(self) -> bool:
        """Whether any record of this replay has come back."""
        return bool(self._windows or self._dead or self._late)

    @property
    def windows(self) -> int:
        """Number of distinct windows."""
        return len(self._windows)

    @property
    def accounted(self) -> int:
        """Events that have come back: windowed, duplicate, dead or late."""
        return self._windowed + self._duplicate + sum(self._dead.values()) + sum(self._late.values())

    @property
    def missing(self) -> int:
        """Events produced that have not come back; negative where more came back."""
        return self.produced - self.accounted

    @property
    def balanced(self) -> bool:
        """Whether every produced event has come back, and no other."""
        return self.missing == 0

    def spans(self) -> list[IncidentSpan]:
        """Begin and end of each incident, in the order of opening."""
        spans = []
        for id, steps in self._steps.items():
            ordered = [steps[n] for n in sorted(steps)]
            first, last = ordered[0], ordered[-1]
            spans.append(IncidentSpan(id, first.stream, first.opened_ms, first.onset_ms, last.closed_ms))
        return sorted(spans, key=lambda span: (span.opened_ms, span.id))

    def to_json(self, labels: Sequence[Label] = ()) -> dict[str, Any]:
        """The report as `sensorium replay --report` writes it."""
        report: dict[str, Any] = {
            "events": {
                "produced": self.produced,
                "windowed": self._windowed,
                "duplicate": self._duplicate,
                "late": sum(self._late.values()),
                "dead": sum(self._dead.values()),
            },
            "windows": self.windows,
            "incidents": len(self._steps),
            "seconds": self.seconds,
        }
        if labels:
            report["labels"] = score_incidents(labels, self.spans()).to_json()
        return report
