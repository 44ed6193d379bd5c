"""A pane: the events of one hop of one stream, in canonical order and free of repeats. Pure."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from streams.events.types import Caption, Clip, Event, Reading

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
    """Events of one hop of one stream."""

    __slots__ = ("counts", "duplicates", "events", "offsets", "start_ms")

    def __init__(self, start_ms: int) -> None:
        self.start_ms = start_ms
        self.events: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        self.offsets: tuple[list[int], list[int], list[int]] = ([], [], [])
        self.duplicates = 0
        self.counts = (0, 0, 0)  # distinct events when last tidied

    def origins(self) -> tuple[tuple[int, ...], ...]:
        """Offsets of everything that came in, per modality."""
        sensors, sounds, words = self.offsets
        return tuple(sensors), tuple(sounds), tuple(words)

    def tidy(self) -> tuple[bool, bool]:
        """Put events in canonical order and count repeats out.

        Returns whether events, and whether repeats, came in since the last time.
        """
        duplicates = self.duplicates
        for events in self.events:
            if len(events) < 2:
                continue
            events.sort(key=_time_of)
            times = list(map(_time_of, events))
            if len(set(times)) == len(times):
                continue  # no repeats, and the order is canonical
            kept = _canonical(events, times)
            self.duplicates += len(events) - len(kept)
            events[:] = kept
        sensors, sounds, words = self.events
        counts = (len(sensors), len(sounds), len(words))
        changed, self.counts = counts != self.counts, counts
        return changed, self.duplicates != duplicates


def _canonical(events: list[Any], times: list[int]) -> list[Any]:
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
