"""One lane per input of a partition: order within it, no waiting for another, errors that are passed on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from streams.events.types import Modality
from streams.serving.lanes import Lanes

SENSOR, AUDIO, CAPTION = Modality


class Handler:
    """Notes what it was given. Inputs that are blocked wait; others take a few turns of the loop."""

    def __init__(self) -> None:
        self.begun: list[tuple[Modality, int, int]] = []
        self.done: list[tuple[Modality, int, int]] = []
        self.blocked: dict[tuple[Modality, int], asyncio.Event] = {}
        self.failures: list[BaseException] = []
        self.lanes = Lanes(self.handle, self.failures.append)

    async def handle(self, modality: Modality, number: int, records: Sequence[Any]) -> None:
        self.begun += [(modality, number, record) for record in records]
        if (modality, number) in self.blocked:
            await self.blocked[modality, number].wait()
        for _ in range(records[0] % 3):
            await asyncio.sleep(0)
        if -1 in records:
            raise RuntimeError("a record that breaks the handler")
        self.done += [(modality, number, record) for record in records]

    def block(self, modality: Modality, number: int) -> asyncio.Event:
        event = self.blocked[modality, number] = asyncio.Event()
        return event

    def of(self, modality: Modality, number: int) -> list[int]:
        return [record for m, n, record in self.done if (m, n) == (modality, number)]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0)


@pytest.fixture
def handler() -> Handler:
    return Handler()


async def test_batches_of_an_input_are_handled_in_order_and_one_at_a_time(handler: Handler) -> None:
    for record in range(50):
        handler.lanes.put(SENSOR, 0, [record])
    await handler.until(lambda: not handler.lanes.busy)
    assert handler.of(SENSOR, 0) == list(range(50))
    # where one begins the one before it has ended
    assert handler.begun == handler.done
    await handler.lanes.close()


@pytest.mark.parametrize("slow", [(AUDIO, 0), (SENSOR, 1)])
async def test_a_slow_input_holds_no_other_back(handler: Handler, slow: tuple[Modality, int]) -> None:
    go_on = handler.block(*slow)
    for record in range(20):
        handler.lanes.put(*slow, [record])
        handler.lanes.put(SENSOR, 0, [record])
    await handler.until(lambda: len(handler.of(SENSOR, 0)) == 20)
    assert handler.of(*slow) == []
    assert handler.lanes.busy
    go_on.set()
    await handler.until(lambda: not handler.lanes.busy)
    assert handler.of(*slow) == list(range(20))
    await handler.lanes.close()


async def test_put_never_waits_and_a_lane_with_much_in_it_says_that_it_is_full(handler: Handler) -> None:
    handler.block(SENSOR, 0)
    full = []
    for record in range(10):
        handler.lanes.put(SENSOR, 0, [record])
        full.append(handler.lanes.is_full(SENSOR, 0))
    assert full[0] is False
    assert full[-1] is True
    assert full == sorted(full)
    assert not handler.lanes.is_full(SENSOR, 1)
    assert not handler.lanes.is_full(AUDIO, 0)
    await handler.lanes.close()


async def test_a_lane_is_no_longer_full_when_its_batches_were_handled(handler: Handler) -> None:
    go_on = handler.block(SENSOR, 0)
    for record in range(10):
        handler.lanes.put(SENSOR, 0, [record])
    go_on.set()
    await handler.until(lambda: len(handler.of(SENSOR, 0)) == 10)
    assert not handler.lanes.is_full(SENSOR, 0)
    assert handler.lanes.waiting == 0
    await handler.lanes.close()


async def test_what_is_being_handled_is_busy_and_what_waits_is_counted(handler: Handler) -> None:
    assert not handler.lanes.busy
    go_on = handler.block(SENSOR, 0)
    handler.lanes.put(SENSOR, 0, [1])
    assert handler.lanes.busy  # before its task had a turn
    await handler.until(lambda: bool(handler.begun))
    assert (handler.lanes.busy, handler.lanes.waiting) == (True, 0)
    handler.lanes.put(SENSOR, 0, [2])
    handler.lanes.put(AUDIO, 3, [2])
    assert handler.lanes.waiting == 2
    go_on.set()
    await handler.until(lambda: not handler.lanes.busy)
    await handler.lanes.close()


async def test_an_error_of_the_handler_reaches_fail_and_nothing_of_its_input_follows(handler: Handler) -> None:
    handler.lanes.put(SENSOR, 0, [-1])
    handler.lanes.put(SENSOR, 0, [1])
    handler.lanes.put(AUDIO, 0, [1])
    await handler.until(lambda: bool(handler.failures) and len(handler.of(AUDIO, 0)) == 1)
    assert [str(failure) for failure in handler.failures] == ["a record that breaks the handler"]
    assert handler.of(SENSOR, 0) == []  # its offsets would be finished out of order
    await handler.lanes.close()


async def test_closing_drops_what_waits_ends_what_is_handled_and_is_no_failure(handler: Handler) -> None:
    go_on = handler.block(SENSOR, 0)
    for record in range(3):
        handler.lanes.put(SENSOR, 0, [record])
    await handler.until(lambda: bool(handler.begun))
    await handler.lanes.close()
    go_on.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert (handler.begun, handler.done, handler.failures) == ([(SENSOR, 0, 0)], [], [])
    assert not handler.lanes.busy


async def test_lanes_that_were_closed_take_batches_again(handler: Handler) -> None:
    """A rebalance closes them; the partitions may come back."""
    handler.lanes.put(SENSOR, 0, [1])
    await handler.lanes.close()
    handler.lanes.put(SENSOR, 0, [2])
    await handler.until(lambda: not handler.lanes.busy)
    assert handler.of(SENSOR, 0) == [2]
    await handler.lanes.close()
