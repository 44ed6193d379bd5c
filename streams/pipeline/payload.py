"""The payload of a stored window: its one owner. What a point of the store carries beside its vectors. Pure."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from streams.drift.types import Verdict
from streams.events.types import MODALITIES, MODALITY_BIT, IncidentEvent, WindowRecord
from streams.windows.types import Fired, StoredWindow

_SHOWN_CAPTIONS = 3
_SHOWN_CHARACTERS = 200


class WindowPayload(msgspec.Struct, kw_only=True):
    """Times are epoch ms. `home` counts the events whose last window this is, `events` all that it holds.

    The bookkeeping fields say which Kafka records the window is made of: repeats change nothing else.
    """

    stream: str
    start: int
    end: int
    revision: int
    mask: int  # modality bit mask
    modalities: list[str]
    events: dict[str, int]
    hash: str  # of the canonical content
    model: str  # version
    score: float | None
    status: str
    severity: int
    parts: dict[str, float]
    shares: dict[str, float]
    incident: str | None
    incident_step: bool
    steps: list[dict[str, Any]]  # steps in incidents' lives that this window caused, as plain data
    captions: list[str]
    attention: dict[str, float]
    drift: str | None  # the detector's state after this window; None: it was scored out of order
    reason: str | None = None  # why the stream is warming
    unwatched: int = 0  # channels beyond the detector's limit
    ahead: bool = False  # the window begins ahead of the stream's own clock: readings from the future
    bank: bool = False  # a member of the stream's reference banks: retention spares it
    interval: int | None = None  # the stream's usual interval between events, ms
    silent: int | None = None  # the stream's newest event, ms, where it was reported as silent after this window
    # bookkeeping
    home: dict[str, int]
    duplicates: int
    members: dict[str, str]  # offsets of the home pane's records per modality (`encode_offsets`)
    origin: dict[str, str] | str  # topic id and partition of these records per modality; a cluster id in old stores
    final_before: int | None = msgspec.field(name="sealed")  # windows that start before this were final then

    def to_dict(self) -> dict[str, Any]:
        """As the store takes it."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built


BOOKKEEPING = ("home", "duplicates", "members", "origin", "final_before")


def payload_from(stored: Mapping[str, Any]) -> WindowPayload:
    """The payload of a point as the store gave it back."""
    return msgspec.convert(stored, WindowPayload)


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


def bookkeeping(window: Fired, origin: Mapping[str, str], final_before_ms: int | None) -> dict[str, Any]:
    """The fields of a payload that say which records a window holds. `origin`: topic id and partition per modality."""
    members = {m.value: encode_offsets(o) for m, o in zip(MODALITIES, window.members, strict=True) if o}
    return {
        "home": _by_modality(window.home_events),
        "duplicates": window.duplicates,
        "members": members,
        "origin": {name: origin[name] for name in members},
        "final_before": final_before_ms,
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
    origin: Mapping[str, str],
    final_before_ms: int | None,
) -> WindowPayload:
    """What a window carries into the store. `drift`: the detector's state after it."""
    mask = mask_of(window)
    contents = (window.readings, window.clips, window.captions)
    texts = list(dict.fromkeys(caption.text for caption in window.captions))[:_SHOWN_CAPTIONS]
    return WindowPayload(
        stream=window.stream,
        start=window.start_ms,
        end=window.end_ms,
        revision=revision,
        mask=mask,
        modalities=[m.value for m in MODALITIES if mask & MODALITY_BIT[m]],
        events=_by_modality([len(events) for events in contents]),
        hash=content_hash,
        model=model,
        score=verdict.score,
        status=verdict.status,
        severity=verdict.severity,
        parts=dict(verdict.parts),
        shares=dict(verdict.modalities),
        incident=verdict.incident,
        incident_step=bool(verdict.steps),
        steps=steps_of(verdict.steps),
        captions=[text[:_SHOWN_CHARACTERS] for text in texts],
        attention=dict(attention),
        drift=drift,
        reason=verdict.reason,
        unwatched=verdict.unwatched_channels,
        interval=window.interval_ms,
        ahead=window.ahead,
        **bookkeeping(window, origin, final_before_ms),
    )


def steps_of(steps: Iterable[IncidentEvent]) -> list[dict[str, Any]]:
    """Incident steps as plain data."""
    return [msgspec.to_builtins(step) for step in steps]


def stored_window(payload: WindowPayload, origin: Mapping[str, str]) -> StoredWindow:
    """What the window operator needs to know of a stored window.

    Offsets of other topics (deleted and made anew, another cluster) or of another partition say nothing about the
    records read here: such a window is foreign, and cannot be rebuilt from them.
    """
    foreign = not isinstance(payload.origin, dict) or any(origin.get(m) != at for m, at in payload.origin.items())
    members = {} if foreign else payload.members
    return StoredWindow(
        start_ms=payload.start,
        revision=payload.revision,
        content_hash=payload.hash,
        members=tuple(decode_offsets(members.get(m.value, "")) for m in MODALITIES),
        payload=payload,
        foreign=foreign,
        ahead=payload.ahead,
    )


def window_record(id: str, payload: WindowPayload) -> WindowRecord:
    """The message on the `windows` topic for a stored window."""
    return WindowRecord(
        id=id,
        stream=payload.stream,
        start_ms=payload.start,
        end_ms=payload.end,
        revision=payload.revision,
        modalities=list(payload.modalities),
        events=dict(payload.home),
        duplicates=payload.duplicates,
        status=payload.status,
        score=payload.score,
        incident=payload.incident,
        model=payload.model,
    )


def _by_modality(counts: Sequence[int]) -> dict[str, int]:
    return {m.value: n for m, n in zip(MODALITIES, counts, strict=True) if n}
