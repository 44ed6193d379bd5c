"""A window as a point of the store, and back: payload layout, record membership, channel statistics. Pure."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from streams.drift.types import ChannelStats, Verdict
from streams.events.types import MODALITIES, MODALITY_BIT, Reading, WindowRecord
from streams.windows.model_input import window_input as window_input  # for callers that still import it from here
from streams.windows.types import Fired, StoredWindow

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


def mask_of(window: Fired) -> int:
    """Bit mask of the modalities present."""
    contents = (window.readings, window.clips, window.captions)
    return sum(MODALITY_BIT[m] for m, events in zip(MODALITIES, contents, strict=True) if events)


def channel_stats(readings: Sequence[Reading]) -> dict[str, ChannelStats]:
    """Statistics of every channel over a window; missing values are left out."""
    values: dict[str, list[float]] = {}
    units: dict[str, str] = {}
    for reading in readings:
        for channel, value in reading.values.items():
            if value is None:
                continue
            if channel in values:
                values[channel].append(value)
            else:
                values[channel] = [value]
        if reading.units:
            units.update(reading.units)
    stats = {}
    for channel in sorted(values):
        numbers = values[channel]
        n, low, high = len(numbers), min(numbers), max(numbers)
        # fsum and scaling: exact whatever the order, finite for numbers up to 1e308
        scale = max(abs(low), abs(high)) or 1.0
        scaled = [v / scale for v in numbers]
        mean = math.fsum(scaled) / n
        variance = math.fsum([(v - mean) ** 2 for v in scaled]) / n
        stats[channel] = ChannelStats(
            mean=mean * scale,
            std=math.sqrt(variance) * scale,
            low=low,
            high=high,
            n=n,
            unit=units.get(channel),
        )
    return stats


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
