"""Rejects events whose time cannot be right, before they reach the windows."""

from __future__ import annotations

from collections.abc import Callable

from streams.events.envelope import format_ms
from streams.events.types import Reason, Rejection
from streams.settings import WindowSettings


class TimeGuard:
    """Bounds of acceptable event times. `now_ms` is our clock (epoch ms); only the upper bound depends on it."""

    def __init__(self, settings: WindowSettings, now_ms: Callable[[], int]) -> None:
        self._low = settings.oldest_event_ms
        self._skew = settings.max_clock_skew_ms
        self._now_ms = now_ms

    def bounds(self) -> tuple[int, int]:
        """First and last event time (epoch ms) that are acceptable now."""
        return self._low, self._now_ms() + self._skew

    def check(self, time_ms: int) -> None:
        """Raises CLOCK_AHEAD or CLOCK_BEHIND for an event time outside `bounds`."""
        low, high = self.bounds()
        if time_ms > high:
            detail = f"{format_ms(time_ms)} is more than {self._skew} ms ahead of our clock (max_clock_skew_ms)"
            raise Rejection(Reason.CLOCK_AHEAD, detail)
        if time_ms < low:
            hint = "; it may be in seconds, milliseconds are expected" if low <= time_ms * 1000 <= high else ""
            detail = f"{format_ms(time_ms)} is before {format_ms(low)} (oldest_event_ms){hint}"
            raise Rejection(Reason.CLOCK_BEHIND, detail)
