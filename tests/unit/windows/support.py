"""What the tests of windows share: short ways to make records, and a window operator with logs of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from streams.events.types import Caption, Clip, Event, Reading
from streams.windows.operator import PartitionWindows, StreamLimit
from streams.windows.types import Fired, Late, Output, PaneFinal, Record, Refused, StreamIdle, WindowConfig

SENSOR, AUDIO, CAPTION = 0, 1, 2
S = 1000


def reading(time_ms: int, value: float = 1.0) -> Reading:
    return Reading(time_ms, {"flow": value})


def event(modality: int, time_ms: int, what: int = 1) -> Event:
    if modality == SENSOR:
        return reading(time_ms, float(what))
    if modality == AUDIO:
        return Clip(time_ms, f"{what:064x}", b"")  # type: ignore[arg-type]  # samples are not looked at
    return Caption(time_ms, f"words {what}")


def fired(outputs: Iterable[Output]) -> list[Fired]:
    return [o for o in outputs if isinstance(o, Fired)]


def late(outputs: Iterable[Output]) -> list[Late]:
    return [o for o in outputs if isinstance(o, Late)]


def final(outputs: Iterable[Output]) -> list[PaneFinal]:
    return [o for o in outputs if isinstance(o, PaneFinal)]


def idle(outputs: Iterable[Output]) -> list[StreamIdle]:
    return [o for o in outputs if isinstance(o, StreamIdle)]


def refused(outputs: Iterable[Output]) -> list[Refused]:
    return [o for o in outputs if isinstance(o, Refused)]


def spans(outputs: Iterable[Output]) -> list[tuple[int, int]]:
    return [(window.start_ms, window.end_ms) for window in fired(outputs)]


def starts(outputs: Iterable[Output]) -> list[int]:
    return [window.start_ms for window in fired(outputs)]


class Partition:
    """An operator, the offsets of its three logs, and its idle clocks."""

    def __init__(self, limit: StreamLimit | None = None, **config: Any) -> None:
        self.operator = PartitionWindows(WindowConfig(**config), limit=limit)
        self.idle_clock_ms = 0
        self.input_clocks_ms = [0, 0, 0]
        self.offsets = [0, 0, 0]

    def push(
        self, *times_ms: int, stream: str = "pump", modality: int = SENSOR, read_ms: int | None = None
    ) -> list[Output]:
        """Events at these times, as one batch; returns whatever follows."""
        records = []
        for time_ms in times_ms:
            records.append(Record(self.offsets[modality], stream, event(modality, time_ms)))
            self.offsets[modality] += 1
        assert self.operator.push(modality, records, read_ms) == []
        return self.operator.advance()

    def wait(self, ms: int, inputs: tuple[int, ...] = (SENSOR, AUDIO, CAPTION)) -> list[Output]:
        """Let time pass while these inputs are caught up; the idle clock moves if all of them are."""
        for modality in inputs:
            self.input_clocks_ms[modality] += ms
        if len(inputs) == len(self.input_clocks_ms):
            self.idle_clock_ms += ms
        self.operator.tick(self.idle_clock_ms, self.input_clocks_ms)
        return self.operator.advance()


def as_tuples(outputs: Iterable[Output]) -> list[tuple[Any, ...]]:
    """Outputs as plain tuples (kind, stream, ...) that compare by value; a window's contents as sorted `repr`s."""
    plain: list[tuple[Any, ...]] = []
    for output in outputs:
        match output:
            case Fired():
                contents = tuple(
                    tuple(sorted(map(repr, events))) for events in (output.readings, output.clips, output.captions)
                )
                counts = (output.firing, output.home_events, output.duplicates, output.interval_ms)
                span = (output.start_ms, output.end_ms)
                plain.append(("fired", output.stream, *span, *counts, contents, output.members))
            case PaneFinal():
                plain.append(("final", output.stream, output.start_ms, output.offsets))
            case Late():
                plain.append(("late", output.record.stream, output.modality, output.record.offset, output.late_ms))
            case Refused():
                plain.append(("refused", output.record.stream, output.modality, output.record.offset, output.reason))
            case StreamIdle():
                plain.append(("idle", output.stream, output.event_ms, output.active))
    return plain
