"""A page of incidents, collected from the windows that carry their steps. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streams.serving.pages import Page, Row, encode_cursor

_ENDS = ("closed", "adopted")


class IncidentPage:
    """Collects the first `limit` incidents after a position from windows in the order of their starts.

    It holds one incident more than the page, whatever the number of incidents in the store.
    """

    def __init__(self, limit: int, after: tuple[Any, ...] | None) -> None:
        self._limit = limit
        self._after: tuple[int, str] | None = None
        self.from_ms: int | None = None  # no window before it has a step of what follows
        if after is not None:
            self._after, self.from_ms = (after[0], after[1]), after[2]
        # (opened, id) -> (sequence, window of a late step) -> step: a late step has the number of the one it follows
        self._steps: dict[tuple[int, str], dict[tuple[int, str], Mapping[str, Any]]] = {}
        self._first_ms: dict[tuple[int, str], int] = {}  # start of the first window with a step of it
        self._ended: set[tuple[int, str]] = set()
        self._beyond_ms: int | None = None  # start of the first window with a step of a later incident than those held

    def add(self, step: Mapping[str, Any], start_ms: int) -> None:
        key = (step["opened_ms"], step["id"])
        if self._after is not None and key <= self._after:
            return
        if key not in self._steps and len(self._steps) > self._limit:
            last = max(self._steps)
            if key > last:
                self._pass_over(start_ms)
                return
            self._pass_over(self._first_ms.pop(last))
            del self._steps[last]
            self._ended.discard(last)
        place = step["sequence"], step["window"] if step.get("late") else ""
        self._steps.setdefault(key, {})[place] = step
        self._first_ms.setdefault(key, start_ms)
        if step["kind"] in _ENDS:
            self._ended.add(key)

    def _pass_over(self, start_ms: int) -> None:
        self._beyond_ms = start_ms if self._beyond_ms is None else min(start_ms, self._beyond_ms)

    def complete(self, start_ms: int) -> bool:
        """Whether windows from this start on can change nothing: the page is full and all on it have ended.

        An incident opens at the end of a window, which is after its start.
        """
        if len(self._steps) <= self._limit or len(self._ended) < len(self._steps):
            return False
        if start_ms < max(self._steps)[0]:
            return False
        self._pass_over(start_ms)
        return True

    def page(self) -> Page:
        keys = sorted(self._steps)
        rows = [_incident([self._steps[key][n] for n in sorted(self._steps[key])]) for key in keys[: self._limit]]
        if len(keys) <= self._limit:
            return Page(rows)
        first_ms = self._first_ms[keys[self._limit]]
        from_ms = first_ms if self._beyond_ms is None else min(first_ms, self._beyond_ms)
        return Page(rows, encode_cursor("incidents", *keys[self._limit - 1], from_ms))


def _incident(steps: list[Mapping[str, Any]]) -> Row:
    first, last = steps[0], steps[-1]
    return {
        "id": first["id"],
        "stream": first["stream"],
        "state": "closed" if last["kind"] in _ENDS else "open",
        "opened_ms": first["opened_ms"],
        "onset_ms": first.get("onset_ms"),
        "closed_ms": last.get("closed_ms"),
        "severity": max(step["severity"] for step in steps),
        "modalities": first.get("modalities", {}),
        "text": first["text"],
        "steps": [dict(step) for step in steps],
    }
