"""The test harness on a real Kafka: the suites that it passes on logs in memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from streams.kafka.embedded import Broker
from tests import lost_and_misrouted_suite
from tests.harness_suite import HarnessSuite, MakeHarness, harness_maker
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
