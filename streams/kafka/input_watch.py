"""Are the inputs whole, and still the ones that are being read? The cluster is asked every few seconds.

A Kafka client learns of topics that are deleted, made anew or given more partitions when its metadata is renewed, and
goes on without a word. The watch names what is wrong (`problem`, for readiness) and calls back when reading must start
afresh: another cluster, a topic made anew, other partition counts, or a group that gives its only member nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from streams.events.topics import INPUTS
from streams.kafka.admin import inputs_problem
from streams.kafka.clients import KafkaUnreachable, open_admin
from streams.kafka.topic_metadata import ClusterMetadata, fetch_metadata
from streams.settings import Settings

log = structlog.get_logger(__name__)
_IDLE_LOOKS = 3  # a rebalance leaves a worker without partitions for a moment


class InputWatch:
    """Looks at the input topics and the group. Not running yet: `await watch(on_change)`.

    `group`: the consumer group's full name. `owned`: how many partitions this worker has now, None while it is no
    member of the group. `every_s`: seconds between two looks.
    """

    def __init__(
        self,
        settings: Settings,
        bootstrap: str,
        *,
        group: str,
        owned: Callable[[], int | None],
        every_s: float = 3.0,
    ) -> None:
        self._settings = settings
        self._bootstrap = bootstrap
        self._group = group
        self._owned = owned
        self._every_s = every_s
        self._admin: AIOKafkaAdminClient | None = None
        self._known: ClusterMetadata | None = None  # as it was when the inputs were last whole
        self._idle_looks = 0
        self.problem: str | None = None  # why the inputs cannot be read as they should, in one line

    async def watch(self, on_change: Callable[[str], Awaitable[None]]) -> None:
        """Look until cancelled. `on_change` is awaited with what changed, in one line, once the inputs are whole."""
        try:
            while True:
                changed = await self.look()
                if changed is not None:
                    log.warning("inputs changed", what=changed)
                    await on_change(changed)
                await asyncio.sleep(self._every_s)
        finally:
            await self._close()

    async def look(self) -> str | None:
        """Ask once; returns what changed since the inputs were last whole, or None, also where the cluster is away."""
        try:
            if self._admin is None:
                self._admin = await open_admin(self._settings, self._bootstrap)
            found = await fetch_metadata(self._admin, [self._settings.topic(name) for name in INPUTS])
            unserved = await self._unserved()
        except (KafkaError, KafkaUnreachable, OSError):
            await self._close()  # `health` reports a cluster that is away by the fetches that are not answered
            return None
        problem = _problem(found)
        if problem is not None:
            self._set(problem)
            return None
        changed = None if self._known is None else _change(self._known, found)
        self._known = found
        self._idle_looks = self._idle_looks + 1 if unserved else 0
        if self._idle_looks >= _IDLE_LOOKS:
            self._set(f"group {self._group} has this worker as its only member and gives it no partition")
            self._idle_looks = 0
            return changed or self.problem
        if not unserved:
            self._set(None)
        return changed

    async def _unserved(self) -> bool:
        """Whether we are the group's only member and own nothing."""
        assert self._admin is not None
        if self._owned() != 0:
            return False
        (answer,) = await self._admin.describe_consumer_groups([self._group])
        (group,) = answer.to_object()["groups"]
        return len(group["members"]) == 1 and self._owned() == 0

    def _set(self, problem: str | None) -> None:
        if problem == self.problem:
            return
        if problem is not None:
            log.warning("inputs cannot be read", problem=problem)
        elif self.problem is not None:
            log.info("inputs can be read again", problem_was=self.problem)
        self.problem = problem

    async def _close(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with contextlib.suppress(KafkaError, OSError):
                await admin.close()


def _problem(found: ClusterMetadata) -> str | None:
    """Why the inputs cannot be read, or None."""
    denied = [topic.name for topic in found.topics.values() if topic.error == "TopicAuthorizationFailedError"]
    if denied:
        return f"Kafka denies access to {', '.join(denied)}; grant it to our user, then check with: sensorium doctor"
    return inputs_problem({topic.name: topic.partitions for topic in found.topics.values()})


def _change(before: ClusterMetadata, now: ClusterMetadata) -> str | None:
    """What makes it necessary to start reading afresh, in one line, or None."""
    if before.cluster_id != now.cluster_id:
        return f"another cluster answers: {now.cluster_id} where {before.cluster_id} was"
    changes = []
    for name, topic in now.topics.items():
        old = before.topics[name]
        if topic.topic_id != old.topic_id:
            changes.append(f"{name} was deleted and made anew")
        elif topic.partitions != old.partitions:
            changes.append(f"{name} has {topic.partitions} partitions where it had {old.partitions}")
    return "; ".join(changes) or None
