"""Incidents scored against labelled faults."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from streams.sources.incident_scoring import IncidentSpan, label_table, score_incidents
from streams.sources.recording import Label

S = 1000
FAULT = Label("pump", 100 * S, 200 * S, "sensor", ("sensor",))


def _span(opened_s: int, closed_s: int | None = None, onset_s: int | None = None, stream: str = "pump") -> IncidentSpan:
    onset = None if onset_s is None else onset_s * S
    return IncidentSpan(f"{stream}-{opened_s}", stream, opened_s * S, onset, None if closed_s is None else closed_s * S)


@pytest.mark.parametrize(
    ("incident", "matches"),
    [
        (_span(120, 150), True),
        (_span(50, 100), False),  # over when the fault begins
        (_span(50, 101), True),
        (_span(50), True),  # never closed
        (_span(259, 300), True),  # an incident may begin up to a minute after the end
        (_span(260, 300), False),
        (_span(265, 300, onset_s=255), True),  # what counts is its onset
        (_span(120, 150, stream="fan"), False),
    ],
)
def test_an_incident_matches_a_label_of_its_stream_that_it_overlaps(incident: IncidentSpan, matches: bool) -> None:
    score = score_incidents([FAULT], [incident]).to_json()
    assert (score["found"], score["missed"], score["false"]) == ((1, 0, 0) if matches else (0, 1, 1))


def test_the_delay_is_to_the_first_opening_and_never_below_zero() -> None:
    second = Label("fan", 500 * S, 600 * S, "audio", ("audio",))
    third = Label("fan", 900 * S, 950 * S, "audio", ("audio",))
    spans = [_span(150), _span(112, 130), _span(480, 620, stream="fan"), _span(910, 940, stream="fan")]
    assert score_incidents([FAULT, second, third], spans).to_json() == {
        "total": 3,
        "found": 3,
        "missed": 0,
        "false": 0,
        "median_delay_s": 10.0,
        "by_kind": {
            "audio": {"total": 2, "found": 2, "missed": 0, "median_delay_s": 5.0},
            "sensor": {"total": 1, "found": 1, "missed": 0, "median_delay_s": 12.0},
        },
    }


def test_one_incident_may_match_two_labels_and_two_incidents_one_label() -> None:
    again = Label("pump", 210 * S, 250 * S, "sensor", ("sensor",))
    score = score_incidents([FAULT, again], [_span(120, 300), _span(220, 230)]).to_json()
    assert (score["total"], score["found"], score["false"]) == (2, 2, 0)


def test_without_labels_every_incident_is_false_and_there_is_no_delay() -> None:
    score = score_incidents([], [_span(120), _span(300)]).to_json()
    assert score == {"total": 0, "found": 0, "missed": 0, "false": 2, "median_delay_s": None, "by_kind": {}}


def test_the_table_is_the_same_from_a_score_and_from_its_json() -> None:
    score = score_incidents([FAULT], [_span(112), _span(900, 950, stream="fan")])
    shown = []
    for rows in (score, score.to_json()):
        console = Console(width=100, file=io.StringIO())
        with console.capture() as captured:
            console.print(label_table(rows))
        shown.append(captured.get())
    assert shown[0] == shown[1]
    assert "12 s" in shown[0]
    assert "1 incidents match no label" in shown[0]
