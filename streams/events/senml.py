"""SenML packs (RFC 8428, JSON) as readings: base fields resolved, relative times placed, records grouped by time.

Choices where the RFC leaves one:

- A time below 2**28 is relative. It is relative to the `time` header or record timestamp, never to the clock of the
  machine that decodes, because a replay must give the same events.
- Numbers (`v`, with `bv`) are values; booleans (`vb`) become 1 and 0. A reading cannot hold strings, data
  and sums (`vs`, `vd`, `s`): such records are skipped, and a pack without other records is rejected with NO_VALUES.
- Two values of one name at one time become two readings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from streams.events.envelope import shown
from streams.events.types import Reading, Reason, Rejection

_RELATIVE_BELOW_S = 2**28
_VERSION = 10
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9\-:./_]*", re.ASCII)
_MAX_RECORDS = 65_536
_VALUES = ("v", "vs", "vb", "vd")
_NUMBERS = ("bt", "bv", "bs", "bver", "v", "s", "t", "ut")
_STRINGS = ("bn", "bu", "n", "u", "vs", "vd")

# SenML units of RFC 8428 and RFC 8798, then the secondary units of RFC 8798
_REGISTRY = """
    m kg g s A K cd mol Hz rad sr N Pa J W C V F Ohm S Wb T H Cel lm lx Bq Gy Sv kat m2 m3 l m/s m/s2 m3/s l/s W/m2
    cd/m2 bit bit/s lat lon pH dB dBW Bspl count / % %RH %EL EL 1/s 1/min beat/min beats S/m
    B VA VAs var vars J/m kg/m3 deg
    ms min h MHz kW kVA kvar Ah Wh kWh varh kvarh kVAh Wh/km KiB GB Mbit/s B/s MB/s mV mA dBm ug/m3 mm/h m/h ppm
    /100 /1000 hPa mm cm km km/h
"""
UNITS = frozenset(_REGISTRY.split())


def read_pack(data: Any, origin_ms: Callable[[], int]) -> list[Reading]:
    """Readings of a decoded SenML pack, by time.

    `data` is parsed JSON of any shape; `origin_ms` gives the epoch milliseconds that relative times count from, and is
    called only if there are any. Raises `Rejection` (SENML_NO_NAME, BAD_UNIT, BAD_SCHEMA, BAD_TIME, NO_VALUES,
    TOO_LARGE) and what `origin_ms` raises.
    """
    if not isinstance(data, list):
        raise Rejection(Reason.BAD_SCHEMA, "a SenML pack is an array of records")
    if len(data) > _MAX_RECORDS:
        raise Rejection(Reason.TOO_LARGE, f"the pack has {len(data)} records, at most {_MAX_RECORDS} are allowed")
    base: dict[str, Any] = {}
    origin: int | None = None
    rows: dict[int, list[Reading]] = {}
    for index, record in enumerate(data):
        _check_record(record, index)
        base.update({name: value for name, value in record.items() if name in ("bn", "bt", "bu", "bv")})
        number = _number(record, base)
        # also checked where there is no number to keep: one invalid record makes the pack invalid
        name, unit = _name(record, base, index), _unit(record, base, index)
        if name is None or number is None:
            continue
        seconds = float(base.get("bt", 0)) + float(record.get("t", 0))
        if not math.isfinite(seconds) or abs(seconds) > 1e12:
            raise Rejection(Reason.BAD_TIME, f"time {seconds:g} of SenML record {index} is not seconds since 1970")
        time_ms = math.floor(seconds * 1000 + 0.5)
        if seconds < _RELATIVE_BELOW_S:
            origin = origin_ms() if origin is None else origin
            time_ms += origin
        _add(rows.setdefault(time_ms, []), time_ms, name, number, unit)
    if not rows:
        raise Rejection(Reason.NO_VALUES, "the SenML pack has no numeric value")
    return [reading for time_ms in sorted(rows) for reading in rows[time_ms]]


def _add(readings: list[Reading], time_ms: int, name: str, number: float, unit: str | None) -> None:
    if not readings or name in readings[-1].values:
        readings.append(Reading(time_ms, {}, {}))
    readings[-1].values[name] = number
    units = readings[-1].units
    if unit is not None and units is not None:
        units[name] = unit


def _check_record(record: Any, index: int) -> None:
    """Check the types of all SenML fields, the version, and fields that a reader must understand."""
    if not isinstance(record, dict):
        raise Rejection(Reason.BAD_SCHEMA, f"SenML record {index} is not an object")
    for field, value in record.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if (
            (field in _NUMBERS and not number)
            or (field in _STRINGS and not isinstance(value, str))
            or (field == "vb" and not isinstance(value, bool))
        ):
            raise Rejection(Reason.BAD_SCHEMA, f"{field} of SenML record {index} is {shown(value)}")
        if field.endswith("_"):
            raise Rejection(Reason.BAD_SCHEMA, f"SenML record {index} requires {shown(field)}, which is not supported")
    if record.get("bver", _VERSION) > _VERSION:
        detail = f"SenML record {index} has version {shown(record['bver'])}, at most {_VERSION} is supported"
        raise Rejection(Reason.BAD_SCHEMA, detail)
    if sum(field in record for field in _VALUES) > 1:
        raise Rejection(Reason.BAD_SCHEMA, f"SenML record {index} has more than one value")


def _number(record: dict[str, Any], base: dict[str, Any]) -> float | None:
    """The resolved numeric value; None if the record has none."""
    if "v" in record:
        return float(record["v"]) + float(base.get("bv", 0))
    if "vb" in record:
        return float(record["vb"])
    measures = any(field in record for field in ("n", "u", "t", "ut"))
    if "bv" in base and measures and not any(field in record for field in ("vs", "vd", "s")):
        return float(base["bv"])  # RFC 8428: a missing value is 0 where there is a base value
    return None


def _name(record: dict[str, Any], base: dict[str, Any], index: int) -> str | None:
    """The resolved name; None for a record that only sets base fields."""
    name = str(base.get("bn", "")) + str(record.get("n", ""))
    if not any(field in record for field in (*_VALUES, "s", "n", "u", "t", "ut")):
        return None
    if not name:
        raise Rejection(Reason.SENML_NO_NAME, f"SenML record {index} has neither a base name (bn) nor a name (n)")
    if not _NAME.fullmatch(name):
        raise Rejection(Reason.BAD_SCHEMA, f"name {shown(name)} of SenML record {index} has characters SenML forbids")
    return name


def _unit(record: dict[str, Any], base: dict[str, Any], index: int) -> str | None:
    unit = record.get("u", base.get("bu"))
    if unit is not None and unit not in UNITS:
        raise Rejection(Reason.BAD_UNIT, f"unit {shown(unit)} of SenML record {index} is not in the SenML registry")
    return unit
