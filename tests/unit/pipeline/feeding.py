"""Short ways to feed a harness and to look at what came of it."""

from __future__ import annotations

from typing import Any

from streams.store.base import Filter
from streams.testing import Harness
from tests.unit.pipeline.isolation import CAPTIONS, SENSORS, T0_MS, caption, reading

CALM, ODD = "routine check done", "zebra umbrella quantum"


async def say(h: Harness, stream: str, second: float, value: float = 1.0, *, settle: bool = True) -> None:
    """A reading: of now, or (not settled) of a backlog that was produced as it happened."""
    time_ms = T0_MS + int(second * 1000)
    timestamp_ms = None if settle else time_ms
    await h.push(SENSORS, stream, reading(time_ms, x=value), timestamp_ms=timestamp_ms, settle=settle)


async def note(h: Harness, stream: str, second: float, text: str = "all well", *, settle: bool = True) -> None:
    time_ms = T0_MS + int(second * 1000)
    await h.push(CAPTIONS, stream, caption(time_ms, text), timestamp_ms=None if settle else time_ms, settle=settle)


def starts(h: Harness, stream: str) -> list[float]:
    return [(window.start_ms - T0_MS) / 1000 for window in h.windows() if window.stream == stream]


async def payloads(h: Harness, stream: str) -> list[dict[str, Any]]:
    return [dict(point.payload) async for point in h.store.scroll(Filter(stream=stream))]
