"""The envelope of a record: key, headers, event time; and the clock guard."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from streams.events import envelope
from streams.events.clock_guard import TimeGuard
from streams.events.envelope import (
    MAX_MS,
    MIN_MS,
    check_modality,
    content_type,
    decode_key,
    fallback_time,
    format_ms,
    has_control,
    header,
    header_time,
    shown,
    time_of,
)
from streams.events.types import Modality, Reason, Rejection
from streams.settings import WindowSettings


def rejection_of(work: Callable[..., Any], *args: Any) -> Rejection:
    with pytest.raises(Rejection) as caught:
        work(*args)
    return caught.value


# -- keys ---------------------------------------------------------------------------------------------------------


@given(st.text(min_size=1, max_size=60).filter(lambda s: s.strip() and not has_control(s)))
def test_any_text_is_a_stream_id(text: str) -> None:
    assert decode_key(text.encode()) == text


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (None, Reason.NO_KEY),
        (b"", Reason.NO_KEY),
        (b"   ", Reason.BAD_KEY),
        (b"\xff\xfe", Reason.BAD_KEY),
        (b"a\x00b", Reason.BAD_KEY),
        (b"a\nb", Reason.BAD_KEY),
        ("a\u2028b".encode(), Reason.BAD_KEY),
        (b"x" * 257, Reason.BAD_KEY),
    ],
)
def test_an_invalid_stream_id_is_rejected_each_time(key: bytes | None, reason: Reason) -> None:
    for _ in range(2):
        assert rejection_of(decode_key, key).reason is reason


def test_a_key_may_have_256_bytes() -> None:
    assert decode_key(b"x" * 256) == "x" * 256


def test_valid_keys_are_remembered_and_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "_KEYS_KEPT", 10)
    for n in range(1_000):
        assert decode_key(b"stream-%d" % n) == f"stream-{n}"
    assert len(envelope._valid_keys) <= 10


# -- headers ------------------------------------------------------------------------------------------------------


def test_the_last_header_of_a_name_counts_in_any_case() -> None:
    headers = (("Time", b"1"), ("time", b"2"), ("TIME", b"3"), ("other", b"4"))
    assert header(headers, "time") == b"3"
    assert header(headers, "none") is None


def test_a_content_type_is_its_media_type_in_lower_case() -> None:
    assert content_type((("content-type", b"Application/JSON; charset=UTF-8"),)) == "application/json"
    assert content_type(()) is None


@pytest.mark.parametrize("value", [b"text/plain; charset=latin-1", b"text/pl\xe4in"])
def test_an_invalid_content_type_is_rejected(value: bytes) -> None:
    assert rejection_of(content_type, (("content-type", value),)).reason is Reason.UNKNOWN_CONTENT_TYPE


def test_a_modality_header_must_name_the_topics_modality() -> None:
    check_modality((), Modality.SENSOR)
    check_modality((("modality", b" Sensor "),), Modality.SENSOR)
    wrong = rejection_of(check_modality, (("modality", b"audio"),), Modality.SENSOR)
    unknown = rejection_of(check_modality, (("modality", b"smell"),), Modality.SENSOR)
    assert (wrong.reason, unknown.reason) == (Reason.UNKNOWN_MODALITY, Reason.UNKNOWN_MODALITY)
    assert "another topic" in wrong.detail
    assert "not one of" in unknown.detail


# -- event time ---------------------------------------------------------------------------------------------------


@given(st.integers(MIN_MS, MAX_MS))
def test_a_written_time_is_read_unchanged(time_ms: int) -> None:
    assert time_of(format_ms(time_ms)) == time_ms
    assert time_of(time_ms) == time_ms


@given(
    st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 12, 31), timezones=st.just(UTC)),
    st.integers(-23 * 60, 23 * 60),
)
def test_times_of_any_zone_agree_with_datetime(moment: datetime, zone_minutes: int) -> None:
    sign, minutes = "-" if zone_minutes < 0 else "+", abs(zone_minutes)
    local = (moment + timedelta(minutes=zone_minutes)).replace(tzinfo=None)
    text = f"{local.isoformat()}{sign}{minutes // 60:02}:{minutes % 60:02}"
    assert time_of(text) == (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00z", 0),
        ("1970-01-01 00:00:00.5+00:00", 500),
        ("1970-01-01T00:00:00.0009Z", 0),
        ("1969-12-31T23:59:59.999Z", -1),
        ("1970-01-01T01:00:00+01:00", 0),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000),  # a leap second
        ("2024-02-29T00:00:00Z", 1_709_164_800_000),
    ],
)
def test_rfc_3339_is_read(text: str, time_ms: int) -> None:
    assert time_of(text) == time_ms


@pytest.mark.parametrize(
    "value",
    [
        "",
        "now",
        "2026-01-31",
        "2026-01-31T12:00:00",
        "2026-02-30T12:00:00Z",
        "2026-01-31T25:00:00Z",
        "2026-01-31T12:00:61Z",
        "2026-01-31T12:00:00+24:00",
        "0000-01-01T00:00:00Z",
        "1e9",
        "１２３４",
        None,
        True,
        [],
        {},
        float("nan"),
        float("inf"),
        1e20,
        MAX_MS + 1,
        MIN_MS - 1,
        10**400,
    ],
)
def test_an_invalid_time_is_rejected_in_one_line(value: object) -> None:
    rejection = rejection_of(time_of, value)
    assert rejection.reason is Reason.BAD_TIME
    assert "\n" not in rejection.detail
    assert len(rejection.detail) < 200


def test_fractions_of_a_millisecond_are_rounded_down() -> None:
    assert (time_of(1.9), time_of(-0.1)) == (1, -1)


def test_the_time_header_is_a_number_or_rfc_3339() -> None:
    assert header_time((("time", b"1700000000000"),)) == 1_700_000_000_000
    assert header_time((("time", b" 1970-01-01T00:00:01Z "),)) == 1_000
    assert header_time((("time", b"12.75"),)) == 12
    assert header_time(()) is None
    assert rejection_of(header_time, (("time", b"\xff"),)).reason is Reason.BAD_TIME


def test_without_a_time_in_the_payload_the_header_counts_and_then_the_record() -> None:
    assert fallback_time((("time", b"5"),), 7) == 5
    assert fallback_time((), 7) == 7
    assert rejection_of(fallback_time, (), -1).reason is Reason.NO_TIME
    assert rejection_of(fallback_time, (), None).reason is Reason.NO_TIME


# -- the clock guard ----------------------------------------------------------------------------------------------


def test_the_guard_accepts_the_skew_and_not_a_millisecond_more() -> None:
    guard = TimeGuard(WindowSettings(max_clock_skew_ms=1_000), lambda: 1_700_000_000_000)
    guard.check(1_700_000_001_000)
    assert rejection_of(guard.check, 1_700_000_001_001).reason is Reason.CLOCK_AHEAD


def test_the_guard_reads_our_clock_each_time() -> None:
    now = [1_700_000_000_000]
    guard = TimeGuard(WindowSettings(), lambda: now[0])
    assert guard.bounds()[1] == 1_700_000_300_000
    now[0] += 1
    assert guard.bounds()[1] == 1_700_000_300_001


def test_the_guard_rejects_the_distant_past_and_recognises_seconds() -> None:
    guard = TimeGuard(WindowSettings(), lambda: 1_700_000_000_000)
    guard.check(946_684_800_000)
    seconds = rejection_of(guard.check, 1_700_000_000)
    assert seconds.reason is Reason.CLOCK_BEHIND
    assert "may be in seconds" in seconds.detail
    assert "may be in seconds" not in rejection_of(guard.check, 0).detail


# -- error messages -----------------------------------------------------------------------------------------------


@given(st.one_of(st.text(), st.binary(), st.integers(), st.none()))
def test_anything_can_be_shown_in_one_short_printable_line(value: object) -> None:
    text = shown(value)
    assert text.isprintable()
    assert len(text) <= 63


@pytest.mark.parametrize("time_ms", [MAX_MS + 1, MIN_MS - 1, 10**30])
def test_times_outside_the_calendar_are_shown_as_numbers(time_ms: int) -> None:
    assert format_ms(time_ms).endswith(" ms")
