"""Payloads of stored windows and fired windows, for tests that make them by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streams.events.types import Caption, Reading
from streams.pipeline.payload import WindowPayload, encode_offsets
from streams.windows.types import Fired, StoredWindow

SIZE_MS = 10_000
ORIGIN = {"sensor": "readings-1/0", "audio": "clips-1/0", "caption": "captions-1/0"}


def window_payload(start: int = 0, *offsets: int, **changes: Any) -> WindowPayload:
    """The payload of a window of `pump` that holds the readings of these offsets."""
    fields: dict[str, Any] = {
        "stream": "pump",
        "start": start,
        "end": start + SIZE_MS,
        "revision": 0,
        "mask": 1,
        "modalities": ["sensor"],
        "events": {"sensor": len(offsets)},
        "hash": f"hash-{start}",
        "model": "m",
        "score": 0.5,
        "status": "ok",
        "severity": 0,
        "parts": {},
        "shares": {},
        "incident": None,
        "incident_step": False,
        "steps": [],
        "captions": [],
        "attention": {},
        "drift": None,
        "home": {"sensor": len(offsets)},
        "duplicates": 0,
        "members": {"sensor": encode_offsets(offsets)} if offsets else {},
        "origin": {"sensor": ORIGIN["sensor"]} if offsets else {},
        "final_before": None,
    }
    return WindowPayload(**(fields | changes))


def fired_window(start: int, values: Mapping[int, float], *, notes: Sequence[str] = (), **changes: Any) -> Fired:
    """A window of `pump`: `values` by record offset, one reading a second; `notes` have offsets from 0 on."""
    readings = [Reading(start + second * 1000, {"flow": value}) for second, value in enumerate(values.values())]
    captions = [Caption(start + 500 + second * 1000, text) for second, text in enumerate(notes)]
    made = Fired(
        stream="pump",
        start_ms=start,
        end_ms=start + SIZE_MS,
        firing=0,
        readings=readings,
        clips=[],
        captions=captions,
        home_events=(len(readings), 0, len(captions)),
        duplicates=0,
        members=(tuple(values), (), tuple(range(len(notes)))),
        stored=None,
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def as_stored(payload: WindowPayload, *offsets: int) -> StoredWindow:
    """What the operator hands on of a window that the store has."""
    members = (frozenset(offsets), frozenset[int](), frozenset[int]())
    return StoredWindow(payload.start, payload.revision, payload.hash, members, payload)
