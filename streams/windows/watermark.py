"""The clock of one stream: how far its own events say that event time has come. Pure.

No other stream has a say in it. A clock per modality is the newest event time of that modality, the *own clock* the
newest of these. An event that is ahead of the own clock by more than the jump limit moves it only when a second such
event confirms it: one reading from the future moves nothing. The *watermark* is the event time up to which nothing
more is expected:

    the least, over the modalities m that the stream has, of max(clock of m - disorder[m], own clock - max_wait[m])

A stream *has* a modality when it brought one within the last `modality_memory` of its own clock.
"""

from __future__ import annotations

from collections.abc import Sequence

from streams.windows.types import WindowConfig

LONG_AGO = -(1 << 62)
FAR_AHEAD = 1 << 62
_GAPS = 8  # windows whose largest gaps are kept
_INTERVALS = 3  # how many of its usual intervals a stream may be quiet, and how many of them a clock may jump


class StreamClock:
    """Clocks of one stream in event time (ms). `newest` is by modality and may be moved by the caller up to `limit_ms`.

    `limit_ms`: event times beyond it must go through `observe`, which decides whether they move the clock.
    """

    __slots__ = ("_candidates", "_config", "_gaps", "_jump_ms", "interval_ms", "limit_ms", "newest")

    def __init__(self, config: WindowConfig) -> None:
        self._config = config
        self.newest = [LONG_AGO, LONG_AGO, LONG_AGO]
        self._candidates: dict[int, int] = {}  # modality -> event time that is too far ahead to be believed alone
        self.limit_ms = LONG_AGO  # nothing is known yet: the first event is confirmed by the second
        self._jump_ms = config.max_jump_ms  # how far ahead of the own clock an event is believed alone
        self.interval_ms: int | None = None  # usual interval between events; None while nothing is known
        self._gaps: list[int] = []

    @property
    def own_ms(self) -> int:
        return max(self.newest)

    @property
    def is_unsure(self) -> bool:
        """Whether an event waits to be confirmed: the next one decides, and must go through `observe`."""
        return bool(self._candidates)

    @property
    def newest_event_ms(self) -> int:
        """Event time of the newest event that is believed, or of what waits to be confirmed where there is none."""
        own = max(self.newest)
        return own if own > LONG_AGO else min(self._candidates.values(), default=LONG_AGO)

    def observe(self, modality: int, time_ms: int) -> None:
        """Take an event that may be beyond the limit."""
        own = max(self.newest)
        if own > LONG_AGO and time_ms <= own + self._jump_ms:
            self._candidates.pop(modality, None)  # the modality goes on from where it was
            self._believe(modality, time_ms)
            return
        # a repeat of the candidate confirms nothing: it may be the same event delivered twice
        others = [(time, m) for m, time in self._candidates.items() if time != time_ms]
        if not others:
            self._candidates[modality] = time_ms
            return
        nearest, its_modality = min(others)
        self._candidates.clear()
        (low, low_m), (high, high_m) = sorted(((time_ms, modality), (nearest, its_modality)))
        self._believe(low_m, low)
        if high <= max(self.newest) + self._jump_ms:
            self._believe(high_m, high)
        else:
            self._candidates[high_m] = high

    def _believe(self, modality: int, time_ms: int) -> None:
        if time_ms > self.newest[modality]:
            self.newest[modality] = time_ms
        self.limit_ms = max(self.newest) + self._jump_ms

    def learn_interval(self, gap_ms: int) -> None:
        """Take the largest gap between events that a window shows. A single pause is not usual: the second largest of
        the last few counts."""
        if gap_ms <= 0:
            return
        gaps = self._gaps
        gaps.append(min(gap_ms, self._config.max_stream_lag_ms))
        if len(gaps) > _GAPS and gaps.pop(0) == gaps[-1]:
            return  # the last few are what they were
        if len(gaps) > 1:
            self._set_interval(sorted(gaps)[-2])
        elif _INTERVALS * gaps[0] <= self._config.idle_timeout_ms:
            self._set_interval(gaps[0])

    def _set_interval(self, interval_ms: int) -> None:
        if interval_ms == self.interval_ms:
            return
        self.interval_ms = interval_ms
        # a stream that reports each hour jumps by an hour
        self._jump_ms = max(self._config.max_jump_ms, _INTERVALS * interval_ms)
        if self.limit_ms > LONG_AGO:
            self.limit_ms = max(self.newest) + self._jump_ms

    def restore_interval(self, interval_ms: int | None) -> None:
        """Go on with what was known of the stream before a restart."""
        if interval_ms is not None:
            self._gaps = [interval_ms, interval_ms]
            self._set_interval(interval_ms)

    def quiet_after_ms(self) -> int:
        """How long nothing may come before the open windows are fired. Of a new stream no interval is known yet."""
        config = self._config
        usual_ms = 0 if self.interval_ms is None else _INTERVALS * self.interval_ms
        return max(config.idle_timeout_ms, min(usual_ms, config.max_stream_lag_ms))

    def silent_after_ms(self) -> int:
        """How long nothing may come before the stream is reported as silent."""
        config = self._config
        if self.interval_ms is None:
            return max(config.idle_timeout_ms, config.max_stream_lag_ms)
        return max(config.idle_timeout_ms, _INTERVALS * self.interval_ms)

    def watermark_ms(self, idle: Sequence[bool] = (False, False, False)) -> int:
        """Event time up to which nothing more is expected; `idle`: modalities whose input is caught up and quiet."""
        own = max(self.newest)
        if own == LONG_AGO:
            return LONG_AGO
        config, watermark = self._config, own
        remembered = own - config.modality_memory_ms
        for modality, newest in enumerate(self.newest):
            if newest < remembered or idle[modality]:
                continue  # the stream does not have it, or has nothing more of it for now
            disorder, wait = config.bounds_ms[modality]
            passed, waited = newest - disorder, own - wait
            if waited > passed:
                passed = waited
            if passed < watermark:
                watermark = passed
        return watermark
