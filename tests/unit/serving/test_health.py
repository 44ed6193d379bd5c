"""`/healthz`, `/readyz` and `/metrics` through the real HTTP app: stuck is told from quiet and from waiting."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from streams.api.server import make_api
from streams.events.types import Modality, Reason
from streams.kafka.progress import InputProgress
from streams.metrics import Metrics
from streams.serving.worker import WorkerSnapshot

SENSOR = (Modality.SENSOR, 0)


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
        self.at = WorkerSnapshot(
            progress={SENSOR: InputProgress(10, 10, 200)},
            partitions=[0],
            in_hand=0,
            finished=0,
            read=[10, 0, 0],
            joined=True,
            waiting_for=[],
            input_problem=None,
        )
        self.worker = SimpleNamespace(snapshot=lambda: self.at, started_at=clock.now, metrics=Metrics())
        self.supervisor: Any = SimpleNamespace(worker=self.worker, waits_for=None, answers="small-1")
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(make_api(self.supervisor)), base_url="http://worker", trust_env=False
        )

    def change(self, **fields: Any) -> None:
        self.at = replace(self.at, **fields)

    def stands(self, position: int, highwater: int | None, polled_ms_ago: int | None) -> None:
        """Where the consumer stands in the readings."""
        self.change(progress={SENSOR: InputProgress(position, highwater, polled_ms_ago)})

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


@pytest.mark.parametrize("what", ["in hand", "unread"])
async def test_work_of_which_none_gets_done_for_a_minute_is_stuck(fakes: Fakes, what: str) -> None:
    if what == "in hand":
        fakes.change(in_hand=3)
    else:
        fakes.stands(10, 500, 200)
    assert await fakes.statuses() == (200, 200)
    fakes.clock.now += 59
    assert await fakes.statuses() == (200, 200)
    fakes.clock.now += 2
    assert await fakes.statuses() == (503, 503)
    assert "stuck" in (await fakes.reasons())[0]


@pytest.mark.parametrize("what", ["finished", "read", "position"])
async def test_a_slow_worker_is_not_stuck(fakes: Fakes, what: str) -> None:
    fakes.change(in_hand=200)
    for n in range(1, 10):
        fakes.clock.now += 50
        if what == "finished":
            fakes.change(finished=n)
        elif what == "read":
            fakes.change(read=[10 + n, 0, 0])
        else:
            fakes.stands(10 + n, 500, 200)
        assert await fakes.statuses() == (200, 200)


async def test_after_an_hour_of_quiet_there_is_a_minute_for_what_comes_then(fakes: Fakes) -> None:
    fakes.change(in_hand=5)
    await fakes.statuses()
    fakes.change(in_hand=0, finished=5)
    await fakes.statuses()
    fakes.clock.now += 3_600  # nobody looked in the meantime
    fakes.change(in_hand=1)
    fakes.stands(11, 11, 200)
    await fakes.statuses()
    fakes.clock.now += 59
    assert await fakes.statuses() == (200, 200)
    fakes.clock.now += 2
    assert await fakes.statuses() == (503, 503)


AWAY = {"the store": "the store (disk full)", "Kafka, for outputs": "Kafka", "Kafka, for inputs": "Kafka"}


@pytest.mark.parametrize("away", AWAY)
async def test_waiting_is_not_stuck_and_not_ready(fakes: Fakes, away: str) -> None:
    if away == "Kafka, for inputs":  # it died with records unread
        fakes.stands(10, 500, 60_000)
    else:
        fakes.change(in_hand=256, waiting_for=[AWAY[away]])
    for _ in range(3):
        fakes.clock.now += 3_600
        assert await fakes.statuses() == (200, 503)
    assert await fakes.reasons() == [f"waiting for {AWAY[away]}"]


async def test_what_is_away_for_inputs_and_outputs_is_named_once(fakes: Fakes) -> None:
    fakes.stands(10, 500, 60_000)
    fakes.change(waiting_for=["Kafka"])
    assert await fakes.reasons() == ["waiting for Kafka"]


async def test_everything_that_is_away_is_named_with_the_reason(fakes: Fakes) -> None:
    fakes.change(waiting_for=["the store (the disk of /data is nearly full)", "Kafka"])
    assert await fakes.reasons() == ["waiting for the store (the disk of /data is nearly full)", "waiting for Kafka"]


async def test_after_waiting_there_is_a_minute_to_get_going(fakes: Fakes) -> None:
    fakes.change(in_hand=256, waiting_for=["the store (down)"])
    await fakes.statuses()
    fakes.clock.now += 3_600
    await fakes.statuses()
    fakes.change(waiting_for=[])
    fakes.clock.now += 30
    assert await fakes.statuses() == (200, 200)


async def test_a_broker_that_is_not_asked_is_not_taken_for_dead(fakes: Fakes) -> None:
    fakes.change(in_hand=256)  # back-pressure: nothing is fetched
    fakes.stands(10, 500, 60_000)
    assert (await fakes.statuses())[1] == 200
    fakes.clock.now += 61
    assert await fakes.statuses() == (503, 503)
    assert not any("Kafka" in reason for reason in await fakes.reasons())


async def test_before_it_has_joined_a_worker_is_alive_and_not_ready(fakes: Fakes) -> None:
    fakes.change(joined=False)
    assert await fakes.statuses() == (200, 503)
    assert await fakes.reasons() == ["not yet a member of the consumer group"]


async def test_inputs_that_cannot_be_read_make_a_worker_unready_and_no_restart_would_help(fakes: Fakes) -> None:
    problem = "no partition of the inputs is assigned while there are more than workers; looking again"
    fakes.change(input_problem=problem, in_hand=3)
    for _ in range(3):
        fakes.clock.now += 3_600
        assert await fakes.statuses() == (200, 503)
    assert await fakes.reasons() == [problem]


async def test_details_say_what_a_person_asks_first(fakes: Fakes) -> None:
    fakes.change(partitions=[0, 2], in_hand=7)
    fakes.stands(10, 500, 200)
    fakes.clock.now += 5
    found = (await fakes.http.get("/readyz")).json()
    assert found == {
        "ready": True,
        "reasons": [],
        "partitions": [0, 2],
        "backlog": 497,
        "uptime_s": 5.0,
        "model": "small-1",
    }


async def test_a_version_that_cannot_be_served_is_a_reason(fakes: Fakes) -> None:
    fakes.supervisor.waits_for = "version small-2 is not here; add it with: sensorium model add DIR"
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


async def test_partitions_that_moved_on_are_no_longer_reported(fakes: Fakes) -> None:
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
