"""What is left open when another model version takes over: incidents of the version that leaves are closed.

Their ids contain the version; the next one opens incidents of its own. Left open, they would never end.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from streams.drift import DriftState
from streams.drift.incidents import close_for
from streams.pipeline.payload import WindowPayload, payload_from, steps_of
from streams.pipeline.publisher import Publisher
from streams.store.base import Filter, VectorStore

log = structlog.get_logger(__name__)
_STREAMS_AT_ONCE = 1000
_LOOKBACK = 16  # stored windows looked through for one that carries a drift state


async def close_open_incidents(
    store: VectorStore, publisher: Publisher, reason: str, ours: Callable[[str], bool]
) -> int:
    """Close the open incidents of every stream that is `ours`; returns how many there were.

    `store` is that of the version that leaves, with no worker on it any more, and waits while it is away. Each step is
    published first and noted then: a crash in between publishes it again, with the same id.
    """
    closed = 0
    names = sorted(name for name in await store.streams() if ours(name))
    for start in range(0, len(names), _STREAMS_AT_ONCE):
        latest = await store.latest(names[start : start + _STREAMS_AT_ONCE])
        for stream, point in latest.items():
            if point.payload.get("incident") is not None:
                closed += await _close(store, publisher, stream, reason)
    return closed


async def _close(store: VectorStore, publisher: Publisher, stream: str, reason: str) -> int:
    scored = await _last_scored(store, stream)
    if scored is None:
        return 0
    id, payload = scored
    assert payload.drift is not None
    state, step = close_for(DriftState.from_payload(payload.drift), reason, payload.end, stream=stream, window=id)
    if step is None:
        return 0
    steps = steps_of([step])
    await publisher.incidents(steps, again=False)
    noted = {"drift": state.to_payload(), "steps": [*payload.steps, *steps], "incident_step": True}
    await store.set_payload(id, noted)
    return 1


async def _last_scored(store: VectorStore, stream: str) -> tuple[str, WindowPayload] | None:
    async for point in store.scroll(Filter(stream=stream), descending=True, limit=_LOOKBACK):
        payload = payload_from(point.payload)
        if payload.drift is not None:
            return point.id, payload
    return None
