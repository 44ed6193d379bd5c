"""A window that a late event changed is scored again: what it finds, and what it leaves alone."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from streams.drift import Detector
from tests.unit.drift.support import WARM, Watched, level, observation, plant, well


def test_a_late_event_that_makes_its_window_odd_has_an_incident_of_its_own_marked_late() -> None:
    w = well(60)
    verdict = w.detector.review(level(58, 90.0))
    opened, closed = verdict.steps
    assert [opened.kind, closed.kind] == ["opened", "closed"]
    assert opened.late
    assert closed.late
    assert opened.id == closed.id == verdict.incident
    assert [opened.sequence, closed.sequence] == [0, 1]
    assert [opened.onset_ms, opened.opened_ms, closed.closed_ms] == [580_000, 590_000, 590_000]
    assert opened.window == closed.window == "w580000"
    assert "late" in opened.text
    assert "flow" in opened.text
    assert "back to normal" not in closed.text
    assert verdict.status == "alarm"


def test_its_id_is_that_of_the_window_and_never_that_of_an_incident_found_in_time() -> None:
    w = well(60)
    late = w.detector.review(level(60, 90.0)).steps
    restored = w.restarted().review(level(60, 90.0)).steps
    assert msgspec.json.encode(late) == msgspec.json.encode(restored)
    (opened,) = w.see(level(60, 90.0)).steps
    assert opened.id != late[0].id
    assert len({opened.step_id, *(step.step_id for step in late)}) == 3


def test_it_is_the_same_after_further_windows_of_the_stream() -> None:
    w = well(60)
    first = w.detector.review(level(58, 90.0)).steps[0]
    w.see_all(level(i) for i in range(60, 70))
    assert w.detector.review(level(58, 90.0)).steps[0].step_id == first.step_id


def test_a_late_odd_window_updates_the_incident_that_is_open() -> None:
    w = well(60).see_all(level(i, 90.0) for i in range(60, 64))
    verdict = w.detector.review(level(62, 300.0))
    (step,) = verdict.steps
    assert (step.kind, step.late, step.id) == ("updated", True, w.steps[0].id)
    assert verdict.incident == w.steps[0].id
    assert step.step_id not in {s.step_id for s in w.steps}
    w.see_all(level(i) for i in range(64, 80))
    assert [(s.kind, s.sequence) for s in w.steps] == [("opened", 0), ("closed", 1)]


def test_a_late_calm_window_causes_no_step_and_belongs_to_the_incident_it_lies_in() -> None:
    w = well(60).see_all(level(i, 90.0) for i in range(60, 64))
    inside, before = w.detector.review(level(62)), w.detector.review(level(55))
    assert (inside.steps, inside.incident, inside.status) == ((), w.steps[0].id, "alarm")
    assert (before.steps, before.incident, before.status) == ((), None, "ok")


def test_a_late_window_a_little_above_the_line_opens_nothing() -> None:
    w = well(60)
    value = next(v for v in (20 + k * 0.01 for k in range(5_000)) if (w.detector.review(level(60, v)).score or 0) > 1.2)
    verdict = w.detector.review(level(59, value))
    assert (verdict.status, verdict.steps, verdict.incident) == ("alarm", (), None)


def test_a_window_that_was_above_the_line_before_its_late_event_causes_no_second_step() -> None:
    w = well(60)
    assert w.detector.review(level(58, 90.0), previous_score=0.4).steps
    assert w.detector.review(level(58, 90.0), previous_score=1.5).steps == ()
    w.see_all(level(i, 90.0) for i in range(60, 64))
    assert w.detector.review(level(61, 95.0), previous_score=10.0).steps == ()


def test_nothing_is_found_while_warming() -> None:
    verdict = well(WARM - 1).detector.review(level(5, 90.0))
    assert (verdict.status, verdict.score, verdict.steps) == ("warming", None, ())


def test_a_note_that_comes_late_is_compared_with_the_notes_before_it() -> None:
    w = Watched().see_all(plant(i, *(("sensor", "caption") if i % 2 else ("sensor",))) for i in range(81))
    verdict = w.detector.review(plant(80, "sensor", "caption", odd="caption"))
    assert [step.kind for step in verdict.steps] == ["opened", "closed"]
    assert verdict.steps[0].modalities["caption"] > 0.9


@pytest.mark.parametrize("member", ["reference", "recent", "waiting"])
def test_a_window_is_no_evidence_for_its_own_normality(member: str) -> None:
    """Whether the bank holds its old vectors or already the new ones: the verdict is that of the other windows."""
    w = well(100)
    state = w.detector.state
    start = {
        "reference": state.reference["sensor"][3],
        "recent": state.recent["sensor"][3],
        "waiting": state.waiting[2],
    }
    odd = observation(start[member] // 10_000, np.eye(8)[5])
    before = w.detector.review(odd)
    w.detector.replace_vectors(odd.start_ms, odd.vectors)
    assert w.detector.review(odd) == before
    assert before.status == "alarm"


def test_a_restored_detector_holds_revised_windows_as_the_store_does() -> None:
    w = well(100)
    for start in Detector.bank_starts(w.detector.state)[::3]:
        other = observation(start // 10_000, np.eye(8)[0] + 0.01 * np.random.default_rng(start).standard_normal(8))
        w.store[start] = other.vectors
        w.detector.replace_vectors(start, other.vectors)
    restored = w.restarted()
    for i in range(100, 130):
        assert restored.observe(level(i)) == w.detector.observe(level(i))
