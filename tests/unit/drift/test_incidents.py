"""The life of an incident: when it opens, what it is about, when and why it ends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from streams.drift import Detector, Observation, close_for, severity_of
from tests.unit.drift.support import Watched, level, plant, stats, well


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


# -- incidents of a modality that seldom comes --------------------------------------------------------------------


def noted(i: int, *, every: int = 6, odd: str | None = None, flow: float = 3.0) -> Observation:
    """A window with readings, and with a note where `every` says so or the note is the odd one."""
    present = ("sensor", "caption") if i % every == 0 or odd == "caption" else ("sensor",)
    return plant(i, *present, odd=odd, channels={"flow": stats(flow + 0.01 * (i % 7))})


def after_an_odd_note(windows: int) -> Watched:
    """150 windows with a note in each sixth, an odd note, then readings alone."""
    w = Watched().see_all(noted(i) for i in range(150)).see_all([noted(150, odd="caption")])
    return w.see_all(noted(i, every=10**6) for i in range(151, 151 + windows))


def test_one_odd_note_then_calm_readings_closes_within_minutes_and_says_why() -> None:
    w = after_an_odd_note(60)
    assert w.kinds == ["opened", "closed"]
    opened, closed = w.steps
    assert max(opened.modalities, key=lambda name: opened.modalities[name]) == "caption"
    assert closed.time_ms - opened.time_ms == w.config.rare_close_ms <= 240_000
    assert closed.text == "pump: closed after 190 s: no further caption, and all else calm for 180 s"
    assert {v.status for v in w.verdicts[170:]} == {"ok"}


def test_after_an_odd_note_learning_goes_on() -> None:
    w = after_an_odd_note(60)
    assert w.detector.state.recent["sensor"][-1] == 2_040_000  # of the last window, less the quarantine


def test_after_an_odd_note_a_fault_of_the_sensors_has_an_incident_of_its_own() -> None:
    w = after_an_odd_note(60).see_all(noted(i, every=10**6, flow=9.0) for i in range(211, 216))
    assert w.kinds == ["opened", "closed", "opened"]
    assert w.steps[2].id != w.steps[0].id
    assert w.steps[2].channels[0].channel == "flow"


def test_calm_notes_close_an_incident_of_a_note_before_that() -> None:
    w = Watched().see_all(noted(i) for i in range(150)).see_all([noted(150, odd="caption")])
    w.see_all(noted(i) for i in range(151, 170))
    assert w.kinds == ["opened", "closed"]
    assert w.steps[1].time_ms == 1_630_000  # the second calm note: each counts for half a minute
    assert w.steps[1].text.startswith("pump: back to normal")


def test_odd_notes_that_go_on_keep_their_incident_open() -> None:
    w = Watched().see_all(noted(i) for i in range(150))
    w.see_all(noted(i, odd="caption" if i % 12 == 6 else None, every=10**6) for i in range(150, 300))
    assert "closed" not in w.kinds


def test_what_is_not_calm_in_the_rest_keeps_an_incident_of_a_note_open() -> None:
    w = Watched().see_all(noted(i) for i in range(150)).see_all([noted(150, odd="caption")])
    w.see_all(noted(i, every=10**6, flow=9.0) for i in range(151, 250))
    assert "closed" not in w.kinds


def test_the_silence_of_the_stream_closes_no_incident_of_a_note() -> None:
    w = Watched().see_all(noted(i) for i in range(150)).see_all([noted(150, odd="caption")])
    w.see_all(noted(i, every=10**6) for i in (2_000, 4_000, 6_000))
    assert w.kinds == ["opened"]


def test_a_modality_that_came_with_every_window_and_stays_away_keeps_its_incident_for_half_an_hour() -> None:
    w = (
        Watched()
        .see_all(plant(i, "caption") for i in range(60))
        .see_all(plant(i, "sensor", "caption") for i in range(60, 160))
    )
    w.see_all(plant(i, "sensor", "caption", odd="sensor") for i in range(160, 165))
    w.see_all(plant(i, "caption") for i in range(165, 400))
    assert w.kinds == ["opened", "closed"]
    assert w.steps[1].time_ms - 1_650_000 == w.config.absent_close_ms
    assert "no further reading" in w.steps[1].text


def test_an_incident_of_windows_that_have_no_score_does_not_stop_learning_for_ever() -> None:
    """Sensors fail and are replaced by microphones, which nothing is known of: an hour later they are learnt."""
    w = Watched().see_all(plant(i, "sensor") for i in range(60))
    w.see_all(plant(i, "sensor", odd="sensor") for i in range(60, 64))
    w.see_all(plant(i, "audio") for i in range(64, 500))
    assert w.kinds == ["opened", "adopted"]
    assert w.verdicts[-1].status == "ok"
    assert "knn/audio" in w.verdicts[-1].parts


# -- onset --------------------------------------------------------------------------------------------------------


def test_the_onset_is_that_of_the_run_that_opened_the_incident() -> None:
    """A note a little above the line, no note after it; much later the flow fails. The note began nothing."""
    w = Watched(open_at_once=1e9).see_all(noted(i) for i in range(150)).see_all([noted(150, odd="caption")])
    assert w.verdicts[-1].parts["knn/caption"] >= 1.0
    assert w.kinds == []
    w.see_all(noted(i, every=10**6) for i in range(151, 300))
    w.see_all(noted(i, every=10**6, flow=9.0) for i in range(300, 304))
    assert w.kinds == ["opened"]
    assert w.steps[0].onset_ms == 3_000_000


def test_of_two_runs_that_open_an_incident_together_the_first_to_begin_is_its_onset() -> None:
    w = Watched(open_at_once=1e9).see_all(noted(i) for i in range(150))
    w.see_all([noted(150, flow=9.0), noted(151, every=1, odd="caption", flow=9.0), noted(152, flow=9.0)])
    assert w.steps[0].onset_ms == 1_500_000


# -- closed from outside ------------------------------------------------------------------------------------------


def test_what_is_open_can_be_closed_for_a_reason_of_the_caller() -> None:
    w = well(60).see_all(level(i, 90.0) for i in range(60, 64))
    before = w.detector.state.to_payload()
    state, step = close_for(w.detector.state, "model m2 took over", 700_000, stream="pump", window="w690000")
    assert w.detector.state.to_payload() == before
    assert step is not None
    assert (step.kind, step.id, step.sequence) == ("closed", w.steps[0].id, 1)
    assert (step.time_ms, step.closed_ms, step.window) == (700_000, 700_000, "w690000")
    assert (step.severity, step.onset_ms) == (w.steps[0].severity, w.steps[0].onset_ms)
    assert step.text == "pump: closed: model m2 took over"
    assert state.incident is None
    assert (state.runs, state.cusum) == ({}, 0.0)
    assert close_for(state, "again", 800_000, stream="pump", window="w") == (state, None)


def test_an_incident_is_never_closed_before_its_last_step() -> None:
    w = well(60).see_all(level(i, 90.0) for i in range(60, 64))
    _, step = close_for(w.detector.state, "rolled back", 0, stream="pump", window="w")
    assert step is not None
    assert step.time_ms == w.steps[0].time_ms
