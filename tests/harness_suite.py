"""What the test harness promises, as one suite for logs in memory and for a real Kafka.

It is used as its users would use it: a clock of one's own, and crashes at will.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

from streams.settings import PerModality, Settings, WindowSettings
from streams.store.base import VectorStore
from streams.testing import Harness
from tests.memory_store import MemoryStore
from tests.standin import StandInModel

SENSORS, CLIPS, CAPTIONS = "sensor-readings", "audio-clips", "captions"
T0_MS = 1_700_000_000_000


class MakeHarness(Protocol):
    """A new harness, on the kind of log that the suite runs on."""

    def __call__(
        self, *, window: WindowSettings | None = None, store: VectorStore | None = None, **options: Any
    ) -> Harness: ...


def harness_maker(folder: Path, real: str | None = None) -> MakeHarness:
    """`real`: bootstrap servers; None: logs in memory."""

    def make(*, window: WindowSettings | None = None, store: VectorStore | None = None, **options: Any) -> Harness:
        return Harness(
            folder,
            model=StandInModel(),
            settings=Settings(state=folder, window=window or WindowSettings()),
            store=MemoryStore() if store is None else store,
            real=real,
            **options,
        )

    return make


def flow(second: float, value: float = 3.0) -> dict[str, Any]:
    return {"time": T0_MS + int(second * 1000), "values": {"flow": value}}


def text(second: float, words: str) -> dict[str, Any]:
    return {"time": T0_MS + int(second * 1000), "text": words}


def records_read(h: Harness, topic: str) -> float | None:
    return h.metrics.registry.get_sample_value("sensorium_records_total", {"topic": h.settings.topic(topic)})


class HarnessSuite:
    """To be inherited, with a fixture `harness`."""

    crash_points: Sequence[int] = range(0, 70, 2)  # writes after which the test of incidents dies

    async def test_push_works_records_off_and_advance_lets_quiet_pass(self, harness: MakeHarness) -> None:
        async with harness() as h:
            await h.push(SENSORS, "pump-1", flow(1))
            assert h.windows() == []
            await h.advance(60_000)
            (window,) = h.windows()
            assert (window.stream, window.start_ms, window.events) == ("pump-1", T0_MS, {"sensor": 1})

    async def test_what_is_pushed_without_settling_is_read_when_one_settles(self, harness: MakeHarness) -> None:
        async with harness() as h:
            record = await h.push(SENSORS, "pump-1", flow(1), settle=False)
            assert (record.topic, record.partition, record.offset) == (h.settings.topic(SENSORS), 0, 0)
            assert (
                h.metrics.registry.get_sample_value("sensorium_records_total", {"topic": h.settings.topic(SENSORS)})
                is None
            )
            await h.settle()
            assert (
                h.metrics.registry.get_sample_value("sensorium_records_total", {"topic": h.settings.topic(SENSORS)})
                == 1
            )

    async def test_values_are_bytes_or_json_and_headers_and_timestamps_count(self, harness: MakeHarness) -> None:
        async with harness() as h:
            await h.push(CAPTIONS, b"pump-1", b"all quiet", headers={"time": str(T0_MS).encode()})
            await h.push(CAPTIONS, "pump-1", b"odd noise", timestamp_ms=T0_MS + 1)
            await h.advance(60_000)
            assert h.windows()[0].events == {"caption": 2}

    async def test_all_modalities_of_a_stream_meet_in_one_window(self, harness: MakeHarness) -> None:
        async with harness(partitions=4) as h:
            for name in ("pump-1", "fan-2", "mill-3"):
                await h.push(SENSORS, name, flow(1))
                await h.push(CAPTIONS, name, text(2, "all quiet"))
            await h.advance(60_000)
            assert [w.modalities for w in h.windows()] == [["sensor", "caption"]] * 3

    async def test_late_and_dead_records_are_found_with_their_reasons(self, harness: MakeHarness) -> None:
        async with harness() as h:
            await h.push(SENSORS, "pump-1", b"not json")
            await h.push(SENSORS, None, flow(1))
            await h.push(SENSORS, "pump-1", flow(1))
            await h.push(SENSORS, "pump-1", flow(100))
            await h.push(SENSORS, "pump-1", flow(101))  # one reading from the future would move nothing
            await h.advance(11_000)
            await h.push(SENSORS, "pump-1", flow(2))
            reasons = [dict(sent.headers)["sensorium-reason"].decode() for sent in (*h.dead(), *h.late())]
            assert reasons == ["not_json", "no_key", "late"]
            detail = dict(h.late()[0].headers)["sensorium-detail"].decode()
            assert detail == "its window was final; the watermark was 89000 ms past its end"

    async def test_one_bad_clock_moves_no_window(self, harness: MakeHarness) -> None:
        async with harness(now_ms=T0_MS) as h:
            await h.push(SENSORS, "pump-1", flow(1))
            await h.push(SENSORS, "pump-1", flow(301))  # five minutes and a second ahead
            assert [dict(sent.headers)["sensorium-reason"] for sent in h.dead()] == [b"clock_ahead"]
            assert h.windows() == []

    async def test_offsets_are_committed_once_their_windows_are_final(self, harness: MakeHarness) -> None:
        async with harness() as h:
            await h.push(SENSORS, "pump-1", flow(1))
            await h.advance(11_000)
            assert h.windows()
            assert h.commit() == {}
            await h.advance(40_000)
            assert h.commit() == {(SENSORS, 0): 1}
            assert h.ends() == {(SENSORS, 0): 1, (CLIPS, 0): 0, (CAPTIONS, 0): 0}

    async def test_a_crash_forgets_all_but_store_topics_and_committed_offsets(self, harness: MakeHarness) -> None:
        async with harness() as h:
            await h.push(SENSORS, "pump-1", flow(1))
            await h.crash()
            assert h.windows() == []
            await h.settle()
            await h.advance(60_000)
            assert [w.events for w in h.windows()] == [{"sensor": 1}]
            assert len(h.sent("windows")) == 1

    @pytest.mark.parametrize("writes", range(8))
    async def test_a_crash_between_any_two_writes_doubles_nothing(self, harness: MakeHarness, writes: int) -> None:
        async with harness() as h:
            for second in range(60):
                await h.push(SENSORS, "pump-1", flow(second), settle=False)
            await h.advance(20_000)  # sounds and captions are known to be quiet
            await h.crash(after=writes)
            await h.settle()
            await h.advance(60_000)
            assert [w.events["sensor"] for w in h.windows()] == [10] * 6
            assert {w.revision for w in h.windows()} == {0}
            assert await h.store.count() == 6
            assert h.commit() == {(SENSORS, 0): 60}

    async def test_a_crash_after_more_writes_than_there_are_comes_when_all_is_done(self, harness: MakeHarness) -> None:
        async with harness() as h:
            await h.push(SENSORS, "pump-1", flow(1), settle=False)
            await h.crash(after=1_000)
            await h.advance(60_000)
            assert h.windows() == []  # read before the crash, and not again before somebody settles

    async def test_a_rebalance_gives_partitions_away_and_takes_them_back(self, harness: MakeHarness) -> None:
        async with harness(partitions=2) as h:
            for number in range(8):
                await h.push(SENSORS, f"pump-{number}", flow(1))
            here = {n for n in range(2) if h.ends()[SENSORS, n]}
            assert here == {0, 1}
            await h.rebalance([1])
            await h.settle()
            await h.advance(60_000)
            assert len(h.windows()) == h.ends()[SENSORS, 1]
            await h.rebalance()
            await h.settle()
            await h.advance(60_000)
            assert len(h.windows()) == 8

    async def test_incidents_are_reported_once_however_often_they_were_sent(self, harness: MakeHarness) -> None:
        async with harness() as h:
            for second in range(600):
                value = 90.0 if 400 <= second < 430 else 3.0 + second % 7 / 10
                await h.push(SENSORS, "pump-1", flow(second, value), settle=False)
            await h.advance(20_000)
            for writes in (100, 20, 5):
                await h.crash(after=writes)
            await h.settle()
            await h.advance(60_000)
            assert [(step.kind, step.stream, step.sequence) for step in h.incidents()] == [
                ("opened", "pump-1", 0),
                ("closed", "pump-1", 1),
            ]
            opened = h.incidents()[0]
            assert "flow" in opened.text
            assert [w.incident for w in h.windows() if w.start_ms == opened.time_ms - 10_000] == [opened.id]

    async def test_no_incident_is_lost_between_store_and_topic(self, harness: MakeHarness) -> None:
        """Died after storing the window that opens it; then a repeat and a late event join that very window."""
        between = 0
        for writes in self.crash_points:
            async with harness() as h:
                for second in range(430):
                    value = 90.0 if second >= 400 else 3.0 + second % 7 / 10
                    await h.push(SENSORS, "pump-1", flow(second, value), settle=False)
                await h.advance(20_000)
                await h.crash(after=writes)
                between += await h.store.count() > 40 and not h.incidents()
                await h.push(SENSORS, "pump-1", flow(405, 90.0), settle=False)
                await h.push(SENSORS, "pump-1", flow(405.5, 90.0), settle=False)
                await h.settle()
                await h.advance(100_000)
                assert [step.kind for step in h.incidents()] == ["opened"]
        assert between, "no crash came where this test wants it"

    async def test_silent_streams_are_published_as_events(self, harness: MakeHarness) -> None:
        async with harness() as h:
            await h.push(SENSORS, "pump-1", flow(1))
            await h.push(SENSORS, "pump-1", flow(2))
            await h.advance(11_000)
            await h.push(SENSORS, "pump-1", flow(15))
            kinds = [msgspec.json.decode(sent.value or b"")["type"] for sent in h.sent("incidents")]
            assert kinds == ["sensorium.stream.silent", "sensorium.stream.resumed"]

    async def test_an_input_that_runs_ahead_waits_for_the_others(self, harness: MakeHarness) -> None:
        async with harness(batch_records=5) as h:
            for second in range(300):
                await h.push(SENSORS, "pump-1", flow(second), settle=False)
            for second in range(0, 300, 5):
                await h.push(CAPTIONS, "pump-1", text(second, "all quiet"), settle=False)
            await h.settle()
            await h.advance(60_000)
            assert [w.events for w in h.windows()] == [{"sensor": 10, "caption": 2}] * 30
            assert {w.revision for w in h.windows()} == {0}

    @pytest.mark.parametrize("batch_records", [1, 50, 500])
    async def test_streams_years_apart_neither_wait_for_each_other_for_ever_nor_lose_anything(
        self, harness: MakeHarness, batch_records: int
    ) -> None:
        async with harness(batch_records=batch_records) as h:
            for years in (-10, 0, -5):
                for second in range(60):
                    at = years * 31_536_000 + second
                    await h.push(SENSORS, f"pump{years}", flow(at), settle=False)
                    if second % 10 == 5:
                        await h.push(CAPTIONS, f"pump{years}", text(at, "all quiet"), settle=False)
                await h.settle()
            await h.advance(60_000)
            assert [(w.stream, w.events) for w in h.windows()] == [
                (f"pump{years}", {"sensor": 10, "caption": 1}) for years in (-10, -5, 0) for _ in range(6)
            ]
            assert h.late() == []
            assert h.commit() == {(SENSORS, 0): 180, (CAPTIONS, 0): 18}

    async def test_windows_and_bounds_are_those_of_the_settings(self, harness: MakeHarness) -> None:
        window = WindowSettings(size_ms=4_000, hop_ms=2_000, disorder_ms=PerModality(sensor=0, audio=0, caption=0))
        async with harness(window=window) as h:
            await h.push(SENSORS, "pump-1", flow(3))
            await h.advance(60_000)
            assert [(w.start_ms - T0_MS, w.end_ms - T0_MS, w.events) for w in h.windows()] == [
                (0, 4_000, {}),
                (2_000, 6_000, {"sensor": 1}),
            ]

    async def test_an_error_in_the_service_is_an_error_in_the_test_and_no_hang(self, harness: MakeHarness) -> None:
        class Broken(MemoryStore):
            async def upsert(self, points: Any) -> None:
                raise OSError("disk on fire")

        async def use() -> None:
            async with harness(store=Broken()) as h:
                await h.push(SENSORS, "pump-1", flow(1))
                await h.advance(60_000)

        with pytest.raises(ExceptionGroup) as caught:
            await use()
        assert "disk on fire" in repr(caught.value)

    async def test_the_outputs_are_what_a_consumer_would_read(self, harness: MakeHarness) -> None:
        async with harness() as h:
            await h.push(SENSORS, "pump-1", flow(1))
            await h.advance(60_000)
            (sent,) = h.sent("windows")
            assert sent.key == b"pump-1"
            window = json.loads(sent.value or b"")
            assert {"id", "stream", "start_ms", "end_ms", "revision", "modalities", "status"} <= set(window)
