"""The worker's HTTP server: health, metrics, and read-only queries about stored windows.

A list is a JSON array of at most `limit` rows. Where more follow, the header `X-Next-Cursor` holds what `cursor` takes
for the next page; a header, so that the body stays the array that it always was.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from streams.serving.health import Health
from streams.serving.pages import MAX_ROWS, CursorError, Page, Row
from streams.serving.queries import Queries, QueryError
from streams.serving.supervisor import WorkerSupervisor
from streams.settings import Settings
from streams.store.base import Filter, StoreError, StoreUnavailable

_MAX_CLIP_BYTES = 16 * 1_048_576
Text = Annotated[str | None, Query()]
Number = Annotated[int | None, Query()]
Limit = Annotated[int, Query(ge=1, le=MAX_ROWS)]
Cursor = Annotated[str | None, Query(max_length=2000)]
_RETRY_AFTER_S = 5


def _where(stream: Text = None, from_ms: Number = None, to_ms: Number = None) -> Filter:
    return Filter(stream=stream, from_ms=from_ms, to_ms=to_ms)


Where = Annotated[Filter, Depends(_where)]


def make_api(supervisor: WorkerSupervisor) -> FastAPI:
    """The app for the worker that serves now. Everything in it only reads."""
    api = FastAPI(title="Sensorium worker", docs_url=None, redoc_url=None)
    health = Health(supervisor)
    queries: Queries = supervisor

    @api.exception_handler(QueryError)
    @api.exception_handler(CursorError)
    async def _bad_query(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status_code=422)

    @api.exception_handler(StoreError)
    async def _store_failed(_: Request, error: StoreError) -> Response:
        if isinstance(error, StoreUnavailable):
            return JSONResponse({"error": str(error)}, status_code=503, headers={"Retry-After": str(_RETRY_AFTER_S)})
        return JSONResponse({"error": str(error)}, status_code=500)

    def rows(page: Page, response: Response) -> list[Row]:
        if page.next is not None:
            response.headers["X-Next-Cursor"] = page.next
        return list(page)

    @api.get("/healthz")
    async def healthz() -> Response:
        report = health.check()
        return JSONResponse(report.details, status_code=200 if report.alive else 503)

    @api.get("/readyz")
    async def readyz() -> Response:
        report = health.check()
        return JSONResponse(report.details, status_code=200 if report.ready else 503)

    @api.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(supervisor.worker.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @api.get("/v1/streams")
    async def streams(response: Response, limit: Limit = MAX_ROWS, cursor: Cursor = None) -> list[Row]:
        return rows(await queries.streams(limit, cursor), response)

    @api.get("/v1/search")
    async def search(
        where: Where,
        response: Response,
        text: Text = None,
        window: Text = None,
        limit: Limit = 10,
        cursor: Cursor = None,
    ) -> list[Row]:
        if window is not None:
            return rows(await queries.search_window(window, where, limit, cursor), response)
        if text is not None:
            return rows(await queries.search_text(text, where, limit, cursor), response)
        raise HTTPException(422, "give text=... or window=..., or POST a clip to /v1/search/audio")

    @api.post("/v1/search/audio")
    async def search_audio(
        request: Request,
        where: Where,
        response: Response,
        limit: Limit = 10,
        cursor: Cursor = None,
    ) -> list[Row]:
        encoded = bytearray()
        async for chunk in request.stream():
            encoded += chunk
            if len(encoded) > _MAX_CLIP_BYTES:
                raise HTTPException(413, f"a clip to search for may have {_MAX_CLIP_BYTES} bytes")
        return rows(await queries.search_audio(bytes(encoded), where, limit, cursor), response)

    @api.get("/v1/windows")
    async def windows(
        where: Where,
        response: Response,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> list[Row]:
        return rows(await queries.windows(where, limit, cursor), response)

    @api.get("/v1/incidents")
    async def incidents(
        where: Where,
        response: Response,
        limit: Limit = MAX_ROWS,
        cursor: Cursor = None,
    ) -> list[Row]:
        return rows(await queries.incidents(where, limit, cursor), response)

    @api.get("/v1/export")
    async def export() -> Response:
        exported = queries.export()
        # the first row before the status line: a store that is away is a 503, not a 200 that breaks off
        first = await anext(exported, None)

        async def lines() -> AsyncIterator[bytes]:
            if first is not None:
                yield msgspec.json.encode(first) + b"\n"
            async with contextlib.aclosing(exported):
                async for row in exported:
                    yield msgspec.json.encode(row) + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    return api


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """The process handles signals itself."""
        yield


@contextlib.asynccontextmanager
async def serve(supervisor: WorkerSupervisor, settings: Settings) -> AsyncIterator[str]:
    """Serve until the context ends; yields the address, also written to `<state>/worker.json` for other commands."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.http_host, settings.http_port))
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot serve on {settings.http_host}:{settings.http_port}: {error.strerror}; choose another port with "
            "SENSORIUM_HTTP_PORT, or 0 for any"
        ) from None
    port = listener.getsockname()[1]
    config = uvicorn.Config(make_api(supervisor), log_level="warning", access_log=False, lifespan="off")
    config.timeout_graceful_shutdown = 1
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    host = "127.0.0.1" if settings.http_host in ("0.0.0.0", "") else settings.http_host
    url = f"http://{host}:{port}"
    note = settings.state / "worker.json"
    _write_note(note, url, settings)
    try:
        yield url
    finally:
        _remove_note(note)
        server.should_exit = True
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            await asyncio.wait_for(task, 2.0)
        listener.close()


def _write_note(path: Path, url: str, settings: Settings) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps({"url": url, "pid": os.getpid(), "store": _absolute(settings.store_url)}) + "\n")
    partial.replace(path)


def _absolute(store_url: str) -> str:
    """A store URL that means the same in another working folder."""
    folder = store_url.removeprefix("edge:")
    return f"edge:{Path(folder).resolve()}" if folder != store_url else store_url


def _remove_note(path: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        if json.loads(path.read_text())["pid"] == os.getpid():
            path.unlink()
