"""Pages of incidents against the plain way: read every step, group, sort, cut."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from streams.serving.pages import every
from streams.serving.queries import StoreQueries
from streams.store.base import Filter
from tests.memory_store import MemoryStore
from tests.unit.serving.stored import step, window

# windows of an incident by number: the first opens it; it is open still where the last part is False
INCIDENTS = st.lists(
    st.tuples(st.sets(st.integers(0, 25), min_size=1, max_size=4), st.booleans(), st.integers(0, 3)), max_size=12
)


def steps_of(incidents: list[tuple[set[int], bool, int]]) -> dict[int, list[dict[str, Any]]]:
    """Window number -> steps. A window starts at number * 1000 and ends 1000 to 4000 later, where it opens one."""
    steps: dict[int, list[dict[str, Any]]] = {}
    for n, (numbers, ends, longer) in enumerate(incidents):
        ordered = sorted(numbers)
        opened_ms = (ordered[0] + 1 + longer) * 1000
        for sequence, number in enumerate(ordered):
            last = sequence == len(ordered) - 1
            kind = "opened" if sequence == 0 else "closed" if last and ends else "updated"
            steps.setdefault(number, []).append(step(f"i{(n * 7) % 12:02}", opened_ms, sequence, kind))
    return steps


@settings(deadline=None, max_examples=300)
@given(incidents=INCIDENTS, limit=st.integers(1, 6))
@example(incidents=[({0, 1}, True, 3), ({0, 1}, True, 3), ({2, 3}, True, 0)], limit=1)  # a short window opens earlier
async def test_pages_are_the_list_that_reading_everything_gives(
    incidents: list[tuple[set[int], bool, int]], limit: int
) -> None:
    steps = steps_of(incidents)
    store = MemoryStore()
    await store.upsert([window(number, steps=found) for number, found in steps.items()])
    sequences: dict[tuple[int, str], list[int]] = {}
    for found in steps.values():
        for one in found:
            sequences.setdefault((one["opened_ms"], one["id"]), []).append(one["sequence"])
    queries = StoreQueries(store, lambda: None)  # type: ignore[arg-type, return-value]
    rows = [row async for row in every(partial(queries.incidents, Filter(), limit))]
    assert [(row["opened_ms"], row["id"], [s["sequence"] for s in row["steps"]]) for row in rows] == [
        (*key, sorted(sequences[key])) for key in sorted(sequences)
    ]
