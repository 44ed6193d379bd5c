"""Where windows are kept: one protocol, Qdrant Edge embedded or a Qdrant server behind it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from streams.settings import Settings
from streams.store.base import VectorStore

if TYPE_CHECKING:
    from streams.store.collections import Shelf
    from streams.store.server import ServerStore


def open_store(settings: Settings) -> VectorStore:
    """The windows of the model version that serves, in the store that the settings name; open it with `async with`."""
    url = settings.store_url
    if url.startswith("edge:"):
        from streams.store.collections import serving_folder
        from streams.store.edge import EdgeStore

        return EdgeStore(serving_folder(Path(url.removeprefix("edge:"))))
    return _server(settings, follow=f"{settings.collection}--serving")


def open_shelf(settings: Settings) -> Shelf:
    """The versions in the store that the settings name, and which of them serves; open it with `async with`."""
    from streams.store.collections import EdgeShelf, ServerShelf

    url = settings.store_url
    if url.startswith("edge:"):
        return EdgeShelf(Path(url.removeprefix("edge:")))
    return ServerShelf(_server(settings))


def _server(settings: Settings, follow: str | None = None) -> ServerStore:
    from streams.store.server import ServerStore

    key = settings.store_api_key
    return ServerStore(
        settings.store_url,
        collection=settings.collection,
        grpc_port=settings.store_grpc_port,
        api_key=key.get_secret_value() if key else None,
        shards=settings.store_shards,
        replicas=settings.store_replicas,
        follow=follow,
    )
