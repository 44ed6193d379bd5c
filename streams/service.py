"""`sensorium up`: the embedded Kafka (unless another is named), the topics, one worker and its API, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from streams.api.server import serve
from streams.kafka.admin import check_topics, create_topics, describe_topics
from streams.kafka.clients import find_bootstrap
from streams.kafka.embedded import Broker
from streams.pipeline.status import StatusTable
from streams.serving.supervisor import WorkerSupervisor
from streams.serving.worker import Worker
from streams.settings import Settings

_M_ARENA_MAX = -8  # malloc.h


@dataclass(frozen=True, slots=True)
class Service:
    """What runs: where Kafka is, where the API is, and the worker that serves now."""

    bootstrap: str
    url: str
    supervisor: WorkerSupervisor

    @property
    def worker(self) -> Worker:
        return self.supervisor.worker


def limit_malloc_arenas() -> None:
    """Let all threads of this process allocate from one arena, where the C library is glibc.

    In an arena of its own a thread gives memory back and asks for it again with every batch: the models took 300 page
    faults a window, a tenth of their time.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def freeze_gc() -> None:
    """Keep the garbage collector from what is loaded by now, torch above all: it stays for good.

    Every full collection walked through half a million objects and held up the event loop for 0.1 to 0.3 s.
    """
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


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
    """Told to stop before the service was there; what had begun is undone."""


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


@contextlib.contextmanager
def stop_on_signals() -> Iterator[asyncio.Event]:
    """An event that SIGINT, SIGTERM and a closed terminal set; a second signal ends the process at once, as usual."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    names = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        names.append(signal.SIGHUP)

    def ask(name: Any) -> None:
        stop.set()
        if name == signal.SIGHUP:
            _let_go_of_the_terminal()
        else:
            loop.remove_signal_handler(name)

    for name in names:
        loop.add_signal_handler(name, ask, name)
    try:
        yield stop
    finally:
        for name in names:
            loop.remove_signal_handler(name)


def _let_go_of_the_terminal() -> None:
    """Output on the way out would fail: the terminal is gone."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
