"""Failures of a Qdrant server, as the two kinds that callers tell apart: a retry may help, or none will.

wait  no connection, timeout, restart: UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED, ABORTED, UNKNOWN; HTTP 408, 429, 5xx
wait  INTERNAL: what a server with a full or failing disk answers; its own words are shown
wait  RESOURCE_EXHAUSTED: a rate limit; but not a message that is too large, which stays so
end   wrong or read-only API key, collection dropped, request not understood (an older server), values refused
"""

from __future__ import annotations

import grpc
import httpx
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from streams.store.base import StoreError, StoreUnavailable

OLDEST_SERVER = (1, 13)  # filters on `has_vector`

_WAIT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNKNOWN,
}
_START = "start the Qdrant server there, or name another with --store (its gRPC port: store_grpc_port)"
_MEND = {
    grpc.StatusCode.INTERNAL: "look for a full or failing disk in the server's log",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "the server limits requests: give it more room, or raise its limits",
    grpc.StatusCode.UNAUTHENTICATED: "set the right key with SENSORIUM_STORE_API_KEY",
    grpc.StatusCode.PERMISSION_DENIED: "set a key that may write with SENSORIUM_STORE_API_KEY",
    grpc.StatusCode.NOT_FOUND: "the collection was dropped: restore it from a snapshot, or start again to make it anew",
    grpc.StatusCode.UNIMPLEMENTED: f"Sensorium needs Qdrant {'.'.join(map(str, OLDEST_SERVER))} or newer: upgrade it",
}
FAILURES = (
    grpc.aio.AioRpcError,
    TimeoutError,
    ResponseHandlingException,
    UnexpectedResponse,
    httpx.TransportError,
    ConnectionError,
)


def classified(url: str, error: BaseException) -> StoreError:
    """One of `FAILURES` as `StoreUnavailable` (wait and retry) or `StoreError` (end), with what mends it."""
    if isinstance(error, grpc.aio.AioRpcError):
        return _of_grpc(url, error)
    if isinstance(error, UnexpectedResponse):
        return _of_http(url, error)
    return StoreUnavailable(f"{url}: {str(error) or type(error).__name__}; {_START}")


def _of_grpc(url: str, error: grpc.aio.AioRpcError) -> StoreError:
    code, details = error.code(), " ".join((error.details() or "no details").split())
    too_large = code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details
    if code in _WAIT and not too_large:
        return StoreUnavailable(f"{url}: {code.name}: {details}; {_MEND.get(code, _START)}")
    mend = "ask for less at once" if too_large else _MEND.get(code, "see the server's log")
    return StoreError(f"{url} refused: {code.name}: {details}; {mend}")


def _of_http(url: str, error: UnexpectedResponse) -> StoreError:
    status = error.status_code or 0
    if status >= 500 or status in (408, 429):
        return StoreUnavailable(f"{url}: HTTP {status}; {_START}")
    if status in (401, 403):
        return StoreError(f"{url} refused: HTTP {status}; {_MEND[grpc.StatusCode.UNAUTHENTICATED]}")
    return StoreError(f"{url} refused: HTTP {status}: {error.reason_phrase}; is the address that of a Qdrant server?")


def check_version(url: str, version: str) -> None:
    """Raises `StoreError` for a server that is too old; a version that is no number is taken as it is."""
    parts = version.split(".")
    if len(parts) >= 2 and parts[0].isdigit() and parts[1].isdigit() and (int(parts[0]), int(parts[1])) < OLDEST_SERVER:
        raise StoreError(f"{url} runs Qdrant {version}; {_MEND[grpc.StatusCode.UNIMPLEMENTED]}")
