"""Every topic of the service, how it is made, and whether it is fit for use.

The three inputs must have one partition count: the modalities of a stream meet in one partition number.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aiokafka.admin import NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code

from streams.errors import DependencyError
from streams.events.topics import INPUTS
from streams.kafka.clients import open_admin
from streams.settings import Settings

_KNOWN_WITHIN_S = 30.0


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
    TopicSpec("subscriptions", "who wants to be told what", _COMPACT),
    TopicSpec("deliveries", "attempts to tell, and their outcome", _COMPACT),
)


@dataclass(frozen=True, slots=True)
class TopicState:
    """One topic as the cluster has it; `partitions` 0: it does not exist."""

    spec: TopicSpec
    full_name: str
    partitions: int
    replication: int


async def describe_topics(settings: Settings, bootstrap: str) -> list[TopicState]:
    """All our topics, in the order of `SPECS`."""
    admin = await open_admin(settings, bootstrap)
    try:
        names = [settings.topic(spec.name) for spec in SPECS]
        found = {topic["topic"]: topic for topic in await admin.describe_topics(names)}
    finally:
        await admin.close()
    states = []
    for spec, name in zip(SPECS, names, strict=True):
        partitions = [] if found[name]["error_code"] else found[name]["partitions"]
        replication = min((len(p["replicas"]) for p in partitions), default=0)
        states.append(TopicState(spec, name, len(partitions), replication))
    return states


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
    """Wait until brokers tell of topics that the controller has made: on a busy machine that takes a moment."""
    deadline = time.monotonic() + _KNOWN_WITHIN_S
    while True:
        unknown = {s.full_name for s in await describe_topics(settings, bootstrap) if not s.partitions} & set(names)
        if not unknown:
            return
        if time.monotonic() > deadline:
            said = f"{', '.join(sorted(unknown))} are still not there {_KNOWN_WITHIN_S:.0f} s after they were made"
            raise TopicsError(f"{said}; look at the brokers' logs, then try again: sensorium topics create")
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
    missing = [state.full_name for state in states if not state.partitions]
    if missing:
        raise TopicsError(f"missing topics: {', '.join(missing)}; create them with: sensorium topics create")
    counts = {state.full_name: state.partitions for state in states if state.spec.name in INPUTS}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise TopicsError(
            f"the input topics need the same number of partitions: {said}; add partitions to the smaller ones, "
            "then check with: sensorium topics describe"
        )
