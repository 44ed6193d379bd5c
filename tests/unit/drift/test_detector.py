"""What the detector says of streams that are well, that go wrong suddenly or slowly, and that are only incomplete."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings

from streams.drift import Detector, DriftConfig, DriftState, Observation, severity_of
from streams.events.types import IncidentEvent
from tests.unit.drift.support import Watched, drifted, normal_stream, observation, stats, unit

WARM = DriftConfig().warm_windows


def level(i: int, value: float = 20.0, *, n: int = 10) -> Observation:
    """A window of one channel, with a little deterministic noise."""
    rng = np.random.default_rng(i)
    vector = np.eye(8)[0] + 0.02 * rng.standard_normal(8)
    return observation(i, vector, channels={"flow": stats(value + 0.05 * rng.standard_normal(), n=n, unit="m3/h")})


def well(windows: int, **changes: Any) -> Watched:
    return Watched(**changes).see_all(level(i) for i in range(windows))


# -- warming ------------------------------------------------------------------------------------------------------


def test_a_new_stream_is_warming_and_says_nothing_else() -> None:
    w = well(WARM)
    said = {(v.status, v.score, v.severity, v.incident, v.steps) for v in w.verdicts}
    assert said == {("warming", None, 0, None, ())}


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


# -- banks --------------------------------------------------------------------------------------------------------


def test_the_reference_bank_is_frozen_when_warm() -> None:
    w = well(WARM + 1)
    frozen = dict(w.detector.state.reference)
    w.see_all(level(i) for i in range(WARM + 1, 200))
    assert w.detector.state.reference == frozen
    assert len(frozen["sensor"]) <= w.config.bank_size


def test_calm_windows_enter_the_recent_bank_after_their_quarantine() -> None:
    w = well(WARM + 20)
    newest = w.detector.state.recent["sensor"][-1]
    assert newest == (WARM + 19) * 10_000 - w.config.quarantine_ms


def test_the_recent_bank_is_bounded() -> None:
    w = well(300)
    assert all(len(bank) == w.config.recent_size for bank in w.detector.state.recent.values())


def test_what_precedes_an_incident_never_enters_a_bank() -> None:
    w = well(WARM + 20)
    before = w.detector.state.recent["sensor"]
    w.see_all(level(i, 90.0) for i in range(WARM + 20, WARM + 30))
    assert w.kinds == ["opened"]
    assert w.detector.state.waiting == []
    assert w.detector.state.recent["sensor"] == before


def test_vectors_that_no_bank_needs_are_let_go() -> None:
    w = well(300)
    assert len(Detector.bank_starts(w.detector.state)) < 60
    assert w.detector.nbytes < 70_000


def test_a_revised_window_is_revised_in_its_bank() -> None:
    w = well(WARM + 1)
    start = w.detector.state.reference["sensor"][0]
    other = {"joint": unit(np.eye(8)[5]), "sensor": unit(np.eye(8)[5])}
    w.detector.replace_vectors(start, other)
    far = observation(WARM + 1, np.eye(8)[5])
    assert w.detector.review(far).parts["knn/sensor"] < Watched.see(well(WARM + 1), far).parts["knn/sensor"]


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

AWAY = {"sensor": 0, "audio": 1, "caption": 2}


def plant(i: int, *present: str, odd: str | None = None, channels: dict[str, Any] | None = None) -> Observation:
    """A window with these modalities; each has a direction of its own, `odd` is turned into another one."""
    rng = np.random.default_rng(i * 7 + 1)
    vectors = {}
    for name in present:
        direction = np.eye(16)[AWAY[name] + (8 if name == odd else 0)]
        vectors[name] = direction + 0.02 * rng.standard_normal(16)
    return observation(i, vectors, channels=channels)


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


# -- the life of an incident --------------------------------------------------------------------------------------


def test_an_incident_is_opened_once_and_closed_after_a_calm_minute() -> None:
    w = well(60).see_all(level(i, 90.0) for i in range(60, 64)).see_all(level(i) for i in range(64, 80))
    assert w.kinds == ["opened", "closed"]
    opened, closed = w.steps
    assert opened.id == closed.id
    assert (opened.sequence, closed.sequence) == (0, 1)
    assert closed.time_ms - 640_000 == w.config.close_ms
    assert closed.closed_ms == closed.time_ms


def just_above(w: Watched) -> float:
    """A level that scores a little above the line."""
    return next(v for v in (20 + k * 0.01 for k in range(5_000)) if (w.detector.review(level(60, v)).score or 0) > 1.2)


def test_a_single_window_just_above_the_line_opens_nothing_three_do() -> None:
    def pulse(length: int) -> list[str]:
        w = well(60)
        line = just_above(w)
        return w.see_all(level(i, line) for i in range(60, 60 + length)).see_all(level(i) for i in range(70, 75)).kinds

    assert pulse(1) == []
    assert pulse(2) == []
    assert pulse(3)[:1] == ["opened"]


def test_every_window_of_an_incident_carries_its_id_the_last_one_too() -> None:
    w = well(60).see_all(level(i, 90.0) for i in range(60, 64)).see_all(level(i) for i in range(64, 80))
    held = [i for i, v in enumerate(w.verdicts) if v.incident == w.steps[0].id]
    assert held == list(range(60, 70))
    assert all(w.verdicts[i].status == "alarm" for i in held)


def test_a_rise_in_severity_is_an_update_and_at_most_one_a_minute() -> None:
    w = well(60)
    w.see_all(level(i, 20.0 + 0.15 * (i - 58)) for i in range(60, 100))
    updates = [step for step in w.steps if step.kind == "updated"]
    assert updates
    times = [w.steps[0].time_ms, *(step.time_ms for step in updates)]
    assert all(b - a >= w.config.update_ms for a, b in pairwise(times))
    assert [step.sequence for step in w.steps] == list(range(len(w.steps)))


def test_another_modality_taking_over_is_an_update() -> None:
    names = ("sensor", "audio", "caption")
    w = Watched().see_all(plant(i, *names) for i in range(80))
    w.see_all(plant(i, *names, odd="audio") for i in range(80, 90))
    w.see_all(plant(i, *names, odd="sensor") for i in range(90, 94))
    assert w.kinds == ["opened", "updated"]
    assert max(w.steps[1].modalities, key=lambda name: w.steps[1].modalities[name]) == "sensor"


def test_a_level_that_stays_is_adopted_as_the_new_normal_and_learnt_anew() -> None:
    w = well(60).see_all(level(i, 90.0) for i in range(60, 430))
    assert w.kinds == ["opened", "adopted"]
    assert w.steps[-1].text.endswith("taken as the new normal")
    w.see_all(level(i, 90.0) for i in range(430, 600))
    assert w.kinds == ["opened", "adopted"]
    assert w.verdicts[-1].status == "ok"
    w.see_all(level(i) for i in range(600, 604))
    assert w.kinds == ["opened", "adopted", "opened"]


def test_silence_closes_no_incident() -> None:
    w = well(60).see_all(level(i, 90.0) for i in range(60, 64))
    w.see(level(2_000))  # the first window after hours without one is calm
    assert w.kinds == ["opened"]
    w.see_all(level(i) for i in range(2_001, 2_003))
    assert w.kinds == ["opened"]
    w.see_all(level(i) for i in range(2_003, 2_010))
    assert w.kinds == ["opened", "closed"]


def test_silence_is_no_reason_to_adopt() -> None:
    w = well(60).see_all(level(i, 90.0) for i in range(60, 64)).see(level(2_000, 90.0))
    assert w.steps == ()


def test_an_incident_of_one_modality_is_not_closed_by_the_calm_of_another() -> None:
    w = (
        Watched()
        .see_all(plant(i, "sensor", "caption") for i in range(60))
        .see_all(plant(i, "caption") for i in range(60, 100))
    )
    w.see_all(plant(i, "sensor", "caption", odd="sensor") for i in range(100, 105))
    assert w.kinds == ["opened"]
    w.see_all(plant(i, "caption") for i in range(105, 200))
    assert w.kinds == ["opened"]
    w.see_all(plant(i, "sensor", "caption") for i in range(200, 210))
    assert w.kinds == ["opened", "closed"]


def test_severity_is_never_rewritten_and_grows_with_the_score() -> None:
    w = well(60).see_all(level(i, 90.0) for i in range(60, 64)).see_all(level(i) for i in range(64, 80))
    assert w.steps[-1].severity == w.steps[0].severity
    severities = [severity_of(ratio / 10) for ratio in range(200)]
    assert severities == sorted(severities)
    assert (severity_of(0.0), severity_of(1.0), severity_of(1e308)) == (0, 40, 100)


def test_a_second_incident_like_the_first_names_it() -> None:
    def odd(i: int) -> Observation:
        return plant(i, "sensor", odd="sensor")

    w = Watched().see_all(plant(i, "sensor") for i in range(80)).see_all(map(odd, range(80, 84)))
    w.see_all(plant(i, "sensor") for i in range(84, 110)).see_all(map(odd, range(110, 114)))
    first, second = (step for step in w.steps if step.kind == "opened")
    assert first.nearest_incident is None
    assert second.nearest_incident == first.id


def test_the_nearest_normal_window_is_one_of_the_banks() -> None:
    w = well(60).see_all(level(i, 90.0) for i in range(60, 64))
    normal = {str(start) for start in Detector.bank_starts(w.detector.state)}
    assert w.steps[0].nearest_normal in normal


def test_the_onset_is_the_first_window_of_the_run() -> None:
    w = well(60)
    line = just_above(w)
    w.see_all(level(i, line) for i in range(60, 66))
    assert w.steps[0].onset_ms == 600_000
    assert w.steps[0].opened_ms == 630_000


def test_other_numbers_give_other_incident_ids_the_same_numbers_the_same() -> None:
    def first(**changes: Any) -> str:
        return well(60, **changes).see_all(level(i, 90.0) for i in range(60, 64)).steps[0].id

    assert first() == first()
    assert first() != first(close_ms=50_000)


# -- invariants that every stream must keep -----------------------------------------------------------------------


def calm() -> Iterator[Observation]:
    yield from (level(i) for i in range(90))


def faults() -> Iterator[Observation]:
    for i in range(160):
        yield level(i, 90.0 if 60 <= i < 70 or 100 <= i < 112 else 20.0)


def ragged() -> Iterator[Observation]:
    for i in range(160):
        present = [name for k, name in enumerate(("sensor", "audio", "caption")) if (i + k) % (k + 2) or not k]
        odd = "audio" if 110 <= i < 120 else None
        yield plant(i, *present, odd=odd, channels={f"c{i % 5}": stats(5.0 + i % 3), "flow": stats(3.0)})


def adopted() -> Iterator[Observation]:
    yield from (level(i, 90.0 if i >= 50 else 20.0) for i in range(470))


def slow() -> Iterator[Observation]:
    rows = drifted(normal_stream(5, 500, d=32), 120, over=300, by=1.0)
    yield from (observation(i, row) for i, row in enumerate(rows))


def gaps() -> Iterator[Observation]:
    for i in range(150):
        yield level(i * (1 + i // 70 * 37), 90.0 if 70 <= i < 75 else 20.0)


def extremes() -> Iterator[Observation]:
    values = [1e300, -1e300, 1.7e308, -1.7e308, 5e-324, 0.0, -0.0, 1e16, 1e-300]
    for i in range(120):
        odd = {"a": stats(values[i % len(values)], abs(values[(i + 1) % len(values)])), "b": stats(0.0, 0.0)}
        yield observation(i, np.eye(8)[0] + 0.01 * np.random.default_rng(i).standard_normal(8), channels=odd)


def constants() -> Iterator[Observation]:
    for i in range(120):
        same = {"zero": stats(0.0, 0.0), "one": stats(1.0, 0.0), "single": stats(4.0, 0.0, n=1)}
        yield observation(i, np.eye(8)[0], channels=same)


def crowded() -> Iterator[Observation]:
    for i in range(60):
        rng = np.random.default_rng(i)
        many = {f"channel-{k:03d}": stats(k + 0.1 * rng.standard_normal()) for k in range(500)}
        yield observation(i, np.eye(8)[0] + 0.02 * rng.standard_normal(8), channels=many)


STREAMS: list[Callable[[], Iterator[Observation]]] = [
    calm,
    faults,
    ragged,
    adopted,
    slow,
    gaps,
    extremes,
    constants,
    crowded,
]
every_stream = pytest.mark.parametrize("stream", STREAMS)


@every_stream
def test_scoring_does_not_change_the_detector(stream: Callable[[], Iterator[Observation]]) -> None:
    w = Watched()
    for window in stream():
        before = w.detector.state.to_payload()
        first, second = w.detector.review(window), w.detector.review(window)
        assert first == second
        assert w.detector.state.to_payload() == before
        assert all(step.late for step in first.steps)
        if (said := w.see(window)).status != "warming" and not said.steps:
            assert (said.score, said.parts, said.modalities) == (first.score, first.parts, first.modalities)


@every_stream
def test_a_restart_at_any_window_changes_no_bit(stream: Callable[[], Iterator[Observation]]) -> None:
    w, again = Watched(), Watched()
    for window in stream():
        again.detector = again.restarted()
        assert again.see(window) == w.see(window)
        assert again.detector.state.to_payload() == w.detector.state.to_payload()


@every_stream
def test_the_same_stream_gives_the_same_answers(stream: Callable[[], Iterator[Observation]]) -> None:
    assert Watched().see_all(stream()).verdicts == Watched().see_all(stream()).verdicts


@every_stream
def test_what_is_said_is_well_formed(stream: Callable[[], Iterator[Observation]]) -> None:
    w = Watched().see_all(stream())
    for verdict in w.verdicts:
        assert verdict.score is None or 0.0 <= verdict.score < math.inf
        assert 0 <= verdict.severity <= 100
        assert all(math.isfinite(part) and part >= 0.0 for part in verdict.parts.values())
        if verdict.modalities:
            assert math.isclose(math.fsum(verdict.modalities.values()), 1.0, abs_tol=1e-3)
    for step in w.steps:
        assert msgspec.json.decode(msgspec.json.encode(step), type=IncidentEvent) == step
        assert "\n" not in step.text
        assert all(math.isfinite(x) for c in step.channels for x in (c.expected, c.actual, c.z))
    assert "null" not in repr(w.steps)
    assert "inf" not in repr(msgspec.to_builtins(w.detector.state))
    assert "nan" not in repr(msgspec.to_builtins(w.detector.state))


@every_stream
def test_incidents_have_an_orderly_life(stream: Callable[[], Iterator[Observation]]) -> None:
    open_id, sequence = None, -1
    seen: set[str] = set()
    for step in Watched().see_all(stream()).steps:
        if step.kind == "opened":
            assert open_id is None
            assert step.id not in seen
            assert step.sequence == 0
            open_id = step.id
            seen.add(step.id)
        else:
            assert step.id == open_id
            assert step.sequence == sequence + 1
            if step.kind in ("closed", "adopted"):
                open_id = None
        sequence = step.sequence


@every_stream
def test_a_state_that_was_given_away_is_never_touched_again(stream: Callable[[], Iterator[Observation]]) -> None:
    w = Watched()
    for window in stream():
        state = w.detector.state
        before = state.to_payload()
        w.see(window)
        assert state.to_payload() == before


def test_streams_that_only_look_odd_raise_nothing() -> None:
    assert Watched().see_all(constants()).kinds == []
    assert Watched().see_all(crowded()).kinds == []


def test_a_channel_that_was_constant_and_moves_is_noticed() -> None:
    w = Watched().see_all(constants())
    moved = {"zero": stats(0.0, 0.0), "one": stats(2.0, 0.0), "single": stats(4.0, 0.0, n=1)}
    verdict = w.see(observation(120, np.eye(8)[0], channels=moved))
    assert verdict.status == "alarm"
    assert w.steps[0].channels[0].channel == "one"


def test_no_more_channels_are_kept_than_a_payload_can_bear() -> None:
    w = Watched().see_all(crowded())
    assert len(w.detector.state.channels) == 128
    assert len(w.detector.state.to_payload()) < 16_384


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_left_out(bad: float) -> None:
    w = well(60)
    window = observation(60, np.eye(8)[0], channels={"flow": stats(bad)})
    assert "channel" not in w.see(window).parts
    assert "nan" not in repr(msgspec.to_builtins(w.detector.state)).lower()


FINITE = st.floats(allow_nan=False, allow_infinity=False, width=64)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(FINITE, FINITE.map(abs)), min_size=30, max_size=60))
def test_any_finite_values_keep_the_state_finite_and_exact(values: list[tuple[float, float]]) -> None:
    w = Watched(warm_windows=10, warm_modality=3)
    for i, (mean, std) in enumerate(values):
        w.see(observation(i, np.eye(8)[0], channels={"a": stats(mean, std)}))
    text = repr(msgspec.to_builtins(w.detector.state))
    assert "inf" not in text
    assert "nan" not in text
    assert DriftState.from_payload(w.detector.state.to_payload()) == w.detector.state
