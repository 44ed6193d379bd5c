"""Commands that run something until told to stop: up, worker, broker, demo."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer

from streams.cli.common import KafkaOption, StateOption, StoreOption, console, run_async, settings_of


def register(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(worker)
    app.command()(broker)
    app.command()(demo)


def up(state: StateOption = None, kafka: KafkaOption = None, store: StoreOption = None) -> None:
    """Run everything on this machine: Kafka (unless --kafka names one), topics and a worker. Ctrl-C stops."""
    settings = settings_of(state, kafka, store)

    async def serve() -> None:
        from streams.up import running_service, stop_on_signals

        with stop_on_signals() as stop:
            async with running_service(settings, stop) as service:
                console.print(f"Kafka   {service.bootstrap}")
                console.print(f"store   {settings.store_url}")
                console.print(f"API     {service.url}  (health, metrics, search)")
                console.print(f"model   {service.worker.model.version}")
                console.print("ready; Ctrl-C stops")
                await stop.wait()

    run_async(serve())


def worker(state: StateOption = None, kafka: KafkaOption = None, store: StoreOption = None) -> None:
    """Run one worker of a group on an existing Kafka: it takes its share of the partitions."""
    settings = settings_of(state, kafka, store)

    async def serve() -> None:
        from streams.kafka_clients import find_bootstrap
        from streams.up import running_worker, stop_on_signals

        bootstrap = find_bootstrap(settings)
        with stop_on_signals() as stop:
            async with running_worker(settings, bootstrap, stop) as service:
                console.print(f"worker of group {settings.group} on {bootstrap}; API {service.url}; Ctrl-C stops")
                await stop.wait()

    run_async(serve())


def broker(
    state: StateOption = None,
    port: Annotated[int | None, typer.Option(help="Port to serve on; default: any free one, then kept.")] = None,
    fetch_only: Annotated[bool, typer.Option("--fetch-only", help="Fetch and check Kafka's jars only.")] = False,
) -> None:
    """Run the embedded Apache Kafka in the foreground."""
    settings = settings_of(state, broker_port=port)
    from streams import broker as kafka

    if fetch_only:
        folder = kafka.fetch()
        console.print(f"Apache Kafka is ready in {folder}", soft_wrap=True)
        return
    run_async(kafka.run_foreground(settings))


def demo(
    seconds: Annotated[float | None, typer.Option(help="Stop by itself after this long.")] = None,
    streams: Annotated[int, typer.Option(min=1, max=6, help="How many machines the simulated plant has.")] = 6,
) -> None:
    """Everything at once, with a simulated plant and a live table. Leaves nothing behind."""
    started = time.monotonic()
    from streams.demo import run_demo

    asyncio.run(run_demo(console, streams=streams, seconds=seconds, started=started))
