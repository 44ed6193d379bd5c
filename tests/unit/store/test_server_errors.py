"""Which failures of a Qdrant server are waited for, and which end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from grpc.aio import AioRpcError, Metadata
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from streams.store import server
from streams.store.base import Filter, StoreError, StoreUnavailable
from streams.store.server import ServerStore
from streams.store.server_errors import FAILURES, check_version, classified

URL = "http://qdrant:6333"


def rpc(code: grpc.StatusCode, details: str = "details") -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), details=details)


def http(status: int) -> UnexpectedResponse:
    return UnexpectedResponse(status, "reason", b"", httpx.Headers())


WAIT = [
    (rpc(grpc.StatusCode.UNAVAILABLE), "start the Qdrant server"),
    (rpc(grpc.StatusCode.DEADLINE_EXCEEDED), "start the Qdrant server"),
    (rpc(grpc.StatusCode.INTERNAL, "WAL: No space left on device"), "No space left on device; look for a full"),
    (rpc(grpc.StatusCode.UNKNOWN, "line\nanother"), "line another"),
    (rpc(grpc.StatusCode.RESOURCE_EXHAUSTED, "rate limit"), "limits requests"),
    (http(500), "HTTP 500"),
    (http(429), "HTTP 429"),
    (ResponseHandlingException(httpx.ConnectError("refused")), "refused"),
    (httpx.ReadTimeout("slow"), "slow"),
    (TimeoutError(), "TimeoutError"),
    (ConnectionRefusedError("refused"), "refused"),
]
END = [
    (rpc(grpc.StatusCode.UNAUTHENTICATED, "Invalid API key or JWT"), "SENSORIUM_STORE_API_KEY"),
    (rpc(grpc.StatusCode.PERMISSION_DENIED), "SENSORIUM_STORE_API_KEY"),
    (rpc(grpc.StatusCode.NOT_FOUND, "Collection `windows` doesn't exist!"), "start again"),
    (rpc(grpc.StatusCode.UNIMPLEMENTED), "upgrade"),
    (rpc(grpc.StatusCode.INVALID_ARGUMENT, "expected dim: 128, got 256"), "expected dim: 128"),
    (rpc(grpc.StatusCode.FAILED_PRECONDITION), "FAILED_PRECONDITION"),
    (rpc(grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 4)"), "less at once"),
    (http(401), "SENSORIUM_STORE_API_KEY"),
    (http(404), "address"),
]


@pytest.mark.parametrize(("error", "named"), WAIT, ids=lambda value: repr(value)[:40])
def test_what_a_retry_may_mend_is_waited_for(error: Exception, named: str) -> None:
    assert isinstance(error, FAILURES)
    found = classified(URL, error)
    assert isinstance(found, StoreUnavailable)
    assert URL in str(found)
    assert named in str(found)
    assert "\n" not in str(found)


@pytest.mark.parametrize(("error", "named"), END, ids=lambda value: repr(value)[:40])
def test_what_no_retry_mends_ends(error: Exception, named: str) -> None:
    assert isinstance(error, FAILURES)
    found = classified(URL, error)
    assert isinstance(found, StoreError)
    assert not isinstance(found, StoreUnavailable)
    assert URL in str(found)
    assert named in str(found)


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_status_is_one_of_the_two(code: grpc.StatusCode) -> None:
    assert isinstance(classified(URL, rpc(code)), StoreError)


@pytest.mark.parametrize("version", ["1.12.6", "0.11.0", "1.9.0-dev"])
def test_a_server_that_is_too_old_is_named(version: str) -> None:
    with pytest.raises(StoreError, match=rf"runs Qdrant {version}; .* upgrade it"):
        check_version(URL, version)


@pytest.mark.parametrize("version", ["1.13.0", "1.20.1-rc2", "2.0.0", "dev"])
def test_a_server_that_is_new_enough_is_taken(version: str) -> None:
    check_version(URL, version)


async def test_a_store_that_opens_on_a_refusing_server_says_so_and_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    async def refuse() -> Any:
        raise rpc(grpc.StatusCode.UNAUTHENTICATED)

    async def close() -> None:
        closed.append(True)

    monkeypatch.setattr(server, "connect", lambda url, **_: SimpleNamespace(info=refuse, close=close))
    with pytest.raises(StoreError, match="SENSORIUM_STORE_API_KEY"):
        await ServerStore(URL).__aenter__()
    assert closed == [True]


async def test_a_collection_that_is_dropped_ends_a_scroll(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ServerStore(URL)

    async def gone(*_: Any, **__: Any) -> Any:
        raise rpc(grpc.StatusCode.NOT_FOUND, "Collection `windows` doesn't exist!")

    store._client = SimpleNamespace(scroll=gone)  # type: ignore[assignment]
    with pytest.raises(StoreError, match="dropped"):
        _ = [p async for p in store.scroll(Filter())]
