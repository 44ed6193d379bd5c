"""Topics that were made are waited for; those that forget do so in segments that are short enough."""

from __future__ import annotations

from typing import Any

import pytest

from streams.kafka import admin as topics
from streams.kafka.admin import SPECS, TopicsError, TopicState, check_topics, create_topics
from streams.settings import load_settings


class SlowCluster:
    """Answers `describe` with what it knew a few questions ago."""

    def __init__(self, known_after: int) -> None:
        self.asked = 0
        self.known_after = known_after
        self.created: list[Any] = []

    async def describe(self, settings: Any, bootstrap: str) -> list[TopicState]:
        self.asked += 1
        there = bool(self.created) and self.asked > self.known_after
        return [TopicState(spec, spec.name, 4 if there else 0, 1) for spec in SPECS]

    async def open_admin(self, settings: Any, bootstrap: str) -> Any:
        return self

    async def create_topics(self, new: list[Any]) -> Any:
        self.created += new
        return type("Response", (), {"topic_errors": [(topic.name, 0, None) for topic in new]})

    async def close(self) -> None: ...


def cluster(monkeypatch: pytest.MonkeyPatch, known_after: int) -> SlowCluster:
    slow = SlowCluster(known_after)
    monkeypatch.setattr(topics, "describe_topics", slow.describe)
    monkeypatch.setattr(topics, "open_admin", slow.open_admin)
    return slow


async def test_topics_are_usable_when_creation_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = cluster(monkeypatch, known_after=4)
    made = await create_topics(load_settings(), "unused")
    assert made == [spec.name for spec in SPECS]
    check_topics(await slow.describe(None, "unused"))


async def test_topics_that_never_come_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(monkeypatch, known_after=10**9)
    monkeypatch.setattr(topics, "_KNOWN_WITHIN_S", 0.2)
    with pytest.raises(TopicsError, match="sensorium topics create"):
        await create_topics(load_settings(), "unused")


async def test_only_topics_without_rules_of_their_own_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = cluster(monkeypatch, known_after=0)
    await create_topics(load_settings(topic_retention_hours=0.25), "unused")
    configs = {topic.name: topic.topic_configs for topic in slow.created}
    assert configs["sensor-readings"]["retention.ms"] == configs["windows"]["retention.ms"] == "900000"
    assert configs["sensor-readings"]["segment.ms"] == "225000"
    assert configs["dead-letters"]["retention.ms"] == "-1"
    assert "retention.ms" not in configs["incidents"]
