"""Which collection holds each model version's windows, and which version serves: the protocol, and how to open one.

The first version of a store lives in its default collection (embedded: the store's folder itself), every later one in
a collection of its own. `serving` and `previous` are aliases of a Qdrant server, or a small file `current` that is
replaced by rename: both move in one step, so that a reader sees the one version or the other, never a mixture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol

from streams.settings import Settings
from streams.store.base import StoreError, VectorStore

RESERVED = ("serving", "previous")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Aliases:
    """Which version serves and which served before; `default`: the version that the default collection holds."""

    serving: str | None = None
    previous: str | None = None
    default: str | None = None
    by_version: Mapping[str, str] = field(default_factory=dict)  # version -> collection (server) or folder (embedded)


class ModelCollections(Protocol):
    """Raises `StoreUnavailable` while a server is away."""

    async def __aenter__(self) -> ModelCollections: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def read(self) -> Aliases:
        """The collections there are, and which version serves."""
        ...

    def default_collection(self) -> VectorStore:
        """The default collection, not open yet; opening makes it where it is missing."""
        ...

    async def bind_default(self, version: str) -> None:
        """Record, for good, which version the default collection holds."""
        ...

    def store(self, version: str, aliases: Aliases) -> VectorStore:
        """The collection of a version, not open yet; opening makes it where it is missing."""
        ...

    async def switch(self, version: str) -> None:
        """Let `version` serve; the one that served becomes `previous`. One step for every reader."""
        ...

    async def drop(self, version: str) -> None:
        """Delete a version's windows for good."""
        ...


def checked_version(version: str) -> str:
    """A version that can name a collection and a folder; raises `StoreError` for others."""
    if not _NAME.fullmatch(version) or version in RESERVED:
        raise StoreError(f"{version!r} cannot name a model version: letters, digits, . _ - only, 100 at most")
    return version


def open_collections(settings: Settings) -> ModelCollections:
    """The versions in the store that the settings name, and which of them serves; open it with `async with`."""
    url = settings.store_url
    if url.startswith("edge:"):
        from streams.store.edge_collections import EdgeCollections

        return EdgeCollections(Path(url.removeprefix("edge:")))
    from streams.store.server import server_store
    from streams.store.server_collections import ServerCollections

    return ServerCollections(server_store(settings))
