"""`sensorium model promote`: register, backfill, follow live, compare, switch.

The steps are the same with and without a running worker. What fails on the way leaves the serving version as it was;
begun anew, the backfill goes on where its offsets stand.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from models.interface import WindowModel
from streams.kafka.admin import check_topics, describe_topics
from streams.kafka.embedded import Broker, running_bootstrap
from streams.serving.backfill import Backfill
from streams.serving.client import open_queries, worker_url
from streams.serving.comparison import Comparison, compare
from streams.serving.queries import StoreQueries
from streams.serving.versions import Registry, Version, VersionError, group_of, load_version, serving_version
from streams.settings import Settings
from streams.store import open_collections
from streams.store.base import StoreError
from streams.windows.types import window_id

log = structlog.get_logger(__name__)
_FOLLOW_S = 120.0  # how long running workers may take to change over


@dataclass(frozen=True, slots=True)
class Promotion:
    """What came of it. `report` is None where there was nothing to compare with."""

    version: str
    was: str
    switched: bool
    records: int
    windows: int
    seconds: float
    report: Comparison
    workers: str  # followed | none | pending

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "was": self.was,
            "switched": self.switched,
            "records": self.records,
            "windows": self.windows,
            "seconds": round(self.seconds, 1),
            "workers": self.workers,
            "report": self.report.to_json(),
        }


Tell = Callable[[str, int, int], None]  # step, done, of


async def promote(
    settings: Settings, what: str, *, switch: bool = True, patience_s: float = 600.0, tell: Tell = lambda *_: None
) -> Promotion:
    """Promote a model folder, or a version in the registry. `switch=False`: everything but the last step.

    Raises `VersionError` when the candidate makes no headway for `patience_s`.
    """
    began = time.monotonic()
    model = await asyncio.to_thread(_find, Registry(settings.state), what)
    was, version, serving_group = await _open_version(settings, model)
    async with _kafka(settings) as bootstrap:
        check_topics(await describe_topics(settings, bootstrap))
        async with Backfill(settings, bootstrap, version, serving_group) as backfill:
            stop = asyncio.Event()
            task = asyncio.create_task(backfill.run(stop), name="backfill")
            try:
                await _catch_up(backfill, task, patience_s, tell)
                tell("compare", 0, 1)
                report = await _beside(task, _compare(settings, backfill, was))
                await _catch_up(backfill, task, patience_s, tell)  # what came in meanwhile
            finally:
                stop.set()
                await asyncio.gather(task, return_exceptions=True)
            await task
            records, windows = backfill.total, backfill.windows
    # the candidate's store is closed and its offsets are committed: the worker that serves it next goes on from there
    if not switch:
        return Promotion(version.name, was, False, records, windows, time.monotonic() - began, report, "none")
    async with open_collections(settings) as collections:
        await collections.switch(version.name)
    tell("switch", 1, 1)
    workers = await changed_over(settings, version.name)
    return Promotion(version.name, was, True, records, windows, time.monotonic() - began, report, workers)


async def changed_over(settings: Settings, version: str, patience_s: float = _FOLLOW_S) -> str:
    """Wait for the worker on this state folder to serve `version`: followed, pending (not yet), or none runs."""
    import httpx

    url = worker_url(settings.state)
    if url is None:
        return "none"
    deadline = time.monotonic() + patience_s
    async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as http:
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError, ValueError):
                if (await http.get("/readyz")).json()["model"] == version:
                    return "followed"
            await asyncio.sleep(0.25)
    return "pending"


def _find(registry: Registry, what: str) -> WindowModel:
    """A folder is registered; anything else must be a version that is."""
    if Path(what).is_dir():
        return registry.add(Path(what))
    if registry.path(what) is None:
        known = ", ".join(registry.names()) or "none yet"
        raise VersionError(f"{what} is neither a model folder nor a version in {registry.folder} ({known})")
    return registry.load(what)


async def _open_version(settings: Settings, model: WindowModel) -> tuple[str, Version, str]:
    """Who serves, the candidate, and the consumer group of who serves."""
    async with open_collections(settings) as collections:
        aliases = await collections.read()
        if aliases.serving is None:
            was = (await serving_version(settings)).name
            aliases = await collections.read()
        else:
            was = aliases.serving
        if was == model.version:
            raise VersionError(f"{was} serves already")
        version = await load_version(settings, collections, aliases, model.version, model)
        return was, version, group_of(settings, was, aliases)


@contextlib.asynccontextmanager
async def _kafka(settings: Settings) -> AsyncIterator[str]:
    """The Kafka that is named or runs; else the embedded one, for as long as this takes."""
    bootstrap = settings.kafka or running_bootstrap(settings.state)
    if bootstrap is not None:
        yield bootstrap
        return
    async with Broker(settings.state, settings.broker_port, max_record_bytes=settings.max_record_bytes) as broker:
        yield broker.bootstrap


async def _catch_up(backfill: Backfill, task: asyncio.Task[None], patience_s: float, tell: Tell) -> None:
    moved, seen = time.monotonic(), (-1, -1)
    while not backfill.caught_up:
        if task.done():
            await task
            raise VersionError("the backfill ended before it was done; see the log")
        now = (backfill.lag, backfill.windows)
        if now != seen:
            moved, seen = time.monotonic(), now
        if time.monotonic() - moved > patience_s:
            raise VersionError(
                f"nothing moved for {patience_s:.0f} s with {backfill.lag} records to go; is Kafka well? see: "
                "sensorium doctor; the same command goes on from there"
            )
        tell("backfill", backfill.total - backfill.lag, backfill.total)
        await asyncio.sleep(0.1)
    tell("backfill", backfill.total, backfill.total)


async def _beside(task: asyncio.Task[None], work: Any) -> Any:
    """`work` while the candidate follows live; an error of either ends both."""
    working = asyncio.ensure_future(work)
    await asyncio.wait({task, working}, return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await task
        raise VersionError("the backfill ended before it was done; see the log")
    return await working


async def _compare(settings: Settings, backfill: Backfill, was: str) -> Comparison:
    candidate = StoreQueries(backfill.store, lambda: backfill.version.model)
    name, size_ms = backfill.version.name, settings.window.size_ms

    def new_id(stream: str, start_ms: int) -> str:
        return window_id(stream, start_ms, size_ms, name)

    try:
        async with open_queries(settings) as serving:
            return await compare(serving, candidate, (was, name), new_id)
    except StoreError as error:
        raise VersionError(f"cannot ask the serving version: {error}") from None
