"""Asking stored windows: through the worker that has the store open, or by opening the store ourselves."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec

from models.interface import WindowModel
from streams.serving.queries import Queries, QueryError, Row, StoreQueries
from streams.serving.versions import Registry, load_configured, serving_version
from streams.settings import Settings
from streams.store import open_collections
from streams.store.base import Filter

_TIMEOUT_S = 60.0


class RemoteQueries:
    """The questions of `Queries`, put to a worker's local API."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def search_text(self, text: str, where: Filter, limit: int) -> list[Row]:
        return await self._get("/v1/search", where, text=text, limit=limit)

    async def search_window(self, id: str, where: Filter, limit: int) -> list[Row]:
        return await self._get("/v1/search", where, window=id, limit=limit)

    async def search_audio(self, encoded: bytes, where: Filter, limit: int) -> list[Row]:
        params = _params(where) | {"limit": limit}
        return _answer(await self._http.post("/v1/search/audio", params=params, content=encoded))

    async def streams(self) -> list[Row]:
        return await self._get("/v1/streams", Filter())

    async def incidents(self, where: Filter) -> list[Row]:
        return await self._get("/v1/incidents", where)

    async def windows(self, where: Filter, limit: int) -> list[Row]:
        return await self._get("/v1/windows", where, limit=limit)

    async def export(self) -> AsyncIterator[Row]:
        async with self._http.stream("GET", "/v1/export") as response:
            if response.is_error:
                raise QueryError(f"the worker answered {response.status_code}; see its log")
            async for line in response.aiter_lines():
                yield msgspec.json.decode(line)

    async def _get(self, path: str, where: Filter, **params: Any) -> list[Row]:
        return _answer(await self._http.get(path, params=_params(where) | params))


@contextlib.asynccontextmanager
async def open_queries(settings: Settings) -> AsyncIterator[Queries]:
    """Whoever can answer: a live worker on this state folder that works on this store, else the store itself."""
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
    """The model of the version that is asked: only its vectors may be compared with the stored ones."""
    registry = Registry(settings.state)
    if registry.path(version) is None:
        configured = load_configured(settings)
        if configured.version == version:
            return configured
    return registry.load(version)


def _params(where: Filter) -> dict[str, Any]:
    given = {"stream": where.stream, "from_ms": where.from_ms, "to_ms": where.to_ms}
    return {key: value for key, value in given.items() if value is not None}


def _answer(response: httpx.Response) -> list[Row]:
    if response.is_error:
        try:
            said = response.json()
            reason = said.get("error") or said.get("detail")
        except ValueError:
            reason = response.text[:200]
        raise QueryError(str(reason))
    rows: list[Row] = response.json()
    return rows
