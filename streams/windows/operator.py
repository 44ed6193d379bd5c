"""Event time: panes, watermarks, firing, revisions, lateness. Pure: no I/O, and time only as an argument.

One `PartitionWindows` runs per partition *number*: the three input topics are co-partitioned, so it sees every
modality of its streams. Streams are isolated: what a stream's windows hold, and in which order of its own events they
fire, follows from the stream's own events alone (`watermark.StreamClock`). A window [start, end) fires when the
stream's watermark reaches `end`, and is final when it reaches `end + allowed_lateness`; in between, a late event fires
it again. Only a stream that stops is closed by time that is not its own: by the idle clock, which moves while the
inputs are caught up, and in a backlog by how far the partition has been read on without it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from streams.events.types import MODALITIES, Reason
from streams.windows.pane import Arrivals
from streams.windows.stopping import StoppingStreams
from streams.windows.stream import StreamWindows
from streams.windows.types import (
    Late,
    Output,
    PaneFinal,
    Record,
    Refused,
    StoredWindow,
    StreamIdle,
    WindowConfig,
)
from streams.windows.watermark import FAR_AHEAD, LONG_AGO

_TYPICAL = 15  # streams that are looked at for the delay of the watermark
_LOOKUPS_KEPT = 4096  # stored windows remembered per stream; beyond that the final ones are looked up again


class StreamLimit:
    """How many streams may be held at once, shared by the partitions of one worker."""

    __slots__ = ("held", "limit")

    def __init__(self, limit: int = FAR_AHEAD) -> None:
        self.limit = limit
        self.held = 0


class PartitionWindows:
    """The window operator of one partition number.

    `push` takes records, `advance` gives what follows from them, `tick` moves the idle clocks. With `lookup`, `push`
    hands back the records whose stream (or pane) must be looked up in the store first: `restore`, then push again.
    """

    def __init__(
        self,
        config: WindowConfig,
        resume: Sequence[int] = (0, 0, 0),
        *,
        lookup: bool = False,
        limit: StreamLimit | None = None,
    ) -> None:
        """`resume`: the first offset that will be read of each modality."""
        self.config = config
        self._resume = tuple(resume)
        self._lookup = lookup
        self._limit = limit or StreamLimit()
        self._streams: dict[str, StreamWindows] = {}
        # of streams that are gone: windows that start before this are final, so are these, and when it fell silent
        self._forgotten: dict[str, tuple[int, frozenset[int], int | None]] = {}
        self._ticked = False
        self._input_clocks_ms = [0, 0, 0]
        # whether a window can wait for a modality for longer than the smallest disorder bound
        self._may_wait = max(*config.disorder_ms, *config.max_wait_ms) > config.least_disorder_ms
        self._waiting: dict[str, StreamWindows] = {}  # streams that wait for a modality longer than its disorder bound
        self._out: deque[Output] = deque()
        self._stopping = StoppingStreams(config, self._streams, self._waiting, self._out)

    # -- input ---------------------------------------------------------------------------------------------------

    def push(self, modality: int, records: Sequence[Record], read_ms: int | None = None) -> list[Record]:
        """Take events of one modality in the order read. Returns what needs `restore` first.

        `read_ms`: Kafka timestamp of the newest of these records; None leaves the partition where it was.
        """
        if not records:
            return []
        if read_ms is not None:
            self._stopping.move_front(read_ms)
        hop, most = self.config.hop_ms, self.config.max_pane_events
        streams, clock = self._streams, self._stopping.idle_clock_ms
        input_clock = self._input_clocks_ms[modality] if self._may_wait else None
        unresolved: list[Record] = []
        for record in records:
            time_ms = record.event.time_ms
            stream = streams.get(record.stream)
            if stream is None and (stream := self._begin(modality, record)) is None:
                continue
            arrivals = stream.open[modality].get(time_ms - time_ms % hop)
            if arrivals is None and (arrivals := self._find_pane(stream, modality, record, unresolved)) is None:
                continue
            events, offsets = arrivals
            if len(events) >= most:
                self._refuse_event(modality, record)
                continue
            events.append(record.event)
            offsets.append(record.offset)
            stream.last_event_at = clock
            if input_clock is not None:
                stream.last_of_modality_at[modality] = input_clock
            if time_ms >= stream.look_at_ms:
                self._advance(stream, modality, time_ms)
                continue
            newest = stream.newest
            if time_ms > newest[modality]:
                newest[modality] = time_ms
        return unresolved

    def _begin(self, modality: int, record: Record) -> StreamWindows | None:
        name, limit = record.stream, self._limit
        if limit.held >= limit.limit:
            detail = f"{limit.held} streams are held already (window.max_streams); are keys unique per message?"
            self._out.append(Refused(modality, record, Reason.TOO_MANY_STREAMS, detail))
            return None
        return self._new_stream(name)

    def _new_stream(self, name: str) -> StreamWindows:
        self._limit.held += 1
        stream = self._streams[name] = StreamWindows(name, self.config, None if self._lookup else LONG_AGO)
        if name in self._forgotten:
            stream.final_before_ms, stream.final_ahead, silent_since_ms = self._forgotten.pop(name)
            self._stopping.set_silent(stream, silent_since_ms)
        return stream

    def _find_pane(
        self, stream: StreamWindows, modality: int, record: Record, unresolved: list[Record]
    ) -> Arrivals | None:
        """The slow path: a new pane, one that has fired, one that was final before us, or one that is final now."""
        start = record.event.time_ms - record.event.time_ms % self.config.hop_ms
        restored_before = stream.restored_before_ms
        if restored_before is None or (start < restored_before and start not in stream.stored):
            unresolved.append(record)
            return None
        if start < restored_before:
            known = stream.stored[start]
            if known is not None and record.offset in known.members[modality]:
                # read again after a restart: its window is final and stored, so it is final itself
                offsets = tuple((record.offset,) if m == modality else () for m in range(len(MODALITIES)))
                self._out.append(PaneFinal(stream.name, start, offsets))
                # the clock goes on as it did when this record was read first
                self._advance(stream, modality, record.event.time_ms)
            else:
                late_ms = restored_before - self.config.hop_ms - start + self.config.allowed_lateness_ms
                self._out.append(Late(modality, record, late_ms))
            return None
        own = stream.clock.own_ms
        if record.event.time_ms < own:
            stream.note_watermark()  # it is moved only where something is to be done: here it decides
        behind_ms = stream.late_ms(start)
        if behind_ms is not None:
            self._out.append(Late(modality, record, behind_ms))
            return None
        if stream.silent_since_ms is not None and record.event.time_ms > stream.silent_since_ms:
            # not one that is read again after a restart
            stream.silent_since_ms = None
            self._stopping.silent.discard(stream.name)
            self._out.append(StreamIdle(stream.name, record.event.time_ms, True))
        quiet_at = self._stopping.idle_clock_ms + stream.clock.quiet_after_ms()
        if stream.check_at is None or stream.check_at > quiet_at:  # resumed, or its interval has become shorter
            self._stopping.check(stream, quiet_at)
        if stream.is_empty:
            self._stopping.note_advance(stream)
        if stream.left_behind_at is None:
            self._stopping.follow(stream)
        arrivals = stream.arrivals(start, modality)
        if self._may_wait and start in stream.open[modality] and own >= stream.due_ms(start):
            self._waiting[stream.name] = stream
        return arrivals

    def _refuse_event(self, modality: int, record: Record) -> None:
        most = self.config.max_pane_events
        detail = f"its stream has {most} events of this modality in one pane already (window.max_pane_events)"
        self._out.append(Refused(modality, record, Reason.TOO_MANY_EVENTS, detail))

    def _advance(self, stream: StreamWindows, modality: int, time_ms: int) -> None:
        stream.clock.observe(modality, time_ms)
        stream.advance(self._out.append)
        if self._may_wait:
            self._wait_or_not(stream)

    def _wait_or_not(self, stream: StreamWindows) -> None:
        """Remember streams whose windows would fire now if the modalities that they wait for were idle."""
        if stream.clock.own_ms >= stream.next_ms:
            self._waiting[stream.name] = stream
        else:
            self._waiting.pop(stream.name, None)

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
        return state is not None and state.restored_before_ms is not None

    def restore(
        self,
        stream: str,
        final_before_ms: int | None,
        stored: Iterable[StoredWindow],
        looked_up: Iterable[int] = (),
        *,
        interval_ms: int | None = None,
        silent_since_ms: int | None = None,
    ) -> None:
        """Take what the store knows of a stream.

        `final_before_ms`: windows that start before it were final, as the last stored window says (None: nothing
        says so). `stored`: all stored windows from there on, and those among `looked_up`, the pane starts asked for.
        A stored window was final as well if it holds a record before our resume offset (its records were released, or
        are gone), or records of another partition or of a topic that is no more: it cannot be built again as a whole.
        `interval_ms`: the stream's usual interval; `silent_since_ms`: its newest event, if it was reported as silent.
        """
        state = self._streams.get(stream) or self._new_stream(stream)
        windows = {window.start_ms: window for window in stored}
        final_ones = [
            window
            for window in windows.values()
            if window.foreign
            or any(m and min(m) < resume for m, resume in zip(window.members, self._resume, strict=True))
        ]
        state.final_ahead |= {window.start_ms for window in final_ones if window.ahead}
        final = max(
            state.final_before_ms if state.restored_before_ms is None else state.restored_before_ms,
            LONG_AGO if final_before_ms is None else final_before_ms,
            *(window.start_ms + self.config.hop_ms for window in final_ones if not window.ahead),
        )
        if len(state.stored) > _LOOKUPS_KEPT:
            state.stored = {start: known for start, known in state.stored.items() if start >= final}
        state.stored.update(dict.fromkeys(looked_up))
        state.stored.update(windows)
        if state.restored_before_ms is None:
            state.clock.restore_interval(interval_ms)
            if state.silent_since_ms is None:
                self._stopping.set_silent(state, silent_since_ms)
        state.restored_before_ms = final

    def final_before(self, stream: str) -> int | None:
        """Windows of the stream that start before this were final before this operator began."""
        state = self._streams.get(stream)
        final = state.restored_before_ms if state is not None else None
        return final if final is not None and final > LONG_AGO else None

    def forget(self, stream: str, final_start_ms: int) -> bool:
        """Drop a quiet stream with nothing open whose last window, that of `final_start_ms`, is stored."""
        state = self._streams.get(stream)
        if state is None or not state.is_empty or state.check_at is not None or state.last_pane_ms != final_start_ms:
            return False
        del self._streams[stream]
        self._limit.held -= 1
        self._waiting.pop(stream, None)
        final_ms = max(state.final_before_ms, state.restored_before_ms or LONG_AGO)
        self._forgotten[stream] = final_ms, state.final_ahead, state.silent_since_ms
        return True

    def release(self) -> None:
        """The partition is revoked: its streams do not count any more."""
        self._limit.held -= len(self._streams)
        self._streams.clear()

    # -- time ----------------------------------------------------------------------------------------------------

    def tick(self, idle_clock_ms: int, input_clocks_ms: Sequence[int]) -> None:
        """Move the idle clock, and that of each modality's input.

        A clock moves while its input (the idle clock: all three) is caught up, as the broker confirmed, and we are
        not back-pressured: a backlogged input is never mistaken for a quiet one.
        """
        self._ticked = True
        self._stopping.idle_clock_ms = max(self._stopping.idle_clock_ms, idle_clock_ms)
        self._input_clocks_ms = [max(a, b) for a, b in zip(self._input_clocks_ms, input_clocks_ms, strict=True)]

    def advance(self, at_most: int = FAR_AHEAD) -> list[Output]:
        """What follows from what was pushed and ticked, in the order it must be worked on, `at_most` outputs or so.

        Call it again until it gives nothing.
        """
        out = self._out
        if self._ticked:  # not with every push: when a stream's windows fire must not follow from the events of others
            self._ticked = False
            self._fire_idle()
        if len(out) < at_most:
            self._stopping.close_left_behind(at_most)
            self._stopping.close_quiet(at_most)
        return [out.popleft() for _ in range(min(len(out), at_most))]

    def watermark_delay_ms(self) -> int | None:
        """How far a typical stream's watermark is behind its own clock (the median of a few)."""
        delays = []
        for stream, _ in zip(self._streams.values(), range(_TYPICAL), strict=False):
            own = stream.clock.own_ms
            if own > LONG_AGO and stream.watermark_ms > LONG_AGO:
                delays.append(own - stream.watermark_ms)
        return sorted(delays)[len(delays) // 2] if delays else None

    @property
    def open_panes(self) -> int:
        return sum(len(s.open_panes) for s in self._streams.values())

    @property
    def streams(self) -> int:
        """Streams that are held in memory."""
        return len(self._streams)

    @property
    def silent_streams(self) -> int:
        """Streams that were reported as silent, also those that are no longer held in memory."""
        return len(self._stopping.silent)

    def _fire_idle(self) -> None:
        """Windows that wait only for modalities of which nothing has come for `idle_timeout`, their input caught up."""
        if not self._waiting:
            return
        timeout = self.config.idle_timeout_ms
        for stream in list(self._waiting.values()):
            idle = [
                clock - at >= timeout
                for clock, at in zip(self._input_clocks_ms, stream.last_of_modality_at, strict=True)
            ]
            if any(idle):
                stream.advance(self._out.append, idle)
                self._wait_or_not(stream)
