"""Model versions on a Qdrant server: a collection each, and aliases."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from qdrant_client import AsyncQdrantClient, models

from streams.store.collections import RESERVED, Aliases, checked_version
from streams.store.server import ServerStore


class ServerCollections:
    """Collections `<base>` and `<base>--<version>` of a Qdrant server, and aliases.

    `<base>--serving` and `<base>--previous` point at collections; an alias `<base>--<version>` says which version
    the default collection holds.
    """

    def __init__(self, base: ServerStore) -> None:
        self._base = base  # names the server and the default collection
        self._opened: AsyncQdrantClient | None = None

    async def __aenter__(self) -> Self:
        self._opened = self._base.new_client()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    @property
    def _client(self) -> AsyncQdrantClient:
        assert self._opened is not None, "use it as a context manager: async with ServerCollections(store)"
        return self._opened

    async def read(self) -> Aliases:
        aliases = await self._targets()
        collections = await self._base.call(self._client.get_collections)
        prefix, base = self._base.collection + "--", self._base.collection
        names = {c.name.removeprefix(prefix): c.name for c in collections.collections if c.name.startswith(prefix)}
        default = None
        for name, target in aliases.items():
            if name not in RESERVED and target == base:
                default, names[name] = name, base
        version_of = {collection: version for version, collection in names.items()}
        serving, previous = (version_of.get(aliases.get(role, "")) for role in RESERVED)
        return Aliases(serving, previous, default, dict(sorted(names.items())))

    def default_collection(self) -> ServerStore:
        return self._base.beside(self._base.collection)

    async def bind_default(self, version: str) -> None:
        await self._move({checked_version(version): self._base.collection})

    def store(self, version: str, aliases: Aliases) -> ServerStore:
        return self._base.beside(self._collection_of(version, aliases))

    async def switch(self, version: str) -> None:
        before = await self.read()
        if before.serving == version:
            return
        roles = {"serving": self._collection_of(version, before)}
        if before.serving is not None:
            roles["previous"] = self._collection_of(before.serving, before)
        await self._move(roles)

    async def drop(self, version: str) -> None:
        collection = self._collection_of(version, await self.read())
        await self._base.call(lambda: self._client.delete_collection(collection))  # its aliases go with it

    def _collection_of(self, version: str, aliases: Aliases) -> str:
        base = self._base.collection
        return base if version == aliases.default else f"{base}--{checked_version(version)}"

    async def _targets(self) -> dict[str, str]:
        found = await self._base.call(self._client.get_aliases)
        prefix = self._base.collection + "--"
        named = {a.alias_name: a.collection_name for a in found.aliases}
        return {name.removeprefix(prefix): target for name, target in named.items() if name.startswith(prefix)}

    async def _move(self, aliases: Mapping[str, str]) -> None:
        """All of them in one request, which the server applies as one."""
        prefix, known = self._base.collection + "--", await self._targets()
        steps: list[Any] = []
        for name, target in aliases.items():
            if name in known:
                steps.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=prefix + name)))
            create = models.CreateAlias(collection_name=target, alias_name=prefix + name)
            steps.append(models.CreateAliasOperation(create_alias=create))
        await self._base.call(lambda: self._client.update_collection_aliases(steps))
