"""The report of a replay: every event is counted once, also where records are repeated."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from streams.events.types import IncidentEvent, RawRecord, WindowRecord
from streams.sources.incident_scoring import IncidentSpan
from streams.sources.reconciliation import ReplayReport
from streams.sources.recording import Label

S = 1000
FAULT = Label("pump", 100 * S, 200 * S, "sensor", ("sensor",))


def _window(id: str, revision: int = 0, events: int = 10, duplicates: int = 0) -> WindowRecord:
    counts = {"sensor": events - 1, "audio": 1}
    return WindowRecord(id, "pump", 0, 10 * S, revision, list(counts), counts, duplicates, "ok", 0.1, None, "m1")


def _dead_letter(offset: int, events: int | None = None) -> RawRecord:
    headers = [("reason", b"late"), ("topic", b"sensor-readings"), ("partition", b"0"), ("offset", b"%d" % offset)]
    if events is not None:
        headers.append(("events", b"%d" % events))
    named = tuple((f"sensorium-{name}", value) for name, value in headers)
    return RawRecord("late-events", 0, 1000 + offset, 0, b"pump", b"{}", named)


def _step(id: str, sequence: int, kind: str = "updated", closed_ms: int | None = None) -> IncidentEvent:
    return IncidentEvent(
        kind,
        id,
        "pump",
        sequence,
        "w",
        0,
        120 * S,
        50,
        "vibration",
        closed_ms=closed_ms,
        onset_ms=110 * S,  # type: ignore[arg-type]
    )


def test_a_report_is_balanced_when_every_event_has_come_back() -> None:
    report = ReplayReport(produced=10 + 2 + 3 + 1)
    report.add_window(_window("a", duplicates=2))
    report.add_dead_letter(_dead_letter(7, events=3), late=True)
    assert (report.balanced, report.missing) == (False, 1)
    report.add_dead_letter(_dead_letter(8), late=False)
    assert report.balanced
    assert report.to_json() == {
        "events": {"produced": 16, "windowed": 10, "duplicate": 2, "late": 3, "dead": 1},
        "windows": 1,
        "incidents": 0,
        "seconds": 0.0,
    }


def test_the_last_record_of_the_highest_revision_counts() -> None:
    report = ReplayReport()
    for window in (_window("a"), _window("a", 1, events=11), _window("a"), _window("a", 1, events=12), _window("b")):
        report.add_window(window)
    counts = report.to_json()
    assert (counts["events"]["windowed"], counts["windows"]) == (22, 2)


@given(st.permutations(range(8)), st.integers(1, 3))
def test_repeats_in_any_order_change_nothing(order: list[int], times: int) -> None:
    def add(report: ReplayReport, n: int) -> None:
        actions = [
            lambda: report.add_window(_window("a", duplicates=1)),
            lambda: report.add_window(_window("a", 1, events=11, duplicates=2)),
            lambda: report.add_window(_window("b", events=5)),
            lambda: report.add_dead_letter(_dead_letter(1, events=2), late=True),
            lambda: report.add_dead_letter(_dead_letter(2), late=False),
            lambda: report.add_incident_step(_step("i", 0, "opened")),
            lambda: report.add_incident_step(_step("i", 1)),
            lambda: report.add_incident_step(_step("i", 2, "closed", 300 * S)),
        ]
        actions[n]()

    report = ReplayReport(produced=11 + 2 + 5 + 2 + 1)
    for n in itertools.chain.from_iterable(itertools.repeat(order, times)):
        add(report, n)
    assert report.balanced
    assert report.spans() == [IncidentSpan("i", "pump", 120 * S, 110 * S, 300 * S)]


def test_the_report_scores_its_incidents_against_labels() -> None:
    report = ReplayReport()
    report.add_incident_step(_step("i", 0, "opened"))
    assert report.to_json([FAULT])["labels"]["median_delay_s"] == 20.0
