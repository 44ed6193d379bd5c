"""Records that another client's partitioner put into another partition than the one that their key belongs to.

All modalities of a stream meet in the partition that murmur2 of the key names (the Java client's default). Clients
hash differently: librdkafka uses CRC32, Sarama FNV-1a. A record in another partition is produced once more, into the
right one: key, value, headers and timestamp stay, a header says where it came from. A record that comes twice by this
(a crash between the acknowledgement and the commit) is a repeat like any other.
"""

from __future__ import annotations

from typing import Any

from aiokafka.partitioner import murmur2

from streams.events.envelope import Headers, header

HEADER = "sensorium-rerouted"
_KEYS_KEPT = 65_536  # keys whose partition is remembered; beyond that the memory is emptied, not grown


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that a key belongs to, as the Java client's default partitioner has it."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


class Router:
    """Finds records in the wrong partition. `partitions`: how many the input topics have; 0 while it is not known."""

    def __init__(self, partitions: int = 0) -> None:
        self._partitions = partitions
        self._known: dict[bytes, int] = {}
        self._belong: dict[int, set[bytes | None]] = {}  # keys that were found to belong to a partition

    @property
    def partitions(self) -> int:
        return self._partitions

    @partitions.setter
    def partitions(self, partitions: int) -> None:
        if partitions != self._partitions:
            self._partitions = partitions
            self._known.clear()
            self._belong.clear()

    def all_belong(self, keys: set[bytes | None], number: int) -> bool:
        """Whether records with these keys all belong to partition `number`; nearly free for keys seen before."""
        belong = self._belong.setdefault(number, set())
        new = keys - belong
        if not new:
            return True
        here = {key for key in new if self.elsewhere(key, number) is None}
        if len(belong) + len(here) > _KEYS_KEPT:
            belong.clear()
        belong |= here
        return len(here) == len(new)

    def elsewhere(self, key: bytes | None, number: int) -> int | None:
        """The partition that a record with this key belongs to, if it is not `number`."""
        if not key or not self._partitions:
            return None
        home = self._known.get(key)
        if home is None:
            if len(self._known) >= _KEYS_KEPT:
                self._known.clear()
            home = self._known[bytes(key)] = partition_of(key, self._partitions)
        return None if home == number else home

    def was_rerouted(self, headers: Headers) -> bool:
        """Whether a record was moved already while the topics had this many partitions: it is not moved again."""
        value = header(headers, HEADER)
        return value is not None and value.rpartition(b"/")[2] == str(self._partitions).encode()

    def headers_of(self, record: Any) -> list[tuple[str, bytes]]:
        """The record's headers, and where it came from: topic/partition/offset/number of partitions."""
        kept = [(name, value) for name, value in record.headers or () if name.lower() != HEADER]
        origin = f"{record.topic}/{record.partition}/{record.offset}/{self._partitions}"
        return [*kept, (HEADER, origin.encode())]
