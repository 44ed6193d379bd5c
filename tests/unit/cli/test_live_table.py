"""The demo's live table: it fits the terminal; without one, plain lines are printed."""

from __future__ import annotations

import asyncio
import io
import time
from typing import Any

import pytest
from rich.console import Console

from streams.cli import live_table
from streams.cli.live_table import render, show
from streams.pipeline.status import StatusTable
from tests.unit.pipeline.payloads import SIZE_MS, window_payload

LONG = "sound unlike anything heard here before; words unlike anything said here before; vibration 6.5, expected 2.1"


def seen(
    table: StatusTable,
    stream: str,
    end_s: int,
    *,
    status: str = "ok",
    score: float | None = 0.2,
    steps: tuple[dict[str, Any], ...] = (),
) -> None:
    table.update(
        window_payload(
            end_s * 1000 - SIZE_MS,
            stream=stream,
            home={"sensor": 10, "audio": 1},
            steps=list(steps),
            status=status,
            score=score,
            modalities=["sensor", "audio"],
            captions=["all [bold]well[/]"],
        )
    )


def step(stream: str, kind: str, sequence: int, at_s: int = 60) -> dict[str, Any]:
    text = f"{stream}: {LONG}" if kind == "opened" else f"{stream}: back to normal"
    fields = {"kind": kind, "time_ms": at_s * 1000, "severity": 80, "text": text}
    return fields | {"id": f"i-{stream}", "sequence": sequence}


def drawn(table: StatusTable, width: int, height: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(render(table, time.monotonic(), width, height, "Ctrl-C stops. " + "x" * 300))
    return [line.rstrip() for line in captured.get().splitlines()]


def plant(streams: int) -> StatusTable:
    table = StatusTable()
    for n in range(streams):
        for second in range(10, 60, 10):
            seen(table, f"machine-{n:03d}", second)
        seen(table, f"machine-{n:03d}", 60, status="alarm", score=3.0, steps=(step(f"machine-{n:03d}", "opened", 0),))
        seen(table, f"machine-{n:03d}", 70, steps=(step(f"machine-{n:03d}", "closed", 1, 70),))
    return table


@pytest.mark.parametrize("streams", [0, 1, 6, 50, 300])
@pytest.mark.parametrize(("width", "height"), [(80, 23), (60, 15), (200, 60)])
def test_it_fits_into_the_terminal(streams: int, width: int, height: int) -> None:
    lines = drawn(plant(streams), width, height)
    assert len(lines) <= height
    assert max(len(line) for line in lines) <= width


def test_a_stream_is_a_line_with_its_state_and_last_note() -> None:
    line = next(line for line in drawn(plant(2), 120, 40) if line.startswith("machine-001"))
    assert line.split() == ["machine-001", "00:01:10", "s", "a", "ok", "0.20", "▁▁▁▁▁█▁", "all", "[bold]well[/]"]


def test_the_newest_opened_incident_is_printed_in_full_and_the_newest_steps_come_first() -> None:
    table = StatusTable()
    seen(table, "pump", 60, steps=(step("pump", "opened", 0),))
    seen(table, "fan", 70, steps=(step("fan", "opened", 0, 70),))
    seen(table, "pump", 80, steps=(step("pump", "closed", 1, 80),))
    text = "\n".join(drawn(table, 80, 23))
    below = text.split("incidents, the newest first")[1]
    assert below.index("00:01:20 closed") < below.index("00:01:10 opened") < below.index("00:01:00 opened")
    assert f"fan: {LONG}" in " ".join(below.split())
    assert f"pump: {LONG}" not in " ".join(below.split())


def test_streams_that_do_not_fit_are_counted() -> None:
    assert any(line.startswith("and ") and line.endswith(" more") for line in drawn(plant(50), 80, 23))


async def test_without_a_terminal_each_step_is_one_plain_line_printed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_table, "_REFRESH_S", 0.001)
    table, stop, out = StatusTable(), asyncio.Event(), io.StringIO()
    console = Console(file=out, width=60)

    async def printed(text: str) -> None:
        async with asyncio.timeout(60):
            while text not in out.getvalue():
                await asyncio.sleep(0.001)

    showing = asyncio.create_task(show(table, console, stop, time.monotonic()))
    seen(table, "pump", 60, steps=(step("pump", "opened", 0),))
    await printed("incident opened")
    seen(table, "pump", 70, steps=(step("pump", "opened", 0), step("pump", "closed", 1, 70)))
    await printed("incident closed")
    stop.set()
    await showing
    lines = out.getvalue().splitlines()
    assert [line.split("] ", 1)[1] for line in lines] == [
        "first windows: 1 windows from 11 events, 1 streams, 0 in alarm",
        f"incident opened: pump: {LONG}",
        "incident closed: pump: back to normal",
        "2 windows from 22 events, 1 streams, 0 in alarm",
    ]
    assert "\x1b" not in out.getvalue()
