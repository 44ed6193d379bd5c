"""The test harness on a real Kafka: the suites that it passes on logs in memory."""

from __future__ import annotations

import uuid
from functools import partial
from pathlib import Path

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from streams.kafka.admin import describe_topics
from streams.kafka.clients import client_options
from streams.kafka.embedded import Broker
from streams.testing import Harness
from tests import lost_and_misrouted_suite
from tests.harness_suite import SENSORS, HarnessSuite, MakeHarness, flow, harness_maker
from tests.integration.support import until
from tests.lost_and_misrouted_suite import LostAndMisroutedSuite
from tests.unit.pipeline.isolation import new_harness

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


class TestHarnessOnKafka(HarnessSuite):
    crash_points = (12, 41, 60)  # before, at and after the opening; few, since every harness makes topics of its own

    @pytest.fixture
    def harness(self, tmp_path: Path, shared_broker: Broker) -> MakeHarness:
        return harness_maker(tmp_path, shared_broker.bootstrap)


class TestLostAndMisroutedOnKafka(LostAndMisroutedSuite):
    @pytest.fixture
    def harness(self, shared_broker: Broker) -> lost_and_misrouted_suite.MakeHarness:
        return partial(new_harness, real=shared_broker.bootstrap)


async def test_topics_are_there_while_the_harness_is(tmp_path: Path, shared_broker: Broker) -> None:
    async with harness_maker(tmp_path, shared_broker.bootstrap)(partitions=3) as h:
        during = await describe_topics(h.settings, shared_broker.bootstrap)
    after = await describe_topics(h.settings, shared_broker.bootstrap)
    assert {state.spec.name: state.partitions for state in during} == {
        **dict.fromkeys(["sensor-readings", "audio-clips", "captions"], 3),
        **dict.fromkeys(["windows", "incidents", "late-events", "dead-letters"], 1),
    }
    assert [state.partitions for state in after] == [0] * 7


async def test_what_was_sent_can_be_read_when_the_harness_is_closed(tmp_path: Path, shared_broker: Broker) -> None:
    async with harness_maker(tmp_path, shared_broker.bootstrap)() as h:
        await h.push(SENSORS, "pump-1", flow(1))
        await h.advance(60_000)
    assert [w.events for w in h.windows()] == [{"sensor": 1}]


async def in_a_transaction(h: Harness, second: float, *, commit: bool) -> None:
    """One reading."""
    assert h.settings.kafka is not None
    options = client_options(h.settings, h.settings.kafka)
    producer = AIOKafkaProducer(transactional_id=f"gateway-{uuid.uuid4().hex}", **options)
    await producer.start()
    try:
        await producer.begin_transaction()
        await producer.send_and_wait(h.settings.topic(SENSORS), msgspec.json.encode(flow(second)), key=b"pump-1")
        await (producer.commit_transaction() if commit else producer.abort_transaction())
    finally:
        await producer.stop()


async def test_transactions_that_are_aborted_are_stepped_over(tmp_path: Path, shared_broker: Broker) -> None:
    async with harness_maker(tmp_path, shared_broker.bootstrap)() as h:
        await h.push(SENSORS, "pump-1", flow(1))
        await in_a_transaction(h, 2, commit=True)
        await in_a_transaction(h, 3, commit=False)
        # a broker writes the markers after it has answered
        await until(lambda: h.ends()[SENSORS, 0] == 5, "the aborted record and both markers in the log")
        await h.settle()
        await h.advance(60_000)
        assert [w.events for w in h.windows()] == [{"sensor": 2}]
        assert h.commit() == {(SENSORS, 0): 2}
