"""The watch over the inputs, on a real Kafka: what is wrong is named, what changes calls back."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from streams.events.topics import INPUTS
from streams.kafka.admin import create_topics, describe_topics, topic_ids
from streams.kafka.clients import client_options, cluster_id
from streams.kafka.embedded import Broker
from streams.kafka.input_watch import InputWatch
from streams.settings import Settings
from tests.integration.support import settings_for, until

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(loop_scope="session")
async def settings(tmp_path: Path, broker: Broker) -> Settings:
    made = settings_for(tmp_path, broker)
    await create_topics(made, broker.bootstrap)
    return made


def watch_of(settings: Settings, owned: int | None = 4, group: str = "nobody") -> InputWatch:
    assert settings.kafka is not None
    return InputWatch(settings, settings.kafka, group=settings.topic_prefix + group, owned=lambda: owned)


async def deleted(settings: Settings, admin: AIOKafkaAdminClient, name: str) -> None:
    assert settings.kafka is not None
    await admin.delete_topics([settings.topic(name)])

    async def gone() -> bool:
        return any(not s.partitions for s in await describe_topics(settings, settings.kafka or ""))

    await until(gone, f"{name} deleted")


async def test_inputs_that_stay_as_they_are_are_neither_a_problem_nor_a_change(settings: Settings) -> None:
    watch = watch_of(settings)
    assert [await watch.look() for _ in range(3)] == [None] * 3
    assert watch.problem is None


async def test_an_input_that_is_deleted_is_missing_and_made_anew_is_a_change(
    settings: Settings, admin: AIOKafkaAdminClient
) -> None:
    assert settings.kafka is not None
    watch = watch_of(settings)
    await watch.look()
    before = await topic_ids(settings, settings.kafka)
    await deleted(settings, admin, "audio-clips")
    assert await watch.look() is None
    name = settings.topic("audio-clips")
    assert watch.problem == f"missing topics: {name}; create them with: sensorium topics create"
    assert name not in await topic_ids(settings, settings.kafka)
    await create_topics(settings, settings.kafka)
    assert await watch.look() == f"{name} was deleted and made anew"
    assert watch.problem is None
    assert await watch.look() is None
    after = await topic_ids(settings, settings.kafka)
    assert after.keys() == before.keys() == {settings.topic(name) for name in INPUTS}
    assert [topic for topic in before if before[topic] != after[topic]] == [name]
    assert len({*after.values(), await cluster_id(settings, settings.kafka)}) == 4


async def test_partitions_that_are_added_are_a_problem_until_all_inputs_have_them_and_then_a_change(
    settings: Settings, admin: AIOKafkaAdminClient
) -> None:
    watch = watch_of(settings)
    await watch.look()
    first, *others = [settings.topic(name) for name in INPUTS]
    await admin.create_partitions({first: NewPartitions(6)})

    async def uneven() -> bool:
        assert await watch.look() is None
        return watch.problem is not None

    await until(uneven, "the problem")
    assert watch.problem is not None
    assert f"{first} has 6" in watch.problem
    assert "sensorium topics describe" in watch.problem
    await admin.create_partitions({name: NewPartitions(6) for name in others})
    changes: list[str] = []

    async def changed() -> bool:
        changes.extend(change for change in [await watch.look()] if change)
        return bool(changes)

    await until(changed, "the change")
    assert len(changes) == 1
    assert f"{first} has 6 partitions where it had 4" in changes[0]
    assert watch.problem is None


async def test_the_only_member_of_a_group_that_owns_nothing_is_a_problem_and_a_change(settings: Settings) -> None:
    assert settings.kafka is not None
    group = settings.topic_prefix + "idle"
    elsewhere = settings.topic("windows")
    member = AIOKafkaConsumer(elsewhere, group_id=group, **client_options(settings, settings.kafka))
    await member.start()
    try:
        await until(member.assignment, "a group with one member")
        watch = watch_of(settings, owned=0, group="idle")
        changes = [await watch.look() for _ in range(3)]
        assert changes[:2] == [None, None]
        assert (
            changes[2] == watch.problem == f"group {group} has this worker as its only member and gives it no partition"
        )
        # not yet a member, or an owner of something: nothing is wrong
        for owned in (None, 1):
            fine = watch_of(settings, owned=owned, group="idle")
            assert [await fine.look() for _ in range(4)] == [None] * 4
            assert fine.problem is None
    finally:
        await member.stop()


async def test_a_cluster_that_is_wiped_is_another_cluster(kafka_jars: None, tmp_path: Path) -> None:
    own = Broker(tmp_path / "own")
    await own.start()
    try:
        settings = settings_for(tmp_path, own)
        await create_topics(settings, own.bootstrap)
        watch = watch_of(settings)
        await watch.look()
        await own.stop()
        assert await watch.look() is None  # away, and that is no change
        assert watch.problem is None
        shutil.rmtree(own.folder / "data")
        await own.start()
        assert await watch.look() is None
        assert watch.problem is not None
        assert watch.problem.startswith("missing topics: ")
        await create_topics(settings, own.bootstrap)
        change = await watch.look()
        assert change is not None
        assert change.startswith("another cluster answers: ")
        assert watch.problem is None
    finally:
        await own.stop()


async def test_watching_calls_back_once_for_each_change(settings: Settings, admin: AIOKafkaAdminClient) -> None:
    assert settings.kafka is not None
    watch = InputWatch(settings, settings.kafka, group="nobody", owned=lambda: 4, every_s=0.1)
    changes: list[str] = []

    async def on_change(what: str) -> None:
        changes.append(what)

    watching = asyncio.create_task(watch.watch(on_change))
    try:
        await until(lambda: watch._known, "the first look")
        await deleted(settings, admin, "captions")
        await until(lambda: watch.problem, "the problem")
        await create_topics(settings, settings.kafka)
        await until(lambda: changes, "the change")
        await until(lambda: watch.problem is None, "all is well")
        assert changes == [f"{settings.topic('captions')} was deleted and made anew"]
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
