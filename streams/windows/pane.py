"""A pane: the events of one hop of one stream, in canonical order and free of repeats. Pure."""

from __future__ import annotations

from operator import attrgetter, sub
from typing import Any

from streams.events.types import Caption, Clip, Event, Reading
from streams.windows.types import Record

_time_of = attrgetter("time_ms")


def canonical(event: Event) -> tuple[Any, ...]:
    """An event's identity within its stream and modality, as a sortable tuple of plain values."""
    if type(event) is Reading:
        # by `repr`: None sorts with nothing, and -0.0 is not the same content as 0.0
        values = tuple((k, repr(v)) for k, v in sorted(event.values.items()))
        return (event.time_ms, values, tuple(sorted((event.units or {}).items())))
    if type(event) is Clip:
        return (event.time_ms, event.sha256)
    assert type(event) is Caption
    return (event.time_ms, event.text, event.source or "", event.lang or "")


class Pane:
    """Events of one hop, all of whose windows have not fired yet or may fire again.

    What has been handed on with a fired window is never changed afterwards: `tidy` makes new lists.
    """

    __slots__ = ("counts", "duplicates", "events", "first_ms", "largest_gap_ms", "last_ms", "members", "records")

    def __init__(self, records: list[list[Record]]) -> None:
        """`records`: what came in, in order of arrival, per modality."""
        self.records = records
        self.events: list[list[Any]] = [[], [], []]  # as last tidied: canonical order, free of repeats
        self.members: tuple[tuple[int, ...], ...] = ((), (), ())  # offsets as last tidied, repeats included
        self.counts = (0, 0, 0)  # distinct events as last tidied
        self.duplicates = 0
        self.first_ms = self.last_ms = self.largest_gap_ms = 0  # of event times as last tidied

    def tidy(self) -> tuple[bool, bool]:
        """Put events in canonical order and count repeats out.

        Returns whether events, and whether repeats, came in since the last time.
        """
        before = self.counts, self.duplicates
        first, last, gap, repeats = 1 << 62, -(1 << 62), 0, 0
        events: list[list[Any]] = []
        for records in self.records:
            if not records:
                events.append([])
                continue
            kept = [record.event for record in records]
            if len(kept) > 1:
                times = [event.time_ms for event in kept]
                gaps = list(map(sub, times[1:], times))
                if min(gaps) <= 0:
                    kept.sort(key=_time_of)
                    times.sort()
                    gaps = list(map(sub, times[1:], times))
                    if min(gaps) == 0:
                        kept = _without_repeats(kept, times)
                        repeats += len(records) - len(kept)
                gap = max(gap, max(gaps))
            first, last = min(first, kept[0].time_ms), max(last, kept[-1].time_ms)
            events.append(kept)
        self.first_ms, self.last_ms, self.largest_gap_ms = first, last, gap
        self.events, self.duplicates = events, repeats
        self.members = tuple([tuple([record.offset for record in records]) for records in self.records])
        self.counts = (len(events[0]), len(events[1]), len(events[2]))
        return self.counts != before[0], repeats != before[1]


def _without_repeats(events: list[Any], times: list[int]) -> list[Any]:
    """Events (in order of `times`) in canonical order and free of repeats: only those of one time are looked into."""
    kept: list[Any] = []
    start, count = 0, len(events)
    while start < count:
        end = start + 1
        while end < count and times[end] == times[start]:
            end += 1
        if end == start + 1:
            kept.append(events[start])
        else:
            keyed = sorted(((canonical(e), e) for e in events[start:end]), key=lambda pair: pair[0])
            kept.extend(e for i, (key, e) in enumerate(keyed) if i == 0 or keyed[i - 1][0] != key)
        start = end
    return kept
