"""Which windows are the norm, and what is held of them."""

from __future__ import annotations

import numpy as np

from streams.drift import Detector
from tests.unit.drift.support import WARM, Watched, level, observation, unit, well


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
