"""`sensorium demo`: everything on one machine, a simulated plant, and a live table of streams, scores and incidents."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from streams.board import Board, StreamState
from streams.feed import feed
from streams.logs import configure_logs
from streams.settings import load_settings
from streams.up import running_service, stop_on_signals

_BARS = " ▁▂▃▄▅▆▇█"
_REFRESH_S = 0.5
_SHOWN_STEPS = 6
_STYLE = {"warming": "dim", "ok": "green", "alarm": "bold red"}


_WINDOW = {"size_ms": 5_000, "hop_ms": 5_000, "allowed_lateness_ms": 10_000, "idle_timeout_ms": 4_000}
_HISTORY_S = 300.0  # the plant's past: enough to know what is normal


async def run_demo(console: Console, *, streams: int, seconds: float | None, started: float) -> None:
    """Kafka, store, worker and plant in one process, on a folder that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="sensorium-demo-") as folder, stop_on_signals() as stop:
        settings = load_settings(state=Path(folder), log_level="error", window=_WINDOW)
        configure_logs(settings)
        console.print("starting Kafka, the store and a worker ...")
        board = Board()
        async with running_service(settings, stop, board) as service:
            console.print(f"{_elapsed(started)} ready: Kafka {service.bootstrap}, API {service.url}")
            plant = asyncio.create_task(feed(settings, service.bootstrap, stop, streams=streams, history_s=_HISTORY_S))
            alarm = asyncio.create_task(_stop_after(seconds, stop))
            try:
                await show(board, console, stop, started)
            finally:
                stop.set()
                alarm.cancel()
                await asyncio.gather(plant, alarm, return_exceptions=True)
    console.print("stopped; nothing is left behind")


async def _stop_after(seconds: float | None, stop: asyncio.Event) -> None:
    if seconds is None:
        return
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    stop.set()


async def show(board: Board, console: Console, stop: asyncio.Event, started: float) -> None:
    """Draw the board until `stop`; on anything but a terminal, print a line for each first and each incident step."""
    if console.is_terminal:
        with Live(render(board, started), console=console, refresh_per_second=4, screen=False) as live:
            while not stop.is_set():
                live.update(render(board, started))
                await _pause(stop)
        return
    printed, windows_said = 0, False
    while not stop.is_set():
        if board.windows and not windows_said:
            windows_said = True
            console.print(f"{_elapsed(started)} first window: {board.windows} stored, {len(board.streams)} streams")
        for step in list(board.steps)[printed:]:
            console.print(f"{_elapsed(started)} incident {step['kind']}: {step['text']}", soft_wrap=True)
        printed = len(board.steps)
        await _pause(stop)
    console.print(f"{_elapsed(started)} {board.windows} windows from {board.events} events")


async def _pause(stop: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(stop.wait(), _REFRESH_S)
    except TimeoutError:
        return


def render(board: Board, started: float) -> Group:
    """The live table: one line for each stream, then the last incident steps."""
    table = Table(expand=True, box=None, header_style="bold")
    for name in ("stream", "window ends", "holds", "status", "score", "", "said last"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for state in sorted(board.streams.values(), key=lambda s: s.stream):
        style = _STYLE.get(state.status, "")
        table.add_row(
            state.stream,
            _clock(state.end_ms),
            " ".join(name[0] for name in state.modalities),
            Text(state.status, style=style),
            "-" if state.score is None else f"{state.score:.2f}",
            Text(_sparkline(state), style=style),
            Text(state.caption, style="dim"),
        )
    lines = [_step_line(step) for step in list(board.steps)[-_SHOWN_STEPS:]]
    incidents = Panel(Group(*(lines or [Text("none yet", style="dim")])), title="incidents", title_align="left")
    title = Text(f"Sensorium · {board.windows} windows from {board.events} events · {_elapsed(started)} · Ctrl-C stops")
    return Group(title, table, incidents)


def _step_line(step: Mapping[str, Any]) -> Text:
    colour = {"opened": "bold red", "updated": "yellow", "closed": "green"}.get(step["kind"], "cyan")
    line = Text(f"{_clock(step['time_ms'])} ")
    line.append(f"{step['kind']:8}", style=colour)
    line.append(f" severity {step['severity']:3d}  {step['text']}")
    return line


def _sparkline(state: StreamState) -> str:
    """Scores against the alarm line: a full bar is twice the threshold."""
    return "".join(_BARS[min(8, max(0, round(score * 4)))] for score in state.scores)


def _clock(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%H:%M:%S")


def _elapsed(started: float) -> str:
    return f"[{time.monotonic() - started:5.1f} s]"
