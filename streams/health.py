"""Telling stuck from quiet: `/healthz` asks whether a restart would help, `/readyz` whether work gets done now.

A quiet worker is healthy: nothing came in. A waiting one (store or broker away) is healthy and not ready: a restart
would not help. A worker that has work and finishes none of it for a minute is stuck.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.live import Live

_STUCK_S = 60.0


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
        backlog = sum(max(0, (at.highwater or 0) - at.position) for at in progress.values())
        backlog += worker.queue.qsize() + (0 if worker.inference.idle else 1)
        seen = (worker.inference.finished, *(at.position for at in progress.values()))
        waiting = [
            name
            for name, away in (("store", worker.store_waiting), ("kafka", worker.outputs.waiting_since is not None))
            if away
        ]
        if seen != self._seen or not backlog or waiting:
            self._seen, self._moved_at = seen, now
        still_s = now - self._moved_at
        alive = still_s < _STUCK_S
        reasons = [f"waiting for the {name}" for name in waiting]
        if self.live.waits_for is not None:
            reasons.append(self.live.waits_for)
        if not worker.joined:
            reasons.append("not yet a member of the consumer group")
        if not alive:
            reasons.append(f"{backlog} records or windows waiting and none finished for {still_s:.0f} s")
        details: dict[str, object] = {
            "ready": not reasons,
            "reasons": reasons,
            "partitions": sorted(worker.intake.partitions),
            "backlog": backlog,
            "uptime_s": round(now - worker.started_at, 1),
            "model": self.live.answers,
        }
        return alive, not reasons, details
