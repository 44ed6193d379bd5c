"""The test harness that ships, on logs in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness_suite import HarnessSuite, MakeHarness, harness_maker


@pytest.fixture
def harness(tmp_path: Path) -> MakeHarness:
    return harness_maker(tmp_path)


class TestOnLogsInMemory(HarnessSuite):
    """The whole suite, without a broker."""


async def test_a_harness_is_used_as_a_context_manager(harness: MakeHarness) -> None:
    with pytest.raises(RuntimeError, match="async with Harness"):
        await harness().settle()
