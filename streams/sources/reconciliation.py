"""The account of a replay: what became of every event that was produced. Pure.

Each window tells how many events it is the home of, so that the sum over windows counts every event once, however
often a window was told; letters are told apart by where their record came from.
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
class Account:
    """Fed with everything that came back; `produced` is counted by whoever sends."""

    produced: int = 0
    seconds: float = 0.0
    since: Mapping[tuple[str, int], int] = field(default_factory=dict)  # first offset of ours, by topic and partition
    _before: dict[str, tuple[int, int]] = field(default_factory=dict)
    _windows: dict[str, WindowRecord] = field(default_factory=dict)
    _dead: dict[_Origin, int] = field(default_factory=dict)
    _late: dict[_Origin, int] = field(default_factory=dict)
    _steps: dict[str, dict[tuple[int, str], IncidentEvent]] = field(default_factory=dict)
    _windowed: int = 0
    _duplicate: int = 0

    def window_before(self, window: WindowRecord) -> None:
        """What a window held before this replay: of that nothing is counted."""
        self._before[window.id] = (sum(window.events.values()), window.duplicates)

    def window(self, window: WindowRecord) -> None:
        """The last word on a window is the last record of its highest revision."""
        before = self._windows.get(window.id)
        if before is not None:
            if before.revision > window.revision:
                return
            self._count(before, -1)
        else:
            windowed, duplicate = self._before.get(window.id, (0, 0))
            self._windowed -= windowed
            self._duplicate -= duplicate
        self._windows[window.id] = window
        self._count(window, 1)

    def _count(self, window: WindowRecord, sign: int) -> None:
        self._windowed += sign * sum(window.events.values())
        self._duplicate += sign * window.duplicates

    def letter(self, record: RawRecord, *, late: bool) -> None:
        """A dead letter is one record that was refused as a whole; a late one says how many events it is about."""
        letter = parse_letter(record)
        if letter.offset < self.since.get((letter.topic, letter.partition), 0):
            return
        (self._late if late else self._dead)[letter.origin] = letter.events

    def incident(self, step: IncidentEvent) -> None:
        """One step; the same step told twice counts once."""
        self._steps.setdefault(step.id, {})[step.sequence, step.window if step.late else ""] = step

    @property
    def heard(self) -> bool:
        """Whether anything has come back at all."""
        return bool(self._windows or self._dead or self._late)

    @property
    def windows(self) -> int:
        """Distinct windows heard of."""
        return len(self._windows)

    @property
    def accounted(self) -> int:
        return self._windowed + self._duplicate + sum(self._dead.values()) + sum(self._late.values())

    @property
    def missing(self) -> int:
        return self.produced - self.accounted

    @property
    def balanced(self) -> bool:
        return self.missing == 0

    def spans(self) -> list[IncidentSpan]:
        """When each incident was."""
        spans = []
        for id, steps in self._steps.items():
            ordered = [steps[n] for n in sorted(steps)]
            first, last = ordered[0], ordered[-1]
            spans.append(IncidentSpan(id, first.stream, first.opened_ms, first.onset_ms, last.closed_ms))
        return sorted(spans, key=lambda span: (span.opened_ms, span.id))

    def to_json(self, labels: Sequence[Label] = ()) -> dict[str, Any]:
        """The report that `sensorium replay --report` writes."""
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
