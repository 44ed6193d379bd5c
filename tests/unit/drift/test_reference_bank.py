"""Which windows are the norm, and what is held of them."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest

from models.interface import DIM
from streams.drift import Detector, DriftConfig, Observation
from streams.drift.reference_bank import distances, row_of
from tests.unit.drift.support import WARM, Watched, level, observation, stats, unit, well


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


# -- memory -------------------------------------------------------------------------------------------------------


def wide(seed: int, i: int, *present: str) -> Observation:
    """A window with vectors of the size that models give."""
    rng = np.random.default_rng((seed, i))
    vectors = {name: np.eye(DIM)[k] + 0.02 * rng.standard_normal(DIM) for k, name in enumerate(present)}
    channels = {f"channel-{k}": stats(float(k) + 0.1 * rng.standard_normal()) for k in range(8)}
    return observation(10_000 * seed + i, vectors, channels=channels)


def memory_of(present: tuple[str, ...], detectors: int) -> tuple[float, float]:
    """(measured, declared) bytes of a detector, mean over some that have seen as many windows as their banks hold."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        held = []
        for seed in range(detectors):
            held.append(Detector("pump", DriftConfig()))
            for i in range(80):
                held[-1].observe(wide(seed, i, *present))
        gc.collect()
        measured = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    return measured / detectors, sum(detector.nbytes for detector in held) / detectors


@pytest.mark.parametrize(
    ("present", "most"),
    [(("sensor",), 80_000), (("sensor", "audio"), 115_000), (("sensor", "audio", "caption"), 150_000)],
)
def test_a_detector_takes_the_memory_that_it_declares(present: tuple[str, ...], most: int) -> None:
    """20,000 streams of sensors take 1.6 GB at most, with all three modalities in every window 3 GB."""
    measured, declared = memory_of(present, 2)
    assert measured < most
    assert 0.75 * measured < declared < 1.25 * measured


def test_distances_are_exact_to_the_floor_of_a_spread_and_the_same_in_any_order() -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((48, DIM))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    bank = np.stack([row_of(row.astype(np.float32)) for row in rows])
    found = distances(bank[7], bank)
    assert np.abs(found - (1.0 - rows @ rows[7])).max() < DriftConfig().knn_floor / 100
    order = rng.permutation(DIM)
    assert (distances(bank[7][order], bank[:, order]) == found).all()
