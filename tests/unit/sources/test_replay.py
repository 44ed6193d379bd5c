"""A replay sends every message once, and ends when every event is accounted for or nothing comes back."""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from streams.errors import DependencyError
from streams.settings import Settings
from streams.sources import replay as module
from streams.sources.recording import Recording
from streams.sources.replay import Replay

BASE = 1_767_225_600_000
LONG_AGO_S = 1_000.0


@pytest.fixture
def replay(tmp_path: Path) -> Replay:
    (tmp_path / "sensors").mkdir()
    (tmp_path / "sensors" / "pump.csv").write_text("time,flow\n" + "".join(f"{BASE + n},{n}\n" for n in range(5)))
    (tmp_path / "captions.csv").write_text(f"time,stream,text\n{BASE + 2},pump,all well\n")
    return Replay(Settings(topic_prefix="test."), "nowhere:1", Recording(tmp_path))


class Producer:
    """Takes every record and acknowledges it at once; fails from the record `fails_at` on."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.records: list[tuple[str, bytes, dict[str, Any]]] = []
        self.fails_at = fails_at
        self.stopped = False

    async def start(self) -> None: ...

    async def flush(self) -> None: ...

    async def stop(self) -> None:
        self.stopped = True

    async def send(self, topic: str, value: bytes, **options: Any) -> asyncio.Future[None]:
        acknowledged = asyncio.get_running_loop().create_future()
        if self.fails_at is not None and len(self.records) >= self.fails_at:
            acknowledged.set_exception(ConnectionError("the broker is gone"))
        else:
            acknowledged.set_result(None)
        self.records.append((topic, value, options))
        return acknowledged


async def test_every_message_is_sent_in_order_with_the_time_of_sending_as_its_timestamp(
    replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = Producer()
    monkeypatch.setattr(module, "new_producer", lambda *_, **__: producer)
    await replay._send()
    expected = [(f"test.{m.topic}", m.value, m.key, m.headers) for m in replay.recording.messages()]
    assert [(topic, value, o["key"], o["headers"]) for topic, value, o in producer.records] == expected
    assert all(options.get("timestamp_ms") is None for _, _, options in producer.records)  # the client sets it
    assert (replay.account.produced, replay.sent_time_ms, producer.stopped) == (6, BASE + 4, True)


async def test_a_delivery_that_fails_ends_the_replay(replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    producer = Producer(fails_at=5)
    monkeypatch.setattr(module, "new_producer", lambda *_, **__: producer)
    with pytest.raises(ConnectionError, match="the broker is gone"):
        await replay._send()
    assert producer.stopped


async def waited(replay: Replay, *, missing: int, reader: asyncio.Task[None] | None = None) -> str:
    """What the replay prints while it waits, `missing` events short, with its last output long ago."""
    replay.account.produced = missing
    replay.last_output_at = time.monotonic() - LONG_AGO_S
    running = reader or asyncio.create_task(asyncio.Event().wait())
    output = io.StringIO()
    try:
        await replay._wait_for_results(Console(file=output), LONG_AGO_S / 2, running)  # type: ignore[arg-type]
    finally:
        running.cancel()
    return output.getvalue()


async def test_a_replay_is_complete_when_every_event_is_accounted_for(replay: Replay) -> None:
    assert await waited(replay, missing=0) == ""


async def test_events_of_other_producers_are_reported(replay: Replay) -> None:
    assert "3 more events came back than were sent" in await waited(replay, missing=-3)


async def test_a_replay_without_output_ends_with_what_is_missing(replay: Replay) -> None:
    with pytest.raises(DependencyError, match=r"4 events are not accounted for.*sensorium doctor"):
        await waited(replay, missing=4)


async def test_an_error_while_reading_the_outputs_ends_the_replay(replay: Replay) -> None:
    async def fails() -> None:
        raise ConnectionError("the broker is gone")

    reader = asyncio.create_task(fails())
    await asyncio.wait([reader])
    with pytest.raises(ConnectionError):
        await waited(replay, missing=1, reader=reader)
