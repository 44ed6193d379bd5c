"""Where windows are kept: one protocol, Qdrant Edge embedded or a Qdrant server behind it."""

from __future__ import annotations

from pathlib import Path

from streams.settings import Settings
from streams.store.base import VectorStore
from streams.store.collections import open_collections

__all__ = ["open_collections", "open_store"]


def open_store(settings: Settings) -> VectorStore:
    """The windows of the model version that serves, in the store that the settings name; open it with `async with`."""
    # imported here: each engine takes a while to load, and a process uses one
    url = settings.store_url
    if url.startswith("edge:"):
        from streams.store.edge import EdgeStore
        from streams.store.edge_collections import serving_folder

        return EdgeStore(serving_folder(Path(url.removeprefix("edge:"))))
    from streams.store.server import server_store

    return server_store(settings, follow=f"{settings.collection}--serving")
