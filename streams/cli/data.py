"""Commands that bring data: replay a recording, simulate a plant."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from streams.cli.common import (
    CommandError,
    JsonOption,
    KafkaOption,
    StateOption,
    StoreOption,
    console,
    errors,
    print_json,
    run_async,
    settings_of,
)
from streams.settings import Settings


def register(app: typer.Typer) -> None:
    app.command()(replay)
    app.command()(simulate)


def replay(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A recording: sensors/*.csv, audio.csv, captions.csv.")],
    speed: Annotated[str, typer.Option(help="Event seconds per second, or max.")] = "max",
    report: Annotated[Path | None, typer.Option(help="File for the account, as JSON.")] = None,
    state: StateOption = None,
    kafka: KafkaOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Play a recording into Kafka in event-time order, wait until all of it is processed, and account for it.

    Uses the Kafka and workers that run already; where none runs on the state folder, it runs its own for as long as
    the replay takes.
    """
    settings = settings_of(state, kafka, store)
    try:
        pace = None if speed == "max" else float(speed)
    except ValueError:
        raise CommandError(f"--speed {speed}: write a number of event seconds per second, or max") from None
    if pace is not None and pace <= 0:
        raise CommandError("--speed must be larger than 0")

    async def play() -> dict[str, Any]:
        from streams.recording import Recording
        from streams.replay import Replay

        recording = Recording(folder)
        async with _service(settings) as bootstrap:
            return await Replay(settings, bootstrap, recording, pace).run(errors)

    try:
        account = run_async(play())
    except TimeoutError as error:
        raise CommandError(str(error)) from None
    if report is not None:
        report.write_text(json.dumps(account, indent=2) + "\n")
    if as_json:
        print_json(account)
    else:
        _print_account(account)


@contextlib.asynccontextmanager
async def _service(settings: Settings) -> AsyncIterator[str]:
    """Kafka with a worker: the one that runs, or our own."""
    from streams.broker import running_bootstrap
    from streams.client import worker_url
    from streams.up import running_service

    if settings.kafka is not None:
        yield settings.kafka
        return
    bootstrap = running_bootstrap(settings.state)
    if bootstrap is not None:
        yield bootstrap
        return
    if worker_url(settings.state) is not None:
        raise CommandError(f"a worker runs on {settings.state}, but its Kafka does not answer; see: sensorium doctor")
    errors.print(f"nothing runs on {settings.state}: running Kafka and a worker for this replay")
    stop = asyncio.Event()
    async with running_service(settings, stop) as service:
        body = asyncio.current_task()
        assert body is not None

        async def guard() -> None:
            await stop.wait()  # the worker failed: there is nothing to wait for any more
            body.cancel()

        guarding = asyncio.create_task(guard())
        try:
            yield service.bootstrap
        finally:
            guarding.cancel()


def _print_account(account: dict[str, Any]) -> None:
    events = account["events"]
    table = Table("events", "", box=None)
    for name in ("produced", "windowed", "duplicate", "late", "dead"):
        table.add_row(name, str(events[name]))
    console.print(table)
    console.print(f"{account['windows']} windows, {account['incidents']} incidents, {account['seconds']:.1f} s")
    labels = account.get("labels")
    if labels is not None:
        from streams.scoring import label_table

        console.print(label_table(labels))


def simulate(
    out: Annotated[Path | None, typer.Option(help="Write a recording into this folder instead of Kafka.")] = None,
    streams: Annotated[int, typer.Option(min=1, max=6, help="How many machines.")] = 6,
    seconds: Annotated[float | None, typer.Option(help="Event seconds to simulate; default: until Ctrl-C.")] = None,
    speed: Annotated[float, typer.Option(min=0.01, help="Event seconds per second.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same plant.")] = 7,
    state: StateOption = None,
    kafka: KafkaOption = None,
) -> None:
    """Run the simulated plant: readings, machine sounds and shift notes, with faults now and then."""
    settings = settings_of(state, kafka)
    from streams.feed import feed, record

    if out is not None:
        if out.exists():
            raise CommandError(f"{out} exists already; remove it or choose another folder")
        labels = record(out, streams=streams, seed=seed, seconds=3600.0 if seconds is None else seconds)
        console.print(f"{out}: a recording with {labels} labelled faults; play it with: sensorium replay {out}")
        return

    async def run() -> int:
        from streams.kafka_clients import find_bootstrap
        from streams.up import stop_on_signals

        with stop_on_signals() as stop:
            return await feed(
                settings, find_bootstrap(settings), stop, streams=streams, seed=seed, speed=speed, seconds=seconds
            )

    sent = run_async(run())
    console.print(f"{sent} events sent")
