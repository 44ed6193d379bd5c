"""Two model versions over the same past, side by side: what a person looks at before one takes over from the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

from streams.serving.pages import MAX_ROWS, Row, every
from streams.serving.queries import Queries
from streams.store.base import Filter

_NEIGHBOURS = 10
_WINDOWS = 60  # asked for their neighbours
_CAPTIONS = 30  # asked for by their own words
_NEWEST = 1_000  # windows of which status and score are compared
Key = tuple[str, int]  # stream, start of a window


@dataclass(frozen=True, slots=True)
class Side:
    """One version's half of the report. Shares are 0..1; None: nothing to measure it on."""

    version: str
    windows: int
    streams: int
    text_precision: float | None  # of the ten moments found by a caption's words, those in which it was written
    incidents: int
    in_alarm: float | None  # share of the compared windows
    mean_score: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`coverage`: the candidate's windows per window of the serving version's. `neighbours`: see `overlap`."""

    serving: Side
    candidate: Side
    coverage: float | None
    by_stream: Mapping[str, tuple[int, int]]
    neighbours: float | None
    asked_windows: int
    asked_captions: int
    compared_windows: int
    same_status: float | None
    shared_incidents: int  # incidents of the serving version that overlap one of the candidate's in time
    notes: Sequence[str] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


async def compare(
    serving: Queries, candidate: Queries, versions: tuple[str, str], new_id: Callable[[str, int], str]
) -> Comparison:
    """Ask both sides the same questions. `new_id`: a window's id under the candidate, by stream and start."""
    counts = [
        {row["stream"]: int(row["windows"]) async for row in every(partial(side.streams, MAX_ROWS))}
        for side in (serving, candidate)
    ]
    old_rows, new_rows = [await side.windows(Filter(), _NEWEST) for side in (serving, candidate)]
    old_by_key, new_by_key = ({_key(row): row for row in rows} for rows in (old_rows, new_rows))
    shared = sorted(old_by_key.keys() & new_by_key.keys())
    asked = _spread(shared, _WINDOWS)
    overlaps = []
    for key in asked:
        old = await serving.search_window(old_by_key[key]["id"], Filter(), _NEIGHBOURS)
        new = await candidate.search_window(new_id(*key), Filter(), _NEIGHBOURS)
        overlaps.append(overlap([_key(row) for row in old], [_key(row) for row in new]))
    texts = _spread(sorted({text for key in shared for text in old_by_key[key]["captions"]}), _CAPTIONS)
    incidents = [
        [row async for row in every(partial(side.incidents, Filter(), MAX_ROWS))] for side in (serving, candidate)
    ]
    sides = []
    for side, name, count, rows, found in zip(
        (serving, candidate), versions, counts, (old_by_key, new_by_key), incidents, strict=True
    ):
        held = [rows[key] for key in shared]
        precision = [_precision(await side.search_text(text, Filter(), _NEIGHBOURS), text) for text in texts]
        scores = [row["score"] for row in held if row["score"] is not None]
        sides.append(
            Side(
                version=name,
                windows=sum(count.values()),
                streams=len(count),
                text_precision=_mean(precision),
                incidents=len(found),
                in_alarm=_mean([float(row["status"] == "alarm") for row in held]),
                mean_score=_mean(scores),
            )
        )
    same = [float(old_by_key[key]["status"] == new_by_key[key]["status"]) for key in shared]
    notes = [] if shared else ["no window is held by both among the newest: nothing was compared"]
    return Comparison(
        serving=sides[0],
        candidate=sides[1],
        coverage=sides[1].windows / sides[0].windows if sides[0].windows else None,
        by_stream={s: (counts[0].get(s, 0), counts[1].get(s, 0)) for s in sorted({*counts[0], *counts[1]})},
        neighbours=_mean(overlaps),
        asked_windows=len(asked),
        asked_captions=len(texts),
        compared_windows=len(shared),
        same_status=_mean(same),
        shared_incidents=shared_incidents(*incidents),
        notes=notes,
    )


def overlap(left: Sequence[Key], right: Sequence[Key]) -> float:
    """Share of the longer list that both lists hold: 1 for the same neighbours in any order, 0 for none in common."""
    longer = max(len(left), len(right))
    return len({*left} & {*right}) / longer if longer else 1.0


def shared_incidents(old: Sequence[Row], new: Sequence[Row]) -> int:
    """How many of `old` overlap in time with one of `new` on the same stream; an open incident has no end."""
    return sum(any(_meet(one, two) for two in new) for one in old)


def _meet(one: Row, two: Row) -> bool:
    if one["stream"] != two["stream"]:
        return False
    ends = [row["closed_ms"] if row["closed_ms"] is not None else float("inf") for row in (one, two)]
    starts = [row["onset_ms"] if row["onset_ms"] is not None else row["opened_ms"] for row in (one, two)]
    return bool(max(starts) <= min(ends))


def _precision(rows: Sequence[Row], text: str) -> float:
    return fmean(float(text in row["captions"]) for row in rows) if rows else 0.0


def _key(row: Row) -> Key:
    return row["stream"], row["start"]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many, evenly spread over all."""
    if len(items) <= most:
        return list(items)
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]
