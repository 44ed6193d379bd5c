"""The windows of one stream: its panes, what has fired, what is final, and when to look at it next. Pure.

`PartitionWindows` moves it: it says how far the stream's watermark is, and this fires and closes up to there.
"""

from __future__ import annotations

from collections.abc import Callable

from streams.events.types import MODALITIES
from streams.windows.pane import Pane
from streams.windows.types import Finished, Fired, Output, StoredWindow, WindowConfig

LONG_AGO = -(1 << 62)
FAR_AHEAD = 1 << 62


class StreamWindows:
    """Panes are `open` until a window that holds them has fired, then `fired` until their home window is final."""

    __slots__ = (
        "closed_ms",
        "config",
        "due_ms",
        "final_before_ms",
        "fired",
        "firings",
        "heard_at_ms",
        "is_past",
        "name",
        "newest_ms",
        "open",
        "pending",
        "quiet_at_ms",
        "sealed_before_ms",
        "silent",
        "stored",
        "touched",
        "wake_ms",
        "watermark_ms",
    )

    def __init__(self, name: str, config: WindowConfig, sealed_before_ms: int | None) -> None:
        self.name = name
        self.config = config
        self.sealed_before_ms = sealed_before_ms  # windows that start before this were final before we began
        self.newest_ms = LONG_AGO  # own clock
        self.watermark_ms = LONG_AGO
        self.final_before_ms = LONG_AGO  # windows that start before this are final
        self.open: dict[int, Pane] = {}
        self.fired: dict[int, Pane] = {}
        self.touched: set[int] = set()  # starts of fired panes that got something since
        self.pending: set[int] = set()  # starts of windows with something new that have not been due
        self.firings: dict[int, int] = {}  # window start -> number of its last firing
        self.stored: dict[int, StoredWindow | None] = {}
        self.due_ms: int | None = None  # where this stream stands in the partition's heap of what is due
        self.wake_ms = FAR_AHEAD  # or the own clock that brings it back there
        self.heard_at_ms = 0  # on the partition's idle clock
        self.quiet_at_ms: int | None = None  # where it stands in the heap of who may be quiet
        self.silent = False
        self.is_past = False  # it began where the inputs had been read past long before: it waits for itself alone
        self.closed_ms: int | None = None  # start of the last pane that was released

    # -- panes ---------------------------------------------------------------------------------------------------

    def late_ms(self, start_ms: int, inputs_ms: int) -> int | None:
        """How far the watermark is past the home window of a pane, if that window is final; else None."""
        config = self.config
        watermark = self.watermark_ms
        if not self.is_past:  # ours may not have been looked at lately
            watermark = max(watermark, min(self.newest_ms, inputs_ms))
        behind = watermark - start_ms - config.size_ms
        if behind >= config.allowed_lateness_ms:
            return behind
        if start_ms < self.final_before_ms:  # closed by silence: as late as the newest window that was closed makes it
            return self.final_before_ms - config.hop_ms - start_ms + config.allowed_lateness_ms
        return None

    def pane(self, start_ms: int) -> Pane:
        """A new pane, or one that has fired and gets something more."""
        pane = self.fired.get(start_ms)
        if pane is None:
            pane = Pane(start_ms)
            if self.watermark_ms < start_ms + self.config.hop_ms:
                self.open[start_ms] = pane
                return pane
            self.fired[start_ms] = pane  # windows that hold it are past their time already
        self.touched.add(start_ms)
        return pane

    def newest_of(self, modality: int) -> int:
        """The newest event time of a modality in the panes that are held."""
        panes = (*self.open.values(), *self.fired.values())
        held = [pane for pane in panes if pane.events[modality]]
        if not held:
            return LONG_AGO
        newest: int = max(event.time_ms for event in max(held, key=lambda pane: pane.start_ms).events[modality])
        return newest

    @property
    def is_empty(self) -> bool:
        return not self.open and not self.fired

    # -- time ----------------------------------------------------------------------------------------------------

    def move_to(self, watermark_ms: int, emit: Callable[[Output], None]) -> None:
        """Fire every window that ends by the watermark and has something new; release panes that are final by it."""
        self.watermark_ms = max(self.watermark_ms, watermark_ms)
        self.fire_through(self.watermark_ms, emit)
        config = self.config
        final_ms = self.watermark_ms - config.size_ms - config.allowed_lateness_ms  # starts up to here are final
        for start in sorted([s for s in self.fired if s <= final_ms]):
            self._close(start, emit)
        self._settle(final_ms - final_ms % config.hop_ms + config.hop_ms)

    def fall_silent(self, emit: Callable[[Output], None]) -> None:
        """Fire everything there is; nothing more is expected."""
        if not self.is_empty:
            self.fire_through(max((*self.open, *self.fired)) + self.config.size_ms, emit)

    def close_all(self, emit: Callable[[Output], None]) -> None:
        """Release everything that has fired."""
        for start in sorted(self.fired):
            self._close(start, emit)
            self._settle(start + self.config.hop_ms)

    def next_ms(self) -> int | None:
        """The watermark at which there is something to do: a window to fire or a pane to release."""
        config, when = self.config, FAR_AHEAD
        if self.open:
            when = min(self.open) + config.hop_ms
        if self.touched:
            when = min(when, min(self.touched) + config.hop_ms)
        if self.pending:
            when = min(when, min(self.pending) + config.size_ms)
        if self.fired:
            when = min(when, min(self.fired) + config.size_ms + config.allowed_lateness_ms)
        return when if when < FAR_AHEAD else None

    def fire_through(self, end_ms: int, emit: Callable[[Output], None]) -> None:
        """Fire every window that ends by `end_ms` and is new or has something new, in order of its end."""
        size, hop = self.config.size_ms, self.config.hop_ms
        for start in [s for s in self.open if s + hop <= end_ms]:
            self.fired[start] = self.open.pop(start)
            self.touched.add(start)
        for start in [s for s in self.touched if s + hop <= end_ms]:
            self.touched.remove(start)
            changed, repeats = self.fired[start].tidy()
            if changed:
                self.pending.update(range(start + hop - size, start + hop, hop))
            elif repeats:
                self.pending.add(start)  # the home window tells of repeats
        if not self.pending:
            return
        # windows that were final before are left alone
        final = max(self.final_before_ms, self.sealed_before_ms or LONG_AGO)
        for start in sorted(self.pending):
            if start + size <= end_ms:
                self.pending.remove(start)
                if start >= final:
                    emit(self._fire(start))

    def _fire(self, start: int) -> Fired:
        size, hop, fired = self.config.size_ms, self.config.hop_ms, self.fired
        firing = self.firings.get(start, -1) + 1
        self.firings[start] = firing
        home = fired.get(start)
        # copies: a late event sorts into its pane while the window is on its way
        if size == hop and home is not None:
            contents = [list(events) for events in home.events]
        else:
            panes = [fired[s] for s in range(start, start + size, hop) if s in fired]
            contents = [[e for pane in panes for e in pane.events[m]] for m in range(len(MODALITIES))]
        return Fired(
            self.name,
            start,
            start + size,
            firing,
            contents[0],
            contents[1],
            contents[2],
            home.counts if home else (0, 0, 0),
            home.duplicates if home else 0,
            home.origins() if home else ((), (), ()),
            self.stored.get(start),
        )

    def _close(self, start: int, emit: Callable[[Output], None]) -> None:
        pane = self.fired.pop(start)
        self.closed_ms = start
        self.touched.discard(start)
        emit(Finished(self.name, start, pane.origins()))

    def _settle(self, final_before_ms: int) -> None:
        """Windows that start before this are final: nothing of them need be known any more."""
        if final_before_ms <= self.final_before_ms:
            return
        self.final_before_ms = final_before_ms
        for start in [s for s in self.firings if s < final_before_ms]:
            del self.firings[start]
        for start in [s for s in self.stored if s < final_before_ms]:
            del self.stored[start]
