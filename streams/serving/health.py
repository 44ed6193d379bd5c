"""Telling stuck from quiet: `/healthz` asks whether a restart would help, `/readyz` whether work gets done now.

A quiet worker is healthy: nothing came in. A waiting one (store or broker away) is healthy and not ready: a restart
would not help. A worker that has work and finishes none of it for a minute is stuck.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.serving.supervisor import WorkerSupervisor

_STUCK_S = 60.0
_UNANSWERED_MS = 15_000  # brokers answer a fetch within half a second, also when there is nothing


@dataclass(frozen=True, slots=True)
class HealthReport:
    """`alive`: a restart would not help; `ready`: work gets done now; `details`: for people and programs."""

    alive: bool
    ready: bool
    details: dict[str, object]


@dataclass(slots=True)
class Health:
    """Looks at a running worker; `check` is cheap and may be called at any rate."""

    supervisor: WorkerSupervisor
    _moved_at: float = field(default_factory=time.monotonic)
    _seen: tuple[int, ...] = ()

    def check(self) -> HealthReport:
        worker, now = self.supervisor.worker, time.monotonic()
        at = worker.snapshot()
        backlog = at.in_hand + sum(max(0, (p.highwater or 0) - p.position) for p in at.progress.values())
        seen = (at.finished, *at.read, *(p.position for p in at.progress.values()))
        polled = [p.polled_ms_ago for p in at.progress.values() if p.polled_ms_ago is not None]
        waiting = list(at.waiting_for)
        # with work in hand it is we who do not ask, and a broker's silence says nothing
        if not at.in_hand and polled and min(polled) > _UNANSWERED_MS and "Kafka" not in waiting:
            waiting.append("Kafka")
        if seen != self._seen or not backlog or waiting or at.input_problem is not None:
            self._seen, self._moved_at = seen, now
        still_s = now - self._moved_at
        alive = still_s < _STUCK_S
        reasons = [f"waiting for {name}" for name in waiting]
        if self.supervisor.waits_for is not None:
            reasons.append(self.supervisor.waits_for)
        if at.input_problem is not None:
            reasons.append(at.input_problem)
        if not at.joined:
            reasons.append("not yet a member of the consumer group")
        if not alive:
            reasons.append(f"stuck: {backlog} records or windows wait and none was finished for {still_s:.0f} s")
        details: dict[str, object] = {
            "ready": not reasons,
            "reasons": reasons,
            "partitions": list(at.partitions),
            "backlog": backlog,
            "uptime_s": round(now - worker.started_at, 1),
            "model": self.supervisor.answers,
        }
        return HealthReport(alive, not reasons, details)
