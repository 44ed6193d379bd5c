"""Every topic of the service, how it is made, and whether it is fit for use.

The three inputs must have one partition count: the modalities of a stream meet in one partition number.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, for_code

from streams.errors import DependencyError
from streams.events.topics import INPUTS
from streams.kafka.clients import open_admin
from streams.kafka.topic_metadata import fetch_metadata
from streams.settings import Settings

_KNOWN_WITHIN_S = 30.0
_POLICIES = ("cleanup.policy", "retention.ms")
_SHORT_RETENTION_MS = 3_600_000  # a worker may well be down for an hour


class TopicsError(DependencyError):
    """Topics that are missing or do not fit; the message names the command that mends it."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic: its short name, what is on it, and the settings that differ from the cluster's."""

    name: str
    holds: str
    config: Mapping[str, str] = field(default_factory=dict)


_COMPACT = {"cleanup.policy": "compact"}
_UNBOUNDED = {"retention.ms": "-1"}
SPECS: tuple[TopicSpec, ...] = (
    TopicSpec("sensor-readings", "readings: JSON, JSON arrays or SenML packs; key: stream"),
    TopicSpec("audio-clips", "encoded sound clips or claim checks; key: stream"),
    TopicSpec("captions", "captions: JSON or text; key: stream"),
    TopicSpec("windows", "fused windows; key: stream"),
    TopicSpec("incidents", "CloudEvents of incidents; key: incident", _COMPACT),
    TopicSpec("late-events", "events later than the allowed lateness, as they came", _UNBOUNDED),
    TopicSpec("dead-letters", "records that could not be used, as they came, with a reason", _UNBOUNDED),
)


@dataclass(frozen=True, slots=True)
class TopicState:
    """One topic as the cluster has it; `partitions` 0: it does not exist."""

    spec: TopicSpec
    full_name: str
    partitions: int
    replication: int
    config: Mapping[str, str] = field(default_factory=dict)  # of inputs; empty where we may not ask for it

    @property
    def warning(self) -> str | None:
        """Why records of an input may be deleted before they are read, or None."""
        if self.spec.name not in INPUTS:
            return None
        if "compact" in self.config.get("cleanup.policy", ""):
            return (
                f"{self.full_name} has cleanup.policy={self.config['cleanup.policy']}: only the newest record of each "
                "stream is kept, and the others may be deleted before they are read; set it to delete"
            )
        retention_ms = int(self.config.get("retention.ms", "-1"))
        if 0 <= retention_ms < _SHORT_RETENTION_MS:
            return (
                f"{self.full_name} has retention.ms={retention_ms}: what arrives while no worker runs is deleted after "
                f"{retention_ms / 60_000:.3g} minutes, read or not; raise it"
            )
        return None


async def describe_topics(settings: Settings, bootstrap: str) -> list[TopicState]:
    """All our topics, in the order of `SPECS`."""
    admin = await open_admin(settings, bootstrap)
    try:
        names = [settings.topic(spec.name) for spec in SPECS]
        found = {topic["topic"]: topic for topic in await admin.describe_topics(names)}
        inputs = [settings.topic(name) for name in INPUTS]
        configs = await _configs(admin, [name for name in inputs if not found[name]["error_code"]])
    finally:
        await admin.close()
    states = []
    for spec, name in zip(SPECS, names, strict=True):
        partitions = [] if found[name]["error_code"] else found[name]["partitions"]
        replication = min((len(p["replicas"]) for p in partitions), default=0)
        states.append(TopicState(spec, name, len(partitions), replication, configs.get(name, {})))
    return states


async def _configs(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Settings of topics, by full name; of those that we may ask for."""
    if not names:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name, configs=dict.fromkeys(_POLICIES)) for name in names]
    configs: dict[str, dict[str, str]] = {}
    for answer in await admin.describe_configs(resources):
        for code, _, _, name, entries in answer.resources:
            if not code:
                configs[name] = {entry[0]: entry[1] for entry in entries}
    return configs


async def topic_ids(settings: Settings, bootstrap: str, names: Sequence[str] = INPUTS) -> dict[str, str]:
    """What identifies the records of a topic, also after one of its name was deleted and made anew, by full name.

    The topic id (KIP-516, Kafka 2.8), or the cluster's id where a broker gives none. `names` are short names; a topic
    that is missing has no entry.
    """
    admin = await open_admin(settings, bootstrap)
    try:
        found = await fetch_metadata(admin, [settings.topic(name) for name in names])
    finally:
        await admin.close()
    return {t.name: t.topic_id or found.cluster_id for t in found.topics.values() if t.partitions}


async def create_topics(settings: Settings, bootstrap: str) -> list[str]:
    """Make what is missing; returns the names of the topics made. Safe to call from several processes at once."""
    missing = [state for state in await describe_topics(settings, bootstrap) if not state.partitions]
    if not missing:
        return []
    # room for the headers that a dead letter adds to the largest record
    largest = {"max.message.bytes": str(settings.max_record_bytes + 1_048_576)}
    topics = [
        NewTopic(
            state.full_name,
            settings.partitions,
            settings.replication,
            topic_configs=(dict(state.spec.config) or _retention(settings)) | largest,
        )
        for state in missing
    ]
    admin = await open_admin(settings, bootstrap)
    try:
        response = await admin.create_topics(topics)
        for name, code, *rest in response.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:
                why = rest[0] if rest and rest[0] else error.__name__
                raise TopicsError(f"cannot create topic {name}: {why}; check it with: sensorium topics describe")
    finally:
        await admin.close()
    made = [state.full_name for state in missing]
    await _until_known(settings, bootstrap, made)
    return made


async def _until_known(settings: Settings, bootstrap: str, names: Sequence[str]) -> None:
    """Wait until brokers know the topics that the controller has made: on a busy machine that takes a moment."""
    deadline = time.monotonic() + _KNOWN_WITHIN_S
    while True:
        unknown = {s.full_name for s in await describe_topics(settings, bootstrap) if not s.partitions} & set(names)
        if not unknown:
            return
        if time.monotonic() > deadline:
            late = f"{', '.join(sorted(unknown))} are still not there {_KNOWN_WITHIN_S:.0f} s after they were made"
            raise TopicsError(f"{late}; look at the brokers' logs, then try again: sensorium topics create")
        await asyncio.sleep(0.1)


def _retention(settings: Settings) -> dict[str, str]:
    """For topics that may forget. Kafka deletes whole segments, so that they must be short as well."""
    hours = settings.topic_retention_hours
    if hours is None:
        return {}
    kept_ms = int(hours * 3_600_000)
    return {"retention.ms": str(kept_ms), "segment.ms": str(max(60_000, kept_ms // 4))}


def check_topics(states: Sequence[TopicState]) -> None:
    """Raise `TopicsError` unless all topics exist and the inputs are co-partitioned."""
    inputs = {state.full_name: state.partitions for state in states if state.spec.name in INPUTS}
    problem = inputs_problem(inputs, others=[state.full_name for state in states if not state.partitions])
    if problem is not None:
        raise TopicsError(problem)


def inputs_problem(partitions: Mapping[str, int], *, others: Sequence[str] = ()) -> str | None:
    """Why inputs cannot be read, or None. `partitions`: of each input, 0 for one that is missing; `others`: missing."""
    missing = sorted({name for name, count in partitions.items() if not count} | set(others))
    if missing:
        return f"missing topics: {', '.join(missing)}; create them with: sensorium topics create"
    if len(set(partitions.values())) > 1:
        counts = ", ".join(f"{name} has {count}" for name, count in partitions.items())
        return (
            f"the input topics need the same number of partitions: {counts}; add partitions to the smaller ones, "
            "then check with: sensorium topics describe"
        )
    return None
