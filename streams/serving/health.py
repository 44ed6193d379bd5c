"""Telling stuck from quiet: `/healthz` asks whether a restart would help, `/readyz` whether work gets done now.

A quiet worker is healthy: nothing came in. A waiting one (store or broker away) is healthy and not ready: a restart
would not help. A worker that has work and finishes none of it for a minute is stuck.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.serving.supervisor import Live

_STUCK_S = 60.0
_UNHEARD_MS = 15_000  # brokers answer a fetch within half a second, also when there is nothing


@dataclass(slots=True)
class Health:
    """Looks at a running worker; `check` is cheap and may be called at any rate."""

    live: Live
    _moved_at: float = field(default_factory=time.monotonic)
    _seen: tuple[int, ...] = ()

    def check(self) -> tuple[bool, bool, dict[str, object]]:
        """(alive, ready, details)."""
        worker, now = self.live.worker, time.monotonic()
        progress = worker.progress()
        partitions = list(worker.intake.partitions.values())
        in_hand = worker.queue.qsize() + (0 if worker.inference.idle else 1)
        in_hand += sum(sum(partition.in_hand) + len(partition.outbox) for partition in partitions)
        backlog = in_hand + sum(max(0, (at.highwater or 0) - at.position) for at in progress.values())
        handled = (offset for partition in partitions for offset in partition.handled)
        seen = (worker.inference.finished, *handled, *(at.position for at in progress.values()))
        polled = [at.polled_ms_ago for at in progress.values() if at.polled_ms_ago is not None]
        # with work in hand it is we who do not ask, and a broker's silence says nothing
        unheard = not in_hand and bool(polled) and min(polled) > _UNHEARD_MS
        kafka_away = worker.outputs.waiting_since is not None or unheard
        waiting = [name for name, away in (("the store", worker.store_waiting), ("Kafka", kafka_away)) if away]
        if seen != self._seen or not backlog or waiting:
            self._seen, self._moved_at = seen, now
        still_s = now - self._moved_at
        alive = still_s < _STUCK_S
        reasons = [f"waiting for {name}" for name in waiting]
        if worker.store_waiting and worker.store.waiting_for is not None:
            reasons[0] += f": {worker.store.waiting_for}"
        if self.live.waits_for is not None:
            reasons.append(self.live.waits_for)
        if not worker.joined:
            reasons.append("not yet a member of the consumer group")
        if not alive:
            reasons.append(f"stuck: {backlog} records or windows wait and none was finished for {still_s:.0f} s")
        details: dict[str, object] = {
            "ready": not reasons,
            "reasons": reasons,
            "partitions": sorted(partition.number for partition in partitions),
            "backlog": backlog,
            "uptime_s": round(now - worker.started_at, 1),
            "model": self.live.answers,
        }
        return alive, not reasons, details
