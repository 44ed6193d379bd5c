"""`sensorium up`: the embedded Kafka (unless another is named), the topics, one worker and its API, in one process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from streams.api.server import serve
from streams.kafka.admin import check_topics, create_topics, describe_topics
from streams.kafka.clients import find_bootstrap
from streams.kafka.embedded import Broker
from streams.pipeline.status import StatusTable
from streams.process import freeze_gc, limit_malloc_arenas
from streams.serving.supervisor import WorkerSupervisor
from streams.serving.worker import Worker
from streams.settings import Settings


@dataclass(frozen=True, slots=True)
class Service:
    """What runs: where Kafka is, where the API is, and the worker that serves now."""

    bootstrap: str
    url: str
    supervisor: WorkerSupervisor

    @property
    def worker(self) -> Worker:
        return self.supervisor.worker


@contextlib.asynccontextmanager
async def running_worker(
    settings: Settings, bootstrap: str, stop: asyncio.Event, status: StatusTable | None = None
) -> AsyncIterator[Service]:
    """A worker that works until left; an error in it sets `stop` and is raised on leaving."""
    settings.state.mkdir(parents=True, exist_ok=True)
    limit_malloc_arenas()
    async with WorkerSupervisor(settings, bootstrap, status) as supervisor, serve(supervisor, settings) as url:
        freeze_gc()
        ending = asyncio.Event()

        async def work() -> None:
            try:
                await supervisor.run(ending)
            finally:
                stop.set()

        task = asyncio.create_task(work(), name="worker")
        try:
            yield Service(bootstrap, url, supervisor)
        finally:
            ending.set()
            await task


@contextlib.asynccontextmanager
async def running_service(
    settings: Settings, stop: asyncio.Event, status: StatusTable | None = None
) -> AsyncIterator[Service]:
    """Kafka and a worker. The topics are made where the Kafka is ours, and where they are missing altogether."""
    # torch takes seconds to import: it does while the broker starts
    warm = asyncio.create_task(asyncio.to_thread(_import_models))
    async with contextlib.AsyncExitStack() as exits:
        if settings.kafka:
            bootstrap = find_bootstrap(settings)
        else:
            broker = Broker(settings.state, settings.broker_port, max_record_bytes=settings.max_record_bytes)
            await exits.enter_async_context(broker)
            bootstrap = broker.bootstrap
            await exits.enter_async_context(_kept_running(broker, stop))
        await create_topics(settings, bootstrap)
        check_topics(await describe_topics(settings, bootstrap))
        await warm
        yield await exits.enter_async_context(running_worker(settings, bootstrap, stop, status))


class StoppedEarly(Exception):
    """The service was stopped before it was there; what had begun is undone."""


@contextlib.asynccontextmanager
async def start_unless_stopped(
    service: AbstractAsyncContextManager[Service], stop: asyncio.Event
) -> AsyncIterator[Service]:
    """The service, once it runs. Raises `StoppedEarly` when `stop` is set before: starting may take long."""
    body = asyncio.current_task()
    assert body is not None

    async def watch() -> None:
        await stop.wait()
        body.cancel()

    async with contextlib.AsyncExitStack() as exits:
        watching = asyncio.create_task(watch(), name="stop")
        try:
            running = await exits.enter_async_context(service)
        except asyncio.CancelledError:
            if stop.is_set() and not body.uncancel():
                raise StoppedEarly from None
            raise
        finally:
            watching.cancel()
        yield running


@contextlib.asynccontextmanager
async def _kept_running(broker: Broker, stop: asyncio.Event) -> AsyncIterator[None]:
    """Start a broker that dies again, on its data and its port. A failure sets `stop` and is raised on leaving."""

    async def keep() -> None:
        try:
            while True:
                await broker.wait()
                if stop.is_set():
                    return
                broker.kill()
                await broker.start()
        finally:
            stop.set()

    task = asyncio.create_task(keep(), name="broker")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _import_models() -> None:
    import models

    del models
