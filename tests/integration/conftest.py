"""The Kafka and the Qdrant engines that tests run on, and the line that says which the store tests ran on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from aiokafka.admin import AIOKafkaAdminClient

from streams.kafka.clients import open_admin
from streams.kafka.embedded import Broker
from streams.settings import Settings
from tests.integration.qdrant_server import QdrantServer

ENGINES = {
    "edge": "Qdrant Edge",
    "local": "qdrant-client's local mode",
    "server": "a real Qdrant server",
}
EVERY_ENGINE = ["edge", "local", pytest.param("server", marks=pytest.mark.qdrant)]


@dataclass(frozen=True, slots=True)
class Node:
    """A real server that tests share; each test takes a collection of its own."""

    url: str
    grpc_port: int


@pytest_asyncio.fixture(loop_scope="session")
async def broker(shared_broker: Broker) -> AsyncIterator[Broker]:
    """The Kafka that all tests share; a test that harms its broker has one of its own."""
    yield shared_broker


@pytest_asyncio.fixture(loop_scope="session")
async def admin(settings: Settings, broker: Broker) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client with the `settings` of the test's own module."""
    client = await open_admin(settings, broker.bootstrap)
    yield client
    await client.close()


@pytest.fixture(scope="session")
def qdrant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The server that QDRANT_URL names, or a child process; skips where there is neither."""
    url = os.environ.get("QDRANT_URL")
    if url:
        yield Node(url, int(os.environ.get("QDRANT_GRPC_PORT", "6334")))
        return
    started = QdrantServer(tmp_path_factory.mktemp("qdrant")).start()
    yield Node(started.url, started.grpc_port)
    started.kill()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Which engines the store tests ran on: what was skipped is not to be taken for green."""
    ran: Counter[str] = Counter()
    for report in (*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())):
        engine = dict(getattr(report, "user_properties", ())).get("store_engine")
        if engine is not None and getattr(report, "when", "") == "call":
            ran[engine] += 1
    if not ran:
        return
    engines = ", ".join(f"{ENGINES[name]} ({ran[name]} tests)" for name in ENGINES if ran[name])
    line = f"store tests ran on: {engines}"
    if not ran["server"]:
        line += "; not on a real server: name one with QDRANT_URL, QDRANT_BIN, or a qdrant on the PATH"
    terminalreporter.write_line(line)
