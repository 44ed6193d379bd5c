"""Event time: panes, watermarks, firing, revisions, lateness. Pure: no I/O, and time only as an argument.

One `PartitionWindows` runs per partition *number*: the three input topics are co-partitioned, so it sees every
modality of its streams. A stream's windows are driven by its watermark,

    min(own clock, min over modalities (what the modality's partition has been read past - its disorder bound)),

where the own clock is the newest event time of the stream in any modality, and a modality whose partition is caught
up and quiet (told by `tick`) counts as read as far as any other was by then. A window [start, end) fires when the
watermark reaches `end`, and is final when it reaches `end + allowed_lateness`; in between, a late event fires it again.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence

from streams.events.types import MODALITIES
from streams.windows.pane import Pane
from streams.windows.stream import FAR_AHEAD, LONG_AGO, StreamWindows
from streams.windows.types import Finished, Fired, Late, Output, Record, Silent, StoredWindow, WindowConfig, window_id

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

_RECENT = 63  # records of an input that tell where in event time it is
_LOOKUPS_KEPT = 4096  # stored windows remembered per stream; beyond that the final ones are looked up again


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
        self._streams: dict[str, StreamWindows] = {}
        self._forgotten: dict[str, int] = {}  # of streams that are gone: windows that start before this are final
        self._read_ms = [LONG_AGO] * len(MODALITIES)  # what each modality's partition has been read past
        self._idle = [False] * len(MODALITIES)
        self._idle_ms = LONG_AGO  # up to there in event time, inputs that are idle have nothing
        self._idle_clock_ms = 0
        self._recent: list[deque[int]] = [deque(maxlen=_RECENT) for _ in MODALITIES]  # event times read last
        self._first_ms: int | None = None  # where the first input to speak began
        self._passed_ms = LONG_AGO  # the inputs' watermark when we last advanced: it never goes back
        self._ticked = False  # nothing was read since the last tick
        self._past: dict[str, StreamWindows] = {}  # streams from the past
        self._due: list[tuple[int, str]] = []  # heap of (watermark at which a stream has something to do, stream)
        self._quiet: list[tuple[int, str]] = []  # heap of (idle clock at which a stream may be silent, stream)
        self._out: list[Output] = []

    # -- input ---------------------------------------------------------------------------------------------------

    def push(self, modality: int, records: Sequence[Record]) -> list[Record]:
        """Take events of one modality in the order read. Fires nothing. Returns what needs `restore` first."""
        hop = self.config.hop_ms
        streams, clock = self._streams, self._idle_clock_ms
        read_ms = self._read_ms[modality]
        unresolved: list[Record] = []
        if records:
            self._idle[modality] = False  # it is anything but quiet; `tick` will say when it is again
            self._ticked = False
        for record in records:
            event, name = record.event, record.stream
            time_ms = event.time_ms
            if time_ms > read_ms:
                read_ms = time_ms
            stream = streams.get(name) or self._begin(name)
            pane = stream.open.get(time_ms - time_ms % hop)
            if pane is None and (pane := self._find_pane(stream, modality, record, unresolved)) is None:
                continue
            pane.events[modality].append(event)
            pane.offsets[modality].append(record.offset)
            stream.heard_at_ms = clock
            if time_ms > stream.newest_ms:
                stream.newest_ms = time_ms
                if time_ms >= stream.wake_ms:
                    self._schedule(stream, stream.wake_ms)
        if records:
            self._read_ms[modality] = read_ms
            self._recent[modality].extend([record.event.time_ms for record in records[-_RECENT:]])
            if self._first_ms is None:
                self._first_ms = self._front_ms(modality)
        return unresolved

    def _begin(self, name: str) -> StreamWindows:
        stream = self._streams[name] = StreamWindows(name, self.config, None if self._lookup else LONG_AGO)
        if not self._lookup:
            stream.final_before_ms = self._forgotten.pop(name, LONG_AGO)
        return stream

    def _find_pane(self, stream: StreamWindows, modality: int, record: Record, unresolved: list[Record]) -> Pane | None:
        """The slow path: a new pane, one that has fired, one that was final before us, or one that is final now."""
        hop, clock = self.config.hop_ms, self._idle_clock_ms
        start = record.event.time_ms - record.event.time_ms % hop
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
                late_ms = sealed - hop - start + self.config.allowed_lateness_ms
                self._out.append(Late(modality, record, late_ms))
            return None
        if stream.newest_ms == LONG_AGO and self._is_past(start):
            stream.is_past = True
            self._past[stream.name] = stream
        behind_ms = stream.late_ms(start, self._passed_ms)
        if behind_ms is not None:
            self._out.append(Late(modality, record, behind_ms))
            return None
        if stream.silent:
            stream.silent = False
            stream.quiet_at_ms = None
            self._out.append(Silent(stream.name, stream.newest_ms, False))
        if stream.quiet_at_ms is None:
            self._watch(stream, clock + self.config.idle_timeout_ms)
        self._schedule(stream, start + hop)
        return stream.pane(start)

    def _schedule(self, stream: StreamWindows, when_ms: int | None) -> None:
        """Look at a stream when the inputs have passed `when_ms`, or earlier where it stands for something earlier."""
        if stream.is_past:
            return  # looked at after every tick
        when_ms = FAR_AHEAD if when_ms is None else when_ms
        if stream.due_ms is not None:
            when_ms = min(when_ms, stream.due_ms)
        when_ms, stream.wake_ms = min(when_ms, stream.wake_ms), FAR_AHEAD
        if when_ms < FAR_AHEAD and when_ms != stream.due_ms:
            stream.due_ms = when_ms
            heapq.heappush(self._due, (when_ms, stream.name))

    def _watch(self, stream: StreamWindows, at_ms: int) -> None:
        stream.quiet_at_ms = at_ms
        heapq.heappush(self._quiet, (at_ms, stream.name))

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
        state = self._streams.get(stream) or self._begin(stream)
        windows = {window.start_ms: window for window in stored}
        sealed = max(
            LONG_AGO if state.sealed_before_ms is None else state.sealed_before_ms,
            LONG_AGO if sealed_before_ms is None else sealed_before_ms,
            self._forgotten.pop(stream, LONG_AGO),
            *(
                window.start_ms + self.config.hop_ms
                for window in windows.values()
                if any(m and min(m) < resume for m, resume in zip(window.members, self._resume, strict=True))
            ),
        )
        if len(state.stored) > _LOOKUPS_KEPT:
            state.stored = {start: known for start, known in state.stored.items() if start >= sealed}
        state.stored.update(dict.fromkeys(looked_up))
        state.stored.update(windows)
        state.sealed_before_ms = sealed

    def sealed_before(self, stream: str) -> int | None:
        """Windows of the stream that start before this were final before this operator began."""
        state = self._streams.get(stream)
        sealed = state.sealed_before_ms if state is not None else None
        return sealed if sealed is not None and sealed > LONG_AGO else None

    def forget(self, stream: str, finished_ms: int) -> bool:
        """Drop a silent stream with nothing open whose last window, that of `finished_ms`, is stored."""
        state = self._streams.get(stream)
        if state is None or not state.silent or not state.is_empty or state.closed_ms != finished_ms:
            return False
        del self._streams[stream]
        self._past.pop(stream, None)
        self._forgotten[stream] = max(state.final_before_ms, state.sealed_before_ms or LONG_AGO)
        return True

    # -- time ----------------------------------------------------------------------------------------------------

    def tick(self, idle_clock_ms: int, idle: Sequence[bool]) -> None:
        """Move the idle clock, and say which modalities' partitions are caught up and quiet for `idle_timeout`.

        The idle clock must stand still while any input is backlogged or we are back-pressured: a backlogged input is
        never mistaken for a quiet one. An idle input counts as read as far as the others have been until now; whether
        it has something to add to what they read after this tick, only the next one can say.
        """
        self._idle_clock_ms = max(self._idle_clock_ms, idle_clock_ms)
        self._idle = list(idle)
        self._idle_ms = max(self._read_ms)
        self._ticked = True

    def ahead(self) -> list[bool]:
        """Which modalities run more than `max_drift` ahead of the slowest that is not idle, and should be paused.

        An input is where the middle of what was read last is: one fast clock pauses nobody.
        """
        first = self._first_ms
        if first is None:
            return [False] * len(MODALITIES)
        fronts = [self._front_ms(m) if recent else first for m, recent in enumerate(self._recent)]
        slowest = min((f for f, idle in zip(fronts, self._idle, strict=True) if not idle), default=max(fronts))
        return [front - slowest > self.config.max_drift_ms for front in fronts]

    def _front_ms(self, modality: int) -> int:
        recent = sorted(self._recent[modality])
        return recent[len(recent) // 2]

    def watermark_delay_ms(self) -> int | None:
        """How far the inputs' watermark is behind the newest event read; None while some input holds everything."""
        inputs, newest = self._inputs_ms(), max(self._read_ms)
        if inputs <= LONG_AGO or newest == LONG_AGO:
            return None
        return max(0, newest - inputs)

    @property
    def open_panes(self) -> int:
        return sum(len(s.open) for s in self._streams.values())

    @property
    def streams(self) -> int:
        """Streams that are held in memory."""
        return len(self._streams)

    def advance(self, at_most: int = FAR_AHEAD) -> list[Output]:
        """What follows from what was pushed and ticked, in the order it must be worked on.

        Once there are `at_most` outputs or more, the rest is left for the next call.
        """
        inputs = self._passed_ms = max(self._passed_ms, self._inputs_ms())
        self._move_past()
        self._move_due(inputs, at_most)
        self._close_quiet(at_most)
        out, self._out = self._out, []
        return out

    def _inputs_ms(self) -> int:
        """What every modality has been read past, or is known to have nothing before, less its disorder bound."""
        return min(
            (max(read, self._idle_ms) if idle else read) - disorder
            for read, disorder, idle in zip(self._read_ms, self.config.disorder_ms, self._idle, strict=True)
        )

    def _is_past(self, time_ms: int) -> bool:
        """Whether a window that starts there is final by what the inputs have been read past."""
        return time_ms + self.config.size_ms + self.config.allowed_lateness_ms <= self._passed_ms

    def _move_past(self) -> None:
        """Streams from the past (an old recording, replayed among others): what the inputs have been read past says
        nothing of them. Their own events do, in each modality; an idle input has nothing more of what was read.
        """
        if not self._ticked:
            return
        for stream in list(self._past.values()):
            if not self._is_past(stream.newest_ms):
                stream.is_past = False
                del self._past[stream.name]
                self._reschedule(stream)
            elif not stream.is_empty:
                inputs = min(
                    (stream.newest_ms if idle else stream.newest_of(modality)) - self.config.disorder_ms[modality]
                    for modality, idle in enumerate(self._idle)
                )
                stream.move_to(min(stream.newest_ms, inputs), self._out.append)

    def _move_due(self, inputs: int, at_most: int) -> None:
        due, streams, out = self._due, self._streams, self._out
        while due and due[0][0] <= inputs and len(out) < at_most:
            when, name = heapq.heappop(due)
            stream = streams.get(name)
            if stream is None or stream.due_ms != when:
                continue  # an earlier entry took its place
            stream.move_to(min(stream.newest_ms, inputs), out.append)
            self._reschedule(stream)

    def _reschedule(self, stream: StreamWindows) -> None:
        """Back into the heap if the stream waits for the inputs; if it waits for its own clock, `push` will tell."""
        stream.due_ms, stream.wake_ms = None, FAR_AHEAD
        when = stream.next_ms()
        if when is not None and when > stream.newest_ms:
            stream.wake_ms = when
        else:
            self._schedule(stream, when)

    def _close_quiet(self, at_most: int) -> None:
        """Close the windows of streams that were not heard for `idle_timeout` on the idle clock."""
        now, config, quiet, out = self._idle_clock_ms, self.config, self._quiet, self._out
        while quiet and quiet[0][0] <= now and len(out) < at_most:
            at_ms, name = heapq.heappop(quiet)
            stream = self._streams.get(name)
            if stream is None or stream.quiet_at_ms != at_ms:
                continue
            quiet_ms = now - stream.heard_at_ms
            if stream.is_empty:
                stream.quiet_at_ms = None
            elif quiet_ms < config.idle_timeout_ms:
                self._watch(stream, stream.heard_at_ms + config.idle_timeout_ms)
            else:
                stream.fall_silent(out.append)
                if not stream.silent:
                    stream.silent = True
                    out.append(Silent(name, stream.newest_ms, True))
                if quiet_ms >= config.idle_timeout_ms + config.allowed_lateness_ms:
                    stream.close_all(out.append)
                    stream.quiet_at_ms = None
                else:
                    close_at_ms = stream.heard_at_ms + config.idle_timeout_ms + config.allowed_lateness_ms
                    self._watch(stream, close_at_ms)
                self._reschedule(stream)
