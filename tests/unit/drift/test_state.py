"""State that knows what it was learnt with: what can be continued, and what makes a stream learn anew."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from streams.drift import Detector, DriftConfig, DriftState
from tests.unit.drift.support import WARM, Watched, level, plant, well


def go_on(w: Watched, state: DriftState | None = None, **changes: Any) -> Watched:
    """A worker with other numbers takes over the stored state."""
    other = Watched(**changes)
    state = DriftState.from_payload((state or w.detector.state).to_payload())
    other.detector = Detector("pump", other.config, state, w.store)
    return other


def in_alarm() -> Watched:
    return well(60).see_all(level(i, 90.0) for i in range(60, 64))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size_ms": 5_000}, "window size changed from 10000 to 5000 ms: learning anew"),
        ({"hop_ms": 2_000}, "window hop changed from 10000 to 2000 ms: learning anew"),
        ({"bank_size": 16}, "settings of the detector changed: learning anew"),
    ],
)
def test_other_windows_or_numbers_mean_warming_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    w = go_on(well(60), **changes).see_all(level(i) for i in range(60, 60 + WARM + 1))
    assert [v.status for v in w.verdicts] == ["warming"] * WARM + ["ok"]
    assert [v.reason for v in w.verdicts] == [reason] * WARM + [None]
    assert set(w.verdicts[-1].parts) == {"joint", "knn/sensor", "channel"}


def test_the_knob_moves_the_line_and_costs_no_learning() -> None:
    w = go_on(well(60), false_incidents_per_week=0.1)
    assert w.see(level(60)).status == "ok"


def test_the_reason_survives_a_restart_while_warming() -> None:
    w = go_on(well(60), size_ms=5_000).see_all(level(i) for i in range(60, 65))
    w.detector = w.restarted()
    assert w.see(level(65)).reason == "window size changed from 10000 to 5000 ms: learning anew"


def test_an_open_incident_of_another_configuration_is_closed_with_the_reason_by_the_first_window() -> None:
    w = in_alarm()
    other = go_on(w, size_ms=5_000).see_all(level(i) for i in range(64, 70))
    (closed,) = other.steps
    assert (closed.kind, closed.id, closed.sequence) == ("closed", w.steps[0].id, 1)
    assert closed.window == "w640000"
    assert closed.text == "pump: closed: window size changed from 10000 to 5000 ms: learning anew"
    assert other.verdicts[0].steps == (closed,)


def test_before_that_window_is_scored_any_restart_closes_it_in_the_same_words() -> None:
    first, second = (go_on(in_alarm(), size_ms=5_000).see(level(64)) for _ in range(2))
    assert first == second


def payload_of_version_0(state: DriftState) -> str:
    """As the build before fingerprints wrote it."""
    old = msgspec.to_builtins(state)
    for name in ("fingerprint", "reason", "presence", "run_onsets"):
        del old[name]
    old["run_onset_ms"] = 600_000
    if old["incident"] is not None:
        old["incident"] = old["incident"][:11]
    return base64.b64encode(msgspec.msgpack.encode(old)).decode()


def test_a_state_of_an_older_build_means_warming_and_its_incident_is_closed() -> None:
    w = in_alarm()
    state = DriftState.from_payload(payload_of_version_0(w.detector.state))
    verdict = Detector("pump", w.config, state, w.store).observe(level(64))
    assert (verdict.status, [step.kind for step in verdict.steps]) == ("warming", ["closed"])
    assert verdict.steps[0].id == w.steps[0].id
    assert verdict.reason == "the drift state was written by another version of the detector: learning anew"


@pytest.mark.parametrize("payload", ["", "AAAA", "c3RhdGU=", "no base64!", base64.b64encode(b"\x81\xa1a\xc1").decode()])
def test_a_state_that_cannot_be_read_means_warming(payload: str) -> None:
    verdict = Detector("pump", DriftConfig(), DriftState.from_payload(payload), {}).observe(level(64))
    assert verdict.status == "warming"
    assert verdict.reason is not None


def test_a_state_of_an_unknown_layout_still_gives_its_incident() -> None:
    w = in_alarm()
    newer = msgspec.to_builtins(w.detector.state) | {"reference": "elsewhere", "fingerprint": 7}
    state = DriftState.from_payload(base64.b64encode(msgspec.msgpack.encode(newer)).decode())
    (step,) = Detector("pump", w.config, state, {}).observe(level(64)).steps
    assert (step.kind, step.id) == ("closed", w.steps[0].id)


# -- vectors that cannot be read back -----------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["one", "all"])
def test_missing_reference_windows_mean_warming_with_the_reason(lost: str) -> None:
    w = in_alarm()
    reference = w.detector.state.reference["sensor"]
    vectors = {s: v for s, v in w.store.items() if s not in (reference[:1] if lost == "one" else reference)}
    w.detector = Detector("pump", w.config, DriftState.from_payload(w.detector.state.to_payload()), vectors)
    verdict = w.see(level(64))
    assert (verdict.status, verdict.reason) == (
        "warming",
        "reference windows are missing from the store: learning anew",
    )
    assert w.kinds == ["opened", "closed"]
    w.see_all(level(i) for i in range(65, 65 + WARM))
    assert w.verdicts[-1].status == "ok"
    assert "knn/sensor" in w.verdicts[-1].parts


def test_a_reference_window_without_the_vector_of_its_bank_is_missing() -> None:
    w = Watched().see_all(plant(i, "sensor", "audio") for i in range(60))
    start = w.detector.state.reference["audio"][0]
    vectors = w.store | {start: {name: v for name, v in w.store[start].items() if name != "audio"}}
    detector = Detector("pump", w.config, w.detector.state, vectors)
    assert detector.observe(plant(60, "sensor", "audio")).status == "warming"


def test_missing_recent_windows_cost_no_learning_and_no_detection() -> None:
    w = well(200)
    state = w.detector.state
    frozen = {start for bank in state.reference.values() for start in bank}
    w.detector = Detector("pump", w.config, state, {s: v for s, v in w.store.items() if s in frozen})
    verdict = w.see(level(200))
    assert verdict.status == "ok"
    assert set(verdict.parts) == {"joint", "knn/sensor", "channel", "cusum"}
    assert w.detector.bank <= frozen | {2_000_000}
    assert w.see(level(201, 90.0)).status == "alarm"


def test_missing_windows_of_past_incidents_cost_nothing_but_the_likeness() -> None:
    w = in_alarm().see_all(level(i) for i in range(64, 100))
    vectors = {start: v for start, v in w.store.items() if start != 600_000}
    w.detector = Detector("pump", w.config, w.detector.state, vectors)
    w.see_all(level(i, 90.0) for i in range(100, 102))
    assert w.kinds == ["opened", "closed", "opened"]
    assert w.steps[-1].nearest_incident is None


def test_windows_that_a_replaced_state_held_leave_the_bank_with_the_first_window() -> None:
    """Retention spares the windows of banks, and must not spare those of a state that is gone for ever."""
    w = well(60)
    held = w.detector.bank
    lost = min(w.detector.state.reference["sensor"])
    vectors = {start: v for start, v in w.store.items() if start != lost}
    w.detector = Detector("pump", w.config, w.detector.state, vectors)
    assert w.detector.bank == held - {lost}
    w.see(level(60))
    assert w.detector.bank == {600_000}
