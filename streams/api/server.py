"""The worker's HTTP face on loopback: health, metrics, and read-only questions about stored windows."""

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
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from streams.serving.health import Health
from streams.serving.queries import Queries, QueryError
from streams.serving.supervisor import Live
from streams.settings import Settings
from streams.store.base import Filter, StoreError, StoreUnavailable

_MAX_CLIP_BYTES = 16 * 1_048_576
Text = Annotated[str | None, Query()]
Number = Annotated[int | None, Query()]
Limit = Annotated[int, Query(ge=1, le=1000)]


def make_api(live: Live) -> FastAPI:
    """The app of whoever serves now. Everything in it only reads."""
    api = FastAPI(title="Sensorium worker", docs_url=None, redoc_url=None)
    health = Health(live)
    queries: Queries = live

    @api.exception_handler(QueryError)
    async def _bad_question(_: Request, error: QueryError) -> Response:
        return JSONResponse({"error": str(error)}, status_code=422)

    @api.exception_handler(StoreError)
    async def _store_trouble(_: Request, error: StoreError) -> Response:
        return JSONResponse({"error": str(error)}, status_code=503 if isinstance(error, StoreUnavailable) else 500)

    @api.get("/healthz")
    async def healthz() -> Response:
        alive, _, details = health.check()
        return JSONResponse(details, status_code=200 if alive else 503)

    @api.get("/readyz")
    async def readyz() -> Response:
        _, ready, details = health.check()
        return JSONResponse(details, status_code=200 if ready else 503)

    @api.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(live.worker.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @api.get("/v1/streams")
    async def streams() -> list[dict[str, Any]]:
        return await queries.streams()

    @api.get("/v1/search")
    async def search(
        text: Text = None,
        window: Text = None,
        stream: Text = None,
        from_ms: Number = None,
        to_ms: Number = None,
        limit: Limit = 10,
    ) -> list[dict[str, Any]]:
        where = Filter(stream=stream, from_ms=from_ms, to_ms=to_ms)
        if window is not None:
            return await queries.search_window(window, where, limit)
        if text is not None:
            return await queries.search_text(text, where, limit)
        raise HTTPException(422, "give text=... or window=..., or POST a clip to /v1/search/audio")

    @api.post("/v1/search/audio")
    async def search_audio(
        request: Request, stream: Text = None, from_ms: Number = None, to_ms: Number = None, limit: Limit = 10
    ) -> list[dict[str, Any]]:
        encoded = bytearray()
        async for chunk in request.stream():
            encoded += chunk
            if len(encoded) > _MAX_CLIP_BYTES:
                raise HTTPException(413, f"a clip to search for may have {_MAX_CLIP_BYTES} bytes")
        return await queries.search_audio(bytes(encoded), Filter(stream=stream, from_ms=from_ms, to_ms=to_ms), limit)

    @api.get("/v1/windows")
    async def windows(
        stream: Text = None, from_ms: Number = None, to_ms: Number = None, limit: Limit = 100
    ) -> list[dict[str, Any]]:
        return await queries.windows(Filter(stream=stream, from_ms=from_ms, to_ms=to_ms), limit)

    @api.get("/v1/incidents")
    async def incidents(stream: Text = None, from_ms: Number = None, to_ms: Number = None) -> list[dict[str, Any]]:
        return await queries.incidents(Filter(stream=stream, from_ms=from_ms, to_ms=to_ms))

    @api.get("/v1/export")
    async def export() -> Response:
        async def lines() -> AsyncIterator[bytes]:
            async for row in queries.export():
                yield msgspec.json.encode(row) + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    return api


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Signals are the process's own business."""
        yield


@contextlib.asynccontextmanager
async def serve(live: Live, settings: Settings) -> AsyncIterator[str]:
    """Serve until left; yields the address, which is also in `<state>/worker.json` for the other commands."""
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
    config = uvicorn.Config(make_api(live), log_level="warning", access_log=False, lifespan="off")
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
    """As those see it who ask from another folder."""
    folder = store_url.removeprefix("edge:")
    return f"edge:{Path(folder).resolve()}" if folder != store_url else store_url


def _remove_note(path: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        if json.loads(path.read_text())["pid"] == os.getpid():
            path.unlink()
