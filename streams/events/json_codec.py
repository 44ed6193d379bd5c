"""Readings and captions from record bytes (clips: `streams.events.audio`).

Every invalid input raises a `Rejection` with a reason and a detail that says where and what; no input raises anything
else. The common case (one JSON object, time in milliseconds) takes one typed msgspec decoder; what that decoder
refuses is decoded again without types, slowly, to find out precisely why.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, NoReturn

import msgspec
from msgspec import Meta

from streams.events.envelope import (
    JSON_TYPES,
    MAX_MS,
    MIN_MS,
    Headers,
    check_modality,
    content_type,
    datetime_ms,
    fallback_time,
    has_control,
    shown,
    time_of,
)
from streams.events.senml import read_pack
from streams.events.types import Caption, Modality, Reading, Reason, Rejection

MAX_READINGS_BYTES = 1024 * 1024  # one record, packs and arrays included: the default limit of a Kafka broker
MAX_CAPTION_BYTES = 4 * 1024 * 1024
MAX_CHANNELS = 1_024  # per reading: more is a malformed message, or a spectrum, which belongs on audio-clips
MAX_NAME_CHARS = 128
MAX_UNIT_CHARS = 32
MAX_VALUE = 1e18  # its square fits a float32, so no statistic of a window overflows
MAX_CAPTION_CHARS = 4_000
_NAMES_KEPT = 65_536  # valid names cached; a full cache is emptied

_Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
_EpochMs = Annotated[int, Meta(ge=MIN_MS, le=MAX_MS)]
_Value = Annotated[float, Meta(ge=-MAX_VALUE, le=MAX_VALUE)]


class _ReadingRow(msgspec.Struct, gc=False):
    """A reading as sent; unknown fields are ignored."""

    values: Annotated[dict[_Name, _Value | None], Meta(min_length=1, max_length=MAX_CHANNELS)]
    time: _EpochMs | float | Annotated[datetime, Meta(tz=True)] | None = None
    units: dict[_Name, Annotated[str, Meta(max_length=MAX_UNIT_CHARS)]] | None = None


class _CaptionRow(msgspec.Struct, gc=False):
    text: str
    time: int | float | str | None = None
    source: Annotated[str, Meta(max_length=256)] | None = None
    lang: Annotated[str, Meta(max_length=64)] | None = None


_decode_row = msgspec.json.Decoder(_ReadingRow).decode
_decode_rows = msgspec.json.Decoder(Annotated[list[_ReadingRow], Meta(min_length=1)]).decode
_decode_caption_row = msgspec.json.Decoder(_CaptionRow).decode
# RecursionError: nested deeper than the interpreter allows; UnicodeDecodeError: a string that is not UTF-8
_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_LANG = re.compile(r"[A-Za-z]{1,8}(?:[-_][A-Za-z0-9]{1,8})*", re.ASCII)
_BLANKS = str.maketrans("\n\t\r", "   ")
_valid_names: set[str] = set()  # channel names and units without control characters

_PLAIN_HEADER = ("content-type", b"application/json")  # by far the most common: needs no parsing
_SENML_TYPES = ("application/senml+json", "application/sensml+json")


# -- readings ----------------------------------------------------------------------------------------------------


def decode_reading(value: bytes | None, headers: Headers, timestamp_ms: int | None) -> Reading | None:
    """The reading of a record that is one JSON object, as most are; None where `decode_readings` is needed.

    Raises `Rejection` only for an invalid time or name.
    """
    if headers and not (len(headers) == 1 and headers[0] == _PLAIN_HEADER):
        return None
    if not value or value[0] == 0x5B or len(value) > MAX_READINGS_BYTES:  # [
        return None
    try:
        row = _decode_row(value)
    except _REFUSED:
        return None
    if type(row.time) is int and row.units is None and _valid_names.issuperset(row.values):
        return Reading(row.time, row.values)
    return _reading(row, headers, timestamp_ms)


def decode_readings(value: bytes | None, headers: Headers, timestamp_ms: int | None) -> list[Reading]:
    """Readings in one `sensor-readings` record, at least one, in the order sent (SenML: by time).

    `value` is a JSON object {time?, values, units?}, a non-empty array of these, or with content-type
    application/senml+json a SenML pack (RFC 8428). Raises `Rejection`; one invalid row rejects the whole record.
    """
    if headers and not (len(headers) == 1 and headers[0] == _PLAIN_HEADER):
        check_modality(headers, Modality.SENSOR)
        media = content_type(headers)
        if media in _SENML_TYPES:
            return _decode_senml(_checked(value, MAX_READINGS_BYTES), headers, timestamp_ms)
        if media is not None and media not in JSON_TYPES:
            known = ", ".join((JSON_TYPES[0], _SENML_TYPES[0]))
            raise Rejection(Reason.UNKNOWN_CONTENT_TYPE, f"content-type {shown(media)} is not one of {known}")
    value = _checked(value, MAX_READINGS_BYTES)
    try:
        if value[0] != 0x5B:  # [
            return [_reading(_decode_row(value), headers, timestamp_ms)]
        return [_reading(row, headers, timestamp_ms) for row in _decode_rows(value)]
    except _REFUSED as refusal:
        return _decode_slowly(value, headers, timestamp_ms, str(refusal))


def _reading(row: _ReadingRow, headers: Headers, timestamp_ms: int | None) -> Reading:
    time, values, units = row.time, row.values, row.units
    if not _valid_names.issuperset(values):
        _check_names(values, Reason.BAD_SCHEMA, "channel")
    if units is not None and not _valid_names.issuperset(units.values()):
        _check_names(units.values(), Reason.BAD_UNIT, "unit")
    if type(time) is not int:
        if time is None:
            time = fallback_time(headers, timestamp_ms)
        elif isinstance(time, datetime):
            time = datetime_ms(time)
        else:
            time = time_of(time)
    return Reading(time, values, units)


def _check_names(names: Any, reason: Reason, what: str) -> None:
    for name in names:
        if has_control(name):
            raise Rejection(reason, f"{what} {shown(name)} has control characters")
    if len(_valid_names) > _NAMES_KEPT:
        _valid_names.clear()
    _valid_names.update(names)


def _decode_senml(value: bytes, headers: Headers, timestamp_ms: int | None) -> list[Reading]:
    readings = read_pack(_parse(value), lambda: fallback_time(headers, timestamp_ms))
    for reading in readings:
        _check_row_values(reading.values, "the pack")
    return readings


def _decode_slowly(value: bytes, headers: Headers, timestamp_ms: int | None, refusal: str) -> list[Reading]:
    """Find out why the typed decoder refused; also accepts what it is too strict for (leap seconds)."""
    data = _parse(value)
    if isinstance(data, list):
        if not data:
            raise Rejection(Reason.NO_VALUES, "the array has no readings")
        rows = [(f"reading {i}", row) for i, row in enumerate(data)]
    else:
        rows = [("the reading", data)]
    readings = [_convert(row, where, headers, timestamp_ms) for where, row in rows]
    if not all(r.values for r in readings):
        raise Rejection(Reason.BAD_SCHEMA, refusal)
    return readings


def _convert(row: Any, where: str, headers: Headers, timestamp_ms: int | None) -> Reading:
    """One untyped row, checked field by field."""
    if not isinstance(row, dict):
        raise Rejection(Reason.BAD_SCHEMA, f"{where} is {_kind(row)}, not an object {{time, values, units?}}")
    if "values" not in row:
        raise Rejection(Reason.BAD_SCHEMA, f"{where} has no field values; it has {shown(sorted(row))}")
    values = row["values"]
    if not isinstance(values, dict):
        raise Rejection(Reason.BAD_SCHEMA, f"values of {where} is {_kind(values)}, not an object of channels")
    checked = _check_row_values(values, where)
    units = row.get("units")
    if units is not None:
        if not isinstance(units, dict):
            raise Rejection(Reason.BAD_UNIT, f"units of {where} is {_kind(units)}, not an object of channels")
        for name, unit in units.items():
            if not isinstance(unit, str) or len(unit) > MAX_UNIT_CHARS:
                detail = f"unit of {shown(name)} in {where} is {shown(unit)}, not text of up to {MAX_UNIT_CHARS}"
                raise Rejection(Reason.BAD_UNIT, f"{detail} characters")
        _check_names(units.values(), Reason.BAD_UNIT, "unit")
    time = row.get("time")
    time_ms = fallback_time(headers, timestamp_ms) if time is None else time_of(time, f"time of {where}")
    return Reading(time_ms, checked, units)


def _check_row_values(values: dict[str, Any], where: str) -> dict[str, float | None]:
    if not values:
        raise Rejection(Reason.NO_VALUES, f"values of {where} is empty")
    if len(values) > MAX_CHANNELS:
        detail = f"{where} has {len(values)} channels, at most {MAX_CHANNELS} are allowed"
        raise Rejection(Reason.TOO_MANY_CHANNELS, detail)
    checked: dict[str, float | None] = {}
    for name, value in values.items():
        if not 1 <= len(name) <= MAX_NAME_CHARS:
            detail = f"{where} has a channel name of {len(name)} characters, 1 to {MAX_NAME_CHARS} are allowed"
            raise Rejection(Reason.BAD_SCHEMA, detail)
        if value is None:
            checked[name] = None
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Rejection(Reason.BAD_SCHEMA, f"channel {shown(name)} of {where} is {_kind(value)}, not a number")
        if not -MAX_VALUE <= value <= MAX_VALUE:
            detail = f"channel {shown(name)} of {where} is {shown(value)}, beyond {MAX_VALUE:g}"
            raise Rejection(Reason.NOT_FINITE, detail)
        checked[name] = float(value)
    _check_names(checked, Reason.BAD_SCHEMA, "channel")
    return checked


# -- captions ----------------------------------------------------------------------------------------------------


def decode_caption(value: bytes | None, headers: Headers, timestamp_ms: int | None) -> Caption:
    """The caption in one `captions` record: JSON {time?, text, source?, lang?} or plain UTF-8 text.

    Line ends and tabs become spaces; other control characters are refused. Without a content-type a value that
    starts with a brace is JSON. Raises `Rejection`.
    """
    check_modality(headers, Modality.CAPTION)
    media = content_type(headers)
    if media is not None and media != "text/plain" and media not in JSON_TYPES:
        raise Rejection(Reason.UNKNOWN_CONTENT_TYPE, f"content-type {shown(media)} is not application/json, text/plain")
    value = _checked(value, MAX_CAPTION_BYTES)
    if media == "text/plain" or (media is None and value.lstrip()[:1] != b"{"):
        row = _CaptionRow(_text(value))
    else:
        try:
            row = _decode_caption_row(value)
        except _REFUSED as refusal:
            row = _convert_caption(_parse(value), str(refusal))
    text = _one_line(row.text, "text")
    if not text:
        raise Rejection(Reason.EMPTY, "the caption has no text")
    if len(text) > MAX_CAPTION_CHARS:
        detail = f"the caption has {len(text)} characters, at most {MAX_CAPTION_CHARS} are allowed"
        raise Rejection(Reason.CAPTION_TOO_LONG, detail)
    source = _one_line(row.source, "source") if row.source is not None else None
    if row.lang is not None and not _LANG.fullmatch(row.lang):
        raise Rejection(Reason.BAD_SCHEMA, f"lang {shown(row.lang)} is not a language tag such as en or pt-BR")
    time_ms = fallback_time(headers, timestamp_ms) if row.time is None else time_of(row.time)
    return Caption(time_ms, text, source or None, row.lang)


def _one_line(text: str, where: str) -> str:
    text = text.translate(_BLANKS).strip()
    if has_control(text):
        at, code = next((i, ord(c)) for i, c in enumerate(text) if has_control(c))
        raise Rejection(Reason.CONTROL_CHARACTERS, f"{where} has the control character U+{code:04X} at {at}")
    return text


def _convert_caption(data: Any, refusal: str) -> NoReturn:
    if not isinstance(data, dict):
        raise Rejection(Reason.BAD_SCHEMA, f"the caption is {_kind(data)}, not an object {{time, text}}")
    if isinstance(data.get("time"), bool | list | dict):
        time_of(data["time"])
    raise Rejection(Reason.BAD_SCHEMA, refusal)


# -- JSON --------------------------------------------------------------------------------------------------------


def _checked(value: bytes | None, limit: int) -> bytes:
    if not value:
        raise Rejection(Reason.EMPTY, "the record has no value")
    if len(value) > limit:
        raise Rejection(Reason.TOO_LARGE, f"the value has {len(value)} bytes, at most {limit} are allowed")
    return value


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Rejection(Reason.NOT_UTF8, f"byte {error.start} of the value is not UTF-8") from None


def _refuse_constant(name: str) -> NoReturn:
    raise Rejection(Reason.NOT_FINITE, f"the value holds {name}, which is not a number; a missing value is null")


def _finite(text: str, kind: Callable[[str], int | float]) -> int | float:
    if math.isfinite(float(text)):
        return kind(text)
    raise Rejection(Reason.NOT_FINITE, f"the number {shown(text)} does not fit a double")


def _parse(value: bytes) -> Any:
    """Untyped JSON. Raises NOT_JSON, NOT_UTF8 or NOT_FINITE, with the position."""
    try:
        return msgspec.json.decode(value)
    except _REFUSED:
        pass
    text = _text(value)
    try:
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=lambda number: _finite(number, float),
            parse_int=lambda number: _finite(number, int),
        )
    except json.JSONDecodeError as error:
        raise Rejection(Reason.NOT_JSON, f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise Rejection(Reason.NOT_JSON, "nested too deeply") from None


def _kind(value: object) -> str:
    """JSON's name for the type of a value, with an article."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case str():
            return "a string"
        case int() | float():
            return "a number"
        case list():
            return "an array"
        case _:
            return "an object"
