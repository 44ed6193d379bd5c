"""Scores of streams that are well, that go wrong suddenly or slowly, and that are only incomplete."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from streams.drift import DriftState, Observation
from tests.unit.drift.support import WARM, Watched, drifted, level, normal_stream, observation, plant, stats, well

# -- warming ------------------------------------------------------------------------------------------------------


def test_a_new_stream_is_warming_and_has_no_other_verdict() -> None:
    w = well(WARM)
    verdicts = {(v.status, v.score, v.severity, v.incident, v.steps) for v in w.verdicts}
    assert verdicts == {("warming", None, 0, None, ())}


def test_after_warming_there_is_a_score_of_every_kind_that_can_be_had() -> None:
    verdict = well(WARM + 1).verdicts[-1]
    assert verdict.status == "ok"
    assert set(verdict.parts) == {"joint", "knn/sensor", "channel"}
    assert verdict.score == max(verdict.parts.values())


def test_the_sum_of_slow_drift_is_scored_once_the_distance_to_the_reference_is_known() -> None:
    parts = [set(v.parts) for v in well(WARM + 70).verdicts]
    assert "cusum" not in parts[WARM + 30]
    assert "cusum" in parts[-1]


def test_a_stream_of_one_window_does_no_harm() -> None:
    assert well(1).verdicts[0].status == "warming"
    DriftState.from_payload(well(1).detector.state.to_payload())


# -- sudden and slow drift ----------------------------------------------------------------------------------------


def test_streams_that_are_well_raise_nothing() -> None:
    """Five streams of 1,000 windows: fourteen hours in all, with one false incident a week and stream asked for."""
    opened = 0
    for seed in range(5):
        w = Watched().see_all(observation(i, row) for i, row in enumerate(normal_stream(seed, 1_000)))
        opened += w.kinds.count("opened")
    assert opened == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_sudden_drift_is_found_within_50_windows(seed: int) -> None:
    rows = drifted(normal_stream(seed, 700), 600, over=0, by=0.5)
    w = Watched().see_all(observation(i, row) for i, row in enumerate(rows))
    assert w.kinds[:1] == ["opened"]
    assert 0 <= w.steps[0].opened_ms // 10_000 - 600 <= 50


@pytest.mark.parametrize("seed", range(4))
def test_a_slow_drift_is_found_by_its_sum_while_a_bank_that_adapts_sees_nothing(seed: int) -> None:
    rows = drifted(normal_stream(seed, 1_200), 300, over=1_200, by=1.0)
    w = Watched().see_all(observation(i, row) for i, row in enumerate(rows))
    assert w.steps[0].kind == "opened"
    assert "slow drift" in w.steps[0].text
    first = w.steps[0].opened_ms // 10_000 - 1
    assert 300 < first < 900
    assert w.verdicts[first].parts["knn/sensor"] < 1.0  # the banks that adapt are not alarmed at that time


def test_a_slow_drift_that_is_mended_closes_its_incident() -> None:
    rows = normal_stream(1, 1_000)
    rows[300:700] = drifted(rows[300:700], 0, over=100, by=0.5)
    w = Watched().see_all(observation(i, row) for i, row in enumerate(rows[:760]))
    assert w.kinds[0] == "opened"
    w.see_all(observation(i, row) for i, row in enumerate(rows) if i >= 760)
    assert w.kinds[-1] in ("closed", "adopted")
    assert w.detector.state.incident is None


def test_the_sum_begins_anew_after_an_incident() -> None:
    rows = drifted(normal_stream(3, 1_200), 300, over=600, by=1.0)
    w = Watched()
    for i, row in enumerate(rows):
        if any(step.kind in ("closed", "adopted") for step in w.see(observation(i, row)).steps):
            assert w.detector.state.cusum == 0.0
            return
    pytest.fail(f"no incident ended: {w.kinds}")


@pytest.mark.parametrize("wanted", [1e-6, 0.1, 1.0, 1000.0])
def test_slow_drift_can_alarm_whatever_the_knob(wanted: float) -> None:
    rows = drifted(normal_stream(2, 600), 150, over=1, by=0.35)
    w = Watched(false_incidents_per_week=wanted, knn_sigmas=1e6)
    w.see_all(observation(i, row) for i, row in enumerate(rows))
    assert max(v.parts.get("cusum", 0.0) for v in w.verdicts) >= 1.0


def test_fewer_false_incidents_asked_for_mean_higher_lines() -> None:
    scores = []
    for wanted in (0.01, 1.0, 100.0):
        w = well(WARM + 10, false_incidents_per_week=wanted)
        scores.append(w.detector.review(level(WARM + 10, 20.5)).score)
    assert scores == sorted(scores, key=lambda s: s or 0.0)
    assert len(set(scores)) == 3


# -- modalities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["sensor", "audio", "caption"])
def test_a_missing_modality_alone_raises_nothing(missing: str) -> None:
    names = ["sensor", "audio", "caption"]
    present = [name for name in names if name != missing]
    w = Watched().see_all(plant(i, *names) for i in range(100))
    w.see_all(plant(i, *present) for i in range(100, 200))
    w.see_all(plant(i, *names) for i in range(200, 250))
    assert w.kinds == []
    assert {v.status for v in w.verdicts[WARM:]} == {"ok"}


def test_every_mask_has_banks_and_spreads_of_its_own() -> None:
    w = Watched().see_all(plant(i, *(("sensor", "audio") if i % 2 else ("sensor",))) for i in range(120))
    assert {"joint/1", "joint/3"} <= set(w.detector.state.spreads)
    assert "joint/2" not in w.detector.state.reference


@pytest.mark.parametrize("odd", ["sensor", "audio", "caption"])
def test_the_modality_that_went_wrong_is_named(odd: str) -> None:
    names = ("sensor", "audio", "caption")
    w = Watched().see_all(plant(i, *names) for i in range(80))
    w.see_all(plant(i, *names, odd=odd) for i in range(80, 90))
    assert w.kinds == ["opened"]
    shares = w.steps[0].modalities
    assert max(shares, key=lambda name: shares[name]) == odd
    assert shares[odd] > 0.9
    assert math.isclose(math.fsum(shares.values()), 1.0, abs_tol=1e-3)


def test_the_channel_that_went_wrong_is_named_with_what_was_expected() -> None:
    def window(i: int, flow: float) -> Observation:
        rng = np.random.default_rng(i)
        means = {"flow": flow, "level": 7.0, "heat": 55.0}
        noisy = {name: stats(mean + 0.05 * rng.standard_normal(), unit="m3/h") for name, mean in means.items()}
        return observation(i, np.eye(8)[0] + 0.02 * rng.standard_normal(8), channels=noisy)

    w = Watched().see_all(window(i, 3.0) for i in range(60)).see_all(window(i, 1.0) for i in range(60, 65))
    (step,) = w.steps
    change = step.channels[0]
    assert (change.channel, change.unit) == ("flow", "m3/h")
    assert change.z < -5
    assert (round(change.expected), round(change.actual)) == (3, 1)
    assert re.search(r"^pump: flow [\d.]+ m3/h, expected [\d.]+ m3/h \(-[\d.]+ sigma\)", step.text)
    assert "\n" not in step.text
