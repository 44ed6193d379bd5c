"""`sensorium train --topics` on real Kafka: the windows are those of the recording that was sent there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streams.kafka.admin import create_topics
from streams.kafka.clients import new_producer
from streams.kafka.embedded import Broker
from streams.sources.dataset import WindowSelection, windows_of_recording, windows_of_topics
from streams.sources.recording import Recording
from tests.integration.support import settings_for

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="session")]


async def test_what_is_in_the_topics_gives_the_windows_of_the_recording(
    broker: Broker, plant_recording: Path, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path, broker, window={})
    await create_topics(settings, broker.bootstrap)
    producer = new_producer(settings, broker.bootstrap)
    await producer.start()
    try:
        for m in Recording(plant_recording).messages():
            await producer.send(settings.topic(m.topic), m.value, key=m.key, headers=m.headers, timestamp_ms=m.time_ms)
        await producer.send(settings.topic("captions"), b"\xff\xfe", key=b"m", timestamp_ms=5)
    finally:
        await producer.stop()
    found = await windows_of_topics(settings, broker.bootstrap, WindowSelection())
    expected = await windows_of_recording(plant_recording, settings, WindowSelection())
    assert found.refused == {"not_utf8": 1}
    assert found.events == expected.events
    assert [(w.stream, w.window.start_ms) for w in found.windows] == [
        (w.stream, w.window.start_ms) for w in expected.windows
    ]
    for one, two in zip(found.windows, expected.windows, strict=True):
        assert (one.window.readings, one.window.captions) == (two.window.readings, two.window.captions)
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(one.window.clips, two.window.clips, strict=True))
