"""Records in another partition than that of their key: found, moved once, whole."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.events.envelope import header
from streams.pipeline.reroute import HEADER, Router, partition_of


@dataclass
class Record:
    topic: str = "sensor-readings"
    partition: int = 3
    offset: int = 17
    headers: tuple[tuple[str, bytes], ...] | None = field(default=())


@pytest.mark.parametrize(
    ("key", "partitions", "partition"),
    [
        # org.apache.kafka.common.utils.Utils.murmur2, as kafka's own tests (UtilsTest.testMurmur2) have it:
        # 21 -> -973932308, foobar -> -790332482, a-little-bit-long-string -> -985981536
        (b"21", 2**31, -973932308 & 0x7FFFFFFF),
        (b"foobar", 2**31, -790332482 & 0x7FFFFFFF),
        (b"a-little-bit-long-string", 2**31, -985981536 & 0x7FFFFFFF),
        (b"foobar", 12, (-790332482 & 0x7FFFFFFF) % 12),
    ],
)
def test_the_partition_of_a_key_is_that_of_the_java_client(key: bytes, partitions: int, partition: int) -> None:
    assert partition_of(key, partitions) == partition


@given(st.binary(min_size=1, max_size=20), st.integers(1, 64))
def test_every_key_has_one_home_and_is_elsewhere_in_all_other_partitions(key: bytes, partitions: int) -> None:
    router = Router(partitions)
    found = [router.elsewhere(key, number) for number in range(partitions)]
    home = partition_of(key, partitions)
    assert found == [None if number == home else home for number in range(partitions)]


@pytest.mark.parametrize("key", [None, b""])
def test_a_record_without_a_key_belongs_nowhere_else(key: bytes | None) -> None:
    assert Router(8).elsewhere(key, 5) is None


def test_while_the_number_of_partitions_is_not_known_nothing_is_moved() -> None:
    assert [Router().elsewhere(b"pump", number) for number in range(8)] == [None] * 8


def test_the_homes_of_keys_follow_the_number_of_partitions() -> None:
    router = Router(2)
    keys = [f"pump-{n}".encode() for n in range(50)]
    assert {router.elsewhere(key, -1) for key in keys} == {0, 1}
    router.partitions = 7
    assert [router.elsewhere(key, -1) for key in keys] == [partition_of(key, 7) for key in keys]


def test_more_keys_than_are_remembered_have_the_same_homes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.pipeline.reroute._KEYS_KEPT", 10)
    router = Router(7)
    keys = [f"pump-{n}".encode() for n in range(25)] * 2
    assert [router.elsewhere(key, -1) for key in keys] == [partition_of(key, 7) for key in keys]
    assert len(router._known) <= 10


def test_a_moved_record_keeps_its_headers_and_says_where_it_came_from() -> None:
    headers = (("time", b"1"), ("Content-Type", b"audio/wav"), ("time", b"2"))
    moved = Router(8).headers_of(Record(headers=headers))
    assert moved[:-1] == list(headers)
    assert moved[-1] == (HEADER, b"sensor-readings/3/17/8")


def test_a_record_without_headers_can_be_moved() -> None:
    assert Router(8).headers_of(Record(headers=None)) == [(HEADER, b"sensor-readings/3/17/8")]


def test_a_moved_record_is_not_moved_again() -> None:
    """Two workers that disagree about a key's home would throw it to and fro for ever."""
    router = Router(8)
    assert not router.was_rerouted(())
    assert not router.was_rerouted((("time", b"1"),))
    assert router.was_rerouted(router.headers_of(Record()))


def test_after_partitions_were_added_a_moved_record_may_be_moved_again_and_names_its_last_place() -> None:
    first = Router(8).headers_of(Record())
    grown = Router(12)
    assert not grown.was_rerouted(first)
    again = grown.headers_of(Record(partition=5, offset=2, headers=tuple(first)))
    assert [name for name, _ in again].count(HEADER) == 1
    assert header(again, HEADER) == b"sensor-readings/5/2/12"
    assert grown.was_rerouted(again)


@pytest.mark.parametrize("value", [b"", b"/", b"somebody else's", b"a/b/c/80", b"a/b/c/08"])
def test_a_header_that_is_not_ours_stops_nothing(value: bytes) -> None:
    assert not Router(8).was_rerouted(((HEADER, value),))
