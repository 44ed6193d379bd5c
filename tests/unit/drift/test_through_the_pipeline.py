"""What a user sees of the detector's promises: records in, incidents and windows out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streams.settings import Settings
from streams.store.base import Filter
from streams.testing import Harness
from tests.memory_store import MemoryStore
from tests.standin import StandInModel

T = 1_799_990_000_000


@asynccontextmanager
async def plant(
    folder: Path, store: MemoryStore, now_ms: int = T + 86_400_000, **settings: Any
) -> AsyncIterator[Harness]:
    values = Settings(state=folder, **settings)
    async with Harness(folder, model=StandInModel(), store=store, settings=values, now_ms=now_ms) as harness:
        yield harness


async def reading(h: Harness, second: int, value: float) -> None:
    record = {"time": T + second * 1000, "values": {"leak": value}}
    await h.push("sensor-readings", "m", record, settle=False)


async def note(h: Harness, second: int, text: str) -> None:
    await h.push("captions", "m", {"time": T + second * 1000, "text": text}, settle=False)


def life(h: Harness) -> list[tuple[str, int]]:
    return [(step.kind, (step.time_ms - T) // 1000) for step in h.incidents()]


@pytest.mark.parametrize("normal", [0.0, 1e-9, 5.0])
async def test_a_constant_channel_is_well_again_a_minute_after_a_blip(tmp_path: Path, normal: float) -> None:
    async with plant(tmp_path, MemoryStore()) as h:
        for second in range(0, 1500, 2):
            await reading(h, second, 1.0 if 1000 <= second < 1010 else normal)
        await h.settle()
        await h.advance(60_000)
        assert life(h) == [("opened", 1010), ("closed", 1070)]
        assert {w.status for w in h.windows() if w.start_ms >= T + 1_070_000} == {"ok"}


async def test_one_odd_note_is_an_incident_of_minutes(tmp_path: Path) -> None:
    async with plant(tmp_path, MemoryStore()) as h:
        for second in range(0, 2400, 2):
            await reading(h, second, 1.0 + 0.1 * (second % 7))
            if second % 60 == 30 and second < 1200:
                await note(h, second, "routine check done fine")
            if second == 1200:
                await note(h, second, "zebra umbrella quantum")
        await h.settle()
        await h.advance(60_000)
        (opened, _), (closed, closed_s) = life(h)
        assert (opened, closed) == ("opened", "closed")
        assert closed_s <= 1210 + 240
        assert {w.status for w in h.windows() if w.start_ms >= T + closed_s * 1000} == {"ok"}


async def test_an_odd_note_that_comes_late_opens_an_incident_marked_late(tmp_path: Path) -> None:
    async with plant(tmp_path, MemoryStore(), now_ms=T) as h:
        for second in range(1260):
            await reading(h, second, 1.0 + 0.1 * (second % 7))
            if second % 20 == 5 and second < 1200:
                await note(h, second, "routine check done fine")
            if second == 1215:
                await note(h, 1202, "zebra umbrella quantum")
            await h.settle()
            await h.advance(1_000)
        opened, closed = h.incidents()
        assert (opened.kind, closed.kind) == ("opened", "closed")
        assert opened.late
        assert closed.late
        assert opened.onset_ms == T + 1_200_000
        (revised,) = (w for w in h.windows() if w.revision)
        assert (revised.id, revised.incident) == (opened.window, opened.id)
        envelopes = [msgspec.json.decode(record.value) for record in h.sent("incidents")]
        ids = [envelope["id"] for envelope in envelopes if "incident" in envelope["type"]]
        assert len(set(ids)) == 2


async def test_another_window_size_on_the_same_store_is_learnt_anew(tmp_path: Path) -> None:
    store = MemoryStore()
    async with plant(tmp_path, store) as h:
        for second in range(0, 600, 2):
            await reading(h, second, 1.0 + 0.1 * (second % 7))
            await h.settle()
            await h.advance(2_000)
        assert h.windows()[-1].status == "ok"
        async for point in store.scroll(Filter(stream="m"), descending=True, limit=1):
            assert point.payload["sealed"] is not None  # there is a state to take over
    async with plant(tmp_path, store, window={"size_ms": 5_000, "hop_ms": 5_000}) as h:
        for second in range(1_000, 1_300):
            await reading(h, second, 1.0 + 0.1 * (second % 7))
        await h.settle()
        await h.advance(60_000)
        statuses = [w.status for w in sorted(h.windows(), key=lambda w: w.start_ms)]
        assert statuses == ["warming"] * 24 + ["ok"] * 36
        async for point in store.scroll(Filter(stream="m"), descending=True, limit=1):
            assert "knn/sensor" in point.payload["parts"]
