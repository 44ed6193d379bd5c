"""The life of an incident: when it opens, what it is about, when and why it ends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from streams.drift import Detector, Observation, severity_of
from tests.unit.drift.support import Watched, level, plant, well


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
