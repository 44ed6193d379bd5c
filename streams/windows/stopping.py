"""Streams that stop: what closes a stream's windows when its own events do not. Pure.

Live, it is the idle clock, which moves while the inputs are caught up; in a backlog, how far the partition has been
read on without an event that moves the stream's clock.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping

from streams.windows.stream import StreamWindows
from streams.windows.types import Output, StreamIdle, WindowConfig
from streams.windows.watermark import LONG_AGO

_RECENT = 15  # batches read last that tell how far the partition has been read
_LOOKS = 8  # at a stream, while the partition is read on by the longest lag


class StoppingStreams:
    """Watches the streams of one partition; fires and closes those that stopped, and reports them as silent."""

    def __init__(
        self,
        config: WindowConfig,
        streams: Mapping[str, StreamWindows],
        waiting: dict[str, StreamWindows],
        out: deque[Output],
    ) -> None:
        """`streams`, `waiting` (for an idle modality) and `out` are the operator's own."""
        self._config = config
        self._streams = streams
        self._waiting = waiting
        self._out = out
        self.idle_clock_ms = 0
        self._recent: deque[int] = deque(maxlen=_RECENT)  # Kafka timestamps read last
        self.front_ms = LONG_AGO  # how far the partition has been read, in the time of its records' timestamps
        self.silent: set[str] = set()  # streams that were reported as silent
        self._quiet: list[tuple[int, str]] = []  # heap of (idle clock at which a stream may be quiet, stream)
        self._lagging: list[tuple[int, str]] = []  # heap of (front at which a stream may be left behind, stream)

    def move_front(self, read_ms: int) -> None:
        """The median of what was read last: no single producer's clock moves it."""
        self._recent.append(read_ms)
        recent = sorted(self._recent)
        self.front_ms = max(self.front_ms, recent[len(recent) // 2])

    def check(self, stream: StreamWindows, at_ms: int) -> None:
        stream.check_at = at_ms
        heapq.heappush(self._quiet, (at_ms, stream.name))

    def close_quiet(self, at_most: int) -> None:
        """Fire, report and close streams of which nothing has come for several of their usual intervals."""
        now, quiet, out = self.idle_clock_ms, self._quiet, self._out
        while quiet and quiet[0][0] <= now and len(out) < at_most:
            at_ms, name = heapq.heappop(quiet)
            stream = self._streams.get(name)
            if stream is None or stream.check_at != at_ms:
                continue
            stream.check_at = None
            next_at = self._quiet_step(stream, now)
            if next_at is not None:
                self.check(stream, next_at)

    def _quiet_step(self, stream: StreamWindows, now: int) -> int | None:
        """What a stream's quiet calls for by now; returns when to look again, None if there is nothing left to do."""
        self._see_advance(stream)
        quiet_ms, quiet_after = now - stream.last_event_at, stream.clock.quiet_after_ms()
        stalled_ms = now - stream.advanced_at_clock
        if quiet_ms < quiet_after:
            if stalled_ms >= self._config.max_stream_lag_ms and not stream.is_empty:
                self._close(stream)  # events come, and their clock stands still
                self.note_advance(stream)
            return stream.last_event_at + quiet_after
        stream.fire_all(self._out.append)
        self._waiting.pop(stream.name, None)
        quiet_after = stream.clock.quiet_after_ms()  # what has fired may show longer intervals
        if quiet_ms < quiet_after:
            return stream.last_event_at + quiet_after
        close_at = stream.last_event_at + quiet_after + self._config.allowed_lateness_ms
        silent_at = stream.last_event_at + stream.clock.silent_after_ms()
        if now >= silent_at:
            self.report_silent(stream)
        if now >= close_at:
            stream.close_all(self._out.append)
        later = [at for at in (close_at, silent_at) if at > now]
        return min(later) if later else None

    def report_silent(self, stream: StreamWindows) -> None:
        if stream.silent_since_ms is None:
            self.set_silent(stream, stream.clock.newest_event_ms)
            self._out.append(StreamIdle(stream.name, stream.clock.newest_event_ms, False))

    def set_silent(self, stream: StreamWindows, since_ms: int | None) -> None:
        stream.silent_since_ms = since_ms
        if since_ms is not None:
            self.silent.add(stream.name)

    def _close(self, stream: StreamWindows) -> None:
        stream.fire_all(self._out.append)
        stream.close_all(self._out.append)
        self._waiting.pop(stream.name, None)

    def _see_advance(self, stream: StreamWindows) -> None:
        if stream.clock.own_ms > stream.advanced_own_ms:
            self.note_advance(stream)

    def note_advance(self, stream: StreamWindows) -> None:
        stream.advanced_own_ms = stream.clock.own_ms
        stream.advanced_at_front = self.front_ms
        stream.advanced_at_clock = self.idle_clock_ms

    def follow(self, stream: StreamWindows) -> None:
        """See to it that the stream is closed if the partition moves on without it.

        It is looked at several times on the way: only then is it seen whether, and so when, its clock moved.
        """
        lag = self._config.max_stream_lag_ms
        stream.left_behind_at = min(self.front_ms + max(lag // _LOOKS, 1), stream.advanced_at_front + lag)
        heapq.heappush(self._lagging, (stream.left_behind_at, stream.name))

    def close_left_behind(self, at_most: int) -> None:
        """In a backlog: streams whose own clock stood still while `max_stream_lag` of records was read.

        Measured by the records' timestamps, which are one clock for all streams: by event time, a stream that reports
        hours of its past at once would close the others.
        """
        front, lagging, out, lag = self.front_ms, self._lagging, self._out, self._config.max_stream_lag_ms
        while lagging and lagging[0][0] <= front and len(out) < at_most:
            at, name = heapq.heappop(lagging)
            stream = self._streams.get(name)
            if stream is None or stream.left_behind_at != at:
                continue
            stream.left_behind_at = None
            if stream.is_empty:
                continue
            self._see_advance(stream)
            if stream.advanced_at_front + lag > front:
                self.follow(stream)
                continue
            behind_ms = front - stream.advanced_at_front
            self._close(stream)
            if behind_ms >= stream.clock.silent_after_ms():
                self.report_silent(stream)
