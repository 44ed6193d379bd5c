"""The worker that serves now, and its successor when another model version is promoted or rolled back to.

A query goes to one worker's store with that worker's model, both held until it is answered: a query vector never
meets another version's windows, and no query fails while one worker follows another. Queries use the store without
retries: while it is away they fail at once, and a takeover does not wait for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import structlog

from models.errors import ModelError
from streams.pipeline.publisher import OutputPublisher
from streams.pipeline.reroute import partition_of
from streams.pipeline.status import StatusTable
from streams.serving.handover import close_open_incidents
from streams.serving.pages import MAX_ROWS, Page, Row
from streams.serving.queries import StoreQueries
from streams.serving.versions import VersionError, load_version
from streams.serving.worker import Worker
from streams.settings import Settings
from streams.store import open_collections
from streams.store.base import Filter, StoreError, StoreUnavailable, VectorStore
from streams.store.retrying import RetryingStore

log = structlog.get_logger(__name__)
_LOOK_EVERY_S = 1.0
_CATCH_UP_S = 60.0  # how long the old worker answers queries while the new one reads the last of the inputs again
_DRAIN_S = 30.0  # how long a query may take before its store is closed under it


class _ServingVersion:
    """A worker's model and store as one, with the number of queries in flight."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.version = worker.version.name
        self.store = worker.query_store
        self.queries = StoreQueries(worker.query_store, lambda: worker.model)
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.asynccontextmanager
    async def acquire(self) -> AsyncIterator[StoreQueries]:
        self._in_flight += 1
        self._idle.clear()
        try:
            yield self.queries
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def drain(self) -> None:
        """Wait for the queries in flight."""
        with contextlib.suppress(TimeoutError):
            # not wait_for, which may lose a cancellation (until 3.12) that `run` relies on
            async with asyncio.timeout(_DRAIN_S):
                await self._idle.wait()


class WorkerSupervisor:
    """Runs workers one after another; answers `Queries` by the one that serves. Not started yet: use `async with`."""

    def __init__(self, settings: Settings, bootstrap: str, status: StatusTable | None = None) -> None:
        self.settings = settings
        self.bootstrap = bootstrap
        self.worker = Worker(settings, bootstrap, status=status)
        self.waits_for: str | None = None  # why a version that should serve cannot be started here
        self._open = contextlib.AsyncExitStack()  # what closes the worker
        # the version before: it answers until the worker has caught up
        self._before: tuple[_ServingVersion, contextlib.AsyncExitStack] | None = None

    async def __aenter__(self) -> WorkerSupervisor:
        await self._open.enter_async_context(self.worker)
        self._serving = _ServingVersion(self.worker)
        return self

    async def __aexit__(self, *error: Any) -> None:
        if self._before is not None:
            await self._before[1].aclose()
        await self._open.aclose()

    @property
    def answers(self) -> str:
        """The version that queries are answered by."""
        return self._serving.version

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; an error in the worker is raised."""
        while True:
            leaving = asyncio.Event()
            working = asyncio.create_task(self.worker.run(leaving), name="worker")
            waiting = asyncio.create_task(stop.wait(), name="stop")
            following = asyncio.create_task(self._follow(), name="versions")
            await asyncio.wait({working, waiting, following}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            leaving.set()
            successor = await _settled(following)
            try:
                await working  # it finishes what is in flight; its store stays open for queries
            finally:
                if successor is not None:
                    self._before = self._serving, self._open
                    self.worker, self._open = successor
            if successor is None or stop.is_set():
                return
            log.info("another model version takes over", version=self.worker.version.name, was=self.answers)

    async def _follow(self) -> tuple[Worker, contextlib.AsyncExitStack]:
        """See a takeover through, then wait for the next one."""
        if self._before is not None:
            await self._hand_over(*self._before)
        return await self._successor(self.worker)

    async def _hand_over(self, before: _ServingVersion, exits: contextlib.AsyncExitStack) -> None:
        """Let the new worker answer once it has stored what the old one had, or after a minute."""
        try:
            async with asyncio.timeout(_CATCH_UP_S):
                await self._close_incidents(before)
        except TimeoutError:
            log.warning("incidents of the version before may stay open: its store is away", version=before.version)
        deadline = time.monotonic() + _CATCH_UP_S
        while time.monotonic() < deadline and not await _reached(self.worker.query_store, before.store):
            await asyncio.sleep(0.25)
        self._serving = _ServingVersion(self.worker)
        log.info("another model version answers", version=self.answers, was=before.version)
        await before.drain()
        await exits.aclose()
        self._before = None

    async def _close_incidents(self, before: _ServingVersion) -> None:
        """Of the streams that were ours: each worker of the group does the same for its own."""
        worker = self.worker
        publisher = OutputPublisher(worker.outputs, worker.metrics, self.settings.topic)
        reason = f"model version {worker.version.name} took over from {before.version}"
        partitions, numbers = before.worker.topic_partitions, before.worker.numbers
        closed = await close_open_incidents(
            RetryingStore(before.store), publisher, reason, lambda s: partition_of(s.encode(), partitions) in numbers
        )
        if closed:
            log.info("incidents closed with their model version", incidents=closed, version=before.version)

    async def _successor(self, worker: Worker) -> tuple[Worker, contextlib.AsyncExitStack]:
        """Waits until another version serves, and opens a worker for it."""
        async with open_collections(self.settings) as collections:
            while True:
                await asyncio.sleep(_LOOK_EVERY_S)
                try:
                    aliases = await collections.read()
                    name = aliases.serving
                    if name is None or name == worker.version.name:
                        self.waits_for = None
                        continue
                    version = await load_version(self.settings, collections, aliases, name)
                    successor = Worker(
                        self.settings, self.bootstrap, status=worker.status, metrics=worker.metrics, version=version
                    )
                    exits = contextlib.AsyncExitStack()
                    await exits.enter_async_context(successor)
                except (StoreError, VersionError, ModelError, OSError) as error:
                    if self.waits_for is None:
                        log.warning("cannot serve the promoted version yet, will try again", error=str(error))
                    self.waits_for = str(error)
                else:
                    self.waits_for = None
                    return successor, exits

    # -- queries -------------------------------------------------------------------------------------------------

    async def search_text(self, text: str, where: Filter, limit: int, cursor: str | None = None) -> Page:
        async with self._serving.acquire() as queries:
            return await queries.search_text(text, where, limit, cursor)

    async def search_audio(self, encoded: bytes, where: Filter, limit: int, cursor: str | None = None) -> Page:
        async with self._serving.acquire() as queries:
            return await queries.search_audio(encoded, where, limit, cursor)

    async def search_window(self, id: str, where: Filter, limit: int, cursor: str | None = None) -> Page:
        async with self._serving.acquire() as queries:
            return await queries.search_window(id, where, limit, cursor)

    async def streams(self, limit: int = MAX_ROWS, cursor: str | None = None) -> Page:
        async with self._serving.acquire() as queries:
            return await queries.streams(limit, cursor)

    async def incidents(self, where: Filter, limit: int = MAX_ROWS, cursor: str | None = None) -> Page:
        async with self._serving.acquire() as queries:
            return await queries.incidents(where, limit, cursor)

    async def windows(self, where: Filter, limit: int, cursor: str | None = None) -> Page:
        async with self._serving.acquire() as queries:
            return await queries.windows(where, limit, cursor)

    async def export(self) -> AsyncGenerator[Row, None]:
        async with self._serving.acquire() as queries:
            async for row in queries.export():
                yield row


async def _reached(store: VectorStore, other: VectorStore) -> bool:
    """Whether a store holds windows as new as another's; not while either is away."""
    try:
        return await _newest_ms(store) >= await _newest_ms(other)
    except StoreUnavailable:
        return False


async def _newest_ms(store: VectorStore) -> int:
    async for point in store.scroll(Filter(), descending=True, limit=1):
        return int(point.payload["start"])
    return -1


async def _settled(
    task: asyncio.Task[tuple[Worker, contextlib.AsyncExitStack]],
) -> tuple[Worker, contextlib.AsyncExitStack] | None:
    """What a task came to, or None after it was stopped on its way."""
    if not task.done():
        task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return None
