"""Invariants that every detector keeps on every stream.

Whatever scores windows is held to them: `hold_to_all(make, stream)`, where `make` gives a new `Watched` detector and
`stream` is one of `STREAMS` or any other function that gives windows in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from streams.drift import DriftState, Observation
from streams.events.types import IncidentEvent
from tests.unit.drift.support import Watched, drifted, level, normal_stream, observation, plant, stats

Stream = Callable[[], Iterator[Observation]]
Make = Callable[[], Watched]


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


def notes() -> Iterator[Observation]:
    """Readings in every window, a note in each sixth; one of the notes is odd, and so are some readings later."""
    for i in range(260):
        present = ("sensor", "caption") if i % 6 == 0 else ("sensor",)
        odd = "caption" if i == 120 else "sensor" if 200 <= i < 206 else None
        yield plant(i, *present, odd=odd, channels={"flow": stats(3.0 + 0.01 * (i % 7))})


def blips() -> Iterator[Observation]:
    """A channel that is 0, one that is constant, and pulses of one window and of six."""
    for i in range(200):
        pulse = float(i == 60 or 100 <= i < 106)
        channels = {"leak": stats(pulse, 0.0), "level": stats(7.0 + 5.0 * pulse, 0.0), "rain": stats(-0.0, 0.0)}
        yield observation(i, np.eye(8)[0], channels=channels)


STREAMS: list[Stream] = [
    calm,
    faults,
    ragged,
    adopted,
    slow,
    gaps,
    extremes,
    constants,
    crowded,
    notes,
    blips,
]


def scoring_again_changes_nothing(make: Make, stream: Stream) -> None:
    """`review` is pure and gives the same bytes every time; of a new window it gives the score that `observe` gives."""
    w = make()
    for window in stream():
        before = w.detector.state.to_payload()
        first, second = w.detector.review(window), w.detector.review(window)
        assert first == second
        assert msgspec.json.encode(first.steps) == msgspec.json.encode(second.steps)
        assert w.detector.state.to_payload() == before
        verdict = w.see(window)
        if verdict.status != "warming" and not verdict.steps:
            assert (verdict.score, verdict.parts, verdict.modalities) == (first.score, first.parts, first.modalities)


def reviewed_windows_leave_no_trace(make: Make, stream: Stream) -> None:
    """A stream whose windows are all reviewed in between, the last two and the next one, goes on as one without."""
    w, reviewed = make(), make()
    seen: list[Observation] = []
    for window in stream():
        for other in (*seen[-2:], window):
            reviewed.detector.review(other)
        assert reviewed.see(window) == w.see(window)
        seen.append(window)
    assert reviewed.detector.state.to_payload() == w.detector.state.to_payload()


def late_steps_are_complete_lives_or_updates(make: Make, stream: Stream) -> None:
    """A late step updates what is open, or is one of a pair that opens and closes; its name is no other step's."""
    w = make()
    names: set[str] = set()
    for window in stream():
        steps = w.detector.review(window).steps
        open_id = w.detector.state.incident.id if w.detector.state.incident else None
        kinds = [step.kind for step in steps]
        assert kinds in ([], ["updated"]) if open_id else kinds in ([], ["opened", "closed"])
        assert all(step.late for step in steps)
        assert {step.id for step in steps} <= ({open_id} if open_id else {step.id for step in steps[:1]})
        w.see(window)
        for step in (*steps, *w.verdicts[-1].steps):
            assert step.step_id not in names
            names.add(step.step_id)
            assert msgspec.json.decode(msgspec.json.encode(step), type=IncidentEvent) == step


def a_restart_at_any_window_changes_no_bit(make: Make, stream: Stream) -> None:
    w, again = make(), make()
    for window in stream():
        again.detector = again.restarted()
        assert again.detector.review(window) == w.detector.review(window)
        assert again.see(window) == w.see(window)
        assert again.detector.state.to_payload() == w.detector.state.to_payload()


def the_same_stream_gives_the_same_verdicts(make: Make, stream: Stream) -> None:
    assert make().see_all(stream()).verdicts == make().see_all(stream()).verdicts


def verdicts_are_well_formed(make: Make, stream: Stream) -> None:
    w = make().see_all(stream())
    for verdict in w.verdicts:
        assert verdict.score is None or 0.0 <= verdict.score < math.inf
        assert (verdict.score is None) == (verdict.status == "warming")
        assert 0 <= verdict.severity <= 100
        assert all(math.isfinite(part) and part >= 0.0 for part in verdict.parts.values())
        assert verdict.unwatched_channels >= 0
        if verdict.modalities:
            assert math.isclose(math.fsum(verdict.modalities.values()), 1.0, abs_tol=1e-3)
    for step in w.steps:
        assert msgspec.json.decode(msgspec.json.encode(step), type=IncidentEvent) == step
        assert "\n" not in step.text
        assert all(math.isfinite(x) for c in step.channels for x in (c.expected, c.actual, c.z))
    assert "null" not in repr(w.steps)
    state = repr(msgspec.to_builtins(w.detector.state))
    assert "inf" not in state
    assert "nan" not in state


def incidents_have_an_orderly_life(make: Make, stream: Stream) -> None:
    open_id, sequence, time_ms = None, -1, -1
    seen: set[str] = set()
    for step in make().see_all(stream()).steps:
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
        assert step.onset_ms is not None
        assert step.onset_ms < step.opened_ms <= step.time_ms
        assert step.time_ms > time_ms
        assert not step.late
        sequence, time_ms = step.sequence, step.time_ms


def a_state_that_was_given_away_is_never_touched(make: Make, stream: Stream) -> None:
    w = make()
    given: list[tuple[DriftState, str]] = []
    for window in stream():
        given.append((w.detector.state, w.detector.state.to_payload()))
        w.see(window)
    assert all(state.to_payload() == payload for state, payload in given)


def memory_stays_within_its_bound(make: Make, stream: Stream) -> None:
    """The bound of `reference_bank`, and 32 KiB for all else."""
    w = make().see_all(stream())
    config, state = w.config, w.detector.state
    dim = max(len(vector) for window in w.store.values() for vector in window.values())
    rows = len(state.reference) * (config.bank_size + config.recent_size) + 4 * len(state.waiting) + 5
    assert w.detector.nbytes <= rows * (2 * dim + 200) + 300 * len(state.channels) + 32_768


CHECKS: list[Callable[[Make, Stream], None]] = [
    scoring_again_changes_nothing,
    reviewed_windows_leave_no_trace,
    late_steps_are_complete_lives_or_updates,
    a_restart_at_any_window_changes_no_bit,
    the_same_stream_gives_the_same_verdicts,
    verdicts_are_well_formed,
    incidents_have_an_orderly_life,
    a_state_that_was_given_away_is_never_touched,
    memory_stays_within_its_bound,
]


def hold_to_all(make: Make, stream: Stream) -> None:
    """All invariants, one after another."""
    for check in CHECKS:
        check(make, stream)
