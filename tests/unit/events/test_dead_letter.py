"""Letters: a refused record is kept whole, says why and from where, and can be sent round again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.events.dead_letter import dead_letter, late_letter, parse_letter, retry_record, unique_letters
from streams.events.json_codec import decode_readings
from streams.events.types import RawRecord, Reason, Rejection

T = 1_800_000_000_250  # 2027-01-15T08:00:00.250Z
RAW = RawRecord(
    topic="sensor-readings",
    partition=3,
    offset=42,
    timestamp_ms=T,
    key=b"pump-1",
    value=b"\xff not JSON",
    headers=(("trace", b"\x00\x01"), ("content-type", b"application/json"), ("trace", b"again")),
)
REJECTION = Rejection(Reason.NOT_UTF8, "byte 0 of the value is not UTF-8")


def as_record(produced: tuple[bytes | None, bytes | None, list[tuple[str, bytes]]], offset: int = 7) -> RawRecord:
    key, value, headers = produced
    return RawRecord("dead-letters", 0, offset, T + 5_000, key, value, tuple(headers))


def test_a_dead_letter_is_the_record_unchanged_with_headers_that_say_why() -> None:
    key, value, headers = dead_letter(RAW, REJECTION, stage="decode")
    assert (key, value) == (RAW.key, RAW.value)
    assert headers[:3] == list(RAW.headers)
    assert dict(headers[3:]) == {
        "sensorium-reason": b"not_utf8",
        "sensorium-detail": b"byte 0 of the value is not UTF-8",
        "sensorium-stage": b"decode",
        "sensorium-topic": b"sensor-readings",
        "sensorium-partition": b"3",
        "sensorium-offset": b"42",
        "sensorium-first-seen": b"2027-01-15T08:00:00.250Z",
    }


def test_a_late_letter_counts_its_events() -> None:
    letter = parse_letter(as_record(late_letter(RAW, "90 ms too late", events=5)))
    assert (letter.reason, letter.stage, letter.detail, letter.events) == ("late", "window", "90 ms too late", 5)


def test_a_letter_is_read_back_as_it_was_written() -> None:
    letter = parse_letter(as_record(dead_letter(RAW, REJECTION, stage="decode"), offset=7))
    assert letter.origin == ("sensor-readings", 3, 42)
    assert (letter.reason, letter.stage, letter.first_seen_ms) == ("not_utf8", "decode", T)
    assert (letter.key, letter.value, letter.headers) == (RAW.key, RAW.value, RAW.headers)
    assert (letter.letter_partition, letter.letter_offset) == (0, 7)
    assert (letter.retries, letter.events, letter.stream) == (0, 1, "pump-1")


def test_a_letter_without_key_value_or_timestamp_is_a_letter_all_the_same() -> None:
    bare = RawRecord("captions", 0, 0, -1, None, None)
    letter = parse_letter(as_record(dead_letter(bare, Rejection(Reason.NO_KEY, "no key"), stage="decode")))
    assert (letter.key, letter.value, letter.first_seen_ms, letter.stream) == (None, None, None, "")
    assert retry_record(letter) == ("captions", None, None, [("sensorium-retry", b"1")])


def test_a_record_that_is_no_letter_is_named() -> None:
    with pytest.raises(ValueError, match=r"sensor-readings\[3\] offset 42 is not a letter"):
        parse_letter(RAW)


def test_a_sender_cannot_speak_in_our_name() -> None:
    forged = (("sensorium-reason", b"late"), ("Sensorium-Offset", b"1"), ("sensorium-first-seen", b"1999"))
    letter = parse_letter(as_record(dead_letter(replace_headers(RAW, forged + RAW.headers), REJECTION, stage="decode")))
    assert (letter.reason, letter.offset, letter.first_seen_ms, letter.headers) == ("not_utf8", 42, T, RAW.headers)


def test_nonsense_in_headers_that_a_retry_leaves_does_no_harm() -> None:
    forged = (("sensorium-retry", b"many"), ("sensorium-first-seen", b"yesterday"))
    letter = parse_letter(as_record(dead_letter(replace_headers(RAW, forged), REJECTION, stage="decode")))
    assert (letter.retries, letter.first_seen_ms) == (0, None)


def replace_headers(raw: RawRecord, headers: tuple[tuple[str, bytes], ...]) -> RawRecord:
    return RawRecord(raw.topic, raw.partition, raw.offset, raw.timestamp_ms, raw.key, raw.value, headers)


def test_details_stay_on_one_line_and_short() -> None:
    rejection = Rejection(Reason.BAD_SCHEMA, "a\nb\x1b[2J" + "x" * 2_000)
    detail = dict(dead_letter(RAW, rejection, stage="decode")[2])["sensorium-detail"]
    assert detail.startswith(b"a?b?[2Jxxx")
    assert len(detail) < 510


def test_letters_that_a_restarted_worker_wrote_twice_count_once() -> None:
    letters = [parse_letter(as_record(dead_letter(RAW, REJECTION, stage="decode"), offset=offset)) for offset in (1, 2)]
    other = replace(letters[0], offset=43)
    assert list(unique_letters([*letters, other, *letters])) == [letters[0], other]


def test_a_retry_is_the_original_with_a_count_and_does_not_move_in_time() -> None:
    raw = RawRecord("sensor-readings", 0, 9, T, b"pump-1", b'{"values": {"flow": 1}}', (("trace", b"1"),))
    first = parse_letter(as_record(dead_letter(raw, REJECTION, stage="embed")))
    topic, key, value, headers = retry_record(first)
    assert (topic, key, value) == (raw.topic, raw.key, raw.value)
    assert ("trace", b"1") in headers
    assert not [name for name, _ in headers if name in ("sensorium-reason", "sensorium-offset", "sensorium-stage")]
    assert dict(headers)["sensorium-retry"] == b"1"
    # the new record has a new timestamp, the event keeps its time
    assert decode_readings(value, headers, T + 86_400_000) == decode_readings(raw.value, raw.headers, T)
    # refused again: the count goes on, and when it was first seen stays
    again = RawRecord(topic, 0, 77, T + 86_400_000, key, value, tuple(headers))
    second = parse_letter(as_record(dead_letter(again, REJECTION, stage="embed")))
    assert (second.retries, second.first_seen_ms, second.offset) == (1, T, 77)
    assert dict(retry_record(second)[3])["sensorium-retry"] == b"2"
    assert [name for name, _ in retry_record(second)[3]].count("time") == 1


def test_a_retry_keeps_the_time_header_it_came_with() -> None:
    raw = replace_headers(RAW, (("time", b"1800000009000"),))
    headers = retry_record(parse_letter(as_record(dead_letter(raw, REJECTION, stage="decode"))))[3]
    assert [value for name, value in headers if name == "time"] == [b"1800000009000"]


@given(
    key=st.none() | st.binary(max_size=20),
    value=st.none() | st.binary(max_size=50),
    headers=st.lists(st.tuples(st.text(max_size=8), st.binary(max_size=8)), max_size=4).map(tuple),
    detail=st.text(max_size=600),
)
def test_whatever_was_sent_comes_back_out_of_its_letter(
    key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...], detail: str
) -> None:
    raw = RawRecord("audio-clips", 1, 2, T, key, value, headers)
    letter = parse_letter(as_record(dead_letter(raw, Rejection(Reason.AUDIO_CORRUPT, detail), stage="decode")))
    assert (letter.key, letter.value, letter.headers) == (key, value, headers)
    assert letter.detail.isprintable()
    letter.detail.encode()
