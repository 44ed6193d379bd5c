"""What `sensorium demo` shows: a live table of streams, scores and incidents; plain lines without a terminal."""

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

from streams.pipeline.status import Board, StreamState

_BARS = "▁▂▃▄▅▆▇█"
_REFRESH_S = 0.5
_SUMMARY_S = 30.0  # between lines that say only that all is well, without a terminal
_STYLE = {"warming": "dim", "ok": "green", "alarm": "bold red"}
_STEP_STYLE = {"opened": "bold red", "updated": "yellow", "closed": "green", "adopted": "cyan"}
_FIXED = 52  # columns of the table without sparkline and caption
_AROUND = 6  # lines around the streams and the incidents


async def show(board: Board, console: Console, stop: asyncio.Event, started: float, hint: str = "") -> None:
    """Draw the board until `stop`; on anything but a terminal, print a line for each incident step."""
    if not console.is_terminal:
        await _print_lines(board, console, stop, started)
        return
    size = console.size
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while not stop.is_set():
            size = console.size
            live.update(render(board, started, size.width, size.height - 1, hint), refresh=True)
            await _pause(stop)
        live.update(render(board, started, size.width, size.height - 1, ""), refresh=True)


async def _print_lines(board: Board, console: Console, stop: asyncio.Event, started: float) -> None:
    told: set[tuple[str, int, str]] = set()
    said_at = 0.0
    while not stop.is_set():
        if board.windows and time.monotonic() - said_at > _SUMMARY_S:
            first = "first windows: " if not said_at else ""
            said_at = time.monotonic()
            console.print(f"{elapsed(started)} {first}{_summary(board)}", soft_wrap=True, markup=False)
        for step in list(board.steps):
            name = step["id"], step["sequence"], step["window"] if step.get("late") else ""
            if name not in told:
                told.add(name)
                line = f"{elapsed(started)} incident {step['kind']}: {step['text']}"
                console.print(line, soft_wrap=True, markup=False)
        await _pause(stop)
    console.print(f"{elapsed(started)} {_summary(board)}", soft_wrap=True, markup=False)


def _summary(board: Board) -> str:
    states = [state.status for state in board.streams.values()]
    alarms = sum(status == "alarm" for status in states)
    return f"{board.windows} windows from {board.events} events, {len(states)} streams, {alarms} in alarm"


async def _pause(stop: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(stop.wait(), _REFRESH_S)
    except TimeoutError:
        return


def render(board: Board, started: float, width: int, height: int, hint: str = "") -> Group:
    """One line for each stream, then the last incident steps, the newest first: fits into `width` x `height`."""
    states = sorted(board.streams.values(), key=lambda state: state.stream)
    shown = states[: max(1, height - _AROUND)]
    title = Text("Sensorium", style="bold", no_wrap=True, overflow="ellipsis")
    title.append(f"  {elapsed(started)} {_summary(board)}", style="not bold")
    lines: list[Any] = [title, _table(shown, width)]
    if len(shown) < len(states):
        lines.append(Text(f"and {len(states) - len(shown)} more", style="dim"))
    lines.append(Rule("incidents, the newest first", align="left", style="dim"))
    left = max(1, height - _AROUND - len(shown))
    lines += _steps(list(board.steps), width, left)
    lines.append(Text(hint, style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(*lines)


def _table(states: list[StreamState], width: int) -> Table:
    table = Table(expand=True, box=None, pad_edge=False, header_style="bold")
    bars = min(24, max(8, (width - _FIXED) // 2))
    for name, options in (
        ("stream", {"min_width": 12}),
        ("until", {"min_width": 8}),
        ("holds", {"min_width": 5}),
        ("status", {"min_width": 7}),
        ("score", {"min_width": 5, "justify": "right"}),
        ("", {"min_width": bars}),
        ("said last", {"ratio": 1}),
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
    """As many of the newest steps as fit; the newest that opened something is told in full."""
    if not steps:
        return [Text("none yet", style="dim")]
    lines: list[Text] = []
    told = False
    for step in reversed(steps):
        line = Text(f"{_clock(step['time_ms'])} ")
        line.append(f"{step['kind']:8}", style=_STEP_STYLE.get(step["kind"], ""))
        line.append(f" {step['severity']:3d}  {step['text']}")
        rows = -(-len(line.plain) // max(1, width - 1))
        if step["kind"] == "opened" and not told and rows <= left:
            told = True
        else:
            line.no_wrap, line.overflow, rows = True, "ellipsis", 1
        left -= rows
        if left < 0:
            break
        lines.append(line)
    return lines


def _sparkline(state: StreamState, bars: int) -> str:
    """Scores against the alarm line: a full bar is twice the threshold."""
    return "".join(_BARS[min(7, max(0, int(score * 4)))] for score in list(state.scores)[-bars:])


def _clock(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%H:%M:%S")


def elapsed(started: float) -> str:
    return f"[{time.monotonic() - started:5.1f} s]"
