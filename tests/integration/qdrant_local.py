"""`qdrant-client`'s local mode in place of a Qdrant server: `ServerStore`'s own requests, no server.

One in-memory client is every client of the "server", so that a store that is opened again finds what it held. What
local mode lacks is added here, and never worked around in `ServerStore`:

- it warns that payload indexes have no effect; that is known
- `close` would drop the data of all who share the client
- a collection that is deleted keeps its aliases; a server drops them with it
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from qdrant_client import AsyncQdrantClient, models

URL = "http://qdrant.local:6333"  # never resolved


class LocalQdrant(AsyncQdrantClient):
    """Local mode behaving as a server does, where they differ."""

    def __init__(self) -> None:
        super().__init__(location=":memory:")

    async def close(self, *_: Any, **__: Any) -> None:
        """The server lives on when one of its clients is closed."""

    async def create_payload_index(self, *arguments: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return await super().create_payload_index(*arguments, **options)

    async def delete_collection(self, collection_name: str, timeout: int | None = None, **options: Any) -> bool:
        found = await self.get_aliases()
        steps: list[Any] = [
            models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias.alias_name))
            for alias in found.aliases
            if alias.collection_name == collection_name
        ]
        await self.update_collection_aliases(steps)
        return await super().delete_collection(collection_name, timeout, **options)


def serve_locally(monkeypatch: pytest.MonkeyPatch) -> str:
    """Let every `ServerStore` of a test talk to one local Qdrant; returns the URL to name it by."""
    client = LocalQdrant()
    monkeypatch.setattr("streams.store.server.connect", lambda url, **_: client)
    return URL
