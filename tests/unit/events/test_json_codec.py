"""Readings and captions: which values are accepted, and the events they become."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.events.clock_guard import TimeGuard
from streams.events.envelope import decode_key, format_ms, time_of
from streams.events.json_codec import decode_caption, decode_readings
from streams.events.types import Caption, Reading, Reason, Rejection
from streams.settings import WindowSettings

T = 1_800_000_000_000  # 2027-01-15T08:00:00Z
JSON = (("content-type", b"application/json; charset=UTF-8"),)
TEXT = (("content-type", b"text/plain"),)


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def reason_of(call: Any, *arguments: Any) -> Reason:
    with pytest.raises(Rejection) as rejection:
        call(*arguments)
    return rejection.value.reason


# -- readings


def test_a_reading_keeps_its_channels_units_and_missing_values() -> None:
    value = encoded({"time": T, "values": {"flow": 3, "level": None, "p": -1.5}, "units": {"flow": "l/s"}})
    assert decode_readings(value, (), 1) == [Reading(T, {"flow": 3.0, "level": None, "p": -1.5}, {"flow": "l/s"})]


def test_an_array_is_that_many_readings_in_its_order() -> None:
    rows = [{"time": T + i, "values": {"flow": i}} for i in (2, 0, 1)]
    assert [r.time_ms - T for r in decode_readings(encoded(rows), (), 1)] == [2, 0, 1]


def test_unknown_fields_are_ignored_and_blanks_around_the_json_too() -> None:
    value = b' \n {"time": 1800000000000, "site": {"x": [1]}, "values": {"flow": 1}} \n'
    assert decode_readings(value, JSON, 1) == [Reading(T, {"flow": 1.0})]
    assert decode_readings(b"  [" + value + b"]", (), 1) == [Reading(T, {"flow": 1.0})]


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (T, T),
        (T + 0.9, T),
        (float(T), T),
        ("2027-01-15T08:00:00Z", T),
        ("2027-01-15t08:00:00.25z", T + 250),
        ("2027-01-15T08:00:00.250999Z", T + 250),
        ("2027-01-15T08:00:00.2509999999Z", T + 251),  # to the nearest microsecond, then down
        ("2027-01-15T10:30:00+02:30", T),
        ("2027-01-15T00:00:00-08:00", T),
        ("2027-01-15T07:59:60Z", T),  # a leap second is the first of the next minute
        ("1969-12-31T23:59:59.999Z", -1),
    ],
)
def test_times_are_epoch_milliseconds_or_rfc_3339(time: object, expected: int) -> None:
    (reading,) = decode_readings(encoded({"time": time, "values": {"flow": 1}}), (), 1)
    assert (reading.time_ms, type(reading.time_ms)) == (expected, int)
    assert decode_caption(encoded({"time": time, "text": "note"}), (), 1).time_ms == expected


@pytest.mark.parametrize(
    "time",
    [
        "2027-01-15T08:00:00",
        "2027-01-15",
        "yesterday",
        "",
        True,
        [T],
        {},
        10**30,
        1e300,
        -(10**18),
        "2027-02-30T00:00:00Z",
        "2027-01-15T24:00:00Z",
        "2027-01-15T08:00:61Z",
        "2027-01-15T08:00:00+99:00",
    ],
)
def test_an_invalid_time_is_rejected_with_its_own_reason(time: object) -> None:
    value = encoded({"time": time, "values": {"flow": 1}})
    assert reason_of(decode_readings, value, (), 1) is Reason.BAD_TIME
    assert reason_of(decode_caption, encoded({"time": time, "text": "note"}), (), 1) is Reason.BAD_TIME


@given(st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)), st.integers(-720, 720))
def test_any_rfc_3339_string_is_the_same_time_for_both_decoders(moment: datetime, zone_minutes: int) -> None:
    aware = moment.replace(tzinfo=UTC)
    sign, minutes = "-" if zone_minutes < 0 else "+", abs(zone_minutes)
    local = (aware + timedelta(minutes=zone_minutes)).replace(tzinfo=None)
    text = f"{local.isoformat(timespec='microseconds')}{sign}{minutes // 60:02}:{minutes % 60:02}"
    expected = (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert decode_readings(encoded({"time": text, "values": {"a": 1}}), (), 1)[0].time_ms == expected
    assert time_of(text) == expected
    nanoseconds = text.replace(sign, "4999" + sign) if sign == "+" else text[:26] + "4999" + text[26:]
    assert time_of(nanoseconds) == expected
    assert decode_readings(encoded({"time": nanoseconds, "values": {"a": 1}}), (), 1)[0].time_ms == expected
    assert time_of(format_ms(expected)) == expected


def test_event_time_is_that_of_the_payload_then_of_the_header_then_of_the_record() -> None:
    header = (("time", b"2027-01-15T08:00:01Z"),)
    with_time, without = encoded({"time": T, "values": {"a": 1}}), encoded({"values": {"a": 1}})
    assert decode_readings(with_time, header, 5)[0].time_ms == T
    assert decode_readings(without, header, 5)[0].time_ms == T + 1_000
    assert decode_readings(without, (("Time", b"1800000002000"),), 5)[0].time_ms == T + 2_000
    assert decode_readings(without, (), 5)[0].time_ms == 5
    assert decode_readings(encoded({"time": None, "values": {"a": 1}}), (), 5)[0].time_ms == 5
    for no_timestamp in (-1, None):
        assert reason_of(decode_readings, without, (), no_timestamp) is Reason.NO_TIME
    assert reason_of(decode_readings, without, (("time", b"\xff"),), 5) is Reason.BAD_TIME


def test_a_reading_may_have_1024_channels_and_no_more() -> None:
    def of(channels: int) -> bytes:
        return encoded({"time": T, "values": {f"c{i}": i for i in range(channels)}})

    assert len(decode_readings(of(1_024), (), 1)[0].values) == 1_024
    assert reason_of(decode_readings, of(1_025), (), 1) is Reason.TOO_MANY_CHANNELS
    assert reason_of(decode_readings, b"[" + of(1_025) + b"]", (), 1) is Reason.TOO_MANY_CHANNELS


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        ('{"time": 1, "values": {"a": 1, "b": "x"}}', Reason.BAD_SCHEMA, "channel 'b' of the reading is a string"),
        ('[{"values": {"a": 1}}, {"values": {"a": []}}]', Reason.BAD_SCHEMA, "channel 'a' of reading 1 is an array"),
        ('{"time": 1}', Reason.BAD_SCHEMA, "no field values; it has ['time']"),
        ("[]", Reason.NO_VALUES, "no readings"),
        ("3", Reason.BAD_SCHEMA, "the reading is a number"),
        ('{"values": {"a": 1e19}}', Reason.NOT_FINITE, "beyond 1e+18"),
        ('{"values": {"a": -Infinity}}', Reason.NOT_FINITE, "-Infinity"),
        ('{"values": {"": 1}}', Reason.BAD_SCHEMA, "0 characters"),
        ('{"values": {"a": 1}, "units": []}', Reason.BAD_UNIT, "units of the reading is an array"),
        ('{"values": {"a": 1}, "units": {"a": "\\u0007"}}', Reason.BAD_UNIT, "control characters"),
        # a lone surrogate is not valid text: no later stage could encode it
        ('{"values": {"\\ud800": 1}}', Reason.BAD_SCHEMA, "control characters"),
        ('{"values": {"a": 1}, "units": {"a": "\\ud800"}}', Reason.BAD_UNIT, "control characters"),
        ('{"values": {"a": 1}} x', Reason.NOT_JSON, "Extra data at character 21"),
    ],
)
def test_a_rejection_names_the_field_and_the_fault(value: str, reason: Reason, detail: str) -> None:
    with pytest.raises(Rejection) as rejection:
        decode_readings(value.encode(), (), 1)
    assert rejection.value.reason is reason
    assert detail in rejection.value.detail


def test_an_invalid_channel_name_is_rejected_each_time() -> None:
    for _ in range(2):
        assert reason_of(decode_readings, b'{"values": {"good": 1, "\\u001b[2J": 1}}', (), 1) is Reason.BAD_SCHEMA
    assert decode_readings(b'{"values": {"good": 1}}', (), 1)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=20),
        st.none() | st.floats(-1e18, 1e18) | st.integers(-(10**18), 10**18),
        min_size=1,
        max_size=20,
    ),
    st.integers(0, 2**43),
)
def test_every_valid_reading_is_decoded_unchanged(values: dict[str, float | None], time: int) -> None:
    (reading,) = decode_readings(msgspec.json.encode({"values": values, "time": time}), (), None)
    assert reading == Reading(time, {k: None if v is None else float(v) for k, v in values.items()})


# -- keys and clocks


def test_a_key_is_text_of_up_to_256_bytes() -> None:
    assert decode_key("Pumpe-ß".encode()) == "Pumpe-ß"
    assert decode_key(b"k" * 256) == "k" * 256
    assert reason_of(decode_key, b"k" * 257) is Reason.BAD_KEY
    assert reason_of(decode_key, b"") is Reason.NO_KEY
    assert reason_of(decode_key, b"  ") is Reason.BAD_KEY


def test_the_clock_guard_accepts_exactly_its_bounds() -> None:
    guard = TimeGuard(WindowSettings(max_clock_skew_ms=1_000), lambda: T)
    low, high = guard.bounds()
    assert high == T + 1_000
    for inside in (low, T, high):
        guard.check(inside)
    assert reason_of(guard.check, high + 1) is Reason.CLOCK_AHEAD
    assert reason_of(guard.check, 10**30) is Reason.CLOCK_AHEAD
    assert reason_of(guard.check, low - 1) is Reason.CLOCK_BEHIND
    with pytest.raises(Rejection, match="may be in seconds"):
        guard.check(T // 1_000)


# -- captions


def test_a_caption_is_json_or_plain_text() -> None:
    value = encoded({"time": T, "text": " Pump 3 rattles. ", "source": "operator", "lang": "en-GB"})
    assert decode_caption(value, (), 1) == Caption(T, "Pump 3 rattles.", "operator", "en-GB")
    assert decode_caption(b"Pump 3 rattles.", (), 7) == Caption(7, "Pump 3 rattles.")
    assert decode_caption(b"{not json}", TEXT, 7) == Caption(7, "{not json}")
    assert decode_caption(b"a note", (*TEXT, ("time", b"1800000000000")), 7).time_ms == T
    assert reason_of(decode_caption, b"{not json}", (), 7) is Reason.NOT_JSON
    assert reason_of(decode_caption, b"a note", JSON, 7) is Reason.NOT_JSON


def test_line_ends_and_tabs_become_spaces_and_other_control_characters_are_rejected() -> None:
    assert decode_caption(b"first\r\nsecond\tthird\n", (), 1).text == "first  second third"
    for character in "\0\x07\x1b\x7f\x85\u2028":
        assert reason_of(decode_caption, f"a{character}b".encode(), (), 1) is Reason.CONTROL_CHARACTERS
    with pytest.raises(Rejection, match=r"U\+001B at 3"):
        decode_caption(b"abc\x1b[2J", (), 1)


def test_a_caption_has_4000_characters_at_most_whatever_their_bytes() -> None:
    assert len(decode_caption(("ß" * 4_000 + "\n").encode(), (), 1).text) == 4_000
    assert reason_of(decode_caption, b"x" * 4_001, (), 1) is Reason.CAPTION_TOO_LONG


@pytest.mark.parametrize("more", [{"lang": "no language"}, {"source": 7}, {"text": None}, {"lang": 1}])
def test_wrong_fields_of_a_caption_are_rejected(more: dict[str, Any]) -> None:
    assert reason_of(decode_caption, encoded({"time": T, "text": "note"} | more), (), 1) is Reason.BAD_SCHEMA


def test_a_record_of_another_modality_is_rejected() -> None:
    assert decode_caption(b"note", (("modality", b"caption"),), 1)
    assert decode_readings(b'{"values": {"a": 1}}', (("modality", b"Sensor"),), 1)
    assert reason_of(decode_caption, b"note", (("modality", b"audio"),), 1) is Reason.UNKNOWN_MODALITY
