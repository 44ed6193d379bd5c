"""Records that are gone, topics made anew, and records in the wrong partition, on any log that a harness runs on.

Nothing stored is replaced by a part of itself, and every event is accounted for.
"""

from __future__ import annotations

from typing import Protocol

import pytest

from streams.store.base import Filter
from streams.testing import Harness, LogRecord
from tests.unit.pipeline.isolation import CAPTIONS, SENSORS, T0_MS, at_end, caption, reading


class MakeHarness(Protocol):
    """A new harness, on the kind of log that the suite runs on."""

    def __call__(self, now_ms: int = T0_MS, partitions: int = 1) -> Harness: ...


async def readings(h: Harness, start_s: int, value: float = 50.0, *, count: int = 30) -> None:
    """One a second."""
    for second in range(start_s, start_s + count):
        time_ms = T0_MS + second * 1000
        await h.push(SENSORS, "pump", reading(time_ms, flow=value + second % 3), timestamp_ms=time_ms, settle=False)
    await h.settle()


async def stored(h: Harness, stream: str = "pump") -> dict[int, tuple[int, int, str]]:
    """By start in seconds: readings, revision and content of every stored window."""
    points = [point.payload async for point in h.store.scroll(Filter(stream=stream))]
    return {(p["start"] - T0_MS) // 1000: (p["events"].get("sensor", 0), p["revision"], p["hash"]) for p in points}


async def elsewhere(h: Harness, stream: str, partitions: int) -> int:
    """A partition in which records of this stream have no business."""
    record = await h.push(CAPTIONS, stream, caption(T0_MS, "all quiet"))
    return (record.partition + 1) % partitions


def rerouted(h: Harness, topic: str, number: int) -> list[LogRecord]:
    """What the service re-produced into a partition of an input."""
    return [record for record in h.records(topic, number) if "sensorium-rerouted" in dict(record.headers)]


async def misrouted(h: Harness, number: int, *seconds: int, settle: bool = True) -> None:
    for second in seconds:
        value = reading(T0_MS + second * 1000, flow=50.0 + second % 3)
        await h.push(SENSORS, "pump", value, partition=number, settle=settle)


class LostAndMisroutedSuite:
    """To be inherited, with a fixture `harness`."""

    # -- F3, F15: records between the committed offset and what is read first are gone --------------------------------

    @pytest.mark.parametrize("first_left", [43, 47, 55, 60])
    async def test_f3_no_stored_window_becomes_a_part_of_itself(self, harness: MakeHarness, first_left: int) -> None:
        async with harness(T0_MS + 10**7) as h:
            await readings(h, 0)
            await h.advance(60_000)
            assert h.commit()[SENSORS, 0] == 30
            await readings(h, 100)
            await h.advance(12_000)
            assert h.commit()[SENSORS, 0] == 30, "stored, and not yet final"
            before = await stored(h)
            assert {start: n for start, (n, _, _) in before.items()} == dict.fromkeys([0, 10, 20, 100, 110, 120], 10)
            h.delete_records(SENSORS, 0, first_left)
            await h.crash()
            await h.settle()
            await h.advance(60_000)
            assert await stored(h) == before
            assert at_end(h) or first_left == 60, "what was read is committed"

    async def test_f3_new_events_do_not_replace_a_window_whose_records_are_gone(self, harness: MakeHarness) -> None:
        async with harness(T0_MS + 10**7) as h:
            await readings(h, 0)
            await h.advance(12_000)
            before = await stored(h)
            h.delete_records(SENSORS, 0, 25)
            await h.crash()
            await readings(h, 24, 70.0, count=3)  # other values at times that were published already
            await h.advance(60_000)
            after = await stored(h)
            assert {start: n >= before[start][0] for start, (n, _, _) in after.items()} == dict.fromkeys(before, True)
            added = sum(n for n, _, _ in after.values()) - 30
            assert added + len(h.late()) + len(h.dead()) == 3
            assert at_end(h)

    # -- F4: a topic deleted and made anew ----------------------------------------------------------------------------

    async def test_f4_records_of_a_topic_made_anew_are_not_taken_for_the_old_ones(self, harness: MakeHarness) -> None:
        async with harness(T0_MS + 10**7) as h:
            for start_s in (0, 100):
                await readings(h, start_s)
                await h.advance(60_000)
            assert h.commit()[SENSORS, 0] == 60
            before = await stored(h)
            h.recreate_topic(SENSORS)
            await h.crash()
            assert h.ends()[SENSORS, 0] == 0
            await readings(h, 0, 999.0)
            await h.advance(60_000)
            assert h.commit()[SENSORS, 0] == 30
            assert await stored(h) == before, "their windows are final"
            assert (len(h.late()), len(h.dead())) == (30, 0)

    async def test_f4_windows_that_are_not_final_are_not_replaced_by_a_new_topic(self, harness: MakeHarness) -> None:
        async with harness(T0_MS + 10**7) as h:
            await readings(h, 0)
            await h.advance(12_000)
            before = await stored(h)
            h.recreate_topic(SENSORS)
            await h.crash()
            await readings(h, 20, 999.0, count=5)
            await h.advance(60_000)
            after = await stored(h)
            assert {start: n >= before[start][0] for start, (n, _, _) in after.items()} == dict.fromkeys(before, True)
            added = sum(n for n, _, _ in after.values()) - 30
            assert added + len(h.late()) + len(h.dead()) == 5
            assert at_end(h)

    async def test_f4_a_topic_made_anew_goes_on_with_new_windows(self, harness: MakeHarness) -> None:
        async with harness(T0_MS + 10**7) as h:
            await readings(h, 0)
            await h.advance(60_000)
            h.commit()
            h.recreate_topic(SENSORS)
            await h.crash()
            await readings(h, 200)
            await h.advance(60_000)
            assert [n for n, _, _ in (await stored(h)).values()] == [10] * 6
            assert h.late() == []
            assert at_end(h)

    # -- records in the wrong partition -------------------------------------------------------------------------------

    async def test_a_stream_in_two_partitions_is_processed_in_one(self, harness: MakeHarness) -> None:
        async with harness(partitions=3) as h:
            wrong = await elsewhere(h, "pump", 3)
            for second in range(60):
                await misrouted(h, wrong, second)
                if second % 10 == 3:
                    await h.push(CAPTIONS, "pump", caption(T0_MS + second * 1000, "all quiet"))
                await h.advance(1_000)
            await h.advance(60_000)
            windows = [((w.start_ms - T0_MS) // 1000, w.events) for w in h.windows()]
            first = (0, {"sensor": 10, "caption": 2})
            assert windows == [first, *((start, {"sensor": 10, "caption": 1}) for start in range(10, 60, 10))]
            assert (h.late(), h.dead()) == ([], [])
            assert len(rerouted(h, SENSORS, (wrong - 1) % 3)) == 60
            assert at_end(h)

    async def test_a_record_is_rerouted_whole_and_keeps_its_time(self, harness: MakeHarness) -> None:
        async with harness(partitions=3) as h:
            wrong = await elsewhere(h, "pump", 3)
            await h.push(
                CAPTIONS,
                "pump",
                b"valve open",  # no time in it: that of the record
                headers={"source": b"operator"},
                timestamp_ms=T0_MS + 35_000,
                partition=wrong,
            )
            await h.advance(60_000)
            (record,) = rerouted(h, CAPTIONS, (wrong - 1) % 3)
            assert (record.key, record.value) == (b"pump", b"valve open")
            assert dict(record.headers)["source"] == b"operator"
            assert {(w.start_ms - T0_MS) // 1000: w.events for w in h.windows()} == {
                0: {"caption": 1},
                30: {"caption": 1},
            }

    async def test_a_record_rerouted_twice_is_one_event(self, harness: MakeHarness) -> None:
        async with harness(partitions=3) as h:
            wrong = await elsewhere(h, "pump", 3)
            await misrouted(h, wrong, *range(10), settle=False)
            await h.settle()
            await h.crash()  # nothing was committed: the misrouted records are read and re-produced again
            await h.settle()
            await h.advance(60_000)
            assert [w.events for w in h.windows()] == [{"sensor": 10, "caption": 1}]
            assert (h.late(), h.dead()) == ([], [])
            assert at_end(h)

    async def test_a_record_is_rerouted_once_and_no_more(self, harness: MakeHarness) -> None:
        """A header from outside, or a second addition of partitions, must not send records round for ever."""
        async with harness(partitions=3) as h:
            wrong = await elsewhere(h, "pump", 3)
            value = reading(T0_MS + 1_000, flow=1.0)
            headers = {"sensorium-rerouted": b"1"}
            await h.push(SENSORS, "pump", value, headers=headers, partition=wrong)
            await h.advance(60_000)
            assert sum(h.ends()[SENSORS, number] for number in range(3)) <= 2
            held = sum(w.events.get("sensor", 0) for w in h.windows())
            assert held + len(h.dead()) == 1
            assert at_end(h)
