"""Commands that run until they are stopped: demo, up, worker, broker."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated

import typer

from streams.cli.common import (
    CommandError,
    KafkaOption,
    StateOption,
    StoreOption,
    console,
    examples,
    run_async,
    say,
    settings_of,
)


def register(app: typer.Typer) -> None:
    app.command(
        short_help="Everything at once, with a simulated plant.",
        epilog=examples("sensorium demo", "sensorium demo --streams 3 --seconds 120", "sensorium demo --state kept"),
    )(demo)
    app.command(
        short_help="Run Kafka, the store and a worker in one process.",
        epilog=examples("sensorium up", "sensorium up --state /var/lib/sensorium"),
    )(up)
    app.command(
        short_help="Run one worker on an existing Kafka.",
        epilog=examples("sensorium worker --kafka kafka-1:9092,kafka-2:9092 --store http://qdrant:6333"),
    )(worker)
    app.command(
        short_help="Run the embedded Kafka alone.",
        epilog=examples("sensorium broker", "sensorium broker --port 9092", "sensorium broker --fetch-only"),
    )(broker)


def demo(
    seconds: Annotated[float | None, typer.Option(metavar="S", help="Stop after S seconds.", min=1)] = None,
    streams: Annotated[int, typer.Option(min=1, max=6, metavar="N", help="Number of simulated machines.")] = 6,
    state: Annotated[
        Path | None,
        typer.Option("--state", metavar="DIR", help="Keep the data in this folder; default: a temporary one."),
    ] = None,
) -> None:
    """Kafka, a worker and a simulated plant, with a live table of streams, scores and incidents. Ctrl-C stops.

    All data is removed at the end, unless --state names a folder for it. While the demo runs, try the other commands
    in a second terminal, with the --state that is shown below the table.
    """
    started = time.monotonic()
    from streams.cli.demo import run_demo

    run_async(run_demo(console, streams=streams, seconds=seconds, started=started, keep=state))


def up(state: StateOption = None, kafka: KafkaOption = None, store: StoreOption = None) -> None:
    """Run everything on this machine: Kafka (unless --kafka names one), topics and a worker. Ctrl-C stops.

    Data is kept in the state folder, and the next start continues from there. While it runs, the other commands
    (search, streams, incidents, ...) get their answers from it.
    """
    settings = settings_of(state, kafka, store, service=True)

    async def serve() -> None:
        from streams.process import stop_on_signals
        from streams.service import StoppedEarly, running_service, start_unless_stopped

        with contextlib.suppress(StoppedEarly), stop_on_signals() as stop:
            async with start_unless_stopped(running_service(settings, stop), stop) as service:
                say(f"Kafka   {service.bootstrap}")
                say(f"store   {settings.store_url}")
                say(f"API     {service.url}  (/healthz /readyz /metrics, and read-only queries under /v1)")
                say(f"model   {service.worker.model.version}")
                say("ready; Ctrl-C stops")
                await stop.wait()

    run_async(serve())


def worker(state: StateOption = None, kafka: KafkaOption = None, store: StoreOption = None) -> None:
    """Run one worker of a group on an existing Kafka: it takes its share of the partitions. Ctrl-C stops.

    Several workers of one group need a shared store: a Qdrant server. The state folder holds the address of this
    worker, so each worker on a machine needs its own.
    """
    settings = settings_of(state, kafka, store, service=True)

    async def serve() -> None:
        from streams.kafka.clients import find_bootstrap
        from streams.process import stop_on_signals
        from streams.service import StoppedEarly, running_worker, start_unless_stopped

        bootstrap = find_bootstrap(settings)
        with contextlib.suppress(StoppedEarly), stop_on_signals() as stop:
            async with start_unless_stopped(running_worker(settings, bootstrap, stop), stop) as service:
                say(f"worker of group {settings.group} on {bootstrap}; API {service.url}; Ctrl-C stops")
                await stop.wait()

    run_async(serve())


def broker(
    state: StateOption = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, metavar="N", help="Port; default: a free one, then always the same.")
    ] = None,
    fetch_only: Annotated[bool, typer.Option("--fetch-only", help="Only download and verify Kafka's jars.")] = False,
) -> None:
    """Run the embedded Apache Kafka in the foreground, without a worker. Ctrl-C stops."""
    settings = settings_of(state, broker_port=port)
    if settings.kafka is not None and not fetch_only:
        raise CommandError(f"the settings name a Kafka cluster ({settings.kafka}); unset it to run the embedded one")
    from streams.kafka import embedded as kafka

    if fetch_only:
        folder = kafka.fetch()
        say(f"Apache Kafka is ready in {folder}")
        return
    run_async(kafka.run_foreground(settings))
