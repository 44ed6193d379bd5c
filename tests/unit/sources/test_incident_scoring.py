"""Incidents beside labels, and the account of a replay: every event once, whatever was told twice."""

from __future__ import annotations

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from streams.events.types import IncidentEvent, RawRecord, WindowRecord
from streams.sources.incident_scoring import IncidentSpan, label_table, score_incidents
from streams.sources.reconciliation import Account
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
        (_span(259, 300), True),  # an incident may come up to a minute after the end
        (_span(260, 300), False),
        (_span(265, 300, onset_s=255), True),  # what counts is when it set in
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


def test_one_incident_may_match_two_labels_and_two_one() -> None:
    again = Label("pump", 210 * S, 250 * S, "sensor", ("sensor",))
    score = score_incidents([FAULT, again], [_span(120, 300), _span(220, 230)]).to_json()
    assert (score["total"], score["found"], score["false"]) == (2, 2, 0)


def test_without_labels_every_incident_is_false_and_there_is_no_delay() -> None:
    score = score_incidents([], [_span(120), _span(300)]).to_json()
    assert score == {"total": 0, "found": 0, "missed": 0, "false": 2, "median_delay_s": None, "by_kind": {}}


def test_the_table_is_the_same_from_a_score_and_from_its_json() -> None:
    score = score_incidents([FAULT], [_span(112), _span(900, 950, stream="fan")])
    shown = []
    for told in (score, score.to_json()):
        console = Console(width=100, file=io.StringIO())
        with console.capture() as captured:
            console.print(label_table(told))
        shown.append(captured.get())
    assert shown[0] == shown[1]
    assert "12 s" in shown[0]
    assert "1 incidents match no label" in shown[0]


def _window(id: str, revision: int = 0, events: int = 10, duplicates: int = 0) -> WindowRecord:
    counts = {"sensor": events - 1, "audio": 1}
    return WindowRecord(id, "pump", 0, 10 * S, revision, list(counts), counts, duplicates, "ok", 0.1, None, "m1")


def _letter(offset: int, events: int | None = None) -> RawRecord:
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


def test_an_account_is_balanced_when_every_event_has_come_back() -> None:
    account = Account(produced=10 + 2 + 3 + 1)
    account.window(_window("a", duplicates=2))
    account.letter(_letter(7, events=3), late=True)
    assert (account.balanced, account.missing) == (False, 1)
    account.letter(_letter(8), late=False)
    assert account.balanced
    assert account.to_json() == {
        "events": {"produced": 16, "windowed": 10, "duplicate": 2, "late": 3, "dead": 1},
        "windows": 1,
        "incidents": 0,
        "seconds": 0.0,
    }


def test_the_last_word_of_the_highest_revision_counts() -> None:
    account = Account()
    for window in (_window("a"), _window("a", 1, events=11), _window("a"), _window("a", 1, events=12), _window("b")):
        account.window(window)
    report = account.to_json()
    assert (report["events"]["windowed"], report["windows"]) == (22, 2)


@given(st.permutations(range(8)), st.integers(1, 3))
def test_what_is_told_again_in_any_order_changes_nothing(order: list[int], times: int) -> None:
    def tell(account: Account, n: int) -> None:
        actions = [
            lambda: account.window(_window("a", duplicates=1)),
            lambda: account.window(_window("a", 1, events=11, duplicates=2)),
            lambda: account.window(_window("b", events=5)),
            lambda: account.letter(_letter(1, events=2), late=True),
            lambda: account.letter(_letter(2), late=False),
            lambda: account.incident(_step("i", 0, "opened")),
            lambda: account.incident(_step("i", 1)),
            lambda: account.incident(_step("i", 2, "closed", 300 * S)),
        ]
        actions[n]()

    account = Account(produced=11 + 2 + 5 + 2 + 1)
    for n in itertools.chain.from_iterable(itertools.repeat(order, times)):
        tell(account, n)
    assert account.balanced
    assert account.spans() == [IncidentSpan("i", "pump", 120 * S, 110 * S, 300 * S)]


def test_the_account_scores_its_incidents_against_labels() -> None:
    account = Account()
    account.incident(_step("i", 0, "opened"))
    assert account.to_json([FAULT])["labels"]["median_delay_s"] == 20.0
