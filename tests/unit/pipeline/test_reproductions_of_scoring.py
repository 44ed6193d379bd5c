"""What a review and public reports found broken in scores and incidents, as what should happen.

Numbers are those of the review's list of bugs; F2 is an input from public reports.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import structlog

from streams.drift import ChannelStats, Detector, DriftConfig, Observation
from streams.events.types import IncidentEvent
from streams.settings import Settings, WindowSettings
from tests.memory_store import MemoryStore
from tests.unit.drift.support import unit
from tests.unit.pipeline.feeding import CALM, ODD, note, payloads, say
from tests.unit.pipeline.isolation import SENSORS, T0_MS, at_end, new_harness, reading


@pytest.fixture(autouse=True)
def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


# -- what arrives late --------------------------------------------------------------------------------------------


async def test_a_late_note_that_makes_its_window_odd_opens_an_incident_that_says_late() -> None:
    async with new_harness() as h:
        for second in range(400):
            await say(h, "p", second)
            if second % 10 == 5 and second != 385:
                await note(h, "p", second, CALM)
            await h.advance(1_000)
        assert h.incidents() == []
        await note(h, "p", 383, ODD)
        await h.advance(20_000)
        events = [json.loads(sent.value or b"{}") for sent in h.sent("incidents")]
        steps = [event for event in events if event["type"].startswith("sensorium.incident.")]
        assert [step["type"] for step in steps][:1] == ["sensorium.incident.opened"]
        data = steps[0]["data"]
        assert data.get("late") or "late" in data["text"].split(), "a late step says so"
        (window,) = [w for w in h.windows() if w.revision]
        assert (window.start_ms, window.revision) == (T0_MS + 380_000, 1)


# -- 4, 13, F2: the life of an incident ---------------------------------------------------------------------------


async def test_4_one_odd_note_keeps_no_stream_in_alarm() -> None:
    async with new_harness(T0_MS + 10**7) as h:
        for second in range(4_800):
            value = 50.0 if 3_000 <= second < 3_060 else 1.0 + 0.1 * (second % 7)
            await say(h, "p", second, value, settle=False)
            if second < 1_200 and second % 60 == 30:
                await note(h, "p", second, CALM, settle=False)
        await note(h, "p", 1_200, ODD, settle=False)
        await h.settle()
        await h.advance(60_000)
        steps = [(step.kind, (step.time_ms - T0_MS) // 1000, step.id) for step in h.incidents()]
        kind, opened_s, id = steps[0]
        assert (kind, opened_s) == ("opened", 1_210)
        closed_s = [second for kind, second, of in steps if of == id and kind == "closed"]
        assert closed_s, f"calm readings for an hour are no reason to close it: {steps}"
        assert closed_s[0] <= 1_210 + 600
        again = [second for kind, second, _ in steps if kind == "opened" and second > 3_000]
        assert again, "the next fault is an incident of its own"
        assert again[0] <= 3_030
        alarms = [w.start_ms for w in h.windows() if w.status == "alarm" and w.start_ms >= T0_MS + 1_900_000]
        assert all(T0_MS + 2_990_000 <= start_ms < T0_MS + 3_700_000 for start_ms in alarms)


@pytest.mark.parametrize(("normal", "blip"), [(0.0, 1.0), (0.0, 0.2), (-0.0, 1.0), (1e-9, 1.0), (10.0, 1.0)])
async def test_f2_a_channel_that_reads_the_same_always_recovers_from_a_blip(normal: float, blip: float) -> None:
    async with new_harness(T0_MS + 10**7) as h:
        for second in range(0, 2_400, 2):
            await say(h, "m", second, normal + blip if 1_000 <= second < 1_010 else normal, settle=False)
        await h.settle()
        await h.advance(60_000)
        steps = [(step.kind, (step.time_ms - T0_MS) // 1000) for step in h.incidents()]
        assert [kind for kind, _ in steps] == ["opened", "closed"]
        assert steps[0] == ("opened", 1_010)
        assert steps[1][1] <= 1_130
        assert {w.status for w in h.windows() if w.start_ms >= T0_MS + 1_130_000} == {"ok"}


def test_13_the_onset_is_that_of_the_run_that_opened_the_incident() -> None:
    """One note that was a little odd, then no notes; hours later the readings change: that is the onset."""
    rng = np.random.default_rng(0)
    calm, words = unit(rng.standard_normal(256)), unit(rng.standard_normal(256))
    elsewhere = unit(rng.standard_normal(256))

    def near(vector: Any) -> Any:
        return unit(vector + 0.02 * rng.standard_normal(256) / 16)

    def window(i: int, note: Any = None, level: float = 1.0) -> Observation:
        sensor = near(calm)
        vectors = {"sensor": sensor, "joint": sensor} | ({} if note is None else {"caption": note})
        channels = {"x": ChannelStats(level, 0.01, level, level, 10)}
        return Observation("s", f"w{i}", i * 10_000, (i + 1) * 10_000, 1 if note is None else 5, vectors, channels)

    detector = Detector("s", DriftConfig())
    for i in range(600):
        verdict = detector.observe(window(i, near(words) if i % 10 == 0 else None, 1 + 0.003 * rng.standard_normal()))
    for far in np.linspace(0.02, 1, 200):
        odd = unit(words + far * elsewhere)
        if copy.deepcopy(detector).observe(window(600, odd)).parts.get("knn/caption", 0) >= 1.1:
            break
    verdict = detector.observe(window(600, odd))
    assert verdict.incident is None, "just over its line, and once, is no incident"
    steps: list[IncidentEvent] = []
    for i in range(601, 1_010):
        steps += detector.observe(window(i, level=2.0 if i >= 1_000 else 1 + 0.003 * rng.standard_normal())).steps
    assert [step.kind for step in steps][:1] == ["opened"]
    assert steps[0].onset_ms == 1_000 * 10_000


# -- 7: a state that belongs to another configuration -------------------------------------------------------------


async def test_7_another_window_size_means_warming_and_then_all_detection_again() -> None:
    async with new_harness(T0_MS + 10**7) as h:
        for second in range(900):
            await say(h, "p", second, 1.0 + 0.1 * (second % 5), settle=False)
        await h.settle()
        await h.advance(60_000)
        assert at_end(h)
        before = (await payloads(h, "p"))[-1]
        assert before["status"] == "ok"
        h.settings = Settings(state=h.settings.state, window=WindowSettings(size_ms=5_000, hop_ms=5_000))
        await h.crash()
        for second in range(900, 1_800):
            await say(h, "p", second, 1.0 + 0.1 * (second % 5), settle=False)
        await h.settle()
        await h.advance(60_000)
        after = [p for p in await payloads(h, "p") if p["end"] - p["start"] == 5_000]
        assert after[0]["status"] == "warming"
        assert after[-1]["status"] == "ok"
        assert set(before["parts"]) <= set(after[-1]["parts"])


async def test_7_a_reference_bank_that_is_gone_means_warming() -> None:
    class Forgetful(MemoryStore):
        def forget_all_but_the_newest(self) -> None:
            newest = max(self._points, key=lambda id: json.loads(self._points[id][0])["start"])
            self._points = {newest: self._points[newest]}

    store = Forgetful()
    async with new_harness(T0_MS + 10**7, store=store) as h:
        for second in range(900):
            await say(h, "p", second, 1.0 + 0.1 * (second % 5), settle=False)
        await h.settle()
        await h.advance(60_000)
        assert at_end(h)
        store.forget_all_but_the_newest()
        await h.crash()
        for second in range(900, 960):
            await say(h, "p", second, 1.0 + 0.1 * (second % 5), settle=False)
        await h.settle()
        await h.advance(60_000)
        after = [p["status"] for p in await payloads(h, "p") if p["start"] >= T0_MS + 900_000]
        assert set(after) == {"warming"}


# -- 16: a limit that nobody saw


async def test_16_channels_beyond_the_limit_are_told() -> None:
    async with new_harness(T0_MS + 10**7) as h:
        for window in range(60):
            values = {f"c{k:03d}": 500.0 if window >= 50 and k == 150 else 1.0 for k in range(200)}
            await h.push(SENSORS, "p", reading(T0_MS + window * 10_000 + 1, **values), settle=False)
        await h.settle()
        await h.advance(60_000)
        told = Counter[str]()
        for family in h.metrics.registry.collect():
            for sample in family.samples:
                told[sample.name] += int(sample.value)
        unwatched = [name for name, value in told.items() if "channel" in name and value > 0]
        assert unwatched or h.incidents(), "neither watched nor counted anywhere"
