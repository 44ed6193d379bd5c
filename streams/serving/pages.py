"""A page of a list, and the cursor that says where the next one begins.

A cursor is opaque to callers: the position of the last row, which stays valid while rows are added or deleted. Rows
that are added before it are not seen on later pages; none comes twice, and none that was there all along is left out.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from streams.errors import DataError

Row = dict[str, Any]
MAX_ROWS = 1000  # of one page


class CursorError(DataError):
    """A cursor that no page of this list ended with."""


class Page(list[Row]):
    """Rows of one page; `next` is the cursor of the page that follows, None on the last one."""

    def __init__(self, rows: Iterable[Row] = (), next: str | None = None) -> None:
        super().__init__(rows)
        self.next = next


def encode_cursor(of: str, *position: int | float | str) -> str:
    """The position of a row in the list `of`, as text that is safe in a URL."""
    return base64.urlsafe_b64encode(json.dumps([of, *position], separators=(",", ":")).encode()).decode().rstrip("=")


def decode_cursor(of: str, text: str, *kinds: type) -> tuple[Any, ...]:
    """The inverse, checked: a list of `kinds` that belongs to the list `of`. Raises `CursorError`."""
    try:
        found = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, binascii.Error):
        found = None
    if (
        not isinstance(found, list)
        or found[:1] != [of]
        or [type(value) for value in found[1:]] != list(kinds)
        or any(value != value or value in (float("inf"), float("-inf")) for value in found if isinstance(value, float))
    ):
        raise CursorError(f"cursor {text[:80]!r} is not one of the list of {of}: take that of the page before")
    return tuple(found[1:])


async def every(fetch: Callable[[str | None], Awaitable[Page]]) -> AsyncIterator[Row]:
    """All rows of a list, page after page. `fetch` gets the cursor of a page, None for the first."""
    cursor = None
    while True:
        page = await fetch(cursor)
        for row in page:
            yield row
        if page.next is None:
            return
        cursor = page.next
