"""What the tests on real Kafka share: settings of their own, a service to run, a way to wait."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from streams.kafka.admin import create_topics
from streams.kafka.embedded import Broker
from streams.service import Service, running_worker
from streams.settings import Settings, load_settings

QUICK = {"idle_timeout_ms": 1_500, "allowed_lateness_ms": 3_000}


def settings_for(folder: Path, broker: Broker, **more: Any) -> Settings:
    """Topics, group and store of this test alone, on a Kafka that others use too."""
    prefix = f"t{uuid.uuid4().hex[:8]}."
    more.setdefault("window", QUICK)
    return load_settings(state=folder / "state", kafka=broker.bootstrap, topic_prefix=prefix, **more)


@contextlib.asynccontextmanager
async def service(settings: Settings) -> AsyncIterator[Service]:
    """Topics and a worker in this process; an error in the worker is raised on leaving."""
    assert settings.kafka is not None
    await create_topics(settings, settings.kafka)
    async with running_worker(settings, settings.kafka, asyncio.Event()) as running:
        yield running


async def until(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> None:
    """Wait for something to become true, or say what never did."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain: {what}"
        await asyncio.sleep(0.1)
