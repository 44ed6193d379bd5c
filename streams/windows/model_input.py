"""A fired window as a model takes it. Pure."""

from __future__ import annotations

from models.interface import WindowInput
from streams.windows.types import Fired


def window_input(window: Fired) -> WindowInput:
    """Contents of a window as plain values, and the units of its channels (the last one given counts)."""
    units: dict[str, str] = {}
    for reading in window.readings:
        if reading.units:
            units.update(reading.units)
    return WindowInput(
        start_ms=window.start_ms,
        end_ms=window.end_ms,
        readings=[(reading.time_ms, reading.values) for reading in window.readings],
        clips=[(clip.time_ms, clip.samples) for clip in window.clips],
        captions=[(caption.time_ms, caption.text) for caption in window.captions],
        units=units,
    )
