"""Fixtures: the embedded Kafka, settings of an installation of its own, recordings; and what may be skipped where."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # as the command does: see streams.cli

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import pytest_asyncio  # noqa: E402

pytest.register_assert_rewrite("tests.harness_suite", "tests.lost_and_misrouted_suite")

from streams.kafka.embedded import Broker, JarError, fetch  # noqa: E402

if os.environ.get("CI"):
    # the same examples in every run: new ones are tried in development, where what they find can be mended
    hypothesis.settings.register_profile("ci", derandomize=True)
    hypothesis.settings.load_profile("ci")

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
TOOLS = Path(__file__).resolve().parent.parent.parent / "shared" / "tools"


def absent(what: str) -> None:
    """Something that CI must have: a skip here, a failure there."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


MARKERS = pytest.StashKey[dict[str, set[str]]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[MARKERS] = {item.nodeid: {marker.name for marker in item.iter_markers()} for item in items}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Which outside parts this run met: for each marker that needs one, how many of its tests ran or were skipped."""
    markers_of = config.stash.get(MARKERS, {})
    for name, _, meaning in (line.partition(": ") for line in config.getini("markers")):
        if not meaning.startswith("needs "):
            continue
        ran, skipped = (
            sum(
                1
                for kind in kinds
                for report in terminalreporter.stats.get(kind, ())
                if name in markers_of.get(report.nodeid, ())
            )
            for kinds in (("passed", "failed"), ("skipped",))
        )
        if ran or skipped:
            terminalreporter.write_line(f"{name}: {ran} ran, {skipped} skipped ({meaning})")


@pytest.fixture(autouse=True)
def _no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees the settings it makes, not those of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("SENSORIUM_")]:
        if name not in ("SENSORIUM_CACHE", "SENSORIUM_MAVEN", "SENSORIUM_SOAK"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def kafka_jars() -> None:
    try:
        fetch()
    except JarError as error:
        absent(f"no Kafka: {error}")


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def shared_broker(kafka_jars: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broker]:
    """One Kafka for all tests that do not hurt it; topics are told apart by prefix."""
    async with Broker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture
def plant_recording(tmp_path: Path) -> Path:
    """A quarter of an hour of the simulated plant, as a recording: needs no data from outside."""
    from streams.sources.plant_recording import record

    folder = tmp_path / "recording"
    record(folder, streams=3, seed=11, seconds=900)
    return folder
