"""The screen of `sensorium demo`: a live table of streams, scores and incidents; plain lines without a terminal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from streams.pipeline.status import StatusTable, StreamStatus

_BARS = "▁▂▃▄▅▆▇█"
_REFRESH_S = 0.5
_SUMMARY_S = 30.0  # between summary lines, without a terminal
_STYLE = {"warming": "dim", "ok": "green", "alarm": "bold red"}
_STEP_STYLE = {"opened": "bold red", "updated": "yellow", "closed": "green", "adopted": "cyan"}
_FIXED = 52  # characters per row without sparkline and caption
_AROUND = 6  # lines around the streams and the incidents


async def show(status: StatusTable, console: Console, stop: asyncio.Event, started: float, hint: str = "") -> None:
    """Draw the state of all streams until `stop`; without a terminal, print a line for each incident step.

    `started` is a monotonic time in seconds.
    """
    if not console.is_terminal:
        await _print_lines(status, console, stop, started)
        return
    size = console.size
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while not stop.is_set():
            size = console.size
            live.update(render(status, started, size.width, size.height - 1, hint), refresh=True)
            await _pause(stop)
        live.update(render(status, started, size.width, size.height - 1, ""), refresh=True)


async def _print_lines(status: StatusTable, console: Console, stop: asyncio.Event, started: float) -> None:
    printed: set[tuple[str, int, str]] = set()
    summary_at = 0.0
    while not stop.is_set():
        if status.windows and time.monotonic() - summary_at > _SUMMARY_S:
            first = "first windows: " if not summary_at else ""
            summary_at = time.monotonic()
            console.print(f"{elapsed(started)} {first}{_summary(status)}", soft_wrap=True, markup=False)
        for step in list(status.steps):
            # a late step has the number of the step it follows
            name = step["id"], step["sequence"], step["window"] if step.get("late") else ""
            if name not in printed:
                printed.add(name)
                line = f"{elapsed(started)} incident {step['kind']}: {step['text']}"
                console.print(line, soft_wrap=True, markup=False)
        await _pause(stop)
    console.print(f"{elapsed(started)} {_summary(status)}", soft_wrap=True, markup=False)


def _summary(status: StatusTable) -> str:
    states = [state.status for state in status.streams.values()]
    alarms = sum(status == "alarm" for status in states)
    return f"{status.windows} windows from {status.events} events, {len(states)} streams, {alarms} in alarm"


async def _pause(stop: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(stop.wait(), _REFRESH_S)
    except TimeoutError:
        return


def render(status: StatusTable, started: float, width: int, height: int, hint: str = "") -> Group:
    """One line for each stream, then the newest incident steps, within `width` x `height` characters."""
    states = sorted(status.streams.values(), key=lambda state: state.stream)
    shown = states[: max(1, height - _AROUND)]
    title = Text("Sensorium", style="bold", no_wrap=True, overflow="ellipsis")
    title.append(f"  {elapsed(started)} {_summary(status)}", style="not bold")
    lines: list[Any] = [title, _table(shown, width)]
    if len(shown) < len(states):
        lines.append(Text(f"and {len(states) - len(shown)} more", style="dim"))
    lines.append(Rule("incidents, the newest first", align="left", style="dim"))
    left = max(1, height - _AROUND - len(shown))
    lines += _steps(list(status.steps), width, left)
    lines.append(Text(hint, style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(*lines)


def _table(states: list[StreamStatus], width: int) -> Table:
    table = Table(expand=True, box=None, pad_edge=False, header_style="bold")
    bars = min(24, max(8, (width - _FIXED) // 2))
    for name, options in (
        ("stream", {"min_width": 12}),
        ("until", {"min_width": 8}),
        ("holds", {"min_width": 5}),
        ("status", {"min_width": 7}),
        ("score", {"min_width": 5, "justify": "right"}),
        ("", {"min_width": bars}),
        ("last note", {"ratio": 1}),
    ):
        table.add_column(name, no_wrap=True, overflow="ellipsis", **options)
    for state in states:
        style = _STYLE.get(state.status, "")
        table.add_row(
            Text(state.stream),
            _clock(state.end_ms),
            " ".join(name[0] for name in state.modalities),
            Text(state.status, style=style),
            "-" if state.score is None else f"{state.score:.2f}",
            Text(_sparkline(state, bars), style=style),
            Text(state.caption, style="dim"),
        )
    return table


def _steps(steps: list[Mapping[str, Any]], width: int, left: int) -> list[Text]:
    """As many of the newest steps as fit; the newest opening is printed in full."""
    if not steps:
        return [Text("none yet", style="dim")]
    lines: list[Text] = []
    opening_shown = False
    for step in reversed(steps):
        line = Text(f"{_clock(step['time_ms'])} ")
        line.append(f"{step['kind']:8}", style=_STEP_STYLE.get(step["kind"], ""))
        line.append(f" {step['severity']:3d}  {step['text']}")
        rows = -(-len(line.plain) // max(1, width - 1))
        if step["kind"] == "opened" and not opening_shown and rows <= left:
            opening_shown = True
        else:
            line.no_wrap, line.overflow, rows = True, "ellipsis", 1
        left -= rows
        if left < 0:
            break
        lines.append(line)
    return lines


def _sparkline(state: StreamStatus, bars: int) -> str:
    """The last scores: a full bar is twice the alarm threshold or more."""
    return "".join(_BARS[min(7, max(0, int(score * 4)))] for score in list(state.scores)[-bars:])


def _clock(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%H:%M:%S")


def elapsed(started: float) -> str:
    """Seconds since `started` (monotonic), in brackets."""
    return f"[{time.monotonic() - started:5.1f} s]"
