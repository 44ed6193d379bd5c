"""Records that aiokafka cannot unpack come as `UnreadableRecord`s among the others, instead of ending the consumer.

aiokafka raises out of the fetch when a batch has a codec that is not installed, a wrong checksum or a broken
structure, or when a header name is not UTF-8; the position stays, so every restart would raise again. `install()`
makes its fetcher step over them. Where one record of a batch is at fault, the others of the batch are delivered.

Private names of aiokafka 0.14 that this relies on, guarded by tests on a real broker: in `aiokafka.consumer.fetcher`
the globals `MemoryRecords` and `PartitionRecords` (replaced by `install`) with `_tp`, `_records`, `_check_crcs`,
`_isolation_level`, `_aborted_producers`, `_consume_aborted_up_to`, `_contains_abort_marker`, `_consumer_record`,
`_unpack_records`; in `aiokafka.record.default_records` the pure Python batch `_DefaultRecordBatchPy` with
`_maybe_uncompress`, `_buffer`, `_pos`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint

from streams.events.types import RawRecord, Reason, Rejection

_PREFIX = struct.Struct(">qiib")  # base offset, length, partition leader epoch (or checksum), magic
_HEADER = struct.Struct(">qiibIhiqqqhii")  # of a batch of magic 2, up to the number of its records
_LENGTH_END = 12  # the length counts what follows it
_MAX_TIME_MS = 253_402_300_799_999  # the end of the year 9999
_UNREADABLE_TIMESTAMP = -1


class UnreadableRecord:
    """In place of one record, or of all remaining records of a batch, that could not be unpacked.

    It has the position of a consumer record; `offset` is the last one that it stands for, `first_offset` the first.
    Asking for its `key`, `value` or `headers` raises a `Rejection` with reason `unreadable`, so that every decoder
    refuses it as it refuses any other bad record. `raw` is what could be obtained, for a dead letter.
    """

    __slots__ = ("cause", "detail", "first_offset", "offset", "partition", "raw", "timestamp", "topic")

    def __init__(
        self,
        topic: str,
        partition: int,
        offsets: tuple[int, int],
        timestamp: int,
        *,
        cause: str,
        detail: str,
        content: tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...]],  # key, value, headers
    ) -> None:
        """`offsets`: first and last; `cause`: codec, checksum, header_name or structure."""
        self.topic = topic
        self.partition = partition
        self.first_offset, self.offset = offsets
        self.timestamp = timestamp if 0 <= timestamp <= _MAX_TIME_MS else _UNREADABLE_TIMESTAMP
        self.cause = cause
        self.detail = detail
        self.raw = RawRecord(topic, partition, self.first_offset, self.timestamp, *content)

    @property
    def key(self) -> bytes | None:
        raise Rejection(Reason.UNREADABLE, self.detail)

    @property
    def value(self) -> bytes | None:
        raise Rejection(Reason.UNREADABLE, self.detail)

    @property
    def headers(self) -> tuple[tuple[str, bytes], ...]:
        raise Rejection(Reason.UNREADABLE, self.detail)

    @property
    def count(self) -> int:
        """Offsets that it stands for."""
        return self.offset - self.first_offset + 1

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.first_offset}: {self.detail}"


def install() -> None:
    """Make every aiokafka consumer of this process step over what it cannot unpack. Repeats do no harm."""
    fetcher.MemoryRecords = Batches
    fetcher.PartitionRecords = ReadableRecords


class Batches:
    """`MemoryRecords` that keeps the fetched bytes, to find the batch at hand in them when it cannot be unpacked."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._error: Exception | None = None
        self.has_next: Callable[[], bool]
        try:
            batches = MemoryRecords(data)
        except Exception as error:  # the bytes cannot be taken apart at all
            self._error = error
            self.has_next = lambda: True
        else:
            self.has_next, self._next_batch = batches.has_next, batches.next_batch

    def size_in_bytes(self) -> int:
        return len(self._data)

    def next_batch(self) -> Any:
        """The next record batch. Raises `CorruptRecordException` where its length is absurd: nothing follows then."""
        if self._error is not None:
            raise self._error
        try:
            return self._next_batch()
        except Exception as error:
            self._error = error
            raise

    @property
    def broken(self) -> bool:
        """Whether no further batch can be found."""
        return self._error is not None

    def find(self, number: int) -> tuple[bytes, int | None]:
        """The bytes of a batch by its number from 1 on, and the base offset of the one behind it, if any."""
        at = 0
        for _ in range(number - 1):
            at = self._end(at)
        end = self._end(at)
        whole = end < len(self._data) - _LENGTH_END and self._end(end) <= len(self._data)
        following: int | None = struct.unpack_from(">q", self._data, end)[0] if whole else None
        return self._data[at:end], following

    def _end(self, at: int) -> int:
        if len(self._data) - at < _LENGTH_END:
            return len(self._data)
        length: int = struct.unpack_from(">i", self._data, at + 8)[0]
        return at + _LENGTH_END + max(0, length)


class ReadableRecords(fetcher.PartitionRecords):  # type: ignore[misc]  # aiokafka is not followed by mypy
    """`PartitionRecords` that puts an `UnreadableRecord` where unpacking fails, and goes on behind it."""

    next_fetch_offset: int

    def _unpack_records(self) -> Iterator[Any]:
        batches: Batches = self._records
        tp, check_crcs, consumer_record = self._tp, self._check_crcs, self._consumer_record
        number = 0
        while batches.has_next():
            number += 1
            try:
                batch = batches.next_batch()
                if check_crcs and not batch.validate_crc():
                    raise _ChecksumError("its checksum (CRC) does not fit its bytes")
                if (batch.is_control_batch or batch.is_transactional) and self._is_skipped(batch):
                    self.next_fetch_offset = batch.next_offset
                    continue
                for record in batch:
                    if record.offset < self.next_fetch_offset:
                        continue  # a compressed batch comes whole, also when asked for from its middle
                    found = consumer_record(tp, record)
                    self.next_fetch_offset = record.offset + 1
                    yield found
                # also past records at the end of the batch that compaction has removed
                self.next_fetch_offset = batch.next_offset
            except Exception as error:
                yield from self._step_over(*batches.find(number), error)
                if batches.broken:
                    return

    def _is_skipped(self, batch: Any) -> bool:
        """Control batches, and with `read_committed` those of aborted transactions."""
        control = bool(batch.is_control_batch)
        if self._isolation_level == fetcher.READ_COMMITTED and batch.producer_id is not None:
            self._consume_aborted_up_to(batch.base_offset)
            if control and self._contains_abort_marker(batch):
                self._aborted_producers.discard(batch.producer_id)
            if batch.is_transactional and batch.producer_id in self._aborted_producers:
                return True
        return control

    def _step_over(self, raw: bytes, following: int | None, error: Exception) -> Iterator[Any]:
        """What can be had of a batch that failed, from the position on; then the position is behind the batch."""
        end = _end_offset(raw, following, self.next_fetch_offset, trusted=not isinstance(error, _ChecksumError))
        if not isinstance(error, _ChecksumError | UnsupportedCodecError):
            try:
                for found in lenient_records(self._tp, raw, self.next_fetch_offset, error):
                    self.next_fetch_offset = found.offset + 1
                    yield found
            except Exception as again:
                error = again
            else:
                self.next_fetch_offset = max(end, self.next_fetch_offset)
                return
        first = self.next_fetch_offset
        end = max(end, first + 1)
        self.next_fetch_offset = end
        yield UnreadableRecord(
            self._tp.topic,
            self._tp.partition,
            (first, end - 1),
            _batch_time(raw),
            cause=_cause(error),
            detail=f"offsets {first} to {end - 1} cannot be unpacked: {_message(error)}",
            content=(None, raw, ()),
        )


class _ChecksumError(Exception):
    """The bytes of a batch are not those that the producer sent: nothing in it is believed."""


def lenient_records(tp: Any, raw: bytes, position: int, cause: Exception) -> Iterator[Any]:
    """The records of a batch from `position` on, one by one; those that cannot be read as `UnreadableRecord`s.

    Raises whatever unpacking of the batch as a whole raises; `cause` where the batch is of a format before magic 2.
    """
    if not _is_current(raw):
        raise cause
    batch = _DefaultRecordBatchPy(raw)
    batch._maybe_uncompress()
    buffer, at = batch._buffer, batch._pos
    offset = batch.base_offset - 1
    for _ in range(_HEADER.unpack_from(raw)[12]):
        length, start = decode_varint(buffer, at)
        at = start + length
        if length < 0 or at > len(buffer):
            raise CorruptRecordException(f"a record of {length} bytes where {len(buffer) - start} are left")
        record = _parse(tp, batch, bytes(buffer[start:at]), after=offset)
        offset = record.offset
        if offset >= position:
            yield record


def unpack_batch(origin: tuple[str, int, int], data: bytes) -> list[RawRecord] | None:
    """The records of a batch that was set aside whole, from the offset of its origin on; None where `data` is no batch.

    Raises `Rejection` where it still cannot be unpacked.
    """
    if not _is_current(data) or struct.unpack_from(">i", data, 8)[0] != len(data) - _LENGTH_END:
        return None
    topic, partition, first = origin
    try:
        if not DefaultRecordBatch(data).validate_crc():
            raise _ChecksumError("its checksum (CRC) does not fit its bytes")
        found = list(lenient_records(TopicPartition(topic, partition), data, first, CorruptRecordException()))
    except Exception as error:
        raise Rejection(Reason.UNREADABLE, _message(error)) from None
    return [
        record.raw
        if isinstance(record, UnreadableRecord)
        else RawRecord(topic, partition, record.offset, record.timestamp, record.key, record.value, record.headers)
        for record in found
    ]


def _parse(tp: Any, batch: Any, record: bytes, *, after: int) -> Any:
    """One record; `after`: the offset of the one before it, for where its own cannot be read."""
    offset, timestamp = after + 1, int(batch.max_timestamp)
    buffer = bytearray(record)
    try:
        _, at = decode_varint(buffer, 0)
        time_delta, at = decode_varint(buffer, at)
        offset_delta, at = decode_varint(buffer, at)
        offset = max(offset, batch.base_offset + offset_delta)
        if not batch.timestamp_type:
            timestamp = batch.first_timestamp + time_delta
        key, at = _sized(buffer, at)
        value, at = _sized(buffer, at)
        count, at = decode_varint(buffer, at)
        names, headers = [], []
        for _ in range(count):
            name, at = _sized(buffer, at)
            content, at = _sized(buffer, at)
            names.append(name or b"")
            headers.append(((name or b"").decode("utf-8", "backslashreplace"), content))
        if at != len(buffer):
            raise CorruptRecordException(f"{len(buffer) - at} bytes are left behind its last header")
    except (ValueError, IndexError, CorruptRecordException) as error:
        return UnreadableRecord(
            tp.topic,
            tp.partition,
            (offset, offset),
            timestamp,
            cause="structure",
            detail=f"the record cannot be unpacked: {_message(error)}",
            content=(None, record, ()),
        )
    for name in names:
        try:
            name.decode("utf-8")
        except UnicodeDecodeError:
            return UnreadableRecord(
                tp.topic,
                tp.partition,
                (offset, offset),
                timestamp,
                cause="header_name",
                detail=f"the header name {name[:40]!r} is not UTF-8",
                content=(key, value, tuple((text, content or b"") for text, content in headers)),
            )
    sizes = (-1 if key is None else len(key), -1 if value is None else len(value))
    return ConsumerRecord(
        tp.topic, tp.partition, offset, timestamp, batch.timestamp_type, key, value, None, *sizes, tuple(headers)
    )


def _sized(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    """Bytes behind their length, None for length -1."""
    size, at = decode_varint(buffer, at)
    if size < 0:
        return None, at
    if at + size > len(buffer):
        raise CorruptRecordException(f"a field of {size} bytes where {len(buffer) - at} are left")
    return bytes(buffer[at : at + size]), at + size


def _end_offset(raw: bytes, following: int | None, position: int, *, trusted: bool) -> int:
    """The offset behind a batch that failed. `following`: base offset of the batch behind it, where known.

    Where the header may be damaged too (not `trusted`), an end that does not fit what else is known is not believed:
    a position past the end of the log would start the partition over.
    """
    claimed = 0
    if _is_current(raw):
        header = _HEADER.unpack_from(raw)
        base, last_delta, count = header[0], header[6], header[12]
        fits = last_delta + 1 == count if following is None else base + last_delta < following
        claimed = base + last_delta + 1 if trusted or fits else 0
    elif len(raw) >= _PREFIX.size:
        claimed = int(_PREFIX.unpack_from(raw)[0]) + 1
    return next((end for end in (claimed, following or 0) if end > position), position + 1)


def _is_current(raw: bytes) -> bool:
    """Whether a batch is of the format of Kafka 0.11 and later (magic 2)."""
    return len(raw) >= _HEADER.size and raw[_PREFIX.size - 1] >= 2


def _batch_time(raw: bytes) -> int:
    if not _is_current(raw):
        return _UNREADABLE_TIMESTAMP
    return int(_HEADER.unpack_from(raw)[8])


def _cause(error: Exception) -> str:
    if isinstance(error, _ChecksumError):
        return "checksum"
    if isinstance(error, UnsupportedCodecError):
        return "codec"
    return "structure"


def _message(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}" if not isinstance(error, _ChecksumError) else str(error.args[0])
    return text.splitlines()[0][:200]
