"""A pane: the events of one hop of one stream, in canonical order and free of repeats. Pure."""

from __future__ import annotations

from operator import attrgetter, itemgetter, sub
from typing import Any

from streams.events.types import Caption, Clip, Event, Reading

_time_of = attrgetter("time_ms")
_key_of = itemgetter(0)
# events and the offsets of their records, in order of arrival: side by side, for a pane is tidied long after its
# records were last touched
Arrivals = tuple[list[Any], list[int]]


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

    __slots__ = ("arrived", "counts", "duplicates", "events", "first_ms", "largest_gap_ms", "last_ms", "members")

    def __init__(self) -> None:
        self.arrived: list[Arrivals] = [([], []), ([], []), ([], [])]  # per modality
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
        for arrived, _ in self.arrived:
            if not arrived:
                events.append([])
                continue
            kept = arrived[:]
            if len(kept) > 1:
                times = [event.time_ms for event in kept]
                gaps = list(map(sub, times[1:], times))
                if min(gaps) <= 0:
                    kept.sort(key=_time_of)
                    times.sort()
                    gaps = list(map(sub, times[1:], times))
                    if min(gaps) == 0:
                        kept = _without_repeats(kept, gaps)
                        repeats += len(arrived) - len(kept)
                gap = max(gap, max(gaps))
            first, last = min(first, kept[0].time_ms), max(last, kept[-1].time_ms)
            events.append(kept)
        self.first_ms, self.last_ms, self.largest_gap_ms = first, last, gap
        self.events, self.duplicates = events, repeats
        (_, sensors), (_, sounds), (_, captions) = self.arrived
        self.members = (tuple(sensors), tuple(sounds), tuple(captions))
        self.counts = (len(events[0]), len(events[1]), len(events[2]))
        return self.counts != before[0], repeats != before[1]


def _without_repeats(events: list[Any], gaps: list[int]) -> list[Any]:
    """Events in canonical order and free of repeats: only those of one time are looked into.

    `events` are in order of time, `gaps` the times between neighbours.
    """
    kept: list[Any] = []
    done, count = 0, len(gaps)
    for i in [i for i, gap in enumerate(gaps) if gap == 0]:
        if i < done:
            continue  # of a group that was looked into
        end = i + 1
        while end < count and gaps[end] == 0:
            end += 1
        kept += events[done:i]
        keyed = sorted([(canonical(event), event) for event in events[i : end + 1]], key=_key_of)
        kept += [event for n, (key, event) in enumerate(keyed) if n == 0 or keyed[n - 1][0] != key]
        done = end + 1
    return kept + events[done:]
