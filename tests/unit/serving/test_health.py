"""`/healthz`, `/readyz` and `/metrics` through the real HTTP app: stuck is told from quiet and from waiting."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from streams.api.server import make_api
from streams.events.types import Modality, Reason
from streams.kafka.progress import InputProgress
from streams.metrics import Metrics

SENSOR = (Modality.SENSOR, 0)


@dataclass
class FakePartition:
    number: int = 0
    in_hand: list[int] = field(default_factory=lambda: [0, 0, 0])
    outbox: list[Any] = field(default_factory=list)
    handled: list[int] = field(default_factory=lambda: [0, 0, 0])


class Clock:
    """The monotonic clock that health looks at."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


class Fakes:
    """A worker with nothing to do that has joined its group, and its HTTP app."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.partition = FakePartition()
        self.inputs = {SENSOR: InputProgress(10, 10, 200)}
        self.worker = SimpleNamespace(
            progress=lambda: self.inputs,
            queue=SimpleNamespace(qsize=lambda: self.queued),
            inference=SimpleNamespace(idle=True, finished=0),
            intake=SimpleNamespace(partitions={0: self.partition}),
            store_waiting=False,
            store=SimpleNamespace(waiting_for=None),
            outputs=SimpleNamespace(waiting_since=None),
            joined=True,
            started_at=clock.now,
            metrics=Metrics(),
        )
        self.queued = 0
        self.live: Any = SimpleNamespace(worker=self.worker, waits_for=None, answers="small-1")
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(make_api(self.live)), base_url="http://worker", trust_env=False
        )

    async def statuses(self) -> tuple[int, int]:
        """Of /healthz and /readyz."""
        return (await self.http.get("/healthz")).status_code, (await self.http.get("/readyz")).status_code

    async def reasons(self) -> list[str]:
        return list((await self.http.get("/readyz")).json()["reasons"])


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    clock = Clock()
    monkeypatch.setattr("streams.serving.health.time", clock)
    return Fakes(clock)


async def test_a_quiet_worker_is_healthy_for_ever(fakes: Fakes) -> None:
    assert await fakes.statuses() == (200, 200)
    fakes.clock.now += 86_400
    assert await fakes.statuses() == (200, 200)


@pytest.mark.parametrize("what", ["queued", "inference", "in hand", "outbox", "unread"])
async def test_work_of_which_none_gets_done_for_a_minute_is_stuck(fakes: Fakes, what: str) -> None:
    if what == "queued":
        fakes.queued = 3
    elif what == "inference":
        fakes.worker.inference.idle = False
    elif what == "in hand":
        fakes.partition.in_hand[0] = 1
    elif what == "outbox":
        fakes.partition.outbox.append(object())
    else:
        fakes.inputs[SENSOR] = InputProgress(10, 500, 200)
    assert await fakes.statuses() == (200, 200)
    fakes.clock.now += 59
    assert await fakes.statuses() == (200, 200)
    fakes.clock.now += 2
    assert await fakes.statuses() == (503, 503)
    assert "stuck" in (await fakes.reasons())[0]


@pytest.mark.parametrize("what", ["finished", "handled", "position"])
async def test_a_slow_worker_is_not_stuck(fakes: Fakes, what: str) -> None:
    fakes.queued = 200
    for n in range(1, 10):
        fakes.clock.now += 50
        if what == "finished":
            fakes.worker.inference.finished = n
        elif what == "handled":
            fakes.partition.handled[0] = n
        else:
            fakes.inputs[SENSOR] = InputProgress(10 + n, 500, 200)
        assert await fakes.statuses() == (200, 200)


@pytest.mark.parametrize("away", ["store", "Kafka, for outputs", "Kafka, for inputs"])
async def test_waiting_is_not_stuck_and_not_ready(fakes: Fakes, away: str) -> None:
    if away == "Kafka, for inputs":  # it died with records unread
        fakes.inputs[SENSOR] = InputProgress(10, 500, 60_000)
    else:
        fakes.queued = 256
        fakes.worker.store_waiting = away == "store"
        fakes.worker.outputs.waiting_since = None if away == "store" else 1.0
    for _ in range(3):
        fakes.clock.now += 3_600
        assert await fakes.statuses() == (200, 503)
    assert await fakes.reasons() == [f"waiting for {'the store' if away == 'store' else 'Kafka'}"]


async def test_the_store_is_waited_for_with_the_reason(fakes: Fakes) -> None:
    fakes.worker.store_waiting = True
    fakes.worker.store.waiting_for = "the disk of /data is nearly full"
    fakes.worker.outputs.waiting_since = 1.0
    assert await fakes.reasons() == ["waiting for the store: the disk of /data is nearly full", "waiting for Kafka"]


async def test_after_waiting_there_is_a_minute_to_get_going(fakes: Fakes) -> None:
    fakes.queued, fakes.worker.store_waiting = 256, True
    await fakes.statuses()
    fakes.clock.now += 3_600
    await fakes.statuses()
    fakes.worker.store_waiting = False
    fakes.clock.now += 30
    assert await fakes.statuses() == (200, 200)


async def test_a_broker_that_is_not_asked_is_not_taken_for_dead(fakes: Fakes) -> None:
    fakes.queued = 256  # back-pressure: nothing is fetched
    fakes.inputs[SENSOR] = InputProgress(10, 500, 60_000)
    await fakes.statuses()
    fakes.clock.now += 61
    assert await fakes.statuses() == (503, 503)


async def test_before_it_has_joined_a_worker_is_alive_and_not_ready(fakes: Fakes) -> None:
    fakes.worker.joined = False
    assert await fakes.statuses() == (200, 503)
    assert await fakes.reasons() == ["not yet a member of the consumer group"]


async def test_a_version_that_cannot_be_served_is_a_reason(fakes: Fakes) -> None:
    fakes.live.waits_for = "version small-2 is not here; add it with: sensorium model add DIR"
    assert (await fakes.statuses())[1] == 503


async def test_every_metric_is_explained_and_named_as_prometheus_names_them(fakes: Fakes) -> None:
    text = (await fakes.http.get("/metrics")).text
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE sensorium_")}
    explained = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP sensorium_")}
    assert names == explained
    assert names >= {
        "sensorium_events_total",
        "sensorium_windows_total",
        "sensorium_watermark_delay_seconds",
        "sensorium_stage_seconds",
        "sensorium_batch_windows",
        "sensorium_loop_lag_seconds",
        "sensorium_lag_records",
    }


async def test_partitions_that_moved_on_are_no_longer_told_of(fakes: Fakes) -> None:
    fakes.worker.metrics.lag.labels("sensor-readings", "0").set(7)
    assert 'sensorium_lag_records{partition="0"' in (await fakes.http.get("/metrics")).text
    fakes.worker.metrics.forget_partitions()
    assert 'sensorium_lag_records{partition="0"' not in (await fakes.http.get("/metrics")).text


def test_prometheus_is_asked_only_for_metrics_and_labels_that_exist() -> None:
    rules = (Path(__file__).resolve().parents[3] / "deploy" / "prometheus" / "alerts.yml").read_text()
    metrics = {metric.name: metric for metric in Metrics().registry.collect()}
    asked = set(re.findall(r"\b(sensorium_[a-z_]+)", rules))
    assert asked
    assert {name for name in asked if name.removesuffix("_total") not in metrics} == set()
    assert set(re.findall(r"--reason (\w+)", rules)) <= {reason.value for reason in Reason}
