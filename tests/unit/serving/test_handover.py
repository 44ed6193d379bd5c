"""A model version that leaves closes its incidents: their ids are its own, and nobody else would end them."""

from __future__ import annotations

from streams.metrics import Metrics
from streams.pipeline.publisher import OutputPublisher
from streams.serving.handover import close_open_incidents
from tests.unit.pipeline.feeding import say
from tests.unit.pipeline.isolation import T0_MS, new_harness


async def test_open_incidents_are_closed_once_with_the_reason_and_others_are_left_alone() -> None:
    async with new_harness(T0_MS + 10**7) as h:
        for stream in ("ours", "calm", "theirs"):
            for second in range(500):
                level = 9.0 if stream != "calm" and second >= 400 else 1.0
                await say(h, stream, second, level)
            await h.advance(60_000)
        opened = {step.stream: step for step in h.incidents() if step.kind == "opened"}
        assert set(opened) == {"ours", "theirs"}
        publisher = OutputPublisher(h.outputs, Metrics())
        before = len(h.sent("incidents"))
        assert await close_open_incidents(h.store, publisher, "model b took over from a", lambda s: s != "theirs") == 1
        (closed,) = [step for step in h.incidents() if step.kind == "closed"]
        assert (closed.stream, closed.id) == ("ours", opened["ours"].id)
        assert closed.sequence > opened["ours"].sequence
        assert "model b took over from a" in closed.text
        # a second worker, or the same after a crash, finds nothing open
        assert await close_open_incidents(h.store, publisher, "again", lambda s: s != "theirs") == 0
        assert len(h.sent("incidents")) == before + 1
