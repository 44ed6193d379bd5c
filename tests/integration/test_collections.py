"""Collections of model versions and the alias that says which serves, on every engine; and stores without versions."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streams.serving.client import open_queries
from streams.serving.versions import Registry, VersionError, describe, remove, roll_back, serving_version
from streams.settings import Settings, load_settings
from streams.store import open_collections, open_store
from streams.store.base import Filter, Point, StoreError
from streams.store.edge import EdgeStore
from tests.integration.conftest import EVERY_ENGINE, Node
from tests.integration.qdrant_local import serve_locally
from tests.integration.test_store_contract import point
from tests.two_models import random_model


@pytest.fixture(params=EVERY_ENGINE)
def more(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> dict[str, Any]:
    """Settings that name the store."""
    record_property("store_engine", request.param)
    if request.param == "edge":
        return {}
    if request.param == "local":
        return {"store": serve_locally(monkeypatch)}
    node: Node = request.getfixturevalue("qdrant")
    return {"store": node.url, "store_grpc_port": node.grpc_port, "collection": uuid.uuid4().hex}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two model folders, by version."""
    root = tmp_path_factory.mktemp("models")
    return {random_model(root / name, seed): root / name for seed, name in enumerate("ab")}


def settings_of(tmp_path: Path, folder: Path, more: dict[str, Any]) -> Settings:
    return load_settings(state=tmp_path / "state", model=folder, **more)


def of(version: str, number: int) -> Point:
    return point(number, model=version)


async def fill_default(settings: Settings, points: list[Point]) -> None:
    """Fill a store as one was before there were versions."""
    async with open_collections(settings) as collections, collections.default_collection() as default:
        await default.upsert(points)


async def held(settings: Settings) -> dict[str, int]:
    """Windows of each version's collection, by the model in their payload."""
    async with open_store(settings) as store:
        return await store.versions()


async def test_a_new_store_is_served_by_the_model_of_the_settings(
    tmp_path: Path, more: dict[str, Any], folders: dict[str, Path]
) -> None:
    version, folder = next(iter(folders.items()))
    settings = settings_of(tmp_path, folder, more)
    for _ in range(2):
        serving = await serving_version(settings)
        assert (serving.name, serving.group) == (version, "sensorium")
    async with open_collections(settings) as collections:
        aliases = await collections.read()
    assert (aliases.serving, aliases.previous, aliases.default) == (version, None, version)
    assert Registry(settings.state).names() == [version]


async def test_a_store_from_before_opens_with_all_it_holds(
    tmp_path: Path, more: dict[str, Any], folders: dict[str, Path]
) -> None:
    version, folder = next(iter(folders.items()))
    settings = settings_of(tmp_path, folder, more)
    await fill_default(settings, [of(version, n) for n in range(300)])
    async with (await serving_version(settings)).store() as store:
        assert await store.versions() == {version: 300}
    assert await held(settings) == {version: 300}


async def test_versions_that_shared_a_collection_are_separated(
    tmp_path: Path, more: dict[str, Any], folders: dict[str, Path]
) -> None:
    (version, folder), (other, _) = folders.items()
    settings = settings_of(tmp_path, folder, more)
    mine, theirs = [of(version, n) for n in range(300)], [of(other, n) for n in range(1000, 1010)]
    await fill_default(settings, mine + theirs)
    serving = await serving_version(settings)
    assert (serving.name, serving.group) == (version, f"sensorium.{version}")
    async with serving.store() as store:
        assert await store.versions() == {version: 300}
        (found,) = await store.get([mine[7].id], vectors=True)
        assert found.vectors["joint"].tobytes() == mine[7].vectors["joint"].tobytes()


async def test_windows_of_another_model_are_kept_and_not_queried(
    tmp_path: Path, more: dict[str, Any], folders: dict[str, Path]
) -> None:
    (version, folder), (other, other_folder) = folders.items()
    settings = settings_of(tmp_path, folder, more)
    await fill_default(settings, [of(other, n) for n in range(20)])
    async with open_queries(settings) as queries:  # a query may be the first to open it
        assert await queries.search_text("anything", Filter(), 10) == []
    Registry(settings.state).add(other_folder)
    rows = {row["version"]: row["windows"] for row in await describe(settings)}
    assert rows == {version: 0, other: 20}


async def test_the_alias_decides_which_model_serves_and_not_the_settings(
    tmp_path: Path, more: dict[str, Any], folders: dict[str, Path]
) -> None:
    (version, folder), (_, other_folder) = folders.items()
    settings = settings_of(tmp_path, folder, more)
    await serving_version(settings)
    upgraded = settings_of(tmp_path, other_folder, more)
    assert (await serving_version(upgraded)).name == version
    Registry(settings.state).remove(version)
    with pytest.raises(VersionError, match="sensorium model add"):
        await serving_version(upgraded)


async def test_a_switch_can_be_undone_and_keeps_collections_apart(
    tmp_path: Path, more: dict[str, Any], folders: dict[str, Path]
) -> None:
    (version, folder), (other, other_folder) = folders.items()
    settings = settings_of(tmp_path, folder, more)
    async with (await serving_version(settings)).store() as store:
        await store.upsert([of(version, n) for n in range(5)])
    with pytest.raises(VersionError, match="no version to go back to"):
        await roll_back(settings)
    Registry(settings.state).add(other_folder)
    async with open_collections(settings) as collections:
        async with collections.store(other, await collections.read()) as store:
            await store.upsert([of(other, n) for n in range(7)])
        assert await held(settings) == {version: 5}
        await collections.switch(other)
        await collections.switch(other)  # a second time changes nothing: the previous version stays the previous one
    assert await held(settings) == {other: 7}
    assert (await serving_version(settings)).group == f"sensorium.{other}"
    assert await roll_back(settings) == (other, version)
    assert await held(settings) == {version: 5}
    assert await roll_back(settings) == (version, other)
    with pytest.raises(VersionError, match="serves"):
        await remove(settings, other)
    await remove(settings, version)
    assert [(row["version"], row["role"]) for row in await describe(settings)] == [(other, "serving")]
    with pytest.raises(VersionError, match="no version"):
        await remove(settings, version)


async def test_a_store_that_is_open_follows_no_alias(
    tmp_path: Path, more: dict[str, Any], folders: dict[str, Path]
) -> None:
    (version, folder), (other, _) = folders.items()
    settings = settings_of(tmp_path, folder, more)
    async with (await serving_version(settings)).store() as store:
        await store.upsert([of(version, n) for n in range(5)])
    async with open_store(settings) as before, open_collections(settings) as collections:
        async with collections.store(other, await collections.read()) as store:
            await store.upsert([of(other, n) for n in range(7)])
        await collections.switch(other)
        assert await before.versions() == {version: 5}


async def test_a_damaged_pointer_says_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "current").write_text("{")
    settings = load_settings(state=tmp_path)
    with pytest.raises(StoreError, match="sensorium model list"):
        open_store(settings)


async def test_a_half_written_pointer_changes_nothing(tmp_path: Path) -> None:
    settings = load_settings(state=tmp_path)
    async with open_collections(settings) as collections:
        await collections.bind_default("v1")
        await collections.switch("v1")
        (tmp_path / "store" / "current.1.tmp").write_text('{"serving": "v')  # killed while it wrote
        assert (await collections.read()).serving == "v1"
    assert isinstance(open_store(settings), EdgeStore)


@pytest.mark.parametrize("name", ["../elsewhere", "serving", "", "a b", "previous", ".hidden"])
async def test_a_version_that_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    async with open_collections(load_settings(state=tmp_path)) as collections:
        with pytest.raises(StoreError, match="cannot name"):
            await collections.switch(name)


def test_a_changed_copy_of_a_model_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    (version, folder), (_, other_folder) = folders.items()
    registry = Registry(tmp_path)
    registry.add(folder)
    registry.add(folder)  # again: the copy stays
    assert registry.load(version).version == version
    for path in other_folder.iterdir():
        (tmp_path / "models" / version / path.name).write_bytes(path.read_bytes())
    with pytest.raises(VersionError, match="it was changed"):
        registry.load(version)
