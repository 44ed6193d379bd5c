"""A fired window as a model takes it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from models.interface import WindowInput
from streams.events.types import Caption, Clip, Reading
from streams.windows.types import Fired


def window_input(window: Fired) -> WindowInput:
    """The content of a fired window for `WindowModel.embed`."""
    return model_input(window.start_ms, window.end_ms, window.readings, window.clips, window.captions)


def model_input(
    start_ms: int, end_ms: int, readings: Sequence[Reading], clips: Sequence[Clip], captions: Sequence[Caption]
) -> WindowInput:
    """Events of [start_ms, end_ms), event time, in canonical order. A channel has the last unit given for it."""
    units: dict[str, str] = {}
    for reading in readings:
        if reading.units:
            units.update(reading.units)
    return WindowInput(
        start_ms=start_ms,
        end_ms=end_ms,
        readings=[(reading.time_ms, reading.values) for reading in readings],
        clips=[(clip.time_ms, clip.samples) for clip in clips],
        captions=[(caption.time_ms, caption.text) for caption in captions],
        units=units,
    )
