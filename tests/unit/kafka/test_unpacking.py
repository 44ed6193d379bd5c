"""Batches that are damaged in any byte, or cannot be unpacked: the position always moves on and never too far."""

from __future__ import annotations

import gzip
import struct
from typing import Any

import aiokafka.codec
import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.record.default_records import DefaultRecordBatchBuilder, _DefaultRecordBatchBuilderPy
from aiokafka.record.util import calc_crc32c
from hypothesis import given
from hypothesis import strategies as st

from streams.events.types import Reason, Rejection
from streams.kafka.unpacking import Batches, ReadableRecords, UnreadableRecord, unpack_batch

TP = TopicPartition("captions", 3)


def batch(base: int, count: int, codec: int = 0, names: tuple[bytes, ...] = ()) -> bytes:
    """A record batch of `count` records from offset `base` on; `names`: of a header of each record."""

    class Name(str):
        raw: bytes

        def encode(self, *_: Any) -> bytes:
            return self.raw

    kind: Any = _DefaultRecordBatchBuilderPy if names else DefaultRecordBatchBuilder
    builder = kind(2, codec, False, -1, -1, -1, 1_000_000)
    for n in range(count):
        headers = []
        if names:
            name = Name("x")
            name.raw = names[n]
            headers.append((name, b"1"))
        builder.append(n, 1_800_000_000_000 + n, b"key", b"value-%d" % (base + n), headers)
    data = bytearray(builder.build())
    struct.pack_into(">q", data, 0, base)  # as the broker does
    return bytes(data)


def unpacked(data: bytes, position: int = 0) -> tuple[list[Any], int]:
    """What a consumer is given of fetched bytes, and its position then."""
    records = ReadableRecords(TP, Batches(data), None, position, None, None, True, 1)
    return list(records), records.next_fetch_offset


def rewritten(data: bytes) -> bytes:
    """With the checksum that fits the bytes."""
    changed = bytearray(data)
    struct.pack_into(">I", changed, 17, calc_crc32c(bytes(changed[21:])))
    return bytes(changed)


@pytest.mark.parametrize("codec", [0, 1, 2, 3, 4])
def test_sound_batches_are_unpacked_as_ever(codec: int) -> None:
    found, position = unpacked(batch(5, 3, codec) + batch(8, 2, codec), position=6)
    assert [(record.offset, record.value) for record in found] == [(n, b"value-%d" % n) for n in (6, 7, 8, 9)]
    assert position == 10


def test_half_a_batch_at_the_end_is_left_to_the_next_fetch() -> None:
    found, position = unpacked(batch(0, 3) + batch(3, 3)[:-1])
    assert ([record.offset for record in found], position) == ([0, 1, 2], 3)


def test_a_batch_without_its_codec_is_one_unreadable_record_that_ends_where_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compressed = batch(3, 4, codec=4)
    monkeypatch.setattr(aiokafka.codec, "has_zstd", lambda: False)
    found, position = unpacked(batch(0, 3) + compressed + batch(7, 1))
    (bad,) = [record for record in found if isinstance(record, UnreadableRecord)]
    assert (bad.first_offset, bad.offset, bad.count, bad.cause) == (3, 6, 4, "codec")
    assert (bad.raw.offset, bad.raw.value) == (3, compressed)
    assert ([record.offset for record in found], position) == ([0, 1, 2, 6, 7], 8)
    for field in ("key", "value", "headers"):
        with pytest.raises(Rejection) as refused:
            getattr(bad, field)
        assert refused.value.reason is Reason.UNREADABLE


def test_a_header_name_that_is_not_utf8_costs_one_record() -> None:
    found, position = unpacked(batch(0, 3, codec=1, names=(b"fine", b"\xff", "größe".encode())), position=0)
    assert [type(record) for record in found] == [ConsumerRecord, UnreadableRecord, ConsumerRecord]
    assert position == 3
    assert found[1].cause == "header_name"
    assert (found[1].raw.key, found[1].raw.value, found[1].raw.headers) == (b"key", b"value-1", (("\\xff", b"1"),))
    assert found[2].headers == (("größe", b"1"),)


def test_bytes_that_do_not_decompress_are_set_aside_with_their_batch() -> None:
    data = batch(0, 3, codec=1)
    broken = data[:61] + gzip.compress(b"no records")[: len(data) - 61].ljust(len(data) - 61, b"\0")
    found, position = unpacked(rewritten(broken) + batch(3, 1))
    assert [(type(r), r.offset) for r in found] == [(UnreadableRecord, 2), (ConsumerRecord, 3)]
    assert (found[0].cause, found[0].first_offset, position) == ("structure", 0, 4)


@given(at=st.integers(min_value=0), change=st.integers(1, 255), last=st.booleans())
def test_a_byte_that_changed_neither_stops_the_position_nor_moves_it_past_the_next_batch(
    at: int, change: int, last: bool
) -> None:
    damaged = bytearray(batch(5, 3))
    damaged[12 + at % (len(damaged) - 12)] ^= change  # offset and length are the broker's own, and not in the checksum
    found, position = unpacked(bytes(damaged) + (b"" if last else batch(8, 2)), position=5)
    assert 5 < position <= (8 if last else 10)
    assert [record.offset for record in found] == sorted({record.offset for record in found})
    if not last:
        assert position in (8, 10)
        if position == 8:  # nothing behind the damage could be found: the next fetch begins behind it
            found += unpacked(batch(8, 2), position)[0]
        assert [record.value for record in found if isinstance(record, ConsumerRecord)][-2:] == [b"value-8", b"value-9"]


@given(st.binary(max_size=200))
def test_no_bytes_whatever_end_the_consumer(data: bytes) -> None:
    found, position = unpacked(data)
    assert position >= len({record.offset for record in found})


def test_a_batch_that_was_set_aside_whole_can_be_unpacked_later(monkeypatch: pytest.MonkeyPatch) -> None:
    data = batch(3, 4, codec=3)
    with monkeypatch.context() as without:
        without.setattr(aiokafka.codec, "has_lz4", lambda: False)
        with pytest.raises(Rejection, match="lz4"):
            unpack_batch(("captions", 3, 4), data)
    records = unpack_batch(("captions", 3, 4), data)
    assert records is not None
    assert [(r.topic, r.partition, r.offset, r.key, r.value) for r in records] == [
        ("captions", 3, n, b"key", b"value-%d" % n) for n in (4, 5, 6)
    ]
    assert unpack_batch(("captions", 3, 4), b"no batch") is None
