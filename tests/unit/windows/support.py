"""What the tests of windows share: short ways to make records, a window operator with a log of its own, and a model.

The model is the rules of event time written down as plainly as can be, for windows that do not overlap: it keeps
everything, looks at everything each time, and is slow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from streams.events.types import Caption, Reading
from streams.windows.operator import PartitionWindows
from streams.windows.types import Fired, Late, Output, PaneFinal, Record, StreamIdle, WindowConfig

SENSOR, AUDIO, CAPTION = 0, 1, 2
ALL, NONE = (True, True, True), (False, False, False)


def reading(time_ms: int, value: float = 1.0) -> Reading:
    return Reading(time_ms, {"flow": value})


def fired(outputs: Iterable[Output]) -> list[Fired]:
    return [o for o in outputs if isinstance(o, Fired)]


def late(outputs: Iterable[Output]) -> list[Late]:
    return [o for o in outputs if isinstance(o, Late)]


def finished(outputs: Iterable[Output]) -> list[PaneFinal]:
    return [o for o in outputs if isinstance(o, PaneFinal)]


def silences(outputs: Iterable[Output]) -> list[StreamIdle]:
    return [o for o in outputs if isinstance(o, StreamIdle)]


def spans(outputs: Iterable[Output]) -> list[tuple[int, int]]:
    return [(window.start_ms, window.end_ms) for window in fired(outputs)]


class Partition:
    """An operator and the offsets of its three logs. Sounds and captions are idle unless told otherwise."""

    def __init__(self, idle: Sequence[bool] = (False, True, True), **config: Any) -> None:
        self.operator = PartitionWindows(WindowConfig(**config))
        self.idle = list(idle)
        self.clock_ms = 0
        self.offsets = [0, 0, 0]

    def push(self, *times_ms: int, stream: str = "pump", modality: int = SENSOR) -> list[Output]:
        """Events at these times, one batch; then whatever follows. Idle inputs are confirmed to be so."""
        records = []
        for time_ms in times_ms:
            event = Caption(time_ms, "all quiet") if modality == CAPTION else reading(time_ms)
            records.append(Record(self.offsets[modality], stream, event))
            self.offsets[modality] += 1
        assert self.operator.push(modality, records) == []
        return self.wait(0)

    def wait(self, ms: int, idle: Sequence[bool] | None = None) -> list[Output]:
        """Let the idle clock run."""
        self.idle = list(self.idle if idle is None else idle)
        self.clock_ms += ms
        self.operator.tick(self.clock_ms, self.idle)
        return self.operator.advance()


class _Pane:
    def __init__(self, opened: bool) -> None:
        self.events: list[list[Any]] = [[], [], []]
        self.offsets: list[list[int]] = [[], [], []]
        self.open = opened  # has not fired
        self.new = True
        self.told: tuple[int, int] = (0, 0)  # distinct events and repeats, as last fired
        self.firings = 0

    def distinct(self) -> list[list[str]]:
        return [sorted({repr(event) for event in events}) for events in self.events]


class _Stream:
    def __init__(self) -> None:
        self.panes: dict[int, _Pane] = {}
        self.newest = self.watermark = self.final_before = -(1 << 62)
        self.heard_at = 0
        self.silent = False
        self.past = False


class Naive:
    """The rules of event time for windows that do not overlap, by brute force."""

    def __init__(self, config: WindowConfig) -> None:
        assert config.size_ms == config.hop_ms
        self.config = config
        self.streams: dict[str, _Stream] = defaultdict(_Stream)
        self.read = [-(1 << 62)] * 3
        self.idle = [False] * 3
        self.idle_ms = self.passed = -(1 << 62)
        self.clock = 0
        self.ticked = False
        self.out: list[tuple[Any, ...]] = []

    def inputs(self) -> int:
        known = [max(read, self.idle_ms) if idle else read for read, idle in zip(self.read, self.idle, strict=True)]
        return min(read - disorder for read, disorder in zip(known, self.config.disorder_ms, strict=True))

    def push(self, modality: int, records: Sequence[Record]) -> None:
        size, lateness = self.config.size_ms, self.config.allowed_lateness_ms
        if records:
            self.idle[modality] = False
            self.ticked = False
        for record in records:
            stream, time = self.streams[record.stream], record.event.time_ms
            start = time // size * size
            pane = stream.panes.get(start)
            if stream.newest == -(1 << 62):
                stream.past = start + size + lateness <= self.passed
            watermark = max(stream.watermark, -(1 << 62) if stream.past else min(stream.newest, self.passed))
            final = watermark >= start + size + lateness or start < stream.final_before
            if final and not (pane and pane.open):
                self.out.append(("late", modality, record.offset))
                continue
            if stream.silent:
                stream.silent = False
                self.out.append(("silent", record.stream, stream.newest, False))
            if pane is None:
                pane = stream.panes[start] = _Pane(stream.watermark < start + size)
            pane.new = True
            pane.events[modality].append(record.event)
            pane.offsets[modality].append(record.offset)
            stream.newest = max(stream.newest, time)
            stream.heard_at = self.clock
        if records:
            self.read[modality] = max(self.read[modality], *(record.event.time_ms for record in records))

    def tick(self, clock: int, idle: Sequence[bool]) -> None:
        self.clock, self.idle, self.idle_ms = max(self.clock, clock), list(idle), max(self.read)
        self.ticked = True

    def advance(self) -> list[tuple[Any, ...]]:
        size, lateness = self.config.size_ms, self.config.allowed_lateness_ms
        inputs = self.passed = max(self.passed, self.inputs())
        for name, stream in self.streams.items():
            if stream.past and self.ticked:
                stream.past = stream.newest + size + lateness <= self.passed
            if stream.past and not self.ticked:
                continue
            held = self._own(stream) if stream.past else inputs
            stream.watermark = max(stream.watermark, min(stream.newest, held))
            self._fire(name, stream, stream.watermark)
            self._close(name, stream, stream.watermark - size - lateness)
        timeout = self.config.idle_timeout_ms
        for name, stream in self.streams.items():
            quiet = self.clock - stream.heard_at
            if not stream.panes or quiet < timeout:
                continue
            self._fire(name, stream, 1 << 62)
            if not stream.silent:
                stream.silent = True
                self.out.append(("silent", name, stream.newest, True))
            if quiet >= timeout + lateness:
                self._close(name, stream, 1 << 61)
        out, self.out = self.out, []
        return out

    def _own(self, stream: _Stream) -> int:
        """How far a stream from the past has been read, as its own events tell."""
        held = [-(1 << 62)] * 3
        for pane in stream.panes.values():
            for modality, events in enumerate(pane.events):
                held[modality] = max(held[modality], *(event.time_ms for event in events), -(1 << 62))
        known = [stream.newest if idle else own for idle, own in zip(self.idle, held, strict=True)]
        return min(own - disorder for own, disorder in zip(known, self.config.disorder_ms, strict=True))

    def _fire(self, name: str, stream: _Stream, until: int) -> None:
        for start, pane in sorted(stream.panes.items()):
            if start + self.config.size_ms > until or not pane.new:
                continue
            distinct = pane.distinct()
            count = sum(map(len, distinct))
            told = (count, sum(map(len, pane.events)) - count)
            if told != pane.told:
                members = tuple(tuple(offsets) for offsets in pane.offsets)
                self.out.append(("fired", name, start, pane.firings, distinct, told[1], members))
                pane.firings += 1
            pane.new, pane.open, pane.told = False, False, told

    def _close(self, name: str, stream: _Stream, until: int) -> None:
        for start in sorted(start for start in stream.panes if start <= until):
            pane = stream.panes.pop(start)
            self.out.append(("finished", name, start, tuple(tuple(offsets) for offsets in pane.offsets)))
            stream.final_before = max(stream.final_before, start + self.config.size_ms)


def as_told(outputs: Iterable[Output]) -> list[tuple[Any, ...]]:
    """Outputs of the operator as the model says them."""
    told: list[tuple[Any, ...]] = []
    for output in outputs:
        match output:
            case Fired():
                contents = (output.readings, output.clips, output.captions)
                distinct = [sorted({repr(event) for event in events}) for events in contents]
                assert [len(d) for d in distinct] == [len(c) for c in contents] == list(output.home_events)
                counts = (output.firing, distinct, output.duplicates)
                told.append(("fired", output.stream, output.start_ms, *counts, output.members))
            case PaneFinal():
                told.append(("finished", output.stream, output.start_ms, output.offsets))
            case Late():
                assert output.late_ms >= 0
                told.append(("late", output.modality, output.record.offset))
            case StreamIdle():
                told.append(("silent", *output))
    return told
