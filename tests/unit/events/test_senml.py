"""SenML packs (RFC 8428) as readings: the RFC's own examples, then each rule."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streams.events.json_codec import decode_readings
from streams.events.types import Reading, Reason, Rejection

HEADERS = (("content-type", b"application/senml+json"),)
T = 1_800_000_000_000


def senml(*records: dict[str, Any], headers: tuple[tuple[str, bytes], ...] = (), timestamp: int = T) -> list[Reading]:
    return decode_readings(json.dumps(records).encode(), HEADERS + headers, timestamp)


def reason_of(*records: Any) -> Reason:
    with pytest.raises(Rejection) as caught:
        senml(*records)
    return caught.value.reason


def test_the_rfcs_multiple_data_points_share_base_name_and_time() -> None:
    # RFC 8428, 5.1.2
    readings = senml(
        {
            "bn": "urn:dev:ow:10e2073a01080063:",
            "bt": 1.276020076001e9,
            "bu": "A",
            "bver": 5,
            "n": "voltage",
            "u": "V",
            "v": 120.1,
        },
        {"n": "current", "t": -5, "v": 1.2},
        {"n": "current", "t": -4, "v": 1.3},
        {"n": "current", "v": 1.7},
    )
    device = "urn:dev:ow:10e2073a01080063:"
    assert readings == [
        Reading(1_276_020_071_001, {device + "current": 1.2}, {device + "current": "A"}),
        Reading(1_276_020_072_001, {device + "current": 1.3}, {device + "current": "A"}),
        Reading(
            1_276_020_076_001,
            {device + "voltage": 120.1, device + "current": 1.7},
            {device + "voltage": "V", device + "current": "A"},
        ),
    ]


def test_the_rfcs_resolved_multiple_measurements_move_from_base_to_base() -> None:
    # RFC 8428, 5.1.3, shortened: bases hold until they are set again
    readings = senml(
        {"bn": "urn:dev:ow:10e2073a01080063", "bt": 1320067464, "bu": "%RH", "v": 20},
        {"u": "lon", "v": 24.30621},
        {"t": 60, "v": 20.3},
    )
    name = "urn:dev:ow:10e2073a01080063"
    assert [(r.time_ms, r.values[name]) for r in readings] == [
        (1_320_067_464_000, 20.0),
        (1_320_067_464_000, 24.30621),  # the same name at the same time: another reading
        (1_320_067_524_000, 20.3),
    ]
    assert [r.units for r in readings] == [{name: "%RH"}, {name: "lon"}, {name: "%RH"}]


def test_relative_times_count_from_the_record_or_its_time_header_and_never_from_our_clock() -> None:
    record = {"n": "flow", "t": -10, "v": 1}
    assert senml(record)[0].time_ms == T - 10_000
    assert senml({"n": "flow", "v": 1})[0].time_ms == T
    assert senml(record, headers=(("time", b"1800000060000"),))[0].time_ms == T + 50_000
    with pytest.raises(Rejection) as caught:
        senml(record, timestamp=-1)
    assert caught.value.reason is Reason.NO_TIME
    assert senml(record | {"bt": 1_800_000_000}, timestamp=-1)[0].time_ms == T - 10_000


def test_base_values_add_and_booleans_count_as_numbers() -> None:
    (reading,) = senml(
        {"bn": "pump/", "bv": 20, "n": "t1", "v": 0.5},
        {"n": "t2"},
        {"n": "on", "vb": True},
        {"n": "off", "vb": False},
    )
    assert reading.values == {"pump/t1": 20.5, "pump/t2": 20.0, "pump/on": 1.0, "pump/off": 0.0}


def test_strings_data_and_sums_are_skipped_and_a_pack_of_nothing_else_is_rejected() -> None:
    text, data, total = {"n": "label", "vs": "on"}, {"n": "raw", "vd": "AA"}, {"n": "energy", "s": 5}
    (reading,) = senml(text, data, total, {"n": "flow", "v": 1})
    assert reading.values == {"flow": 1.0}
    assert reason_of(text, data, total) is Reason.NO_VALUES
    assert reason_of() is Reason.NO_VALUES
    assert reason_of({"bn": "pump/"}) is Reason.NO_VALUES


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"v": 1}, Reason.SENML_NO_NAME),
        ({"bt": 1.8e9, "u": "V", "v": 1}, Reason.SENML_NO_NAME),
        ({"n": "flow", "u": "bar", "v": 1}, Reason.BAD_UNIT),
        ({"n": "flow", "bu": "", "v": 1}, Reason.BAD_UNIT),
        ({"n": "-flow", "v": 1}, Reason.BAD_SCHEMA),
        ({"n": "fl ow", "v": 1}, Reason.BAD_SCHEMA),
        ({"n": "flow", "v": "1"}, Reason.BAD_SCHEMA),
        ({"n": "flow", "v": True}, Reason.BAD_SCHEMA),
        ({"n": "flow", "v": None}, Reason.BAD_SCHEMA),
        ({"n": 7, "v": 1}, Reason.BAD_SCHEMA),
        ({"n": "flow", "v": 1, "vs": "x"}, Reason.BAD_SCHEMA),
        ({"n": "flow", "v": 1, "bver": 11}, Reason.BAD_SCHEMA),
        ({"n": "flow", "v": 1, "must_": 0}, Reason.BAD_SCHEMA),
        ({"n": "flow", "v": 1, "t": 1e300}, Reason.BAD_TIME),
        ({"n": "flow", "v": 1e30}, Reason.NOT_FINITE),
        ({"n": "n" * 200, "v": 1}, Reason.BAD_SCHEMA),
        ("flow", Reason.BAD_SCHEMA),
    ],
)
def test_what_the_rfc_forbids_is_rejected(record: Any, reason: Reason) -> None:
    assert reason_of({"n": "good", "v": 1}, record) is reason


def test_more_channels_than_a_reading_may_have_are_rejected() -> None:
    assert len(senml(*({"n": f"c{i}", "v": i} for i in range(1_024)))[0].values) == 1_024
    assert reason_of(*({"n": f"c{i}", "v": i} for i in range(1_025))) is Reason.TOO_MANY_CHANNELS


def test_a_pack_that_is_not_an_array_is_rejected() -> None:
    with pytest.raises(Rejection, match="array of records"):
        decode_readings(b'{"n": "flow", "v": 1}', HEADERS, T)
