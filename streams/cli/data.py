"""Commands that send data: replay a recording, simulate a plant."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import typer

from streams.cli.common import (
    CommandError,
    JsonOption,
    KafkaOption,
    StateOption,
    StoreOption,
    console,
    errors,
    examples,
    print_json,
    print_table,
    run_async,
    say,
    settings_of,
)
from streams.errors import DependencyError
from streams.settings import Settings


def register(app: typer.Typer) -> None:
    app.command(
        short_help="Play a recording and account for every event.",
        epilog=examples(
            "sensorium replay plant",
            "sensorium replay plant --speed 60 --report report.json",
            "sensorium replay plant --state plant-state --json",
        ),
    )(replay)
    app.command(
        short_help="Run a simulated plant, or record one.",
        epilog=examples(
            "sensorium simulate --out plant --seconds 1800   # a recording with labelled faults",
            "sensorium simulate                              # to the Kafka of `sensorium up`, until Ctrl-C",
        ),
    )(simulate)


def replay(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A recording: sensors/*.csv, audio.csv, captions.csv.")],
    speed: Annotated[str, typer.Option(metavar="N|max", help="Multiple of real time, or max: no pause.")] = "max",
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report to this file, as JSON.")] = None,
    state: StateOption = None,
    kafka: KafkaOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Play a recording into Kafka in event-time order, wait until it is processed, and account for every event.

    Uses the Kafka and the workers that are running. Where none runs on the state folder, it starts its own for the
    duration of the replay.
    """
    settings = settings_of(state, kafka, store)
    pace = _pace(speed)
    if report is not None and not report.parent.is_dir():  # checked before the replay, which may take an hour
        raise CommandError(f"{report.parent} is not a folder; make it with: mkdir -p {report.parent}")

    async def play() -> dict[str, Any]:
        from streams.sources.recording import Recording
        from streams.sources.replay import Replay

        recording = Recording(folder)
        async with _service(settings) as bootstrap:
            return await Replay(settings, bootstrap, recording, pace).run(errors)

    result = run_async(play())
    if report is not None:
        report.write_text(json.dumps(result, indent=2) + "\n")
    if as_json:
        print_json(result)
    else:
        _print_report(result)


def _pace(speed: str) -> float | None:
    if speed == "max":
        return None
    try:
        pace = float(speed)
    except ValueError:
        pace = math.nan
    if not 0 < pace < math.inf:
        raise CommandError(f"--speed {speed}: must be a number above 0, as in --speed 60, or: --speed max")
    return pace


@contextlib.asynccontextmanager
async def _service(settings: Settings) -> AsyncIterator[str]:
    """Bootstrap servers of a running Kafka, or of one with a worker that is started here and stopped at the end."""
    from streams.kafka.embedded import running_bootstrap
    from streams.service import running_service
    from streams.serving.client import worker_url

    if settings.kafka is not None:
        yield settings.kafka
        return
    bootstrap = running_bootstrap(settings.state)
    if bootstrap is not None:
        yield bootstrap
        return
    if worker_url(settings.state) is not None:
        message = f"a worker runs on {settings.state}, but its Kafka does not answer; see: sensorium doctor"
        raise DependencyError(message)
    errors.print(f"nothing runs on {settings.state}: starting Kafka and a worker for this replay", soft_wrap=True)
    stop = asyncio.Event()
    async with running_service(settings, stop) as service:
        replaying = asyncio.current_task()
        assert replaying is not None

        async def guard() -> None:
            await stop.wait()  # the worker failed: the replay cannot complete
            replaying.cancel()

        guarding = asyncio.create_task(guard())
        try:
            yield service.bootstrap
        finally:
            guarding.cancel()


def _print_report(report: dict[str, Any]) -> None:
    events = report["events"]
    names = ("produced", "windowed", "duplicate", "late", "dead")
    print_table(("events", *names), [("", *(str(events[name]) for name in names))])
    say(f"{report['windows']} windows, {report['incidents']} incidents, {report['seconds']:.1f} s")
    if events["late"] > events["produced"] / 2:
        say(
            "most events were late: this recording was played here before, and its windows are final; use a new "
            "state folder: sensorium replay DIR --state plant-state"
        )
    labels = report.get("labels")
    if labels is not None:
        from streams.sources.incident_scoring import label_table

        console.print(label_table(labels))


def simulate(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a recording into this folder, send nothing to Kafka.")
    ] = None,
    streams: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Number of machines.")] = 6,
    seconds: Annotated[
        float | None,
        typer.Option(min=1, metavar="S", help="Seconds of plant time; default: until Ctrl-C, or one hour with --out."),
    ] = None,
    speed: Annotated[float, typer.Option(min=0.01, max=1000, metavar="N", help="Multiple of real time.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="The same seed gives the same data.")] = 7,
    noise: Annotated[
        float,
        typer.Option(min=1, max=100, metavar="N", help="Multiple of normal noise; above 1, notes are mistyped too."),
    ] = 1.0,
    state: StateOption = None,
    kafka: KafkaOption = None,
) -> None:
    """Run the simulated plant: readings, machine sounds and shift notes, with faults now and then."""
    settings = settings_of(state, kafka)
    from streams.sources.plant_feed import feed
    from streams.sources.plant_recording import record

    if out is not None:
        if out.exists():
            raise CommandError(f"{out} exists already; remove it or choose another folder")
        faults = record(out, streams=streams, seed=seed, seconds=3600.0 if seconds is None else seconds, noise=noise)
        say(f"{out}: a recording with {faults} labelled faults; play it with: sensorium replay {out}")
        return

    async def run() -> int:
        from streams.kafka.admin import check_topics, describe_topics
        from streams.kafka.clients import find_bootstrap
        from streams.process import stop_on_signals

        bootstrap = find_bootstrap(settings)
        check_topics(await describe_topics(settings, bootstrap))
        with stop_on_signals() as stop:
            if seconds is None:
                errors.print(f"sending to {bootstrap}; Ctrl-C stops", soft_wrap=True)
            return await feed(
                settings, bootstrap, stop, streams=streams, seed=seed, speed=speed, seconds=seconds, noise=noise
            )

    sent = run_async(run())
    say(f"{sent} events sent")
