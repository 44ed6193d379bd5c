"""Event time: panes, watermarks, firing, revisions, lateness. Pure: no I/O, and time only as an argument.

One `PartitionWindows` runs per partition *number*: the three input topics are co-partitioned, so it sees every
modality of its streams. A stream's windows are driven by its watermark,

    min(own clock, min over modalities (what the modality's partition has been read past - its disorder bound)),

where the own clock is the newest event time of the stream in any modality, and a modality whose partition is caught
up and quiet (told by `tick`) holds nothing back. A window [start, end) fires when the watermark reaches `end`, and is
final when it reaches `end + allowed_lateness`; in between, a late event fires it again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from streams.events import MODALITIES
from streams.panes import (
    Finished,
    Fired,
    Late,
    Output,
    Pane,
    Record,
    Silent,
    StoredWindow,
    WindowConfig,
    window_id,
)

__all__ = [
    "Finished",
    "Fired",
    "Late",
    "Output",
    "PartitionWindows",
    "Record",
    "Silent",
    "StoredWindow",
    "WindowConfig",
    "window_id",
]

_LONG_AGO = -(1 << 62)
_FAR_AHEAD = 1 << 62


@dataclass(slots=True, eq=False)
class _Stream:
    name: str
    sealed_before_ms: int | None  # windows that start before this were final before we began; None: not looked up
    newest_ms: int = _LONG_AGO  # own clock
    watermark_ms: int = _LONG_AGO
    final_before_ms: int = _LONG_AGO  # panes that start before this are final
    open: dict[int, Pane] = field(default_factory=dict)  # panes that no fired window holds: the hot path
    fired: dict[int, Pane] = field(default_factory=dict)  # panes that a fired window holds, not final
    touched: set[int] = field(default_factory=set)  # starts of fired panes that got something since
    firings: dict[int, int] = field(default_factory=dict)  # window start -> number of its last firing
    next_end_ms: int | None = None  # where this stream stands in the heap of what is due
    heard_at_ms: int = 0  # on the operator's idle clock
    silent: bool = False
    stored: dict[int, StoredWindow | None] = field(default_factory=dict)


class PartitionWindows:
    """The window operator of one partition number.

    `push` takes records, `advance` gives what follows from them, `tick` moves the idle clocks. With `lookup`, `push`
    hands back the records whose stream (or pane) must be looked up in the store first: `restore`, then push again.
    """

    def __init__(self, config: WindowConfig, resume: Sequence[int] = (0, 0, 0), *, lookup: bool = False) -> None:
        """`resume`: the first offset that will be read of each modality."""
        self.config = config
        self._resume = tuple(resume)
        self._lookup = lookup
        self._streams: dict[str, _Stream] = {}
        self._read_ms = [_LONG_AGO] * len(MODALITIES)  # what each modality's partition has been read past
        self._idle = [False] * len(MODALITIES)
        self._idle_clock_ms = 0
        self._ticked = False
        self._first_ms: int | None = None
        self._due: list[tuple[int, str]] = []  # heap of (end of the next window, stream)
        self._closing: list[tuple[int, str]] = []  # heap of (watermark at which a pane is final, stream)
        self._out: list[Output] = []

    # -- input ---------------------------------------------------------------------------------------------------

    def push(self, modality: int, records: Iterable[Record]) -> list[Record]:
        """Take events of one modality in the order read. Fires nothing. Returns what needs `restore` first."""
        hop = self.config.hop_ms
        streams, clock = self._streams, self._idle_clock_ms
        read_ms = self._read_ms[modality]
        unresolved: list[Record] = []
        for record in records:
            event, name = record.event, record.stream
            time_ms = event.time_ms
            if time_ms > read_ms:
                read_ms = time_ms
            stream = streams.get(name)
            if stream is None:
                stream = streams[name] = _Stream(name, None if self._lookup else _LONG_AGO)
            pane = stream.open.get(time_ms - time_ms % hop)
            if pane is None and (pane := self._find_pane(stream, modality, record, unresolved)) is None:
                continue
            pane.events[modality].append(event)
            pane.offsets[modality].append(record.offset)
            stream.heard_at_ms = clock
            if time_ms > stream.newest_ms:
                stream.newest_ms = time_ms
        self._read_ms[modality] = read_ms
        if self._first_ms is None and read_ms > _LONG_AGO:
            self._first_ms = read_ms
        return unresolved

    def _find_pane(self, stream: _Stream, modality: int, record: Record, unresolved: list[Record]) -> Pane | None:
        """The slow path: a new pane, one that has fired, one that was final before us, or one that is final now."""
        config = self.config
        start = record.event.time_ms - record.event.time_ms % config.hop_ms
        sealed = stream.sealed_before_ms
        if sealed is None or (start < sealed and start not in stream.stored):
            unresolved.append(record)
            return None
        if start < sealed:
            known = stream.stored[start]
            if known is not None and record.offset in known.members[modality]:
                # read again after a restart: its window is final and stored, so it is finished
                offsets = tuple((record.offset,) if m == modality else () for m in range(len(MODALITIES)))
                self._out.append(Finished(stream.name, start, offsets))
            else:
                self._out.append(Late(modality, record, sealed - start))
            return None
        if start < stream.final_before_ms:
            self._out.append(Late(modality, record, stream.final_before_ms - start))
            return None
        if stream.silent:
            stream.silent = False
            self._out.append(Silent(stream.name, stream.newest_ms, False))
        pane = stream.fired.get(start)
        if pane is None:
            pane = Pane(start)
            final_at = start + config.size_ms + config.allowed_lateness_ms
            heapq.heappush(self._closing, (final_at, stream.name))
            if stream.watermark_ms < start + config.hop_ms:
                stream.open[start] = pane
                self._schedule(stream, start + config.hop_ms)
                return pane
            stream.fired[start] = pane  # windows that hold it are past their time already
        stream.touched.add(start)
        self._schedule(stream, start + config.hop_ms)
        return pane

    def _schedule(self, stream: _Stream, end_ms: int) -> None:
        if stream.next_end_ms is None or end_ms < stream.next_end_ms:
            stream.next_end_ms = end_ms
            heapq.heappush(self._due, (end_ms, stream.name))

    # -- what the store knows ----------------------------------------------------------------------------------------

    def unknown(self, records: Iterable[Record]) -> dict[str, set[int]]:
        """Pane starts to look up, per stream, for records that `push` handed back."""
        asked: dict[str, set[int]] = {}
        for record in records:
            time_ms = record.event.time_ms
            asked.setdefault(record.stream, set()).add(time_ms - time_ms % self.config.hop_ms)
        return asked

    def is_restored(self, stream: str) -> bool:
        state = self._streams.get(stream)
        return state is not None and state.sealed_before_ms is not None

    def restore(
        self, stream: str, sealed_before_ms: int | None, stored: Iterable[StoredWindow], looked_up: Iterable[int] = ()
    ) -> None:
        """Tell what the store knows of a stream.

        `sealed_before_ms`: windows that start before it were final, as the last stored window says (None: nothing
        says so). `stored`: all stored windows from there on, and those among `looked_up`, the pane starts asked for.
        A stored window that holds a record before our resume offset was final as well: its records were released.
        """
        state = self._streams.setdefault(stream, _Stream(stream, None))
        windows = {window.start_ms: window for window in stored}
        sealed = max(
            state.sealed_before_ms or _LONG_AGO,
            sealed_before_ms if sealed_before_ms is not None else _LONG_AGO,
            *(
                window.start_ms + self.config.hop_ms
                for window in windows.values()
                if any(m and min(m) < resume for m, resume in zip(window.members, self._resume, strict=True))
            ),
        )
        state.stored.update(dict.fromkeys(looked_up))
        state.stored.update(windows)
        state.sealed_before_ms = sealed

    def sealed_before(self, stream: str) -> int | None:
        """Windows of the stream that start before this were final before this operator began."""
        state = self._streams.get(stream)
        sealed = state.sealed_before_ms if state is not None else None
        return sealed if sealed is not None and sealed > _LONG_AGO else None

    # -- time ----------------------------------------------------------------------------------------------------

    def tick(self, idle_clock_ms: int, idle: Sequence[bool]) -> None:
        """Move the idle clock, and say which modalities' partitions are caught up and quiet for `idle_timeout`.

        The idle clock must stand still while any input is backlogged or we are back-pressured: a backlogged input is
        never mistaken for a quiet one.
        """
        self._idle_clock_ms = max(self._idle_clock_ms, idle_clock_ms)
        self._idle = list(idle)
        self._ticked = True

    def ahead(self) -> list[bool]:
        """Which modalities run more than `max_drift` ahead of the slowest that is not idle, and should be paused."""
        first = self._first_ms
        if first is None:
            return [False] * len(MODALITIES)
        reads = zip(self._read_ms, self._idle, strict=True)
        busy = [read if read > _LONG_AGO else first for read, idle in reads if not idle]
        slowest = min(busy, default=max(self._read_ms))
        return [read - slowest > self.config.max_drift_ms for read in self._read_ms]

    def watermark_delay_ms(self) -> int | None:
        """How far the inputs' watermark is behind the newest event read; None while some input holds everything."""
        inputs, newest = self._inputs_ms(), max(self._read_ms)
        if inputs <= _LONG_AGO or newest == _LONG_AGO:
            return None
        return max(0, newest - inputs)

    @property
    def open_panes(self) -> int:
        return sum(len(s.open) for s in self._streams.values())

    def advance(self) -> list[Output]:
        """Everything that follows from what was pushed and ticked, in the order it must be worked on."""
        self._fire_due()
        if self._ticked:
            self._ticked = False
            self._flush_silent()
        self._close_final()
        out, self._out = self._out, []
        return out

    def _inputs_ms(self) -> int:
        """What every modality that is not idle has been read past, less its disorder bound."""
        return min(
            (
                read - disorder
                for read, disorder, idle in zip(self._read_ms, self.config.disorder_ms, self._idle, strict=True)
                if not idle
            ),
            default=_FAR_AHEAD,
        )

    def _fire_due(self) -> None:
        inputs, due = self._inputs_ms(), self._due
        waiting: list[tuple[int, str]] = []
        while due and due[0][0] <= inputs:
            entry = heapq.heappop(due)
            end, name = entry
            stream = self._streams[name]
            if stream.next_end_ms != end:
                continue  # an earlier entry took its place
            stream.watermark_ms = max(stream.watermark_ms, min(stream.newest_ms, inputs))
            if end > stream.watermark_ms:
                waiting.append(entry)
            else:
                self._fire_through(stream, stream.watermark_ms)
        for entry in waiting:
            heapq.heappush(due, entry)

    def _fire_through(self, stream: _Stream, end_ms: int) -> None:
        """Fire every window that ends by `end_ms` and is new or has something new, in order of its end."""
        size, hop = self.config.size_ms, self.config.hop_ms
        starts: set[int] = set()
        for pane_start in [s for s in stream.open if s + hop <= end_ms]:
            stream.fired[pane_start] = stream.open.pop(pane_start)
            stream.touched.add(pane_start)
        for pane_start in [s for s in stream.touched if s + hop <= end_ms]:
            stream.touched.remove(pane_start)
            changed, repeats = stream.fired[pane_start].tidy()
            if changed:
                starts.update(range(pane_start + hop - size, pane_start + hop, hop))
            elif repeats:
                starts.add(pane_start)  # the home window tells of repeats
        if size > hop:  # a pane that fired before may belong to windows that end only now
            for pane_start in stream.fired:
                holders = range(pane_start + hop - size, pane_start + hop, hop)
                starts.update(s for s in holders if s not in stream.firings)
        # windows that are final already are left alone
        final = max(stream.final_before_ms, stream.sealed_before_ms or _LONG_AGO)
        starts = {s for s in starts if s >= final}
        for start in sorted(starts):
            if start + size <= end_ms:
                self._fire(stream, start)
        pending = [s + hop for s in (*stream.open, *stream.touched)]
        pending += [s + size for s in starts if s not in stream.firings]
        stream.next_end_ms = None
        if pending:
            self._schedule(stream, min(pending))

    def _fire(self, stream: _Stream, start: int) -> None:
        size, hop, fired = self.config.size_ms, self.config.hop_ms, stream.fired
        firing = stream.firings.get(start, -1) + 1
        stream.firings[start] = firing
        home = fired.get(start)
        # copies: a late event sorts into its pane while the window is on its way
        if size == hop and home is not None:
            contents = [list(events) for events in home.events]
        else:
            panes = [fired[s] for s in range(start, start + size, hop) if s in fired]
            contents = [[e for pane in panes for e in pane.events[m]] for m in range(len(MODALITIES))]
        self._out.append(
            Fired(
                stream.name,
                start,
                start + size,
                firing,
                contents[0],
                contents[1],
                contents[2],
                home.counts if home else (0, 0, 0),
                home.duplicates if home else 0,
                home.origins() if home else ((), (), ()),
                stream.stored.get(start),
            )
        )

    def _flush_silent(self) -> None:
        """Close the windows of streams that were not heard for `idle_timeout` on the idle clock."""
        now, config = self._idle_clock_ms, self.config
        for stream in self._streams.values():
            quiet_ms = now - stream.heard_at_ms
            if quiet_ms < config.idle_timeout_ms or not (stream.open or stream.fired):
                continue
            last = max((*stream.open, *stream.fired))
            if stream.open or stream.touched:
                self._fire_through(stream, last + config.size_ms)
            if not stream.silent:
                stream.silent = True
                self._out.append(Silent(stream.name, stream.newest_ms, True))
            if quiet_ms >= config.idle_timeout_ms + config.allowed_lateness_ms:
                for start in sorted(stream.fired):
                    self._close(stream, start)

    def _close_final(self) -> None:
        """Release the panes whose home window is final."""
        closing, inputs = self._closing, self._inputs_ms()
        reach = min(inputs, max(self._read_ms))  # no stream's watermark is past this
        waiting: list[tuple[int, str]] = []
        while closing and closing[0][0] <= reach:
            entry = heapq.heappop(closing)
            final_at, name = entry
            stream = self._streams[name]
            stream.watermark_ms = max(stream.watermark_ms, min(stream.newest_ms, inputs))
            if stream.watermark_ms < final_at:
                waiting.append(entry)
            else:
                self._close(stream, final_at - self.config.size_ms - self.config.allowed_lateness_ms)
        for entry in waiting:
            heapq.heappush(closing, entry)

    def _close(self, stream: _Stream, start: int) -> None:
        stream.final_before_ms = max(stream.final_before_ms, start + self.config.hop_ms)
        pane = stream.fired.pop(start, None)
        stream.touched.discard(start)
        stream.stored.pop(start, None)
        for window in [w for w in stream.firings if w < stream.final_before_ms]:
            del stream.firings[window]
        if pane is not None:
            self._out.append(Finished(stream.name, start, pane.origins()))
