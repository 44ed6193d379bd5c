"""From records to the queue: who is caught up, who is quiet, what a full queue, a revocation and limits do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import msgspec
import pytest

from streams.events.audio import ClipDecoder
from streams.events.topics import TOPICS
from streams.events.types import MODALITIES, Modality
from streams.kafka.failures import RecordTooLarge
from streams.kafka.ledger import OffsetLedger
from streams.kafka.producer import Headers
from streams.kafka.progress import InputProgress, Start
from streams.metrics import Metrics
from streams.pipeline.idleness import caught_up, look
from streams.pipeline.ingest import Ingest, in_hand, window_config
from streams.pipeline.merge import InputMerge
from streams.pipeline.reroute import Router, partition_of
from streams.pipeline.state import PartitionState
from streams.settings import AudioSettings, WindowSettings
from streams.testing import LogRecord, RecordedOutputs, Sent
from streams.windows.types import Fired, Output, StreamIdle

T0_MS = 1_700_000_000_000
SENSOR, AUDIO, CAPTION = MODALITIES
READINGS = (TOPICS[SENSOR], 0)
STARTS = (Start(0, None),) * 3  # from the begin of each log
LONG_WAIT = {"sensor": 600_000, "audio": 600_000, "caption": 600_000}


class SlowLoader:
    """A loader whose store knows of nothing, and answers while `may` is set."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.asked: list[str] = []
        self.error: Exception | None = None

    async def restore(self, partition: PartitionState, asked: Mapping[str, Iterable[int]]) -> None:
        self.asked += asked
        await self.may.wait()
        if self.error is not None:
            raise self.error
        for stream in asked:
            partition.operator.restore(stream, None, [])


class GatedOutputs(RecordedOutputs):
    """Outputs that do something before they acknowledge."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[str], Awaitable[None]] | None = None

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        if self.before is not None:
            await self.before(topic)
        self.sent.append(Sent(topic, key, value, tuple(headers)))


class Inputs:
    """An `Ingest` with a queue that nobody empties unless a test does, and logs whose ends a test sets."""

    def __init__(self, room: int = 1_000, partitions: int = 0, **window: Any) -> None:
        self.ledger, self.outputs, self.loader = OffsetLedger(), GatedOutputs(), SlowLoader()
        self.metrics = Metrics()
        self.queue: asyncio.Queue[tuple[PartitionState, Output]] = asyncio.Queue(room)
        self.now_ms = 0  # monotonic
        self.ingest = Ingest(
            WindowSettings(**window),
            ledger=self.ledger,
            outputs=self.outputs,
            queue=self.queue,
            loader=self.loader,  # type: ignore[arg-type]
            clips=ClipDecoder(AudioSettings()),
            metrics=self.metrics,
            now_ms=lambda: T0_MS + 10**9,
            clock_ms=lambda: self.now_ms,
            progress=self.progress,
            router=Router(partitions),
        )
        self.partition = self.ingest.assign(0, STARTS)
        self.logs: dict[Modality, list[LogRecord]] = {m: [] for m in MODALITIES}
        self.read = dict.fromkeys(MODALITIES, 0)  # delivered
        self.polled_ms_ago: dict[Modality, int | None] = dict.fromkeys(MODALITIES, 0)
        self.unknown: set[Modality] = set()  # inputs whose end the broker has not named

    def progress(self, modality: Modality, number: int) -> InputProgress | None:
        read, end = self.read[modality], len(self.logs[modality])
        highwater = None if modality in self.unknown else end
        return InputProgress(read, highwater, self.polled_ms_ago[modality], read)

    def append(self, modality: Modality, value: bytes, second: float = 0, *, key: bytes | None = b"pump") -> None:
        log = self.logs[modality]
        log.append(LogRecord(TOPICS[modality], 0, len(log), T0_MS + int(second * 1000), key, value))

    def write(self, modality: Modality, *seconds: float, stream: str = "pump") -> None:
        for second in seconds:
            body = {"values": {"flow": 1.0}} if modality is SENSOR else {"text": "all quiet"}
            value = msgspec.json.encode({"time": T0_MS + int(second * 1000), **body})
            self.append(modality, value, second, key=stream.encode())

    def deliver(self, modality: Modality, count: int | None = None) -> asyncio.Task[None]:
        """Hand on what is unread, as a lane would."""
        start = self.read[modality]
        records = self.logs[modality][start:][:count]
        self.read[modality] += len(records)
        return asyncio.create_task(self.ingest.handle(modality, 0, records))

    async def feed(self, modality: Modality, *seconds: float, stream: str = "pump") -> None:
        self.write(modality, *seconds, stream=stream)
        await self.deliver(modality)

    async def wait(self, ms: int) -> None:
        for _ in range(0, ms, 250):
            self.now_ms += 250
            await self.ingest.tick(250)
            await _turns(2)

    def taken(self) -> list[Output]:
        """What is in the queue, which is emptied."""
        found = []
        while not self.queue.empty():
            found.append(self.queue.get_nowait()[1])
        return found

    def fired(self) -> list[tuple[float, dict[str, int]]]:
        """(start in seconds, events) of every window in the queue, which is emptied."""
        found = []
        for output in self.taken():
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


async def test_an_input_that_is_caught_up_and_quiet_is_waited_for_no_longer() -> None:
    i = Inputs(max_wait_ms=LONG_WAIT)
    await i.feed(CAPTION, 1)
    await i.feed(SENSOR, *range(40))
    await i.wait(5_000)
    await i.feed(SENSOR, *range(40, 45))  # the stream itself goes on
    await i.wait(4_750)
    assert i.fired() == []
    await i.wait(250)
    assert [start for start, _ in i.fired()] == [0, 10, 20, 30]


async def test_a_stream_of_which_nothing_comes_closes_its_windows() -> None:
    i = Inputs()
    await i.feed(SENSOR, *range(35))
    assert [start for start, _ in i.fired()] == [0, 10, 20]
    await i.wait(9_750)
    assert i.fired() == []
    await i.wait(250)
    assert i.fired() == [(30, {"sensor": 5})]


async def test_flink_40234_an_input_that_is_fetched_and_not_yet_worked_on_is_not_quiet() -> None:
    """Its records were polled, and wait for a slow operator: Flink takes the split for idle and drops them as late."""
    i = Inputs()
    i.write(SENSOR, *range(100))
    i.write(CAPTION, *range(100))
    i.loader.may.clear()  # the store is slow: what was read is in hand, and stuck
    captions = i.deliver(CAPTION)
    await _turns()
    sensors = i.deliver(SENSOR)
    await i.wait(120_000)
    assert i.fired() == []
    assert in_hand(i.ingest.partitions) > 0
    i.loader.may.set()
    await asyncio.gather(captions, sensors)
    await i.wait(20_000)
    assert [counts for _, counts in i.fired()] == [{"sensor": 10, "caption": 10}] * 10
    assert i.reasons == []


async def test_flink_40234_an_input_that_was_quiet_and_is_backlogged_now_is_not_quiet() -> None:
    """Five minutes of a store that is away: both inputs pile up, the one that had been quiet too."""
    i = Inputs(room=1)
    await i.feed(SENSOR, 0, 1)
    await i.wait(11_000)  # captions are quiet by now
    i.fired()
    await i.queue.put((i.partition, StreamIdle("another", 0, False)))  # the queue is full: nothing leaves it
    for second in range(10, 310, 10):
        i.write(SENSOR, *range(second, second + 10))
        i.write(CAPTION, second + 5)
        await i.wait(10_000)
    sensors = i.deliver(SENSOR)
    captions = i.deliver(CAPTION)
    found = []
    while not (sensors.done() and captions.done()):
        await _turns()
        found += i.fired()
    for _ in range(200):
        await i.wait(500)
        found += i.fired()
    assert i.reasons == []
    last = dict(found)
    assert [last[float(second)].get("caption") for second in range(10, 300, 10)] == [1] * 29


@pytest.mark.parametrize("polled_ms_ago", [3_000, None])
async def test_an_input_whose_broker_does_not_answer_is_not_quiet(polled_ms_ago: int | None) -> None:
    i = Inputs(max_wait_ms=LONG_WAIT)
    await i.feed(CAPTION, 1)
    await i.feed(SENSOR, *range(35))
    i.polled_ms_ago[CAPTION] = polled_ms_ago
    await i.wait(60_000)
    assert i.fired() == []


async def test_an_input_of_which_nothing_is_known_is_not_quiet() -> None:
    i = Inputs()
    i.unknown = {AUDIO, CAPTION}
    await i.feed(SENSOR, *range(40))
    await i.wait(75_000)
    assert i.fired() == []
    i.unknown = set()
    await i.wait(500)
    assert [start for start, _ in i.fired()] == [0, 10, 20]


NOT_DELIVERED = InputProgress(9, 9, 0, 5)  # the log ends in control records, which are never delivered


@pytest.mark.parametrize(
    ("read", "at", "first", "later"),
    [
        (0, InputProgress(0, 0, 0, 0), True, True),
        (5, InputProgress(5, 5, 0, 5), True, True),
        (4, InputProgress(5, 5, 0, 5), False, False),  # delivered, and not taken in
        (5, InputProgress(5, 9, 0, 5), False, False),  # backlogged
        # a position may be ahead of records that are on their way to us: one look says nothing
        (5, NOT_DELIVERED, False, True),
        (0, NOT_DELIVERED, False, False),
        (0, InputProgress(9, 9, 0), False, True),
        (5, InputProgress(5, None, 0, 5), False, False),
        (5, InputProgress(5, 5, None, 5), False, False),
        (5, InputProgress(5, 5, 2_999, 5), True, True),
        (5, InputProgress(5, 5, 3_000, 5), False, False),
        (5, None, False, False),
    ],
)
async def test_caught_up_is_what_the_broker_says_and_we_have_done(
    read: int, at: InputProgress | None, first: bool, later: bool
) -> None:
    """`first`: at the first look, `later`: when a few have found the same."""
    i = Inputs()
    i.partition.read[2] = read
    look(i.partition, 2, at)
    assert caught_up(i.partition, 2, at) is first
    for _ in range(5):
        look(i.partition, 2, at)
    assert caught_up(i.partition, 2, at) is later


async def test_a_look_that_finds_records_to_be_read_begins_the_count_anew() -> None:
    i = Inputs()
    i.partition.read[2] = 5
    for _ in range(3):
        look(i.partition, 2, NOT_DELIVERED)
    look(i.partition, 2, InputProgress(9, 12, 0, 5))
    for _ in range(3):
        look(i.partition, 2, NOT_DELIVERED)
    assert not caught_up(i.partition, 2, NOT_DELIVERED)


async def test_looks_say_nothing_of_what_was_written_since() -> None:
    i = Inputs()
    i.partition.read[2] = 5
    for _ in range(5):
        look(i.partition, 2, InputProgress(5, 5, 0, 5))
    assert not caught_up(i.partition, 2, InputProgress(5, 9, 0, 5))


async def test_an_input_with_a_batch_in_hand_is_not_caught_up() -> None:
    i = Inputs()
    i.partition.read[2] = 9
    assert caught_up(i.partition, 2, InputProgress(9, 9, 0, 9))
    i.partition.in_hand[2] = 1
    assert not caught_up(i.partition, 2, InputProgress(9, 9, 0, 9))


async def test_the_idle_clocks_stand_still_under_pressure() -> None:
    i = Inputs(room=1)
    i.write(SENSOR, *range(100))
    work = i.deliver(SENSOR)  # fires more windows than there is room for
    await _turns()
    await i.wait(60_000)
    assert (i.partition.idle_clock_ms, i.partition.input_clocks_ms) == (0, [0, 0, 0])
    while not work.done():
        i.taken()
        await _turns()
    i.taken()
    await i.wait(1_000)
    assert (i.partition.idle_clock_ms, i.partition.input_clocks_ms) == (1_000, [1_000, 1_000, 1_000])


async def test_the_clock_of_a_quiet_input_moves_while_another_is_backlogged() -> None:
    i = Inputs()
    i.write(SENSOR, 1)  # not read yet
    await i.wait(1_000)
    assert i.partition.input_clocks_ms == [0, 1_000, 1_000]
    assert i.partition.idle_clock_ms == 0


# -- the order of production ----------------------------------------------------------------------------------------


async def test_a_batch_of_readings_waits_for_the_sounds_and_captions_of_its_time() -> None:
    """Topics are fetched independently: hours of readings come before the first caption of that time."""
    i = Inputs()
    i.write(SENSOR, *range(0, 3_600, 5))
    i.write(CAPTION, *range(2, 3_600, 5))
    await i.deliver(SENSOR)
    assert i.fired() == []
    await i.deliver(CAPTION)
    assert [counts for _, counts in i.fired()] == [{"sensor": 2, "caption": 2}] * 359
    assert i.reasons == []


async def test_a_confirmation_from_before_the_records_arrived_confirms_nothing() -> None:
    i = Inputs()
    i.now_ms = 10_000
    i.polled_ms_ago[CAPTION] = 2_000  # what was produced with the readings may not have been seen
    await i.feed(SENSOR, *range(35))
    assert i.fired() == []
    i.now_ms += 500  # the broker answers again; a tick notices
    i.polled_ms_ago[CAPTION] = 0
    await i.ingest.tick(250)
    await _turns()
    assert [start for start, _ in i.fired()] == [0, 10, 20]


async def test_an_input_that_runs_ahead_of_the_others_is_full_until_they_were_read() -> None:
    i = Inputs()
    i.partition.merge = InputMerge((100, 100, 100))
    i.write(CAPTION, *range(200))
    await i.feed(SENSOR, *range(150))
    assert [modality for (modality, _), full in i.ingest.full().items() if full] == [SENSOR]
    await i.deliver(CAPTION)
    assert not any(i.ingest.full().values())


async def test_an_error_in_work_that_a_tick_started_is_raised_by_the_next_one() -> None:
    i = Inputs()
    i.unknown = {CAPTION}
    await i.feed(SENSOR, *range(10))
    i.loader.error = RuntimeError("the store is broken")
    i.unknown = set()
    await i.ingest.tick(250)
    assert i.ingest.busy
    await _turns()
    assert not i.ingest.busy
    with pytest.raises(RuntimeError, match="the store is broken"):
        await i.ingest.tick(250)


# -- pressure -----------------------------------------------------------------------------------------------------


async def test_a_tick_never_waits_for_a_full_queue_and_loses_nothing() -> None:
    i = Inputs(room=2)
    for n in range(20):
        i.write(SENSOR, 1, stream=f"pump-{n}")
    await i.deliver(SENSOR)
    async with asyncio.timeout(60):
        await i.wait(11_000)
    assert i.queue.full()
    starts = []
    for _ in range(40):
        starts += i.fired()
        await i.wait(250)
    assert starts == [(0.0, {"sensor": 1})] * 20


async def test_a_full_queue_holds_the_partition_back() -> None:
    i = Inputs(room=1)
    i.write(SENSOR, *range(0, 100))
    work = i.deliver(SENSOR)
    await _turns()
    assert not work.done()
    assert i.partition.lock.locked()
    found = []
    while not work.done():
        found += i.fired()
        await _turns()
    assert [start for start, _ in found + i.fired()] == [0, 10, 20, 30, 40, 50, 60, 70, 80]


# -- revocation ---------------------------------------------------------------------------------------------------


async def test_records_of_a_partition_that_is_not_ours_are_not_looked_at() -> None:
    i = Inputs()
    i.ingest.revoke(0)
    await i.feed(SENSOR, 1)
    assert i.ingest.partitions == {}
    assert i.ledger.pending(READINGS) == 0


async def test_what_is_in_hand_when_a_partition_is_revoked_is_dropped() -> None:
    i = Inputs()
    i.loader.may.clear()
    i.write(SENSOR, *range(40))
    work = i.deliver(SENSOR)
    await _turns()
    i.ingest.revoke(0)
    again = i.ingest.assign(0, STARTS)
    i.loader.may.set()
    await work
    assert (i.partition.revoked, again.revoked) == (True, False)
    assert i.fired() == []
    assert again.read == [0, 0, 0]
    assert i.ledger.pending(READINGS) == 0


async def test_a_partition_that_comes_back_has_a_new_epoch() -> None:
    i = Inputs()
    first = i.partition.epoch
    i.ingest.revoke(0)
    assert i.ingest.assign(0, STARTS).epoch == first + 1


async def test_nothing_of_a_revoked_partition_is_set_aside() -> None:
    i = Inputs()
    for _ in range(100):
        i.append(SENSOR, b"not json")

    async def revoke(topic: str) -> None:
        i.ingest.revoke(0)

    i.outputs.before = revoke
    await i.deliver(SENSOR)
    assert len(i.outputs.sent) <= 32


async def test_records_that_are_gone_need_not_be_waited_for() -> None:
    """Committed at 30, and the log begins at 43: without a record to read, the commit would stay behind for ever."""
    i = Inputs()
    i.ingest.revoke(0)
    i.ingest.assign(0, (Start(43, 30), Start(7, 7), Start(0, None)))
    committable = [i.ledger.committable((TOPICS[modality], 0)) for modality in MODALITIES]
    assert committable == [43, None, None]


# -- set aside ------------------------------------------------------------------------------------------------------


async def test_dead_letters_are_released_when_they_are_acknowledged() -> None:
    i = Inputs()
    i.write(SENSOR, 1)
    i.append(SENSOR, b"not json")
    i.append(SENSOR, b"{}", key=None)
    acknowledged = asyncio.Event()

    async def wait(topic: str) -> None:
        await acknowledged.wait()

    i.outputs.before = wait
    work = i.deliver(SENSOR)
    await _turns()
    assert i.ledger.pending(READINGS) == 3
    acknowledged.set()
    await work
    i.ledger.release(READINGS, i.partition.epoch, [0])
    assert i.ledger.committable(READINGS) == 3
    assert [sent.topic for sent in i.outputs.sent] == ["dead-letters"] * 2


async def test_a_record_of_many_readings_is_late_by_parts() -> None:
    i = Inputs()
    await i.feed(SENSOR, 0, 50, 100)
    readings = [{"time": T0_MS + t * 1000, "values": {"flow": 2.0}} for t in (1, 2, 99)]
    i.append(SENSOR, msgspec.json.encode(readings))
    await i.deliver(SENSOR)
    assert i.reasons == ["late"]
    assert dict(i.outputs.sent[0].headers)["sensorium-events"] == b"2"
    i.ledger.release(READINGS, i.partition.epoch, [0, 1, 2])
    assert i.ledger.committable(READINGS) == 3
    i.ledger.release(READINGS, i.partition.epoch, [3])
    assert i.ledger.committable(READINGS) == 4


async def test_a_stream_is_looked_up_once_however_many_records_wait_for_it() -> None:
    i = Inputs()
    await i.feed(SENSOR, *range(100))
    assert i.loader.asked == ["pump"]


# -- records of another partition -----------------------------------------------------------------------------------


def _of_partition(number: int, partitions: int) -> str:
    return next(name for n in range(1_000) if partition_of((name := f"pump-{n}").encode(), partitions) == number)


async def test_a_record_of_another_partition_is_released_when_it_is_acknowledged_there() -> None:
    i = Inputs(partitions=2)
    here, there = _of_partition(0, 2), _of_partition(1, 2)
    i.write(SENSOR, 0, stream=there)
    i.write(SENSOR, *range(1, 35), stream=here)
    acknowledged = asyncio.Event()

    async def wait(topic: str) -> None:
        await acknowledged.wait()

    i.outputs.before = wait
    work = i.deliver(SENSOR)
    await _turns()
    assert i.ledger.committable(READINGS) is None
    acknowledged.set()
    await work
    assert i.ledger.committable(READINGS) == 1
    assert [(sent.topic, sent.key) for sent in i.outputs.sent] == [(TOPICS[SENSOR], there.encode())]
    assert {output.stream for output in i.taken() if isinstance(output, Fired)} == {here}


async def test_a_record_too_large_to_be_moved_is_a_dead_letter_and_holds_no_commit() -> None:
    """With the header that says where it came from it is larger than the broker takes."""
    i = Inputs(partitions=2)

    async def refuse(topic: str) -> None:
        if topic == TOPICS[SENSOR]:
            raise RecordTooLarge("1048600 bytes, and the broker takes 1048588")

    i.outputs.before = refuse
    await i.feed(SENSOR, 0, stream=_of_partition(1, 2))
    assert i.reasons == ["too_large"]
    assert i.ledger.committable(READINGS) == 1


async def test_a_record_without_a_key_is_a_dead_letter_in_any_partition() -> None:
    i = Inputs(partitions=2)
    i.append(SENSOR, b"{}", key=None)
    await i.deliver(SENSOR)
    assert [sent.topic for sent in i.outputs.sent] == ["dead-letters"]


# -- limits -------------------------------------------------------------------------------------------------------


async def test_streams_beyond_the_limit_are_refused_named_and_released() -> None:
    i = Inputs(max_streams=2)
    for n in range(4):
        i.write(SENSOR, 1, stream=f"pump-{n}")
    await i.deliver(SENSOR)
    assert i.reasons == ["too_many_streams"] * 2
    i.ledger.release(READINGS, i.partition.epoch, [0, 1])
    assert i.ledger.committable(READINGS) == 4


async def test_the_limit_on_streams_is_that_of_the_worker_and_a_revoked_partition_makes_room() -> None:
    i = Inputs(max_streams=2)
    other = i.ingest.assign(1, STARTS)
    await i.feed(SENSOR, 1, stream="pump-0")
    await i.feed(SENSOR, 1, stream="pump-1")
    record = i.logs[SENSOR][0]
    await i.ingest.handle(SENSOR, 1, [LogRecord(record.topic, 1, 0, record.timestamp, b"fan", record.value)])
    assert i.reasons == ["too_many_streams"]
    i.ingest.revoke(0)
    await i.ingest.handle(SENSOR, 1, [LogRecord(record.topic, 1, 1, record.timestamp, b"fan", record.value)])
    assert i.reasons == ["too_many_streams"]
    assert other.operator.streams == 1


async def test_a_window_takes_so_many_events_and_what_exceeds_them_is_set_aside() -> None:
    i = Inputs(max_pane_events=10)
    i.write(SENSOR, *[n / 100 for n in range(15)])
    await i.deliver(SENSOR)
    assert i.reasons == ["too_many_events"] * 5
    await i.wait(10_000)
    assert i.fired() == [(0.0, {"sensor": 10})]


def test_the_operators_numbers_are_those_of_the_settings() -> None:
    settings = WindowSettings(
        size_ms=4_000, hop_ms=2_000, max_jump_ms=7_000, max_stream_lag_ms=80_000, modality_memory_ms=90_000
    )
    config = window_config(settings)
    assert (config.size_ms, config.hop_ms, config.disorder_ms) == (4_000, 2_000, (2_000, 2_000, 2_000))
    assert (config.max_jump_ms, config.max_stream_lag_ms, config.modality_memory_ms) == (7_000, 80_000, 90_000)
    assert config.allowed_lateness_ms == settings.allowed_lateness_ms
    assert config.idle_timeout_ms == settings.idle_timeout_ms
    assert config.max_pane_events == settings.max_pane_events
