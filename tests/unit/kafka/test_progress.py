"""Where reading begins: at the committed offset where the log has it, else where the log begins."""

from __future__ import annotations

import pytest

from streams.kafka.progress import start_at


@pytest.mark.parametrize(
    ("committed", "begin", "end", "offset", "lost"),
    [
        (None, 0, 10, 0, 0),
        (None, 7, 10, 7, 0),  # whatever was before is nobody's loss: the group is new
        (0, 0, 10, 0, 0),
        (5, 0, 10, 5, 0),
        (10, 0, 10, 10, 0),
        (5, 5, 10, 5, 0),
        (5, 8, 10, 8, 3),  # deleted before it was read
        (5, 10, 10, 10, 5),
        (50, 0, 10, 0, 0),  # another log: made anew, and shorter
    ],
)
def test_start(committed: int | None, begin: int, end: int, offset: int, lost: int) -> None:
    start = start_at(committed, begin, end)
    assert (start.offset, start.committed, start.lost) == (offset, committed, lost)
