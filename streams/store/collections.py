"""Where each model version's windows are kept, and which version serves: one collection a version behind an alias.

The first version of a store lives in the plain collection (embedded: in the store's folder itself), every later one in
a collection of its own. `serving` and `previous` are aliases of a Qdrant server, or a small file `current` that is
replaced by rename: both move in one step, so that whoever asks sees the one version or the other, never a mixture.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from streams.store.base import StoreError, VectorStore
from streams.store.edge import EdgeStore

if TYPE_CHECKING:
    from streams.store.server import ServerStore

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RESERVED = ("serving", "previous")


@dataclass(frozen=True, slots=True)
class Aliases:
    """`homes`: version -> its collection (a server) or folder (embedded). `plain`: the version in the plain one."""

    serving: str | None = None
    previous: str | None = None
    plain: str | None = None
    homes: Mapping[str, str] = field(default_factory=dict)


class Shelf(Protocol):
    """Raises `StoreUnavailable` while a server is away."""

    async def __aenter__(self) -> Shelf: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def read(self) -> Aliases:
        """What is where, and who serves."""
        ...

    def plain(self) -> VectorStore:
        """The plain collection, not open yet; opening makes it where it is missing."""
        ...

    async def bind_plain(self, version: str) -> None:
        """Say once and for all which version the plain collection holds."""
        ...

    def store(self, version: str, aliases: Aliases) -> VectorStore:
        """The collection of a version, not open yet; opening makes it where it is missing."""
        ...

    async def switch(self, version: str) -> None:
        """Let `version` serve; who served becomes `previous`. One step for everyone who looks."""
        ...

    async def drop(self, version: str) -> None:
        """Delete a version's windows for good."""
        ...


def checked_version(version: str) -> str:
    """A version that can name a collection and a folder."""
    if not _NAME.fullmatch(version) or version in _RESERVED:
        raise StoreError(f"{version!r} cannot name a model version: letters, digits, . _ - only, 100 at most")
    return version


class EdgeShelf:
    """Folders under the embedded store's: the plain one itself, `versions/<version>`, and the file `current`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held open."""

    async def read(self) -> Aliases:
        return read_current(self.folder)

    def plain(self) -> EdgeStore:
        return EdgeStore(self.folder)

    async def bind_plain(self, version: str) -> None:
        await asyncio.to_thread(self._write, replace(read_current(self.folder), plain=checked_version(version)))

    def store(self, version: str, aliases: Aliases) -> EdgeStore:
        return EdgeStore(_edge_home(self.folder, version, aliases.plain))

    async def switch(self, version: str) -> None:
        before = read_current(self.folder)
        if before.serving != version:
            after = replace(before, serving=checked_version(version), previous=before.serving)
            await asyncio.to_thread(self._write, after)

    async def drop(self, version: str) -> None:
        aliases = read_current(self.folder)
        home = _edge_home(self.folder, version, aliases.plain)
        async with EdgeStore(home):
            pass  # nobody has it open
        await asyncio.to_thread(shutil.rmtree, home / "points" if version == aliases.plain else home)
        kept = replace(
            aliases,
            plain=None if aliases.plain == version else aliases.plain,
            previous=None if aliases.previous == version else aliases.previous,
        )
        await asyncio.to_thread(self._write, kept)

    def _write(self, aliases: Aliases) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        said = {"serving": aliases.serving, "previous": aliases.previous, "plain": aliases.plain}
        partial = self.folder / f"current.{os.getpid()}.tmp"
        with partial.open("w") as file:
            file.write(json.dumps(said) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / "current")


def read_current(folder: Path) -> Aliases:
    """The file `current` of an embedded store, and the folders beside it. Raises `StoreError` where it is damaged."""
    path = folder / "current"
    said: dict[str, Any] = {}
    try:
        said = json.loads(path.read_text())
        aliases = Aliases(said["serving"], said["previous"], said["plain"])
    except FileNotFoundError:
        aliases = Aliases()
    except (ValueError, KeyError, TypeError):
        raise StoreError(
            f'{path} is damaged; write {{"serving": VERSION, "previous": null, "plain": VERSION}} into it, with a '
            "version that `sensorium model list` shows"
        ) from None
    homes = {p.name: str(p) for p in sorted((folder / "versions").glob("*")) if (p / "points").is_dir()}
    if aliases.plain is not None:
        homes[aliases.plain] = str(folder)
    return replace(aliases, homes=homes)


def serving_folder(folder: Path) -> Path:
    """The folder of the version that serves, inside an embedded store's."""
    aliases = read_current(folder)
    return folder if aliases.serving is None else _edge_home(folder, aliases.serving, aliases.plain)


def _edge_home(folder: Path, version: str, plain: str | None) -> Path:
    return folder if version == plain else folder / "versions" / checked_version(version)


class ServerShelf:
    """Collections `<base>` and `<base>--<version>` of a Qdrant server, and aliases.

    `<base>--serving` and `<base>--previous` point at collections; an alias `<base>--<version>` says what the plain
    collection holds.
    """

    def __init__(self, base: ServerStore) -> None:
        self._base = base  # names server and plain collection; a copy of it opens each version's
        self._client: Any = None

    async def __aenter__(self) -> Self:
        self._client = self._base.new_client()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def read(self) -> Aliases:
        aliases = await self._targets()
        collections = await self._base.call(self._client.get_collections)
        prefix, base = self._base.collection + "--", self._base.collection
        homes = {c.name.removeprefix(prefix): c.name for c in collections.collections if c.name.startswith(prefix)}
        plain = None
        for name, target in aliases.items():
            if name not in _RESERVED and target == base:
                plain, homes[name] = name, base
        version_at = {home: version for version, home in homes.items()}
        serving, previous = (version_at.get(aliases.get(role, "")) for role in _RESERVED)
        return Aliases(serving, previous, plain, dict(sorted(homes.items())))

    def plain(self) -> ServerStore:
        return self._base.beside(self._base.collection)

    async def bind_plain(self, version: str) -> None:
        await self._move({checked_version(version): self._base.collection})

    def store(self, version: str, aliases: Aliases) -> ServerStore:
        return self._base.beside(self._home(version, aliases))

    async def switch(self, version: str) -> None:
        before = await self.read()
        if before.serving == version:
            return
        roles = {"serving": self._home(version, before)}
        if before.serving is not None:
            roles["previous"] = self._home(before.serving, before)
        await self._move(roles)

    async def drop(self, version: str) -> None:
        home = self._home(version, await self.read())
        await self._base.call(lambda: self._client.delete_collection(home))  # its aliases go with it

    def _home(self, version: str, aliases: Aliases) -> str:
        base = self._base.collection
        return base if version == aliases.plain else f"{base}--{checked_version(version)}"

    async def _targets(self) -> dict[str, str]:
        found = await self._base.call(self._client.get_aliases)
        prefix = self._base.collection + "--"
        named = {a.alias_name: a.collection_name for a in found.aliases}
        return {name.removeprefix(prefix): target for name, target in named.items() if name.startswith(prefix)}

    async def _move(self, aliases: Mapping[str, str]) -> None:
        """All of them in one request, which the server applies as one."""
        from qdrant_client import models

        prefix, known = self._base.collection + "--", await self._targets()
        steps: list[Any] = []
        for name, target in aliases.items():
            if name in known:
                steps.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=prefix + name)))
            create = models.CreateAlias(collection_name=target, alias_name=prefix + name)
            steps.append(models.CreateAliasOperation(create_alias=create))
        await self._base.call(lambda: self._client.update_collection_aliases(steps))
