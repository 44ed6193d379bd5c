"""Which errors of a producer are waited out, which end the worker, and how a letter that is too large is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from aiokafka import errors

from streams.events.dead_letter import dead_letter, parse_letter
from streams.events.types import RawRecord, Reason, Rejection
from streams.kafka import producer as module
from streams.kafka.failures import KafkaRefused
from streams.kafka.producer import KafkaOutputs

RAW = RawRecord("captions", 2, 7, 1_800_000_000_000, b"k" * 1_000_000, b"text", (("trace", b"1"),))


class Client:
    def __init__(self, answers: bool) -> None:
        self.answers = answers

    async def force_metadata_update(self) -> bool:
        return self.answers


class Scripted:
    """A producer whose broker gives these errors one after another, then takes everything up to `most` bytes."""

    def __init__(self, failures: Iterable[errors.KafkaError] = (), most: int = 2**31, answers: bool = True) -> None:
        self.failures = list(failures)
        self.most = most
        self.taken: list[tuple[str, bytes | None, bytes | None, list[tuple[str, bytes]]]] = []
        self.client = Client(answers)
        self.stopped = False

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.stopped = True

    async def send(
        self, topic: str, value: bytes | None, *, key: bytes | None, headers: list[tuple[str, bytes]], **_: Any
    ) -> asyncio.Future[None]:
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        size = len(key or b"") + len(value or b"") + sum(len(n) + len(v) for n, v in headers)
        if self.failures:
            sent.set_exception(self.failures.pop(0))
        elif size > self.most:
            sent.set_exception(errors.MessageSizeTooLargeError())
        else:
            self.taken.append((topic, key, value, headers))
            sent.set_result(None)
        return sent


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_AFTER_S", (0.0,))


def outputs(first: Scripted, second: Scripted | None = None) -> KafkaOutputs:
    made: Any = second or Scripted()
    given: Any = first
    return KafkaOutputs(given, str, new=lambda: made)


@pytest.mark.parametrize(
    "error",
    [
        errors.KafkaTimeoutError(),
        errors.KafkaConnectionError(),
        errors.NotEnoughReplicasError(),
        errors.NotLeaderForPartitionError(),
        errors.UnknownTopicOrPartitionError(),
    ],
)
async def test_errors_that_pass_are_waited_out(error: errors.KafkaError) -> None:
    broker = Scripted([error, error])
    sender = outputs(broker)
    await sender.send("windows", b"1", key=b"pump")
    assert [(key, value) for _, key, value, _ in broker.taken] == [(b"pump", b"1")]
    assert sender.waiting_since is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (errors.TopicAuthorizationFailedError("windows"), "Kafka denies writing to windows"),
        (errors.ClusterAuthorizationFailedError(), "Kafka denies writing to windows"),
        (errors.InvalidTopicError(), "Kafka refuses writing to windows"),
        (errors.InvalidTimestampError(), "Kafka refuses writing to windows"),
        (errors.CorruptRecordException(), "Kafka refuses writing to windows"),
    ],
)
async def test_errors_that_no_waiting_mends_end_with_one_line(error: errors.KafkaError, line: str) -> None:
    with pytest.raises(KafkaRefused, match=line) as refused:
        await outputs(Scripted([error])).send("windows", b"1", key=b"pump")
    assert "\n" not in str(refused.value)
    assert "sensorium " in str(refused.value)


async def test_a_topic_that_stays_missing_ends_with_the_command_that_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNKNOWN_TOPIC_AFTER_S", 0.0)
    with pytest.raises(KafkaRefused, match="sensorium topics create"):
        await outputs(Scripted([errors.UnknownTopicOrPartitionError()])).send("windows", b"1", key=b"pump")


async def test_a_topic_is_not_missing_while_no_broker_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNKNOWN_TOPIC_AFTER_S", 0.0)
    broker = Scripted([errors.UnknownTopicOrPartitionError()] * 3, answers=False)
    await outputs(broker).send("windows", b"1", key=b"pump")
    assert len(broker.taken) == 1


async def test_a_new_producer_takes_the_place_of_one_that_is_out_of_step() -> None:
    old, new = Scripted([errors.OutOfOrderSequenceNumber()]), Scripted()
    sender = outputs(old, new)
    await sender.send("windows", b"1", key=b"pump")
    assert len(new.taken) == 1
    await sender.stop()
    assert (old.stopped, new.stopped) == (True, True)


async def test_a_new_producer_that_is_refused_too_ends_with_one_line() -> None:
    old, new = Scripted([errors.OutOfOrderSequenceNumber()]), Scripted([errors.ProducerFenced()])
    with pytest.raises(KafkaRefused, match="nothing is lost"):
        await outputs(old, new).send("windows", b"1", key=b"pump")


@pytest.mark.parametrize("most", [100_000, 6_000, 700])
async def test_a_letter_that_is_too_large_is_cut_and_names_its_origin_and_the_original_sizes(most: int) -> None:
    broker = Scripted(most=most)
    key, value, headers = dead_letter(RAW, Rejection(Reason.BAD_KEY, "the key is too long"), stage="decode")
    await outputs(Scripted(most=most), broker).send("dead-letters", value, key=key, headers=headers)
    ((_, key, value, headers),) = broker.taken
    letter = parse_letter(RawRecord("dead-letters", 0, 0, 0, key, value, tuple(headers)))
    assert letter.origin == ("captions", 2, 7)
    assert (letter.reason, letter.truncated) == ("bad_key", "value=4 key=1000000 headers=6")
    assert (key or b"").startswith(b"k" * 64)


async def test_letters_that_cannot_be_cut_any_further_and_other_records_end_with_one_line() -> None:
    tiny = Scripted(most=10), Scripted(most=10)
    with pytest.raises(KafkaRefused, match=r"max\.message\.bytes"):
        await outputs(*tiny).send("dead-letters", b"v", key=b"k", headers=[("sensorium-reason", b"empty")])
    with pytest.raises(KafkaRefused, match=r"a record of 20 bytes for windows .*max\.message\.bytes"):
        await outputs(Scripted(most=10)).send("windows", b"v" * 20, key=None)


async def test_a_size_that_the_broker_refused_is_not_sent_again() -> None:
    old, new = Scripted(most=5_000), Scripted(most=5_000)
    sender = outputs(old, new)
    for _ in range(3):
        await sender.send("dead-letters", b"v" * 3_000, key=b"k" * 3_000, headers=[("sensorium-reason", b"empty")])
    assert len(new.taken) == 3
    assert not new.stopped
