"""The rules of event time (DESIGN, section 5) for windows that do not overlap, by brute force: the operator's model.

Every pane is kept, everything is looked at after each event, and nothing is remembered about when to look again, with
one exception: a stream is looked at for quiet when its quiet time as last known is over. The longest lag is
left out (`max_stream_lag_ms` is to be far beyond the steps): the examples cover it. Streams know nothing of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from streams.events.types import Reason
from streams.windows.types import Record, WindowConfig

NEVER = -(1 << 62)


class Pane:
    def __init__(self) -> None:
        self.events: list[list[Any]] = [[], [], []]
        self.offsets: list[list[int]] = [[], [], []]
        self.firing = -1
        self.new = True  # something has come since it was last looked into
        self.fired = False
        self.counts: tuple[int, ...] = (0, 0, 0)
        self.duplicates = 0

    def contents(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(sorted({repr(event) for event in events})) for events in self.events)

    def times(self) -> list[list[int]]:
        return [sorted(event.time_ms for event in events) for events in self.events]

    def members(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(offsets) for offsets in self.offsets)


class Stream:
    def __init__(self, name: str, config: WindowConfig, out: list[tuple[Any, ...]]) -> None:
        self.name, self.config, self.out = name, config, out
        self.panes: dict[int, Pane] = {}
        self.clocks = [NEVER] * 3
        self.doubtful: dict[int, int] = {}  # modality -> an event too far ahead to be believed alone
        self.watermark = self.final_before = self.newest_fired = NEVER
        self.final_ahead: set[int] = set()
        self.gaps: list[int] = []
        self.last_event_at = 0
        self.last_of_modality_at = [0] * 3
        self.look_for_quiet_at: int | None = None
        self.silent_since: int | None = None  # its newest event when it was reported
        self.waiting = False

    # -- clocks

    @property
    def own(self) -> int:
        return max(self.clocks)

    @property
    def interval(self) -> int | None:
        """A single pause is not usual: the second largest of the last eight windows' largest gaps.

        One gap alone counts where the idle timeout is longer than three of it.
        """
        last = sorted(self.gaps[-8:])
        if len(last) > 1:
            return last[-2]
        return last[0] if last and 3 * last[0] <= self.config.idle_timeout_ms else None

    def believable(self, time: int) -> bool:
        return self.own > NEVER and time <= self.own + max(self.config.max_jump_ms, 3 * (self.interval or 0))

    def see(self, modality: int, time: int) -> None:
        if self.believable(time):
            self.doubtful.pop(modality, None)
            self.clocks[modality] = max(self.clocks[modality], time)
            return
        confirming = sorted((t, m) for m, t in self.doubtful.items() if t != time)
        if not confirming:
            self.doubtful[modality] = time
            return
        self.doubtful = {}
        first, second = sorted([confirming[0], (time, modality)])
        self.clocks[first[1]] = max(self.clocks[first[1]], first[0])
        if self.believable(second[0]):
            self.clocks[second[1]] = max(self.clocks[second[1]], second[0])
        else:
            self.doubtful[second[1]] = second[0]

    def move_watermark(self, idle: Sequence[bool]) -> None:
        if self.own == NEVER:
            return
        level = self.own
        for m, clock in enumerate(self.clocks):
            if not idle[m] and clock >= self.own - self.config.modality_memory_ms:
                disorder, wait = self.config.disorder_ms[m], self.config.max_wait_ms[m]
                level = min(level, max(clock - disorder, self.own - max(wait, disorder)))
        self.watermark = max(self.watermark, level)

    # -- events

    def push(self, modality: int, record: Record, clock: int, input_clock: int) -> None:
        size, lateness, time = self.config.size_ms, self.config.allowed_lateness_ms, record.event.time_ms
        start = time // size * size
        late = None
        if self.watermark >= start + size + lateness:
            late = self.watermark - start - size
        elif start < self.final_before:
            late = self.final_before - size - start + lateness
        elif start in self.final_ahead:
            late = lateness
        if late is not None:
            self.out.append(("late", self.name, modality, record.offset, late))
            return
        if self.silent_since is not None and time > self.silent_since:  # not one of before, read again
            self.silent_since = None
            self.out.append(("idle", self.name, time, True))
        pane = self.panes.setdefault(start, Pane())
        if pane.fired or not pane.offsets[modality]:
            quiet_at = clock + self.quiet_after()
            if self.look_for_quiet_at is None or self.look_for_quiet_at > quiet_at:
                self.look_for_quiet_at = quiet_at
        if len(pane.offsets[modality]) >= self.config.max_pane_events:
            self.out.append(("refused", self.name, modality, record.offset, Reason.TOO_MANY_EVENTS))
            return
        pane.fired = pane.fired or self.watermark >= start + size
        pane.events[modality].append(record.event)
        pane.offsets[modality].append(record.offset)
        pane.new = True
        self.last_event_at, self.last_of_modality_at[modality] = clock, input_clock
        self.see(modality, time)
        self.go_on((False, False, False))

    def go_on(self, idle: Sequence[bool]) -> None:
        size, lateness = self.config.size_ms, self.config.allowed_lateness_ms
        self.move_watermark(idle)
        self.fire(self.watermark)
        for start in sorted(self.panes):
            if self.panes[start].fired and start + size + lateness <= self.watermark:
                self.release(start)
        self.final_before = max(self.final_before, (self.watermark - size - lateness) // size * size + size)
        reach = self.own - min(self.config.disorder_ms)
        self.waiting = any(start + size + (0 if pane.new else lateness) <= reach for start, pane in self.panes.items())

    def fire(self, until: int) -> None:
        changed = []
        for start, pane in sorted(self.panes.items()):
            if not pane.new or start + self.config.size_ms > until:
                continue
            before = pane.counts, pane.duplicates
            pane.new, pane.fired = False, True
            pane.counts = tuple(map(len, pane.contents()))
            pane.duplicates = sum(map(len, pane.events)) - sum(pane.counts)
            if pane.counts != before[0]:
                self.learn(pane)
            if (pane.counts, pane.duplicates) != before:
                changed.append((start, pane))
        for start, pane in changed:
            pane.firing += 1
            told = (pane.firing, pane.counts, pane.duplicates, self.interval, pane.contents(), pane.members())
            self.out.append(("fired", self.name, start, start + self.config.size_ms, *told))

    def learn(self, pane: Pane) -> None:
        times = pane.times()
        first, last = min(t[0] for t in times if t), max(t[-1] for t in times if t)
        if NEVER < self.own < first:
            return
        gaps = [b - a for t in times for a, b in pairwise(t)]
        if self.newest_fired > NEVER:
            gaps.append(first - self.newest_fired)
        self.newest_fired = max(self.newest_fired, last)
        if max(gaps, default=0) > 0:
            self.gaps.append(min(max(gaps), self.config.max_stream_lag_ms))

    def release(self, start: int) -> None:
        self.out.append(("final", self.name, start, self.panes.pop(start).members()))

    # -- time

    def quiet_after(self) -> int:
        return max(self.config.idle_timeout_ms, min(3 * (self.interval or 0), self.config.max_stream_lag_ms))

    def silent_after(self) -> int:
        usual = self.config.max_stream_lag_ms if self.interval is None else 3 * self.interval
        return max(self.config.idle_timeout_ms, usual)

    def time_passes(self, clock: int, input_clocks: Sequence[int], *, ticked: bool) -> None:
        if self.waiting and ticked:
            timeout = self.config.idle_timeout_ms
            idle = [now - at >= timeout for now, at in zip(input_clocks, self.last_of_modality_at, strict=True)]
            if any(idle):
                self.go_on(idle)
        if self.look_for_quiet_at is not None and clock >= self.look_for_quiet_at:
            self.look_for_quiet_at = self.quiet(clock)

    def quiet(self, clock: int) -> int | None:
        if clock - self.last_event_at >= self.quiet_after():
            self.fire(1 << 62)
            self.waiting = False
        quiet_at = self.last_event_at + self.quiet_after()  # the windows just fired may have shown longer gaps
        if clock < quiet_at:
            return quiet_at
        silent_at = self.last_event_at + self.silent_after()
        if clock >= silent_at and self.silent_since is None:
            newest = self.own if self.own > NEVER else min(self.doubtful.values())
            self.silent_since = newest
            self.out.append(("idle", self.name, newest, False))
        close_at = quiet_at + self.config.allowed_lateness_ms
        if clock >= close_at:
            for start in sorted(self.panes):
                self.release(start)
                if start <= self.own:
                    self.final_before = max(self.final_before, start + self.config.size_ms)
                else:
                    self.final_ahead.add(start)
        return min((at for at in (silent_at, close_at) if at > clock), default=None)


class Naive:
    """All streams of a partition."""

    def __init__(self, config: WindowConfig) -> None:
        assert config.size_ms == config.hop_ms
        self.config = config
        self.clock, self.input_clocks = 0, [0, 0, 0]
        self.ticked = False
        self.streams: dict[str, Stream] = {}
        self.out: list[tuple[Any, ...]] = []

    def push(self, modality: int, records: Sequence[Record]) -> None:
        for record in records:
            if record.stream not in self.streams:
                self.streams[record.stream] = Stream(record.stream, self.config, self.out)
            self.streams[record.stream].push(modality, record, self.clock, self.input_clocks[modality])

    def tick(self, clock: int, input_clocks: Sequence[int]) -> None:
        self.clock, self.input_clocks = clock, list(input_clocks)
        self.ticked = True

    def advance(self) -> list[tuple[Any, ...]]:
        for stream in self.streams.values():
            stream.time_passes(self.clock, self.input_clocks, ticked=self.ticked)
        self.ticked = False
        out = list(self.out)
        self.out.clear()
        return out
