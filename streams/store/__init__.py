"""Where windows are kept: one protocol, Qdrant Edge embedded or a Qdrant server behind it."""

from __future__ import annotations

from pathlib import Path

from streams.settings import Settings
from streams.store.base import VectorStore


def open_store(settings: Settings) -> VectorStore:
    """The store that the settings name; open it with `async with`."""
    url = settings.store_url
    if url.startswith("edge:"):
        from streams.store.edge import EdgeStore

        return EdgeStore(Path(url.removeprefix("edge:")))
    from streams.store.server import ServerStore

    key = settings.store_api_key
    return ServerStore(
        url,
        collection=settings.collection,
        grpc_port=settings.store_grpc_port,
        api_key=key.get_secret_value() if key else None,
        shards=settings.store_shards,
        replicas=settings.store_replicas,
    )
