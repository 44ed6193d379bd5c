"""A window as a point of the store, and back: payload layout and record membership. Pure."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from models.interface import WindowInput
from streams.drift.channel_stats import channel_stats
from streams.drift.types import Verdict
from streams.events.types import MODALITIES, MODALITY_BIT, WindowRecord
from streams.windows.types import Fired, StoredWindow

__all__ = [
    "bookkeeping",
    "channel_stats",
    "decode_offsets",
    "encode_offsets",
    "mask_of",
    "payload_of",
    "stored_window",
    "to_builtins",
    "window_input",
    "window_record",
]

_SHOWN_CAPTIONS = 3
_SHOWN_CHARACTERS = 200


def encode_offsets(offsets: Iterable[int]) -> str:
    """Record offsets as base64 of LEB128 differences: a byte or two for each."""
    out = bytearray()
    previous = 0
    for offset in sorted(set(offsets)):
        delta, previous = offset - previous, offset
        while delta >= 0x80:
            out.append(delta & 0x7F | 0x80)
            delta >>= 7
        out.append(delta)
    return base64.b64encode(bytes(out)).decode()


def decode_offsets(text: str) -> frozenset[int]:
    """The inverse of `encode_offsets`."""
    offsets, value, shift, previous = set(), 0, 0, 0
    for byte in base64.b64decode(text):
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            previous += value
            offsets.add(previous)
            value = shift = 0
    return frozenset(offsets)


def window_input(window: Fired) -> WindowInput:
    """A fired window as a model takes it."""
    units: dict[str, str] = {}
    for reading in window.readings:
        if reading.units:
            units.update(reading.units)
    return WindowInput(
        start_ms=window.start_ms,
        end_ms=window.end_ms,
        readings=[(reading.time_ms, reading.values) for reading in window.readings],
        clips=[(clip.time_ms, clip.samples) for clip in window.clips],
        captions=[(caption.time_ms, caption.text) for caption in window.captions],
        units=units,
    )


def mask_of(window: Fired) -> int:
    """Bit mask of the modalities present."""
    contents = (window.readings, window.clips, window.captions)
    return sum(MODALITY_BIT[m] for m, events in zip(MODALITIES, contents, strict=True) if events)


def bookkeeping(window: Fired, origin: str, sealed_before_ms: int | None) -> dict[str, Any]:
    """The part of a payload that says which records a window holds; repeats change nothing else."""
    return {
        "home": _by_modality(window.home_events),
        "duplicates": window.duplicates,
        "members": {m.value: encode_offsets(o) for m, o in zip(MODALITIES, window.members, strict=True) if o},
        "origin": origin,
        "sealed": sealed_before_ms,
    }


def payload_of(
    window: Fired,
    *,
    revision: int,
    content_hash: str,
    model: str,
    verdict: Verdict,
    attention: Mapping[str, float],
    drift: str | None,
    origin: str,
    sealed_before_ms: int | None,
) -> dict[str, Any]:
    """Everything that a stored window carries beside its vectors. `drift`: the detector's state after this window."""
    mask = mask_of(window)
    contents = (window.readings, window.clips, window.captions)
    texts = list(dict.fromkeys(caption.text for caption in window.captions))[:_SHOWN_CAPTIONS]
    return {
        "stream": window.stream,
        "start": window.start_ms,
        "end": window.end_ms,
        "revision": revision,
        "mask": mask,
        "modalities": [m.value for m in MODALITIES if mask & MODALITY_BIT[m]],
        "events": _by_modality([len(events) for events in contents]),
        "hash": content_hash,
        "model": model,
        "score": verdict.score,
        "status": verdict.status,
        "severity": verdict.severity,
        "parts": dict(verdict.parts),
        "shares": dict(verdict.modalities),
        "incident": verdict.incident,
        "incident_step": bool(verdict.steps),
        "steps": [to_builtins(step) for step in verdict.steps],
        "captions": [text[:_SHOWN_CHARACTERS] for text in texts],
        "attention": dict(attention),
        "drift": drift,
    } | bookkeeping(window, origin, sealed_before_ms)


def stored_window(payload: Mapping[str, Any], origin: str) -> StoredWindow:
    """What the window operator needs to know of a stored window.

    Offsets of another Kafka cluster (`origin`) say nothing about this one's records.
    """
    members = payload.get("members") or {} if payload.get("origin") == origin else {}
    return StoredWindow(
        start_ms=payload["start"],
        revision=payload["revision"],
        content_hash=payload["hash"],
        members=tuple(decode_offsets(members.get(m.value, "")) for m in MODALITIES),
        payload=payload,
    )


def window_record(id: str, payload: Mapping[str, Any]) -> WindowRecord:
    """The message on the `windows` topic for a stored window."""
    return WindowRecord(
        id=id,
        stream=payload["stream"],
        start_ms=payload["start"],
        end_ms=payload["end"],
        revision=payload["revision"],
        modalities=list(payload["modalities"]),
        events=dict(payload["home"]),
        duplicates=payload["duplicates"],
        status=payload["status"],
        score=payload["score"],
        incident=payload["incident"],
        model=payload["model"],
    )


def to_builtins(struct: Any) -> Any:
    """A msgspec struct as plain dicts and lists."""
    import msgspec

    return msgspec.to_builtins(struct)


def _by_modality(counts: Sequence[int]) -> dict[str, int]:
    return {m.value: n for m, n in zip(MODALITIES, counts, strict=True) if n}
