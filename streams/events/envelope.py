"""The envelope of an input record: key, headers, event time. Shared by all decoders.

Event time is that of the payload, else of the `time` header, else the record's own timestamp; never the clock of the
machine that decodes, because a replay must give the same events.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from streams.events.types import Modality, Reason, Rejection

Headers = Sequence[tuple[str, bytes | None]]

JSON_TYPES = ("application/json", "text/json")
MAX_KEY_BYTES = 256
_KEYS_KEPT = 65_536  # valid keys cached; a full cache is emptied

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,20}))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
_DECIMAL = re.compile(r"[+-]?\d{1,20}(?:\.\d{1,20})?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
# the range of datetime: years 1 to 9999
MIN_MS = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MS
MAX_MS = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MS

_valid_keys: dict[bytes, str] = {}


def has_control(text: str) -> bool:
    """Whether `text` holds control characters (C0, DEL, C1), line separators or lone surrogates."""
    return _CONTROL.search(text) is not None


def shown(value: object, limit: int = 60) -> str:
    """`value` for an error message: one printable line of at most `limit` characters and an ellipsis."""
    text = ascii(value)
    return text if len(text) <= limit else text[:limit] + "..."


def decode_key(key: bytes | None) -> str:
    """The stream id in a record key.

    Raises `Rejection`: NO_KEY without one; BAD_KEY if it is not UTF-8, has control characters or is over 256 bytes.
    """
    if key is not None and (known := _valid_keys.get(key)) is not None:
        return known
    if not key:
        raise Rejection(Reason.NO_KEY, "the record has no key; the key must be the stream id")
    if len(key) > MAX_KEY_BYTES:
        raise Rejection(Reason.BAD_KEY, f"the key has {len(key)} bytes, at most {MAX_KEY_BYTES} are allowed")
    try:
        stream = key.decode()
    except UnicodeDecodeError as error:
        raise Rejection(Reason.BAD_KEY, f"the key is not UTF-8 (byte {error.start})") from None
    if has_control(stream) or not stream.strip():
        raise Rejection(Reason.BAD_KEY, f"the key {shown(stream)} has control characters or only blanks")
    if len(_valid_keys) >= _KEYS_KEPT:
        _valid_keys.clear()
    _valid_keys[bytes(key)] = stream
    return stream


def header(headers: Headers, name: str) -> bytes | None:
    """Value of the last header called `name` (lower case; headers match in any case), None without one."""
    for key, value in reversed(headers):
        if key.lower() == name:
            return value
    return None


def check_modality(headers: Headers, expected: Modality) -> None:
    """Raises UNKNOWN_MODALITY if there is a `modality` header and it does not name the topic's modality."""
    value = header(headers, "modality")
    if value is None:
        return
    name = value.decode("utf-8", "replace").strip().lower()
    if name == expected:
        return
    known = [m.value for m in Modality]
    detail = "belongs to another topic" if name in known else f"is not one of {', '.join(known)}"
    raise Rejection(Reason.UNKNOWN_MODALITY, f"modality {shown(name)} {detail}; this topic carries {expected.value}")


def content_type(headers: Headers) -> str | None:
    """Media type of the `content-type` header in lower case without parameters, None without the header.

    Raises UNKNOWN_CONTENT_TYPE if it is not text or names a charset other than UTF-8.
    """
    value = header(headers, "content-type")
    if value is None:
        return None
    try:
        media, *parameters = value.decode("ascii").lower().split(";")
    except UnicodeDecodeError:
        raise Rejection(Reason.UNKNOWN_CONTENT_TYPE, f"content-type {shown(value)} is not ASCII") from None
    for parameter in parameters:
        name, _, setting = parameter.partition("=")
        if name.strip() == "charset" and setting.strip().strip('"') not in ("utf-8", "utf8", "us-ascii"):
            raise Rejection(Reason.UNKNOWN_CONTENT_TYPE, f"charset {shown(setting.strip())} is not utf-8")
    return media.strip()


def datetime_ms(moment: datetime) -> int:
    """Epoch milliseconds of an aware datetime, rounded down."""
    return (moment - _EPOCH) // _MS


def format_ms(time_ms: int) -> str:
    """RFC 3339 with milliseconds; years that RFC 3339 cannot express are shown as a number."""
    if not MIN_MS <= time_ms <= MAX_MS:
        return f"{shown(time_ms)} ms"
    return (_EPOCH + time_ms * _MS).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _bad_time(detail: str) -> Rejection:
    return Rejection(Reason.BAD_TIME, detail)


def time_of(value: object, where: str = "time") -> int:
    """Epoch milliseconds of a decoded `time`: a number of milliseconds or an RFC 3339 string with a zone.

    Raises BAD_TIME for anything else, and for times outside the years 1 to 9999.
    """
    if isinstance(value, str):
        return _parse_rfc3339(value, where)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad_time(f"{where} is {shown(value)}, neither epoch milliseconds nor an RFC 3339 string")
    if isinstance(value, float) and not math.isfinite(value):
        raise _bad_time(f"{where} is {value}")
    if not MIN_MS <= value <= MAX_MS:
        raise _bad_time(f"{where} {shown(value)} is not an epoch time in milliseconds within the years 1 to 9999")
    return math.floor(value)


def _parse_rfc3339(text: str, where: str) -> int:
    match = _RFC3339.fullmatch(text.strip())
    if match is None:
        raise _bad_time(f"{where} {shown(text)} is not RFC 3339 with a zone, such as 2026-01-31T12:00:00.250Z")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    fraction, sign, zone_h, zone_m = match.groups()[6:]
    try:
        # a leap second (:60) is the first second of the next minute
        moment = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=UTC)
        if second > 60 or int(zone_h or 0) > 23 or int(zone_m or 0) > 59:
            raise ValueError("field out of range")
    except ValueError as error:
        raise _bad_time(f"{where} {shown(text)} is not a date and time: {error}") from None
    # to the nearest microsecond, then rounded down, as msgspec and `datetime_ms` do
    fraction_ms = (int((fraction or "0").ljust(7, "0")[:7]) + 5) // 10_000
    time_ms = datetime_ms(moment) + fraction_ms + (1_000 if second == 60 else 0)
    offset_ms = (int(zone_h or 0) * 60 + int(zone_m or 0)) * 60_000
    return time_ms + offset_ms if sign == "-" else time_ms - offset_ms


def header_time(headers: Headers) -> int | None:
    """Event time (epoch ms) of the `time` header, ASCII digits or RFC 3339; None without it. Raises BAD_TIME."""
    value = header(headers, "time")
    if value is None:
        return None
    try:
        text = value.decode("ascii").strip()
    except UnicodeDecodeError:
        raise _bad_time(f"time header {shown(value)} is not ASCII") from None
    if _DECIMAL.fullmatch(text):
        return time_of(float(text) if "." in text else int(text), "time header")
    return time_of(text, "time header")


def fallback_time(headers: Headers, timestamp_ms: int | None) -> int:
    """Event time (epoch ms) for a payload without one: the `time` header, else the record timestamp. Raises NO_TIME."""
    time_ms = header_time(headers) if headers else None
    if time_ms is not None:
        return time_ms
    if timestamp_ms is None or timestamp_ms < 0:  # -1 is Kafka's "no timestamp"
        raise Rejection(Reason.NO_TIME, "no time in the payload, no time header and no record timestamp")
    return timestamp_ms
