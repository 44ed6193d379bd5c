"""From records to the queue: who is caught up, who is quiet, what a full queue and a revocation do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streams.events.audio import ClipDecoder
from streams.events.topics import TOPICS
from streams.events.types import MODALITIES, Modality
from streams.kafka.ledger import OffsetLedger
from streams.kafka.progress import InputProgress
from streams.metrics import Metrics
from streams.pipeline.ingest import Intake, window_config
from streams.pipeline.state import Partition
from streams.settings import AudioSettings, WindowSettings
from streams.testing import LogRecord, RecordedOutputs
from streams.windows.types import Fired, Output

T0_MS = 1_700_000_000_000
SENSOR, AUDIO, CAPTION = MODALITIES


class Knowing:
    """A restorer that knows of nothing, and takes its time if told so."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.asked: list[str] = []

    async def restore(self, partition: Partition, asked: dict[str, Iterable[int]]) -> None:
        self.asked += asked
        await self.may.wait()
        for stream in asked:
            partition.operator.restore(stream, None, [])


class Desk:
    """An intake with a queue that nobody empties unless a test does, and logs whose ends a test sets."""

    def __init__(self, room: int = 1_000, **window: Any) -> None:
        self.ledger, self.outputs, self.restorer = OffsetLedger(), RecordedOutputs(), Knowing()
        self.queue: asyncio.Queue[tuple[Partition, Output]] = asyncio.Queue(room)
        self.clips = ClipDecoder(AudioSettings())
        self.intake = Intake(
            WindowSettings(**window),
            ledger=self.ledger,
            outputs=self.outputs,
            queue=self.queue,
            restorer=self.restorer,
            clips=self.clips,
            metrics=Metrics(),
            now_ms=lambda: T0_MS + 10**9,  # type: ignore[arg-type]
        )
        self.partition = self.intake.assign(0, (0, 0, 0))
        self.logs: dict[Modality, list[LogRecord]] = {m: [] for m in MODALITIES}
        self.read = dict.fromkeys(MODALITIES, 0)  # delivered
        self.polled_ms_ago = 0

    def write(self, modality: Modality, *seconds: float, stream: str = "pump") -> None:
        for second in seconds:
            time_ms = T0_MS + int(second * 1000)
            body = {"values": {"flow": 1.0}} if modality is SENSOR else {"text": "all quiet"}
            value = msgspec.json.encode({"time": time_ms, **body})
            log = self.logs[modality]
            log.append(LogRecord(TOPICS[modality], 0, len(log), time_ms, stream.encode(), value))

    def deliver(self, modality: Modality, count: int | None = None) -> asyncio.Task[None]:
        """Hand on what is unread, as an agent would get it."""
        start = self.read[modality]
        records = self.logs[modality][start:][:count]
        self.read[modality] += len(records)
        return asyncio.create_task(self.intake.handle(modality, 0, records))

    async def wait(self, ms: int) -> None:
        for _ in range(0, ms, 250):
            progress = {
                (m, 0): InputProgress(self.read[m], len(self.logs[m]), self.polled_ms_ago, self.read[m])
                for m in MODALITIES
            }
            await self.intake.tick(250, progress)

    def fired(self) -> list[tuple[float, dict[str, int]]]:
        """(start in seconds, events) of every window in the queue, which is emptied."""
        found = []
        while not self.queue.empty():
            _, output = self.queue.get_nowait()
            if isinstance(output, Fired):
                counts = zip(("sensor", "audio", "caption"), output.home_events, strict=True)
                found.append(((output.start_ms - T0_MS) / 1000, {name: n for name, n in counts if n}))
        return found

    @property
    def reasons(self) -> list[str]:
        return [dict(sent.headers)["sensorium-reason"].decode() for sent in self.outputs.sent]


async def _turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# -- quiet and backlogged -----------------------------------------------------------------------------------------


async def test_a_quiet_input_lets_windows_go() -> None:
    d = Desk()
    d.write(SENSOR, *range(40))
    await d.deliver(SENSOR)
    await d.wait(9_750)
    assert d.fired() == []
    await d.wait(250)
    assert [start for start, _ in d.fired()][:3] == [0, 10, 20]


async def test_flink_40234_an_input_that_is_fetched_and_not_yet_worked_on_is_not_quiet() -> None:
    """Its records were polled, and wait for a slow operator: Flink takes the split for idle and drops them as late."""
    d = Desk()
    d.write(SENSOR, *range(100))
    d.write(CAPTION, *range(100))
    held = asyncio.Event()
    d.restorer.may = held  # the store is slow: the captions are in hand, and stuck
    captions = d.deliver(CAPTION)
    await _turns()
    d.restorer.may = asyncio.Event()
    sensors = d.deliver(SENSOR)
    await d.wait(120_000)
    assert d.fired() == []
    held.set()
    d.restorer.may.set()
    await asyncio.gather(captions, sensors)
    await d.wait(20_000)
    assert [counts for _, counts in d.fired()] == [{"sensor": 10, "caption": 10}] * 10
    assert d.reasons == []


async def test_flink_40234_an_input_that_was_quiet_and_is_backlogged_now_is_not_quiet() -> None:
    """Five minutes of a store that is away: both inputs pile up, the one that had been quiet too."""
    d = Desk(room=1)
    d.write(SENSOR, 0, 1)
    await d.deliver(SENSOR)
    await d.wait(11_000)  # captions are quiet by now
    d.fired()
    await d.queue.put((d.partition, None))  # type: ignore[arg-type]  # the queue is full: nothing leaves it
    for second in range(10, 310, 10):
        d.write(SENSOR, *range(second, second + 10))
        d.write(CAPTION, second + 5)
        await d.wait(10_000)
    sensors = d.deliver(SENSOR)
    captions = d.deliver(CAPTION)
    found = []
    while not (sensors.done() and captions.done()):
        await _turns()
        found += d.fired()
    for _ in range(200):
        await d.wait(500)
        found += d.fired()
    assert d.reasons == []
    last = dict(found)
    assert [last[float(second)].get("caption") for second in range(10, 300, 10)] == [1] * 29


async def test_an_input_whose_broker_does_not_answer_is_not_quiet() -> None:
    d = Desk()
    d.write(SENSOR, *range(40))
    await d.deliver(SENSOR)
    d.polled_ms_ago = 3_000
    await d.wait(60_000)
    assert d.fired() == []


async def test_an_input_of_which_nothing_is_known_is_not_quiet() -> None:
    d = Desk()
    d.write(SENSOR, *range(40))
    await d.deliver(SENSOR)
    for _ in range(300):
        at = {(SENSOR, 0): InputProgress(40, 40, 0, 40), (CAPTION, 0): InputProgress(0, None, 0, 0)}
        await d.intake.tick(250, at)
    assert d.fired() == []


@pytest.mark.parametrize(
    ("handled", "at", "quiet"),
    [
        (0, InputProgress(0, 0, 0, 0), True),
        (5, InputProgress(5, 5, 0, 5), True),
        (4, InputProgress(5, 5, 0, 5), False),  # delivered, and not worked on
        (5, InputProgress(5, 9, 0, 5), False),  # backlogged
        (5, InputProgress(9, 9, 0, 5), True),  # the log ends in control records, which nobody is given
        (0, InputProgress(9, 9, 0, 5), False),
        (0, InputProgress(9, 9, 0), True),
        (5, InputProgress(5, None, 0, 5), False),
        (5, InputProgress(5, 5, None, 5), False),
        (5, InputProgress(5, 5, 2_999, 5), True),
        (5, InputProgress(5, 5, 3_000, 5), False),
    ],
)
async def test_caught_up_is_what_the_broker_says_and_we_have_done(handled: int, at: InputProgress, quiet: bool) -> None:
    d = Desk()
    d.partition.handled[2] = handled
    assert d.intake._caught_up(d.partition, 2, at) is quiet


async def test_an_input_with_a_batch_in_hand_is_not_caught_up() -> None:
    d = Desk()
    assert d.intake._caught_up(d.partition, 2, InputProgress(9, 9, 0))
    d.partition.in_hand[2] = 1
    assert not d.intake._caught_up(d.partition, 2, InputProgress(9, 9, 0))


async def test_the_idle_clock_stands_still_under_pressure() -> None:
    d = Desk(room=1)
    await d.queue.put((d.partition, None))  # type: ignore[arg-type]
    await d.wait(60_000)
    assert d.partition.idle_clock_ms == 0
    d.queue.get_nowait()
    await d.wait(1_000)
    assert d.partition.idle_clock_ms == 1_000


# -- pressure -----------------------------------------------------------------------------------------------------


async def test_a_tick_never_waits_for_a_full_queue_and_loses_nothing() -> None:
    d = Desk(room=2)
    for n in range(20):
        d.write(SENSOR, 1, stream=f"pump-{n}")
    await d.deliver(SENSOR)
    await asyncio.wait_for(d.wait(11_000), 1.0)
    assert d.queue.full()
    starts = []
    for _ in range(40):
        starts += d.fired()
        await d.wait(250)
    assert starts == [(0.0, {"sensor": 1})] * 20


async def test_a_full_queue_holds_the_agent_back() -> None:
    d = Desk(room=1)
    d.write(SENSOR, *range(0, 100))
    d.write(CAPTION, 100)
    await d.deliver(CAPTION)
    await d.wait(250)
    d.partition.operator.tick(0, (False, True, False))
    work = d.deliver(SENSOR)
    await _turns()
    assert not work.done()
    found = []
    while not work.done():
        found += d.fired()
        await _turns()
    assert len(found + d.fired()) == 9


# -- revocation ---------------------------------------------------------------------------------------------------


async def test_records_of_a_partition_that_is_not_ours_are_not_looked_at() -> None:
    d = Desk()
    d.intake.revoke(0)
    d.write(SENSOR, 1)
    await d.deliver(SENSOR)
    assert d.intake.partitions == {}
    assert d.ledger.pending((TOPICS[SENSOR], 0)) == 0


async def test_what_is_in_hand_when_a_partition_is_revoked_is_dropped() -> None:
    d = Desk()
    d.restorer.may = asyncio.Event()
    d.write(SENSOR, *range(40))
    work = d.deliver(SENSOR)
    await _turns()
    d.intake.revoke(0)
    again = d.intake.assign(0, (0, 0, 0))
    d.restorer.may.set()
    await work
    assert (d.partition.revoked, again.revoked) == (True, False)
    assert d.fired() == []
    assert again.handled == [0, 0, 0]
    assert d.ledger.pending((TOPICS[SENSOR], 0)) == 0


async def test_a_partition_that_comes_back_has_a_new_epoch() -> None:
    d = Desk()
    first = d.partition.epoch
    d.intake.revoke(0)
    assert d.intake.assign(0, (0, 0, 0)).epoch == first + 1


async def test_nothing_of_a_revoked_partition_is_set_aside() -> None:
    d = Desk()
    d.logs[SENSOR] = [LogRecord(TOPICS[SENSOR], 0, i, T0_MS, b"pump", b"not json") for i in range(100)]

    class Slow(RecordedOutputs):
        async def send(
            self, topic: str, value: bytes | None, *, key: bytes | None, headers: Any = (), **_: Any
        ) -> None:
            d.intake.revoke(0)
            await super().send(topic, value, key=key, headers=headers)

    d.intake._outputs = Slow()
    await d.deliver(SENSOR)
    assert len(d.intake._outputs.sent) <= 32


# -- aside --------------------------------------------------------------------------------------------------------


async def test_dead_letters_are_released_when_they_are_acknowledged() -> None:
    d = Desk()
    d.write(SENSOR, 1)
    d.logs[SENSOR].append(LogRecord(TOPICS[SENSOR], 0, 1, T0_MS, b"pump", b"not json"))
    d.logs[SENSOR].append(LogRecord(TOPICS[SENSOR], 0, 2, T0_MS, None, b"{}"))
    acknowledged = asyncio.Event()

    class Slow(RecordedOutputs):
        async def send(
            self, topic: str, value: bytes | None, *, key: bytes | None, headers: Any = (), **_: Any
        ) -> None:
            await acknowledged.wait()
            await super().send(topic, value, key=key, headers=headers)

    d.intake._outputs = Slow()
    work = d.deliver(SENSOR)
    await _turns()
    assert d.ledger.pending((TOPICS[SENSOR], 0)) == 3
    acknowledged.set()
    await work
    d.ledger.release((TOPICS[SENSOR], 0), d.partition.epoch, [0])
    assert d.ledger.committable((TOPICS[SENSOR], 0)) == 3


async def test_a_record_of_many_readings_is_late_by_parts() -> None:
    d = Desk()
    d.write(SENSOR, 0, 100)
    await d.deliver(SENSOR)
    await d.wait(11_000)
    readings = [{"time": T0_MS + t * 1000, "values": {"flow": 2.0}} for t in (1, 2, 99)]
    value = msgspec.json.encode(readings)
    d.logs[SENSOR].append(LogRecord(TOPICS[SENSOR], 0, 2, T0_MS, b"pump", value))
    await d.deliver(SENSOR)
    assert d.reasons == ["late"]
    assert dict(d.outputs.sent[0].headers)["sensorium-events"] == b"2"
    tp = (TOPICS[SENSOR], 0)
    d.ledger.release(tp, d.partition.epoch, [0, 1])
    assert d.ledger.committable(tp) == 2
    d.ledger.release(tp, d.partition.epoch, [2])
    assert d.ledger.committable(tp) == 3


async def test_inputs_that_run_ahead_are_named() -> None:
    d = Desk(max_drift_ms=60_000)
    d.write(CAPTION, 0)
    await d.deliver(CAPTION)
    d.write(SENSOR, *range(0, 200))
    await d.deliver(SENSOR)
    ahead = d.intake.ahead()
    assert {modality.value for (modality, _), far in ahead.items() if far} == {"sensor"}


def test_the_operators_numbers_are_those_of_the_settings() -> None:
    settings = WindowSettings(size_ms=4_000, hop_ms=2_000)
    config = window_config(settings)
    assert (config.size_ms, config.hop_ms, config.disorder_ms) == (4_000, 2_000, (2_000, 2_000, 2_000))
    assert config.allowed_lateness_ms == settings.allowed_lateness_ms


async def test_a_stream_is_looked_up_once_however_many_records_wait_for_it(tmp_path: Path) -> None:
    d = Desk()
    d.write(SENSOR, *range(100))
    await d.deliver(SENSOR)
    assert d.restorer.asked == ["pump"]
