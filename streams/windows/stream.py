"""The windows of one stream: its panes, what has fired, what is final, and when to look at it next. Pure.

`PartitionWindows` feeds it events and quiet time; everything else follows from the stream's own events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streams.events.types import MODALITIES
from streams.windows.pane import Arrivals, Pane
from streams.windows.types import Fired, Output, PaneFinal, StoredWindow, WindowConfig
from streams.windows.watermark import FAR_AHEAD, LONG_AGO, StreamClock


class StreamWindows:
    """Panes are `open` until a window that holds them has fired, then `fired` until their home window is final."""

    __slots__ = (
        "advanced_at_clock",
        "advanced_at_front",
        "advanced_own_ms",
        "check_at",
        "clock",
        "config",
        "dirty",
        "final_ahead",
        "final_before_ms",
        "fired",
        "firings",
        "last_event_at",
        "last_fired_event_ms",
        "last_of_modality_at",
        "last_pane_ms",
        "left_behind_at",
        "look_at_ms",
        "name",
        "newest",
        "next_ms",
        "open",
        "pending",
        "restored_before_ms",
        "silent_since_ms",
        "stored",
        "watermark_ms",
    )

    def __init__(self, name: str, config: WindowConfig, restored_before_ms: int | None) -> None:
        self.name = name
        self.config = config
        self.clock = StreamClock(config)
        self.newest = self.clock.newest  # the same list: the newest event time per modality
        self.watermark_ms = LONG_AGO
        self.restored_before_ms = restored_before_ms  # windows before it were final before we began; None: not known
        self.final_before_ms = LONG_AGO  # windows that start before this are final
        self.final_ahead: frozenset[int] = frozenset()  # starts ahead of the own clock that are final too
        # what arrived of panes that no window has fired of, by start, per modality
        self.open: tuple[dict[int, Arrivals], ...] = ({}, {}, {})
        self.fired: dict[int, Pane] = {}
        self.dirty: set[int] = set()  # starts of fired panes that got something since
        self.pending: set[int] = set()  # starts of windows with something new that have not fired
        self.firings: dict[int, int] = {}  # window start -> number of its last firing
        self.stored: dict[int, StoredWindow | None] = {}
        self.next_ms = LONG_AGO  # own clock at which a window may have to fire or a pane to be released
        self.look_at_ms = LONG_AGO  # event time of an own event at which something may have to be done
        self.last_event_at = 0  # on the partition's idle clock
        self.last_of_modality_at = [0, 0, 0]  # on the idle clock of each modality's input
        self.check_at: int | None = None  # the idle clock at which to see whether the stream is quiet
        self.left_behind_at: int | None = None  # how far the partition may be read on without an event of this stream
        self.silent_since_ms: int | None = None  # its newest event when it was reported as silent
        self.last_pane_ms: int | None = None  # start of the last pane that became final
        self.last_fired_event_ms = LONG_AGO
        self.advanced_own_ms = LONG_AGO  # the own clock when it was last seen to have moved,
        self.advanced_at_front = LONG_AGO  # how far the partition had been read then,
        self.advanced_at_clock = 0  # and its idle clock

    # -- panes ---------------------------------------------------------------------------------------------------

    def late_ms(self, start_ms: int) -> int | None:
        """How far the watermark is past the home window of a pane, if that window is final; else None."""
        config = self.config
        behind = self.watermark_ms - start_ms - config.size_ms
        if behind >= config.allowed_lateness_ms:
            return behind
        if start_ms in self.final_ahead:
            return config.allowed_lateness_ms
        if start_ms < self.final_before_ms:  # closed because the stream stopped: as late as that makes it
            return self.final_before_ms - config.hop_ms - start_ms + config.allowed_lateness_ms
        return None

    def arrivals(self, start_ms: int, modality: int) -> Arrivals:
        """Where events of a pane go: a new pane, or one that has fired and gets something more."""
        pane = self.fired.get(start_ms)
        if pane is None:
            if self.watermark_ms < start_ms + self.config.hop_ms:
                arrivals: Arrivals = ([], [])
                self.open[modality][start_ms] = arrivals
                look_at_ms = self.due_ms(start_ms)
                if look_at_ms < self.look_at_ms:
                    self.look_at_ms = look_at_ms
                return arrivals
            pane = self.fired[start_ms] = Pane()  # windows that hold it are past their time already
        self.dirty.add(start_ms)
        self.look_at_ms = LONG_AGO
        return pane.arrived[modality]

    def due_ms(self, start_ms: int) -> int:
        """The least own clock at which a window that holds the pane may fire."""
        return start_ms + self.config.hop_ms + self.config.least_disorder_ms

    @property
    def is_empty(self) -> bool:
        return not self.fired and not any(self.open)

    @property
    def open_panes(self) -> set[int]:
        """Starts of the panes that no window has fired of."""
        sensors, sounds, captions = self.open
        return {*sensors, *sounds, *captions}

    def is_ahead(self, start_ms: int) -> bool:
        """Whether a pane or window begins ahead of the own clock, where there is one."""
        own = max(self.newest)
        return LONG_AGO < own < start_ms

    # -- time ----------------------------------------------------------------------------------------------------

    def advance(self, emit: Callable[[Output], None], idle: Sequence[bool] = (False, False, False)) -> None:
        """Do what the stream's own clocks call for: fire windows, release panes."""
        self.move_to(self.clock.watermark_ms(idle), emit)

    def note_watermark(self) -> None:
        """Let the watermark be where the stream's clocks say, nothing being due by then."""
        self.watermark_ms = max(self.watermark_ms, self.clock.watermark_ms())

    def move_to(self, watermark_ms: int, emit: Callable[[Output], None]) -> None:
        """Fire every window that ends by the watermark and has something new; release panes that are final by it."""
        if watermark_ms == LONG_AGO:  # no event is believed yet
            self.next_ms = FAR_AHEAD
            return
        if watermark_ms > self.watermark_ms:
            self.watermark_ms = watermark_ms
        config = self.config
        self.fire_through(self.watermark_ms, emit)
        final_ms = self.watermark_ms - config.size_ms - config.allowed_lateness_ms  # starts up to here are final
        if self.fired and min(self.fired) <= final_ms:
            for start in sorted([s for s in self.fired if s <= final_ms]):
                self._close(start, emit)
        self._settle(final_ms - final_ms % config.hop_ms + config.hop_ms)
        self.next_ms = self._next_ms()
        self.look_at_ms = LONG_AGO if self.clock.is_unsure else min(self.next_ms, self.clock.limit_ms + 1)

    def fire_all(self, emit: Callable[[Output], None]) -> None:
        """Fire everything there is; nothing more is expected."""
        if not self.is_empty:
            self.fire_through(max((*self.open_panes, *self.fired)) + self.config.size_ms, emit)
            self.look_at_ms = LONG_AGO

    def close_all(self, emit: Callable[[Output], None]) -> None:
        """Release everything that has fired.

        Panes ahead of the own clock hold an event that nothing confirmed: they make nothing before them final, only
        themselves and the windows that held them.
        """
        size, hop, own = self.config.size_ms, self.config.hop_ms, self.clock.own_ms
        for start in sorted(self.fired):
            self._close(start, emit)
            if start <= own:
                self._settle(start + hop)
            else:
                self.final_ahead |= frozenset(range(start + hop - size, start + hop, hop))

    def _next_ms(self) -> int:
        """The least own clock at which there may be something to do: a window to fire or a pane to release."""
        config, when = self.config, FAR_AHEAD
        for opened in self.open:
            if opened:
                when = min(when, min(opened) + config.hop_ms)
        if self.dirty:
            when = min(when, min(self.dirty) + config.hop_ms)
        if self.pending:
            when = min(when, min(self.pending) + config.size_ms)
        if self.fired:
            when = min(when, min(self.fired) + config.size_ms + config.allowed_lateness_ms)
        return when + config.least_disorder_ms

    def fire_through(self, end_ms: int, emit: Callable[[Output], None]) -> None:
        """Fire every window that ends by `end_ms` and is new or has something new, in order of its end."""
        size, hop, dirty, fired = self.config.size_ms, self.config.hop_ms, self.dirty, self.fired
        for modality, opened in enumerate(self.open):
            if opened:
                for start in [s for s in opened if s + hop <= end_ms]:
                    pane = fired.get(start)
                    if pane is None:
                        pane = fired[start] = Pane()
                        dirty.add(start)
                    pane.arrived[modality] = opened.pop(start)
        if size == hop and len(dirty) == 1 and not self.pending:
            self._fire_one(end_ms, emit)
            return
        if dirty:
            for start in sorted([s for s in self.dirty if s + hop <= end_ms]):
                self.dirty.remove(start)
                pane = self.fired[start]
                changed, repeats = pane.tidy()
                if changed:
                    self._learn(pane)
                    self.pending.update(range(start + hop - size, start + hop, hop))
                elif repeats:
                    self.pending.add(start)  # the home window tells of repeats
        if not self.pending:
            return
        # windows that were final before are left alone
        final = max(self.final_before_ms, self.restored_before_ms or LONG_AGO)
        for start in sorted(self.pending):
            if start + size <= end_ms:
                self.pending.remove(start)
                if start >= final and start not in self.final_ahead:
                    emit(self._fire(start))

    def _fire_one(self, end_ms: int, emit: Callable[[Output], None]) -> None:
        """The usual case of `fire_through`: one pane, which is one window."""
        (start,) = self.dirty
        if start + self.config.size_ms > end_ms:
            return
        self.dirty.clear()
        pane = self.fired[start]
        changed, repeats = pane.tidy()
        if changed:
            self._learn(pane)
        if (changed or repeats) and start >= self.final_before_ms and start >= (self.restored_before_ms or LONG_AGO):
            emit(self._fire(start))

    def _learn(self, pane: Pane) -> None:
        if LONG_AGO < self.clock.own_ms < pane.first_ms:
            return  # a reading from the future
        gap = pane.largest_gap_ms
        if self.last_fired_event_ms > LONG_AGO:
            gap = max(gap, pane.first_ms - self.last_fired_event_ms)
        self.last_fired_event_ms = max(self.last_fired_event_ms, pane.last_ms)
        self.clock.learn_interval(gap)

    def _fire(self, start: int) -> Fired:
        size, hop, fired = self.config.size_ms, self.config.hop_ms, self.fired
        firing = self.firings.get(start, -1) + 1
        self.firings[start] = firing
        home = fired.get(start)
        if size == hop and home is not None:
            contents: Sequence[list[object]] = home.events
        else:
            panes = [fired[s] for s in range(start, start + size, hop) if s in fired]
            contents = [[e for pane in panes for e in pane.events[m]] for m in range(len(MODALITIES))]
        readings, clips, captions = contents
        return Fired(
            self.name,
            start,
            start + size,
            firing,
            readings,  # type: ignore[arg-type]  # each list holds the events of its modality
            clips,  # type: ignore[arg-type]
            captions,  # type: ignore[arg-type]
            home.counts if home else (0, 0, 0),
            home.duplicates if home else 0,
            home.members if home else ((), (), ()),
            self.stored.get(start),
            self.clock.interval_ms,
            self.is_ahead(start),
        )

    def _close(self, start: int, emit: Callable[[Output], None]) -> None:
        pane = self.fired.pop(start)
        self.last_pane_ms = start
        if start in self.dirty:
            self.dirty.remove(start)
            pane.tidy()
        emit(PaneFinal(self.name, start, pane.members, self.is_ahead(start)))

    def _settle(self, final_before_ms: int) -> None:
        """Windows that start before this are final: nothing of them need be known any more."""
        if final_before_ms <= self.final_before_ms:
            return
        self.final_before_ms = final_before_ms
        for known in (self.firings, self.stored):
            if known:
                for start in [s for s in known if s < final_before_ms]:
                    del known[start]
        if self.final_ahead:
            self.final_ahead = frozenset(s for s in self.final_ahead if s >= final_before_ms)
