"""Queries from another process: through the worker that has the store open, or on the store itself."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec

from models.interface import WindowModel
from streams.errors import SensoriumError
from streams.serving.pages import MAX_ROWS, Page, Row
from streams.serving.queries import Queries, QueryError, StoreQueries
from streams.serving.versions import Registry, load_configured, serving_version
from streams.settings import Settings
from streams.store import open_collections
from streams.store.base import Filter, StoreUnavailable

_TIMEOUT_S = 60.0


class RemoteQueries:
    """`Queries` through a worker's local API. Raises `StoreUnavailable` where that answers 503."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def search_text(self, text: str, where: Filter, limit: int, cursor: str | None = None) -> Page:
        return await self._get("/v1/search", where, text=text, limit=limit, cursor=cursor)

    async def search_window(self, id: str, where: Filter, limit: int, cursor: str | None = None) -> Page:
        return await self._get("/v1/search", where, window=id, limit=limit, cursor=cursor)

    async def search_audio(self, encoded: bytes, where: Filter, limit: int, cursor: str | None = None) -> Page:
        params = _params(where, limit=limit, cursor=cursor)
        return _page(await self._http.post("/v1/search/audio", params=params, content=encoded))

    async def streams(self, limit: int = MAX_ROWS, cursor: str | None = None) -> Page:
        return await self._get("/v1/streams", Filter(), limit=limit, cursor=cursor)

    async def incidents(self, where: Filter, limit: int = MAX_ROWS, cursor: str | None = None) -> Page:
        return await self._get("/v1/incidents", where, limit=limit, cursor=cursor)

    async def windows(self, where: Filter, limit: int, cursor: str | None = None) -> Page:
        return await self._get("/v1/windows", where, limit=limit, cursor=cursor)

    async def export(self) -> AsyncGenerator[Row, None]:
        async with self._http.stream("GET", "/v1/export") as response:
            if response.is_error:
                await response.aread()
                raise _failure(response)
            async for line in response.aiter_lines():
                yield msgspec.json.decode(line)

    async def _get(self, path: str, where: Filter, **params: Any) -> Page:
        return _page(await self._http.get(path, params=_params(where, **params)))


@contextlib.asynccontextmanager
async def open_queries(settings: Settings) -> AsyncIterator[Queries]:
    """Through the worker that runs on this state folder and this store, if one does; else on the store itself."""
    url = worker_url(settings.state, settings.store_url)
    if url is not None:
        async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, trust_env=False) as http:
            try:
                yield RemoteQueries(http)
            except httpx.TransportError as error:
                raise QueryError(f"the worker at {url} does not answer: {error!r}; see its log") from None
        return
    if settings.store_url.startswith("edge:") and not Path(settings.store_url.removeprefix("edge:")).is_dir():
        raise QueryError(
            f"nothing is stored at {settings.store_url} yet; fill it with: sensorium up --state {settings.state}"
        )
    async with open_collections(settings) as collections:
        aliases = await collections.read()
        if aliases.serving is None:  # a store from before there were versions: its first start
            await serving_version(settings)
            aliases = await collections.read()
        serving = aliases.serving
        assert serving is not None
        async with collections.store(serving, aliases) as store:
            yield StoreQueries(store, lambda: _load_model(settings, serving))


def worker_url(state: Path, store_url: str | None = None) -> str | None:
    """Address of the worker that runs on a state folder (and on that store, if one is named), or None."""
    try:
        note = json.loads((state / "worker.json").read_text())
        url, pid, store = str(note["url"]), int(note["pid"]), str(note["store"])
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if store_url is not None and _place(store_url) != _place(store):
        return None
    host, _, port = url.removeprefix("http://").rpartition(":")
    try:  # a process that was killed leaves its note, and its number goes to another one
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return None
    return url


def _place(store_url: str) -> str:
    if store_url.startswith("edge:"):
        return f"edge:{Path(store_url.removeprefix('edge:')).resolve()}"
    return store_url.rstrip("/")


def _load_model(settings: Settings, version: str) -> WindowModel:
    """The model of the version that is queried: only its vectors may be compared with the stored ones."""
    registry = Registry(settings.state)
    if registry.path(version) is None:
        configured = load_configured(settings)
        if configured.version == version:
            return configured
    return registry.load(version)


def _params(where: Filter, **more: Any) -> dict[str, Any]:
    given = {"stream": where.stream, "from_ms": where.from_ms, "to_ms": where.to_ms} | more
    return {key: value for key, value in given.items() if value is not None}


def _page(response: httpx.Response) -> Page:
    if response.is_error:
        raise _failure(response)
    return Page(response.json(), response.headers.get("x-next-cursor"))


def _failure(response: httpx.Response) -> SensoriumError:
    """What the worker's answer says went wrong."""
    try:
        content = response.json()
        reason = str(content.get("error") or content.get("detail"))
    except (ValueError, AttributeError):
        reason = f"the worker answered {response.status_code}: {response.text[:200]}; see its log"
    return StoreUnavailable(reason) if response.status_code == 503 else QueryError(reason)
