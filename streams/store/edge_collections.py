"""Model versions in an embedded store: folders, and the file `current` that says which serves."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from streams.store.base import StoreError
from streams.store.collections import Aliases, checked_version
from streams.store.edge import EdgeStore, lock_folder

_DEFAULT = "plain"  # the key for `Aliases.default` in the file, as it was first released


class EdgeCollections:
    """The store's folder itself is the default collection, `versions/<version>` are the others."""

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

    def default_collection(self) -> EdgeStore:
        return EdgeStore(self.folder)

    async def bind_default(self, version: str) -> None:
        await asyncio.to_thread(self._write, replace(read_current(self.folder), default=checked_version(version)))

    def store(self, version: str, aliases: Aliases) -> EdgeStore:
        return EdgeStore(_folder_of(self.folder, version, aliases.default))

    async def switch(self, version: str) -> None:
        before = read_current(self.folder)
        if before.serving != version:
            after = replace(before, serving=checked_version(version), previous=before.serving)
            await asyncio.to_thread(self._write, after)

    async def drop(self, version: str) -> None:
        aliases = read_current(self.folder)
        folder = _folder_of(self.folder, version, aliases.default)
        await asyncio.to_thread(lambda: lock_folder(folder).close())  # no other process has it open
        await asyncio.to_thread(shutil.rmtree, folder / "points" if version == aliases.default else folder)
        kept = replace(
            aliases,
            default=None if aliases.default == version else aliases.default,
            previous=None if aliases.previous == version else aliases.previous,
        )
        await asyncio.to_thread(self._write, kept)

    def _write(self, aliases: Aliases) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"serving": aliases.serving, "previous": aliases.previous, _DEFAULT: aliases.default}
        partial = self.folder / f"current.{os.getpid()}.tmp"
        with partial.open("w") as file:
            file.write(json.dumps(content) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / "current")


def read_current(folder: Path) -> Aliases:
    """The file `current` of an embedded store, and the folders beside it. Raises `StoreError` where it is damaged."""
    path = folder / "current"
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        aliases = Aliases(content["serving"], content["previous"], content[_DEFAULT])
    except FileNotFoundError:
        aliases = Aliases()
    except (ValueError, KeyError, TypeError):
        raise StoreError(
            f'{path} is damaged; write {{"serving": VERSION, "previous": null, "{_DEFAULT}": VERSION}} into it, with a '
            "version that `sensorium model list` shows"
        ) from None
    folders = {p.name: str(p) for p in sorted((folder / "versions").glob("*")) if (p / "points").is_dir()}
    if aliases.default is not None:
        folders[aliases.default] = str(folder)
    return replace(aliases, by_version=folders)


def serving_folder(folder: Path) -> Path:
    """The folder of the version that serves, inside an embedded store's."""
    aliases = read_current(folder)
    return folder if aliases.serving is None else _folder_of(folder, aliases.serving, aliases.default)


def _folder_of(folder: Path, version: str, default: str | None) -> Path:
    return folder if version == default else folder / "versions" / checked_version(version)
