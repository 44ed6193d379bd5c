"""A Qdrant server that fails, over real gRPC: what is waited for, what ends, and that nothing hangs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from qdrant_client import grpc as messages

from streams.store import server
from streams.store.base import Filter, StoreError, StoreUnavailable, VectorStore
from streams.store.server import ServerStore
from tests.integration.test_store_contract import all_of, point, unit


class FailingServer(grpc.GenericRpcHandler):
    """Opens like a Qdrant server; then every request fails with `failure`, a status and its details."""

    def __init__(self) -> None:
        self.version = "1.17.0"
        self.failure: tuple[grpc.StatusCode, str] | None = None
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((self,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()

    async def stop(self) -> None:
        assert self._server is not None
        await self._server.stop(None)

    def service(self, details: Any) -> Any:
        async def answer(_: bytes, context: Any) -> bytes:
            return await self._answer(details.method, context)

        return grpc.unary_unary_rpc_method_handler(answer)

    async def _answer(self, method: str, context: Any) -> bytes:
        if self.failure is not None:
            await context.abort(*self.failure)
        name = method.rpartition("/")[2]
        answer: Any = {
            "HealthCheck": messages.HealthCheckReply(title="qdrant", version=self.version),
            "CollectionExists": messages.CollectionExistsResponse(result=messages.CollectionExists(exists=True)),
            "CreateFieldIndex": messages.PointsOperationResponse(
                result=messages.UpdateResult(status=messages.UpdateStatus.Completed)
            ),
        }[name]
        return bytes(answer.SerializeToString())


@pytest_asyncio.fixture
async def failing() -> AsyncIterator[FailingServer]:
    server = FailingServer()
    await server.start()
    yield server
    await server.stop()


def store_of(failing: FailingServer, port: int | None = None) -> ServerStore:
    return ServerStore("http://127.0.0.1:1", grpc_port=port or failing.port)


async def requests(store: VectorStore) -> list[Exception]:
    """Every kind of request; the errors that they end with."""
    errors: list[Exception] = []
    for request in (
        store.upsert([point(1)]),
        store.set_payload(point(1).id, {"bank": True}),
        store.get([point(1).id]),
        all_of(store),
        all_of(store, after=(5, point(1).id)),
        store.search(unit(1)),
        store.streams(),
        store.latest(["pump"]),
        store.count(Filter()),
        store.delete_before(5),
        store.info(),
    ):
        try:
            await request
        except StoreError as error:
            errors.append(error)
    return errors


FAILURES = {
    "away": (grpc.StatusCode.UNAVAILABLE, "shutting down", StoreUnavailable, "start the Qdrant server"),
    "full": (grpc.StatusCode.INTERNAL, "No space left on device", StoreUnavailable, "a full or failing disk"),
    "key": (grpc.StatusCode.UNAUTHENTICATED, "Invalid API key or JWT", StoreError, "SENSORIUM_STORE_API_KEY"),
    "read-only key": (grpc.StatusCode.PERMISSION_DENIED, "Forbidden", StoreError, "a key that may write"),
    "dropped": (grpc.StatusCode.NOT_FOUND, "Collection `windows` doesn't exist!", StoreError, "dropped"),
    "old": (grpc.StatusCode.UNIMPLEMENTED, "unknown method", StoreError, "upgrade"),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_every_request_ends_in_the_same_clear_way(failing: FailingServer, name: str) -> None:
    code, details, kind, mends = FAILURES[name]
    async with store_of(failing) as store:
        failing.failure = (code, details)
        errors = await requests(store)
    assert [type(error) for error in errors] == [kind] * 11
    assert all(details in str(error) and mends in str(error) for error in errors)


async def test_opening_says_what_is_wrong(failing: FailingServer) -> None:
    failing.version = "1.9.2"
    with pytest.raises(StoreError, match=r"runs Qdrant 1\.9\.2; .* upgrade it"):
        await store_of(failing).__aenter__()
    failing.failure = (grpc.StatusCode.UNAUTHENTICATED, "Invalid API key or JWT")
    with pytest.raises(StoreError, match="SENSORIUM_STORE_API_KEY"):
        await store_of(failing).__aenter__()


async def test_a_server_that_stops_is_away_at_once(failing: FailingServer) -> None:
    async with store_of(failing) as store:
        await failing.stop()
        errors = await requests(store)
    assert [type(error) for error in errors] == [StoreUnavailable] * 11
    assert all("UNAVAILABLE" in str(error) for error in errors)  # and not DEADLINE_EXCEEDED: nothing was waited for


async def test_a_server_that_accepts_and_never_answers_is_away_after_the_timeout(
    failing: FailingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_TIMEOUT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with asyncio.timeout(60):
            with pytest.raises(StoreUnavailable, match="start the Qdrant server"):
                await store_of(failing, silent.getsockname()[1]).__aenter__()
