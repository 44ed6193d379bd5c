"""A model version is promoted under load, and rolled back: no search fails, no two versions meet, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from aiokafka import TopicPartition
from typer.testing import CliRunner

import models
from models.interface import WindowInput
from streams.cli import app
from streams.cli.common import CommandError
from streams.events.topics import TOPICS
from streams.events.types import WindowRecord
from streams.kafka.clients import new_consumer, new_producer
from streams.kafka.embedded import Broker
from streams.kafka.reader import read_all
from streams.serving.promotion import promote
from streams.serving.versions import VersionError, describe, roll_back, serving_version
from streams.settings import Settings, load_settings
from streams.store import open_collections
from streams.store.base import Filter
from streams.windows.types import window_id
from tests.integration.qdrant_server import QdrantServer
from tests.integration.support import QUICK, service, settings_for, until
from tests.two_models import random_model

pytestmark = pytest.mark.kafka
in_session = pytest.mark.asyncio(loop_scope="session")
STREAMS = ("pump-0", "pump-1", "pump-2")


@pytest.fixture(params=["edge", pytest.param("server", marks=pytest.mark.qdrant)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Settings of an embedded store, and of a real Qdrant server."""
    if request.param == "edge":
        yield {}
        return
    node = QdrantServer(tmp_path / "qdrant").start()
    yield {"store": node.url, "store_grpc_port": node.grpc_port}
    node.kill()


class Load:
    """A second of readings of every stream every few milliseconds, and a caption now and then, until left."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._base_ms = int(time.time() * 1000) // 10_000 * 10_000 - 7_200_000
        self.seconds = 0
        self.sent = 0

    async def send(self, seconds: int, pause_s: float = 0.0, captions: bool = True) -> None:
        settings = self._settings
        assert settings.kafka is not None
        producer = new_producer(settings, settings.kafka)
        await producer.start()
        try:
            for _ in range(seconds):
                at, second = self._base_ms + self.seconds * 1000, self.seconds
                self.seconds += 1
                for number, stream in enumerate(STREAMS):
                    value: dict[str, Any] = {"time": at, "values": {"flow": 3 + (second + number) % 7 / 10}}
                    await producer.send(settings.topic(TOPICS["sensor"]), json.dumps(value).encode(), stream.encode())
                    self.sent += 1
                    if captions and second % 10 == 4:
                        value = {"time": at, "text": f"round {second // 10 % 5} at {stream}"}
                        topic = settings.topic(TOPICS["caption"])
                        await producer.send(topic, json.dumps(value).encode(), stream.encode())
                        self.sent += 1
                await asyncio.sleep(pause_s)
            await producer.flush()
        finally:
            await producer.stop()

    @property
    def windows(self) -> int:
        return len(STREAMS) * (self.seconds // 10)

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.send(100_000, 0.02))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.send(20 - self.seconds % 10)  # the last windows are whole


class Searcher:
    """Asks the worker without a break; keeps what failed, and which versions an answer's windows are of."""

    def __init__(self, url: str, settings: Settings, versions: tuple[str, str]) -> None:
        self._url = url
        self._versions = versions
        self._size_ms = settings.window.size_ms
        self.answers: list[frozenset[str]] = []
        self.failures: list[str] = []

    def version_of(self, row: dict[str, Any]) -> str:
        for name in self._versions:
            if row["id"] == window_id(row["stream"], row["start"], self._size_ms, name):
                return name
        return "?"

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._ask())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _ask(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, trust_env=False, timeout=30) as http:
            while True:
                try:
                    answer = await http.get("/v1/search", params={"text": "round 3 at pump-1", "limit": 20})
                    rows = answer.json()
                    if answer.status_code == 200:
                        self.answers.append(frozenset(self.version_of(row) for row in rows))
                    else:
                        self.failures.append(f"{answer.status_code} {rows}")
                except Exception as error:
                    self.failures.append(repr(error))
                await asyncio.sleep(0.02)


async def committed(settings: Settings, group: str) -> int:
    """Offsets that a group has committed, summed over all inputs."""
    assert settings.kafka is not None
    consumer = new_consumer(settings, settings.kafka, group_id=group)
    await consumer.start()
    try:
        tps = [TopicPartition(settings.topic(t), n) for t in TOPICS.values() for n in range(settings.partitions)]
        return sum([await consumer.committed(tp) or 0 for tp in tps])
    finally:
        await consumer.stop()


@in_session
async def test_promotion_under_load_and_rollback(tmp_path: Path, broker: Broker, store: dict[str, Any]) -> None:
    old, new = random_model(tmp_path / "old", 1), random_model(tmp_path / "new", 2)
    settings = settings_for(tmp_path, broker, model=tmp_path / "old", **store)
    group = settings.topic_prefix + settings.group
    load = Load(settings)
    async with service(settings) as running:
        await load.send(200)
        await until(lambda: all_committed(settings, group, load), "the past")
        searcher = Searcher(running.url, settings, (old, new))
        async with searcher.asking():
            async with load.going_on():
                seen = running.worker.status.windows
                await until(lambda: running.worker.status.windows > seen + 10, "windows of live data")
                done = await promote(settings, str(tmp_path / "new"))
                assert (done.version, done.was, done.switched, done.workers) == (new, old, True, "followed")
                seen = running.worker.status.windows
                await until(lambda: running.worker.status.windows > seen + 10, "windows by the new version")
            await everything_stored(running.url, load)
            assert not searcher.failures
            assert set(searcher.answers) == {frozenset({old}), frozenset({new})}
            assert searcher.answers[-1] == {new}
            report = done.report
            assert report.compared_windows > 30
            assert report.coverage is not None
            assert report.coverage > 0.5
            await until(lambda: all_committed(settings, f"{group}.{new}", load), "the new version's offsets")
            await scores_are_the_versions_own(running.url, settings, new)

            assert await roll_back(settings) == (new, old)
            await until(lambda: running.supervisor.answers == old, "the old version to serve again")
            await everything_stored(running.url, load)
            await until(lambda: all_committed(settings, group, load), "the old version's offsets")
            await until(lambda: searcher.answers[-1] == {old}, "answers by the old version")
        assert not searcher.failures
        assert {len(versions) for versions in searcher.answers} == {1}
    rows = {row["version"]: row for row in await describe(settings)}
    assert (rows[old]["role"], rows[new]["role"]) == ("serving", "previous")
    assert (rows[old]["windows"], rows[new]["windows"]) == (load.windows, load.windows)
    assert await versions_in_collections(settings) == {old: {old}, new: {new}}
    said = await announced(settings)
    assert set(said) == {old, new}
    assert len(set().union(*said.values())) == load.windows  # every window, by one version or both


async def announced(settings: Settings) -> dict[str, set[tuple[str, int]]]:
    """Windows on the output topic, by model version."""
    assert settings.kafka is not None
    found: dict[str, set[tuple[str, int]]] = {}
    async for record in read_all(settings, settings.kafka, [settings.topic("windows")]):
        window = msgspec.json.decode(record.value, type=WindowRecord)
        found.setdefault(window.model, set()).add((window.stream, window.start_ms))
    return found


async def everything_stored(url: str, load: Load) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:

        async def stored() -> bool:
            rows = (await http.get("/v1/streams")).json()
            return sum(row["windows"] for row in rows) == load.windows

        await until(stored, "every window in the version's own collection", 90)


async def all_committed(settings: Settings, group: str, load: Load) -> bool:
    return await committed(settings, group) == load.sent


async def versions_in_collections(settings: Settings) -> dict[str, set[str]]:
    """Which versions' windows each collection holds, and that each id is the version's own."""
    found: dict[str, set[str]] = {}
    async with open_collections(settings) as collections:
        aliases = await collections.read()
        for name in aliases.by_version:
            async with collections.store(name, aliases) as opened:
                async for point in opened.scroll(Filter()):
                    payload = point.payload
                    own = window_id(payload["stream"], payload["start"], settings.window.size_ms, payload["model"])
                    assert point.id == own
                    found.setdefault(name, set()).add(payload["model"])
    return found


async def scores_are_the_versions_own(url: str, settings: Settings, version: str) -> None:
    """What the API says of a text is the cosine by this version's model, which embeds the text differently."""
    text = "round 3 at pump-1"
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
        rows = (await http.get("/v1/search", params={"text": text, "limit": 1})).json()
        model = models.load(settings.state / "models" / version)
        other = models.load(settings.model)
        said = WindowInput(0, 10_000, captions=[(4_000, rows[0]["captions"][0])])
        stored = model.embed([said])[0].unimodal["caption"]
        assert rows[0]["similarity"] == pytest.approx(float(model.embed_text(text) @ stored), abs=1e-3)
        assert float(other.embed_text(text) @ stored) < rows[0]["similarity"] - 0.1  # what a mixture would say


@in_session
async def test_an_input_that_fell_silent_long_before_the_others_holds_no_promotion_up(
    tmp_path: Path, broker: Broker
) -> None:
    random_model(tmp_path / "old", 1), random_model(tmp_path / "new", 2)
    settings = settings_for(tmp_path, broker, model=tmp_path / "old", window=QUICK)
    load = Load(settings)
    async with service(settings) as running:
        await load.send(30)
        await load.send(100, captions=False)
        await until(lambda: all_committed(settings, settings.topic_prefix + settings.group, load), "the past")
        assert running.worker.status.windows >= 39
    await load.send(10)  # and this is behind what anybody has read, of every input
    done = await promote(settings, str(tmp_path / "new"), patience_s=20)
    assert done.switched
    async with service(settings) as running:
        await everything_stored(running.url, load)


@in_session
async def test_a_past_that_no_worker_serves_is_promoted_offline(tmp_path: Path, broker: Broker) -> None:
    old, new = random_model(tmp_path / "old", 1), random_model(tmp_path / "new", 2)
    settings = settings_for(tmp_path, broker, model=tmp_path / "old")
    load = Load(settings)
    async with service(settings) as running:
        await load.send(100)
        await until(lambda: all_committed(settings, settings.topic_prefix + settings.group, load), "the past")
        assert running.worker.status.windows >= 30
    await load.send(50)  # nobody has seen these yet: they are for the workers of the new version to announce
    done = await promote(settings, str(tmp_path / "new"), switch=False)
    assert not done.switched
    # the candidate reads as far as the serving version had got, and what was produced after the last caption waits for
    # what comes next on captions: the last windows of each stream are still open there
    assert done.report.serving.windows == 30
    assert 18 <= done.report.candidate.windows <= 27
    assert done.report.same_status == 1.0
    with pytest.raises(VersionError, match="no version to go back to"):
        await roll_back(settings)
    done = await promote(settings, new)
    assert (done.switched, done.workers) == (True, "none")
    # it goes on where it was: the last windows of each stream were not final yet
    assert 66 <= done.records < 200
    with pytest.raises(VersionError, match="serves already"):
        await promote(settings, new)
    async with service(settings) as running:
        assert running.worker.version.name == new
        await everything_stored(running.url, load)
    said = await announced(settings)
    assert len(said[old]) == 30
    assert len(said[old] | said[new]) == load.windows == 45


def test_the_commands_show_what_there_is_and_say_what_is_wrong(
    tmp_path: Path, kafka_jars: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = random_model(tmp_path / "old", 1), random_model(tmp_path / "new", 2)
    monkeypatch.setenv("SENSORIUM_MODEL", str(tmp_path / "old"))
    state = ["--state", str(tmp_path / "state")]

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(app, ["model", *arguments, *state], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    def roles() -> dict[str, str]:
        return {row["version"]: row["role"] for row in json.loads(run("list", "--json"))}

    assert json.loads(run("add", str(tmp_path / "new"), "--json"))["version"] == new
    assert roles() == {new: ""}
    with pytest.raises(CommandError, match="nothing serves yet"):
        run("show")
    with pytest.raises(VersionError, match="no version to go back to"):
        run("rollback")
    asyncio.run(serving_version(load_settings(state=tmp_path / "state")))
    assert roles() == {old: "serving", new: ""}
    assert json.loads(run("show", "--json"))["version"] == old
    assert "random weights, seed 2" in run("show", new)
    assert json.loads(run("list", "--json"))[0].keys() >= {"version", "role", "windows", "folder", "collection"}
    with pytest.raises(VersionError, match="neither a model folder nor a version"):
        run("promote", "nonsense")
    with pytest.raises(VersionError, match="serves"):
        run("remove", old)
    assert f"{new} is gone" in run("remove", new)
    assert roles() == {old: "serving"}
