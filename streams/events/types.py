"""Events, reason codes and output records: the contents of every topic, as msgspec structs.

An *event* is one observation of one stream in one modality: a `Reading`, a `Clip` or a `Caption`. The stream id
is the Kafka record key and stays outside the event. All times are integer milliseconds since the epoch, UTC.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray


class Modality(StrEnum):
    """The inputs that a window can hold; the order is the bit order of modality masks."""

    SENSOR = "sensor"
    AUDIO = "audio"
    CAPTION = "caption"


MODALITIES: tuple[Modality, ...] = tuple(Modality)
MODALITY_BIT: dict[Modality, int] = {m: 1 << i for i, m in enumerate(MODALITIES)}


class Reason(StrEnum):
    """Why an event is in no window. The codes are those of dead letters, metrics, logs and the API."""

    # envelope
    # framing
    UNREADABLE = "unreadable"  # the Kafka client cannot unpack it: codec, checksum, header name, structure
    NO_KEY = "no_key"
    BAD_KEY = "bad_key"
    EMPTY = "empty"
    TOO_LARGE = "too_large"
    UNKNOWN_CONTENT_TYPE = "unknown_content_type"
    UNKNOWN_MODALITY = "unknown_modality"
    # text and numbers
    NOT_JSON = "not_json"
    NOT_UTF8 = "not_utf8"
    NOT_FINITE = "not_finite"
    BAD_SCHEMA = "bad_schema"
    BAD_UNIT = "bad_unit"
    NO_VALUES = "no_values"
    TOO_MANY_CHANNELS = "too_many_channels"
    SENML_NO_NAME = "senml_no_name"
    CONTROL_CHARACTERS = "control_characters"
    CAPTION_TOO_LONG = "caption_too_long"
    # event time
    NO_TIME = "no_time"
    BAD_TIME = "bad_time"
    CLOCK_AHEAD = "clock_ahead"
    CLOCK_BEHIND = "clock_behind"
    # sound
    AUDIO_EMPTY = "audio_empty"
    AUDIO_FORMAT = "audio_format"  # not WAV, FLAC or OGG
    AUDIO_CODEC = "audio_codec"  # one of these, with a codec that is not supported
    AUDIO_CORRUPT = "audio_corrupt"
    AUDIO_CHANNELS = "audio_channels"
    AUDIO_RATE = "audio_rate"
    AUDIO_TOO_LONG = "audio_too_long"
    AUDIO_DECODER_TIMEOUT = "audio_decoder_timeout"
    AUDIO_DECODER_CRASHED = "audio_decoder_crashed"
    CLAIM_MISSING = "claim_missing"
    CLAIM_FORBIDDEN = "claim_forbidden"
    CLAIM_HASH = "claim_hash"
    # windows
    LATE = "late"
    TOO_MANY_STREAMS = "too_many_streams"
    TOO_MANY_EVENTS = "too_many_events"
    # processing
    EMBED_FAILED = "embed_failed"


class Rejection(Exception):
    """An input that is not a valid event; it goes to `dead-letters` with `reason` and `detail`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Reading(msgspec.Struct, frozen=True, gc=False):
    """One row of sensor values at one time. `None` is a missing value; NaN is rejected before."""

    time_ms: int
    values: dict[str, float | None]
    units: dict[str, str] | None = None


class Clip(msgspec.Struct, frozen=True, gc=False):
    """One decoded sound clip. `samples`: int16 mono PCM at 16 kHz, shape (n,). `time_ms` is the first sample's."""

    time_ms: int
    sha256: str  # of the encoded bytes: identifies the clip
    samples: NDArray[np.int16]

    @property
    def duration_ms(self) -> int:
        """Length in milliseconds, rounded down."""
        return len(self.samples) * 1000 // CLIP_RATE_HZ


class Caption(msgspec.Struct, frozen=True, gc=False):
    """One line of text about the stream, written by a person or a program."""

    time_ms: int
    text: str
    source: str | None = None
    lang: str | None = None


Event = Reading | Clip | Caption
CLIP_RATE_HZ = 16_000


class RawRecord(msgspec.Struct, frozen=True, gc=False):
    """A Kafka record as received: enough to decode it, and to copy it to `dead-letters` unchanged."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class WindowRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """Value on the `windows` topic. One id per window; a higher `revision` replaces a lower one."""

    id: str
    stream: str
    start_ms: int
    end_ms: int
    revision: int
    modalities: list[str]
    events: dict[str, int]  # per modality, the events whose last window this is: a sum over windows counts each once
    duplicates: int
    status: str  # warming | ok | alarm
    score: float | None
    incident: str | None
    model: str


class ChannelChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """A channel that left its own baseline: mean over the window against the expected one, in baseline sigmas."""

    channel: str
    expected: float
    actual: float
    z: float
    unit: str | None = None


class IncidentEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step in the life of an incident (the `data` of a CloudEvent on `incidents`).

    `id` is stable under replay; `step_id` names the step. `severity` (0-100) of a step is never rewritten.
    """

    kind: Literal["opened", "updated", "closed", "adopted"]
    id: str
    stream: str
    sequence: int
    window: str  # id of the window that caused this step
    time_ms: int  # event time of this step: the end of that window
    opened_ms: int
    severity: int
    text: str  # one line a person understands
    modalities: dict[str, float] = {}  # share of each modality in the score, sums to 1
    channels: list[ChannelChange] = []
    score: float = 0.0
    threshold: float = 0.0
    onset_ms: int | None = None  # start of the first window of the run that led to it
    closed_ms: int | None = None
    nearest_normal: str | None = None  # window id
    nearest_incident: str | None = None  # incident id
    late: bool = False  # found in a window that a late event changed after it had been scored

    @property
    def step_id(self) -> str:
        """Names the step. A late one stands beside the numbered life of its incident: it has the number of the step
        before it, and its window tells them apart."""
        return f"{self.id}/{self.sequence}/late/{self.window}" if self.late else f"{self.id}/{self.sequence}"


class CloudEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """CloudEvents 1.0 envelope in structured mode, as on `incidents`."""

    id: str
    source: str
    type: str
    time: str
    subject: str
    data: Any
    specversion: str = "1.0"
    datacontenttype: str = "application/json"
