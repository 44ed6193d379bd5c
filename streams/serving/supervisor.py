"""The worker that serves now, and its successor when another model version is promoted or rolled back to.

A question is put to one worker's store with that worker's model, both held until it is answered: a query vector never
meets another version's windows, and no question fails while one worker follows another.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import structlog

from models.errors import ModelError
from streams.pipeline.status import Board
from streams.serving.queries import Row, StoreQueries
from streams.serving.versions import VersionError, load_version
from streams.serving.worker import Worker
from streams.settings import Settings
from streams.store import open_collections
from streams.store.base import Filter, StoreError, VectorStore

log = structlog.get_logger(__name__)
_LOOK_EVERY_S = 1.0
_CATCH_UP_S = 60.0  # how long the old worker's windows are asked while the new one reads the last of the inputs again
_LEAVE_S = 30.0  # how long a question may take before its store is closed under it


class _Desk:
    """A worker's model and store as one, with the number of questions that are being answered."""

    def __init__(self, worker: Worker) -> None:
        self.version = worker.version.name
        self.store = worker.store
        self.queries = StoreQueries(worker.store, lambda: worker.model)
        self._asking = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @contextlib.asynccontextmanager
    async def ask(self) -> AsyncIterator[StoreQueries]:
        self._asking += 1
        self._empty.clear()
        try:
            yield self.queries
        finally:
            self._asking -= 1
            if not self._asking:
                self._empty.set()

    async def leave(self) -> None:
        """Until nobody asks any more."""
        with contextlib.suppress(TimeoutError):
            # not wait_for, which may forget that it was cancelled (until 3.12): who follows versions must hear it
            async with asyncio.timeout(_LEAVE_S):
                await self._empty.wait()


class Live:
    """Runs workers one after another; answers `Queries` by the one that serves. Not started yet: use `async with`."""

    def __init__(self, settings: Settings, bootstrap: str, board: Board | None = None) -> None:
        self.settings = settings
        self.bootstrap = bootstrap
        self.worker = Worker(settings, bootstrap, board=board)
        self.waits_for: str | None = None  # why a version that should serve cannot be started here
        self._open = contextlib.AsyncExitStack()  # what closes the worker
        self._before: tuple[_Desk, contextlib.AsyncExitStack] | None = None  # answers until the worker has caught up

    async def __aenter__(self) -> Live:
        await self._open.enter_async_context(self.worker)
        self._desk = _Desk(self.worker)
        return self

    async def __aexit__(self, *error: Any) -> None:
        if self._before is not None:
            await self._before[1].aclose()
        await self._open.aclose()

    @property
    def answers(self) -> str:
        """The version that questions are answered by."""
        return self._desk.version

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
                await working  # it finishes what it has begun; its store stays open for those who ask
            finally:
                if successor is not None:
                    self._before = self._desk, self._open
                    self.worker, self._open = successor
            if successor is None or stop.is_set():
                return
            log.info("another model version takes over", version=self.worker.version.name, was=self.answers)

    async def _follow(self) -> tuple[Worker, contextlib.AsyncExitStack]:
        """See a takeover through, then wait for the next one."""
        if self._before is not None:
            await self._hand_over(*self._before)
        return await self._successor(self.worker)

    async def _hand_over(self, desk: _Desk, exits: contextlib.AsyncExitStack) -> None:
        """Let the new worker answer once it has stored what the old one had, or after a minute."""
        deadline = time.monotonic() + _CATCH_UP_S
        reached = await _newest_ms(desk.store)
        while await _newest_ms(self.worker.store) < reached and time.monotonic() < deadline:
            await asyncio.sleep(0.25)
        self._desk = _Desk(self.worker)
        log.info("another model version answers", version=self.answers, was=desk.version)
        await desk.leave()
        await exits.aclose()
        self._before = None

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
                        self.settings, self.bootstrap, board=worker.board, metrics=worker.metrics, version=version
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

    # -- questions -----------------------------------------------------------------------------------------------

    async def search_text(self, text: str, where: Filter, limit: int) -> list[Row]:
        async with self._desk.ask() as queries:
            return await queries.search_text(text, where, limit)

    async def search_audio(self, encoded: bytes, where: Filter, limit: int) -> list[Row]:
        async with self._desk.ask() as queries:
            return await queries.search_audio(encoded, where, limit)

    async def search_window(self, id: str, where: Filter, limit: int) -> list[Row]:
        async with self._desk.ask() as queries:
            return await queries.search_window(id, where, limit)

    async def streams(self) -> list[Row]:
        async with self._desk.ask() as queries:
            return await queries.streams()

    async def incidents(self, where: Filter) -> list[Row]:
        async with self._desk.ask() as queries:
            return await queries.incidents(where)

    async def windows(self, where: Filter, limit: int) -> list[Row]:
        async with self._desk.ask() as queries:
            return await queries.windows(where, limit)

    async def export(self) -> AsyncIterator[Row]:
        async with self._desk.ask() as queries:
            async for row in queries.export():
                yield row


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
