"""One record of any input topic to its events."""

from __future__ import annotations

from collections.abc import Sequence

from streams.events.audio import ClipDecoder
from streams.events.envelope import Headers
from streams.events.json_codec import decode_caption, decode_readings
from streams.events.types import Event, Modality


async def decode(
    modality: Modality, value: bytes | None, headers: Headers, timestamp_ms: int | None, clips: ClipDecoder
) -> Sequence[Event]:
    """The events in one record of the topic of `modality`: one or more readings, or one clip or caption.

    `timestamp_ms` is the record timestamp, used when neither payload nor headers have a time. Raises `Rejection` for
    every fault of the input, `DecoderUnavailable` if the audio decoder cannot start. The record key and the bounds of
    event time are checked elsewhere (`envelope.decode_key`, `clock_guard.TimeGuard`).
    """
    if modality is Modality.SENSOR:
        return decode_readings(value, headers, timestamp_ms)
    if modality is Modality.AUDIO:
        return [await clips.decode(value, headers, timestamp_ms)]
    return [decode_caption(value, headers, timestamp_ms)]
