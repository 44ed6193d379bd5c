"""Windows of streams as training takes them: checked, and split by time into training and validation. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.errors import ModelError
from models.interface import WindowInput

MIN_WINDOWS = 40  # with two modalities or more: training on fewer gains nothing


@dataclass(frozen=True, slots=True)
class StreamWindow:
    """A window and the stream it is from."""

    stream: str
    window: WindowInput


def check_windows(windows: Sequence[StreamWindow], modalities: Sequence[str]) -> list[StreamWindow]:
    """The windows that hold any of these modalities, by start, then stream. Raises ModelError where they are too few to
    train on, with what mends it."""
    held = [w for w in windows if any(w.window.content(m) for m in modalities)]
    held.sort(key=lambda w: (w.window.start_ms, w.stream))
    shared = sum(sum(bool(w.window.content(m)) for m in modalities) > 1 for w in held)
    if held and not shared:
        only = sorted({m for w in held for m in modalities if w.window.content(m)})
        raise ModelError(
            f"no window holds two modalities (there is {', '.join(only)}): training aligns what occurs together; "
            f"record clips or captions along with the readings, or keep the weights that ship (SENSORIUM_MODEL unset)"
        )
    if shared < MIN_WINDOWS:
        raise ModelError(
            f"{shared} windows with two modalities or more, at least {MIN_WINDOWS} are needed: take a longer recording "
            f"or time range, or shorter windows (SENSORIUM_WINDOW__SIZE_MS and SENSORIUM_WINDOW__HOP_MS)"
        )
    return held


def guard_of(windows: Sequence[StreamWindow], guard_ms: int | None) -> int:
    """The guard interval in ms: the given one, or by default three windows of the longest length."""
    return 3 * max(w.window.end_ms - w.window.start_ms for w in windows) if guard_ms is None else guard_ms


def split_training_validation(
    windows: Sequence[StreamWindow], validation: float, guard_ms: int
) -> tuple[list[StreamWindow], list[StreamWindow]]:
    """Windows sorted by start -> those for training and, after a gap of guard_ms that neither has, the last
    `validation` (a share, 0..1) of them."""
    cut_ms = windows[min(len(windows) - 1, round(len(windows) * (1 - validation)))].window.start_ms
    before = [w for w in windows if w.window.end_ms <= cut_ms - guard_ms]
    return before, [w for w in windows if w.window.start_ms >= cut_ms]


def evenly_spread(windows: list[StreamWindow], most: int) -> list[StreamWindow]:
    """At most `most` of the windows, at equal steps from the first one."""
    if len(windows) <= most:
        return windows
    return [windows[i * len(windows) // most] for i in range(most)]
