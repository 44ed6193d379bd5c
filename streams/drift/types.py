"""Interfaces of the drift room: what a detector is given, its verdict, and the vectors they hold.

Pure: no I/O, no wall clock, no torch. The state after a window is a function of the state before it and the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streams.drift.channel_stats import ChannelStats
from streams.events.types import MODALITIES, MODALITY_BIT, IncidentEvent

__all__ = ["MODALITY_BITS", "ChannelStats", "Observation", "Status", "Vector", "Verdict"]

Vector = NDArray[np.float32]
Status = Literal["warming", "ok", "alarm"]
MODALITY_BITS = tuple((modality.value, MODALITY_BIT[modality]) for modality in MODALITIES)  # (name, bit) of masks


@dataclass(frozen=True, slots=True)
class Observation:
    """One fused window, as the detector sees it. `vectors` holds `joint` and the present modalities, unit length."""

    stream: str
    window: str  # window id
    start_ms: int
    end_ms: int
    mask: int  # modality bit mask
    vectors: Mapping[str, Vector]
    channels: Mapping[str, ChannelStats]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The detector's judgement of one window. `score` is in units of the threshold: 1.0 is the alarm line."""

    status: Status
    score: float | None  # None while there is no score
    severity: int  # 0-100
    incident: str | None  # id of the incident this window belongs to
    steps: tuple[IncidentEvent, ...]  # life steps this window caused, in order
    parts: Mapping[str, float]  # every component score: knn/<modality>, joint, channel, cusum
    modalities: Mapping[str, float]  # shares, sum to 1 (empty while warming)
    reason: str | None = None  # why a stream that has a past is warming
    unwatched_channels: int = 0  # channels of this window for which there is no room (`DriftConfig.channels_max`)
