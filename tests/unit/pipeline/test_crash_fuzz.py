"""kill -9 between any two writes, rebalances, repeats and disorder, in one process and thousands of ways.

Every seed makes a plant, plays it undisturbed and in order, then stormily, and compares everything a replay must
reproduce: every stored window with its vectors, score, incident and drift state, byte for byte, and every incident
step. `SENSORIUM_FUZZ=2000` tries that many seeds; the suite tries a few.
"""

from __future__ import annotations

import io
import json
import os
import random
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from streams.pipeline import state as partition
from streams.settings import PerModality, Settings, WindowSettings
from streams.store.base import Filter
from streams.store.edge import EdgeStore
from streams.testing import Harness
from tests.memory_store import MemoryStore
from tests.standin import StandInModel

T0_MS = 1_700_000_000_000
SEEDS = int(os.environ.get("SENSORIUM_FUZZ", "30"))
REPRODUCED = (
    "stream",
    "start",
    "end",
    "revision",
    "mask",
    "events",
    "home",
    "hash",
    "score",
    "status",
    "severity",
    "incident",
    "steps",
    "parts",
    "shares",
    "drift",
)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


async def test_detectors_that_were_let_go_go_on_as_if_they_had_stayed(tmp_path: Path) -> None:
    rng = random.Random(4)
    events = sorted(
        (event for n in range(4) for event in plant(rng, 300, 5) if not event.headers), key=lambda e: e.time_ms
    )
    events = [Event(e.time_ms, e.topic, f"{e.key}-{i % 4}", e.value) for i, e in enumerate(events)]
    kept: list[dict[str, dict[str, Any]]] = []
    for megabytes in (1024, 1):
        settings = Settings(state=tmp_path, batch_windows=1, detector_cache_mb=megabytes)
        async with Harness(tmp_path, model=StandInModel(), settings=settings, store=MemoryStore()) as h:
            await calm(h, events)
            kept.append(await windows_of(h))
    assert differences(*kept) == []


@dataclass(frozen=True)
class Event:
    time_ms: int
    topic: str
    key: str
    value: Any
    headers: dict[str, bytes] | None = None


def _sound(seed: int) -> bytes:
    samples = (np.random.default_rng(seed).standard_normal(160) * 1000).astype("<i2")
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())
    return out.getvalue()


def plant(rng: random.Random, seconds: int, streams: int) -> list[Event]:
    """Machines that run at a level of their own, fall silent for a while, and mostly go wrong once."""
    events: list[Event] = []
    for number in range(streams):
        name, level = f"pump-{number}", rng.uniform(1, 9)
        fault_s = seconds * rng.uniform(0.5, 0.8) if rng.random() < 0.6 else float("inf")
        fault_end_s = fault_s + rng.uniform(20, 200)
        pause_s, pause_end_s = seconds * 0.4, seconds * 0.4 + rng.choice([0, 0, 70, 150])
        step_s, t = rng.choice([1.0, 1.0, 2.5, 4.0]), rng.uniform(0, 3)
        while t < seconds:
            time_ms = T0_MS + int(t * 1000)
            if not pause_s < t < pause_end_s:
                flow = level + rng.gauss(0, 0.2) + (27 if fault_s < t < fault_end_s else 0)
                value = {"time": time_ms, "values": {"flow": flow, "heat": 20 + rng.gauss(0, 0.1)}}
                events.append(Event(time_ms, "sensor-readings", name, value))
                if rng.random() < 0.05:
                    text = rng.choice(["all quiet", "odd noise", "valve open"])
                    events.append(Event(time_ms, "captions", name, {"time": time_ms, "text": text}))
                if rng.random() < 0.04:
                    headers = {"time": str(time_ms).encode(), "content-type": b"audio/wav"}
                    events.append(Event(time_ms, "audio-clips", name, _sound(rng.randrange(9)), headers))
            t += step_s * rng.uniform(0.5, 1.5)
    return sorted(events, key=lambda event: event.time_ms)


def arrivals(rng: random.Random, events: list[Event], disorder_ms: int, repeats: float) -> list[Event]:
    """The events as they arrive: out of order by less than the bound, some of them twice."""

    def delay() -> int:
        return rng.randrange(disorder_ms) if disorder_ms else 0

    timed = []
    for i, event in enumerate(events):
        timed.append((event.time_ms + delay(), i, event))
        if rng.random() < repeats:
            timed.append((event.time_ms + delay(), len(events) + i, event))
    return [event for _, _, event in sorted(timed, key=lambda t: t[:2])]


async def windows_of(h: Harness) -> dict[str, dict[str, Any]]:
    """What a replay must reproduce of every stored window, to the byte."""
    found = {}
    async for point in h.store.scroll(Filter(), vectors=True):
        vectors = {name: np.asarray(v, dtype="<f4").tobytes() for name, v in point.vectors.items()}
        found[point.id] = {key: json.dumps(point.payload[key]) for key in REPRODUCED} | {"vectors": vectors}
    return found


async def calm(h: Harness, events: list[Event]) -> None:
    for event in events:
        await h.push(event.topic, event.key, event.value, headers=event.headers, settle=False)
    await h.settle()
    await h.advance(60_000)


async def stormy(h: Harness, events: list[Event], rng: random.Random) -> None:
    for event in events:
        await h.push(event.topic, event.key, event.value, headers=event.headers, settle=False)
        luck = rng.random()
        if luck < 0.02:
            await h.settle()
        elif luck < 0.026:
            await h.crash(after=rng.choice([0, 1, 2, 3, 5, 8, 13, 40]))
        elif luck < 0.028:
            await h.crash()
        elif luck < 0.031:
            await h.rebalance()
        elif luck < 0.05:
            h.commit()
    await h.settle()
    await h.advance(60_000)
    await h.crash(after=3)
    await h.settle()
    await h.advance(60_000)


def differences(calm: dict[str, dict[str, Any]], stormy: dict[str, dict[str, Any]]) -> list[str]:
    """A few words for whoever has to find out."""
    told = [f"{id}: only in {'calm' if id in calm else 'stormy'}" for id in sorted(calm.keys() ^ stormy.keys())]
    for id in sorted(calm.keys() & stormy.keys(), key=lambda id: int(calm[id]["start"])):
        changed = [key for key in calm[id] if calm[id][key] != stormy[id][key]]
        if changed:
            told.append(f"{calm[id]['stream']} {calm[id]['start']}: {', '.join(changed)}")
    return told


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_no_crash_rebalance_repeat_or_disorder_changes_a_byte(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    if seed % 2:  # streams that fall silent are forgotten at once, and read back
        monkeypatch.setattr(partition, "_STREAMS_KEPT", 0)
    hop_ms, disorder_ms = rng.choice([5_000, 10_000, 10_000]), rng.choice([0, 500, 2_000])
    window = WindowSettings(
        size_ms=hop_ms * rng.choice([1, 1, 1, 2, 4]),
        hop_ms=hop_ms,
        disorder_ms=PerModality(sensor=disorder_ms, audio=disorder_ms, caption=disorder_ms),
        allowed_lateness_ms=rng.choice([0, 5_000, 30_000]),
    )
    settings = Settings(state=tmp_path, window=window, batch_windows=rng.choice([1, 4, 32]))
    partitions, on_disk = rng.choice([1, 1, 2]), seed % 10 == 9
    events = plant(rng, rng.choice([300, 500, 700]), rng.choice([1, 3]))

    def harness(name: str, **how: Any) -> Harness:
        store = EdgeStore(tmp_path / name) if on_disk else MemoryStore()
        how["partitions"] = partitions
        return Harness(tmp_path, model=StandInModel(), settings=settings, store=store, **how)

    async with harness("calm") as h:
        await calm(h, events)
        expected, steps = await windows_of(h), {(s.id, s.sequence, s.kind) for s in h.incidents()}
    async with harness("stormy", batch_records=rng.choice([1, 7, 50, 500])) as h:
        await stormy(h, arrivals(rng, events, disorder_ms, rng.choice([0.0, 0.05])), rng)
        assert differences(expected, await windows_of(h)) == []
        assert {(s.id, s.sequence, s.kind) for s in h.incidents()} == steps
        assert sum(sum(w.events.values()) for w in h.windows()) == len(events)
        assert (h.late(), h.dead()) == ([], [])
        assert h.commit() == {tp: end for tp, end in h.ends().items() if end}


@pytest.mark.parametrize("seed", range(SEEDS // 4))
async def test_far_out_of_order_and_with_crashes_every_event_is_accounted_for(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late events depend on when things arrive; that each of them is somewhere does not.

    An event that was late before a crash may be in time after it, and is then told twice: at least once is promised.
    """
    rng = random.Random(seed)
    monkeypatch.setattr(partition, "_STREAMS_KEPT", rng.choice([0, 1_000]))
    hop_ms, bound_ms = rng.choice([5_000, 10_000]), 500
    window = WindowSettings(
        size_ms=hop_ms * rng.choice([1, 1, 2]),
        hop_ms=hop_ms,
        disorder_ms=PerModality(sensor=bound_ms, audio=bound_ms, caption=bound_ms),
        allowed_lateness_ms=rng.choice([0, 5_000, 30_000]),
    )
    settings = Settings(state=tmp_path, window=window, batch_windows=rng.choice([1, 4, 32]))
    events = plant(rng, 300, rng.choice([1, 3]))
    again = [event for event in events if rng.random() < 0.05]
    delays_ms = [0, 0, 0, 3_000, 20_000, 60_000, 200_000]
    late = [(event.time_ms + rng.choice(delays_ms), i) for i, event in enumerate(events)]
    order = [events[i] for _, i in sorted(late)] + again
    crashing = seed % 4 > 0
    options = {"partitions": rng.choice([1, 2]), "batch_records": rng.choice([1, 7, 50, 500])}
    async with Harness(tmp_path, model=StandInModel(), settings=settings, store=MemoryStore(), **options) as h:
        await (stormy(h, order, rng) if crashing else calm(h, order))
        held = [point.payload async for point in h.store.scroll(Filter())]
        aside = {tuple(v for k, v in sent.headers if k in _ORIGIN) for sent in h.late()}
        told = sum(sum(p["home"].values()) + p["duplicates"] for p in held) + len(aside)
        assert told >= len(order) if crashing else told == len(order)
        assert h.commit() == {tp: end for tp, end in h.ends().items() if end}
        assert h.dead() == []


_ORIGIN = ("sensorium-topic", "sensorium-partition", "sensorium-offset")
