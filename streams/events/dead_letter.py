"""Records set aside: what is written to `dead-letters` and `late-events`, and how it is read back and retried.

A letter is the original record - same key, same bytes, same headers - with headers that say why it is here and where
it came from. All of them start with `sensorium-`. Where that is larger than the cluster takes, the letter is an
excerpt: `sensorium-truncated` holds the original sizes, and the origin still names the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from streams.events.envelope import Headers, format_ms, header, time_of
from streams.events.types import RawRecord, Reason, Rejection

Produced = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]

_PREFIX = "sensorium-"
_FIRST_SEEN = "sensorium-first-seen"
_RETRY = "sensorium-retry"
_KEPT = (_FIRST_SEEN, _RETRY)  # these outlive a retry
_DETAIL_CHARS = 500
_TRUNCATED = "sensorium-truncated"
_EXCERPTS = ((65_536, 1_024, 8_192), (4_096, 256, 0), (0, 64, 0))  # most bytes of value, key and their headers


def dead_letter(raw: RawRecord, rejection: Rejection, *, stage: str) -> Produced:
    """Key, value and headers for `dead-letters`. `stage` names the step that refused: decode, embed, ..."""
    return raw.key, raw.value, _headers(raw, rejection.reason, rejection.detail, stage)


def late_letter(raw: RawRecord, detail: str, *, events: int) -> Produced:
    """Key, value and headers for `late-events`. `events`: how many of the record's events were late."""
    headers = _headers(raw, Reason.LATE, detail, "window")
    return raw.key, raw.value, [*headers, ("sensorium-events", str(events).encode())]


def _headers(raw: RawRecord, reason: Reason, detail: str, stage: str) -> list[tuple[str, bytes]]:
    # headers that look like ours but came with the record are forged; only what a retry left there stays
    retried = header(raw.headers, _RETRY) is not None
    kept = [(name, value) for name, value in raw.headers if not _ours(name) or (retried and name.lower() in _KEPT)]
    added = {
        "sensorium-reason": reason.value,
        "sensorium-detail": _one_line(detail),
        "sensorium-stage": stage,
        "sensorium-topic": raw.topic,
        "sensorium-partition": str(raw.partition),
        "sensorium-offset": str(raw.offset),
    }
    if raw.timestamp_ms >= 0 and header(kept, _FIRST_SEEN) is None:
        added[_FIRST_SEEN] = format_ms(raw.timestamp_ms)
    return kept + [(name, text.encode()) for name, text in added.items()]


def excerpts(key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> Iterator[Produced]:
    """A letter that is too large, cut shorter and shorter; what it says of its origin and its reason stays whole."""
    ours = [pair for pair in headers if _ours(pair[0])]
    theirs = [pair for pair in headers if not _ours(pair[0])]
    theirs_bytes = sum(len(name.encode()) + len(content or b"") for name, content in theirs)
    sizes = f"value={len(value or b'')} key={len(key or b'')} headers={theirs_bytes}"
    for value_bytes, key_bytes, headers_bytes in _EXCERPTS:
        yield (
            None if key is None else key[:key_bytes],
            None if value is None else value[:value_bytes],
            [*(theirs if theirs_bytes <= headers_bytes else []), *ours, (_TRUNCATED, sizes.encode())],
        )


def _ours(name: str) -> bool:
    return name.lower().startswith(_PREFIX)


def _one_line(text: str) -> str:
    line = "".join(c if c.isprintable() else "?" for c in text)
    return line if len(line) <= _DETAIL_CHARS else line[:_DETAIL_CHARS] + "..."


@dataclass(frozen=True, slots=True)
class Letter:
    """A record of `dead-letters` or `late-events`, read back.

    `topic`, `partition` and `offset` are where the original was; `letter_partition` and `letter_offset` where this
    letter is. `key`, `value` and `headers` are the original's. `events` counts late events, 1 for a dead letter.
    `truncated`: the sizes in bytes of an original that was cut to an excerpt, as `value=... key=... headers=...`.
    """

    reason: str
    detail: str
    stage: str
    topic: str
    partition: int
    offset: int
    first_seen_ms: int | None
    retries: int
    events: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    letter_partition: int
    letter_offset: int
    truncated: str | None = None

    @property
    def origin(self) -> tuple[str, int, int]:
        return self.topic, self.partition, self.offset

    @property
    def stream(self) -> str:
        """The key as text, whatever it holds; for people only."""
        return _one_line((self.key or b"").decode("utf-8", "backslashreplace"))


def parse_letter(record: RawRecord) -> Letter:
    """Read a letter. Raises `ValueError` if the record has not the headers of one."""
    headers: Headers = record.headers

    def text(name: str, default: str | None = None) -> str:
        value = header(headers, _PREFIX + name)
        if value is None and default is None:
            where = f"{record.topic}[{record.partition}] offset {record.offset}"
            raise ValueError(f"{where} is not a letter of ours: it has no header {_PREFIX}{name}")
        return default or "" if value is None else value.decode("utf-8", "replace")

    retries, events = text("retry", "0"), text("events", "1")
    return Letter(
        reason=text("reason"),
        detail=text("detail", ""),
        stage=text("stage", ""),
        topic=text("topic"),
        partition=int(text("partition")),
        offset=int(text("offset")),
        first_seen_ms=_moment(text("first-seen", "")),
        retries=int(retries) if retries.isdecimal() else 0,
        events=int(events) if events.isdecimal() else 1,
        key=record.key,
        value=record.value,
        headers=tuple((name, value) for name, value in record.headers if not _ours(name)),
        letter_partition=record.partition,
        letter_offset=record.offset,
        truncated=text("truncated", "") or None,
    )


def _moment(text: str) -> int | None:
    """Epoch ms of an RFC 3339 string; None if it is none, for any client can write the header."""
    try:
        return time_of(text)
    except Rejection:
        return None


def unique_letters(letters: Iterable[Letter]) -> Iterator[Letter]:
    """Letters without those that a restarted worker wrote again: the first of each origin."""
    seen: set[tuple[str, int, int]] = set()
    for letter in letters:
        if letter.origin not in seen:
            seen.add(letter.origin)
            yield letter


def retry_record(letter: Letter) -> tuple[str, bytes | None, bytes | None, list[tuple[str, bytes]]]:
    """Topic, key, value and headers that send a letter to its topic again.

    Our headers go, but for `sensorium-first-seen` and the count `sensorium-retry`. The new record has a new timestamp,
    so an event that took its time from the old one gets a `time` header: a retry must not move an event in time.
    """
    headers = list(letter.headers)
    if letter.first_seen_ms is not None:
        if header(headers, "time") is None:
            headers.append(("time", str(letter.first_seen_ms).encode()))
        headers.append((_FIRST_SEEN, format_ms(letter.first_seen_ms).encode()))
    headers.append((_RETRY, str(letter.retries + 1).encode()))
    return letter.topic, letter.key, letter.value, headers
