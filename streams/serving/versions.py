"""Model versions of an installation: their folders, and which of them serves.

A version is three things that belong together: a model folder (a copy in `<state>/models/<version>`), a collection of
windows (`store.collections`), and a consumer group whose offsets say what that collection holds. Nobody ever mixes
two of them: a worker runs one version, and a question is put to the collection of the version that embeds it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import structlog

from models.interface import WindowModel
from streams.errors import DataError
from streams.settings import Settings
from streams.store import open_collections
from streams.store.base import Filter, Point, StoreError, VectorStore
from streams.store.collections import Aliases, ModelCollections, checked_version

log = structlog.get_logger(__name__)
_COPY_AT_ONCE = 256


class VersionError(DataError):
    """A version that cannot be had, or must not be touched; the message names the command that mends it."""


@dataclass(frozen=True, slots=True)
class Version:
    """A model with its collection and its consumer group. `store()` makes the store, not open yet."""

    model: WindowModel
    group: str
    store: Callable[[], VectorStore]

    @property
    def name(self) -> str:
        return self.model.version


class Registry:
    """Copies of model folders, one a version. A copy is complete or not there at all."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "models"

    def path(self, version: str) -> Path | None:
        """The folder of a version, or None."""
        found = self.folder / version
        return found if found.is_dir() else None

    def names(self) -> list[str]:
        return sorted(p.name for p in self.folder.glob("*") if p.is_dir() and not p.name.startswith("."))

    def add(self, folder: Path) -> WindowModel:
        """Check a model folder by loading it, and keep a copy. Raises `ModelError` for what is no model."""
        import models

        model = models.load(folder)
        self.keep(folder, model.version)
        return model

    def keep(self, folder: Path, version: str) -> Path:
        """A copy of the folder of a version that was loaded from it; a copy that is there already stays."""
        kept = self.folder / checked_version(version)
        if kept.is_dir():
            return kept
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{uuid4().hex}"
        shutil.copytree(folder, partial, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.tmp"))
        try:
            partial.rename(kept)
        except OSError:  # another process was quicker
            shutil.rmtree(partial)
            if not kept.is_dir():
                raise
        return kept

    def load(self, version: str) -> WindowModel:
        """The model of a version. Raises `VersionError` where there is no copy, or one that was changed."""
        import models

        folder = self.path(version)
        if folder is None:
            raise VersionError(
                f"no model folder of version {version} in {self.folder}; bring it with: sensorium model add DIR"
            )
        model = models.load(folder)
        if model.version != version:
            raise VersionError(
                f"{folder} holds {model.version}: it was changed; remove it, and bring {version} anew with: sensorium "
                "model add DIR"
            )
        return model

    def remove(self, version: str) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self.folder / checked_version(version))


def group_of(settings: Settings, version: str, aliases: Aliases) -> str:
    """A version's consumer group. That of the default collection is the one that the settings name."""
    group = settings.topic_prefix + settings.group
    return group if version == aliases.default else f"{group}.{version}"


def version_of(settings: Settings, model: WindowModel, collections: ModelCollections, aliases: Aliases) -> Version:
    """A model with its own collection and group."""
    name = checked_version(model.version)
    return Version(model, group_of(settings, name, aliases), lambda: collections.store(name, aliases))


def load_configured(settings: Settings) -> WindowModel:
    """The model that the settings name, with a copy of it kept: it stays loadable when the settings' folder changes."""
    import models

    folder = settings.model or models.SHIPPED
    model = models.load(folder)
    Registry(settings.state).keep(folder, model.version)
    return model


async def serving_version(settings: Settings) -> Version:
    """The version that serves; at the first start of a store, the one that the settings name.

    The alias decides, not the settings: another model is served after `sensorium model promote`, and not before.
    """
    configured = await asyncio.to_thread(load_configured, settings)
    async with open_collections(settings) as collections:
        aliases = await collections.read()
        if aliases.serving is None:
            aliases = await _first_start(collections, aliases, configured.version)
        return await load_version(settings, collections, aliases, aliases.serving or configured.version, configured)


async def load_version(
    settings: Settings,
    collections: ModelCollections,
    aliases: Aliases,
    name: str,
    configured: WindowModel | None = None,
) -> Version:
    """A version by name, its model out of the registry unless it is the configured one."""
    if configured is not None and configured.version == name:
        return version_of(settings, configured, collections, aliases)
    if configured is not None:
        log.warning(
            "the settings name another model than the one that serves; change it with: sensorium model promote",
            serves=name,
            settings=configured.version,
        )
    model = await asyncio.to_thread(Registry(settings.state).load, name)
    return version_of(settings, model, collections, aliases)


async def _first_start(collections: ModelCollections, aliases: Aliases, version: str) -> Aliases:
    """Let `version` serve a store without aliases: a new one, or one that was filled before there were any.

    Windows of this version that share the default collection with others' are copied into a collection of its own: two
    versions' vectors never meet. What others left there stays, and is not asked.
    """
    async with collections.default_collection() as default:
        held = {} if aliases.default is not None else await default.versions()
        others = sorted(name for name in held if name != version)
        if aliases.default is None and not others:
            await collections.bind_default(version)
        elif aliases.default != version:
            if aliases.default is None and len(held) == 1:
                await collections.bind_default(others[0])
            async with collections.store(version, await collections.read()) as own:
                if held.get(version):
                    await _copy(default, own, version)
            log.warning("windows of other model versions stay where they are and are not asked", versions=others)
    await collections.switch(version)
    return await collections.read()


async def _copy(source: VectorStore, target: VectorStore, version: str) -> None:
    batch: list[Point] = []
    async for point in source.scroll(Filter(), vectors=True):
        if point.payload.get("model") == version:
            batch.append(point)
        if len(batch) >= _COPY_AT_ONCE:
            await target.upsert(batch)
            batch = []
    await target.upsert(batch)


async def roll_back(settings: Settings) -> tuple[str, str]:
    """Let the previous version serve again; returns (who served, who serves now)."""
    async with open_collections(settings) as collections:
        aliases = await collections.read()
        if aliases.serving is None or aliases.previous is None:
            raise VersionError("there is no version to go back to; see: sensorium model list")
        await asyncio.to_thread(Registry(settings.state).load, aliases.previous)
        await collections.switch(aliases.previous)
        return aliases.serving, aliases.previous


async def describe(settings: Settings) -> list[dict[str, Any]]:
    """Every version that has a folder or a collection here: its role, what is there, how many windows it holds."""
    registry = Registry(settings.state)
    async with open_collections(settings) as collections:
        aliases = await collections.read()
        rows = []
        for name in sorted({*registry.names(), *aliases.by_version}):
            role = {aliases.serving: "serving", aliases.previous: "previous"}.get(name, "")
            folder = registry.path(name)
            windows: int | None = None
            if name in aliases.by_version:
                try:
                    async with collections.store(name, aliases) as store:
                        windows = await store.count()
                except StoreError as error:  # an embedded store that a worker has open: the worker can tell
                    log.debug("not counted", version=name, error=str(error))
            rows.append(
                {
                    "version": name,
                    "role": role,
                    "folder": None if folder is None else str(folder),
                    "collection": aliases.by_version.get(name),
                    "windows": windows,
                }
            )
    return rows


async def remove(settings: Settings, version: str) -> None:
    """Delete a version's folder and windows for good; not those of the one that serves."""
    registry = Registry(settings.state)
    async with open_collections(settings) as collections:
        aliases = await collections.read()
        if version == aliases.serving:
            raise VersionError(f"{version} serves; let another one serve first: sensorium model promote, or rollback")
        if version not in aliases.by_version and registry.path(version) is None:
            raise VersionError(f"there is no version {version}; see: sensorium model list")
        if version in aliases.by_version:
            await collections.drop(version)
        await asyncio.to_thread(registry.remove, version)
