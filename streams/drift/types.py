"""Interfaces of the drift room: what a detector is given, what it says, and the state it carries.

Pure: no I/O, no wall clock, no torch. The state after a window is a function of the state before it and the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from streams.events.types import IncidentEvent

Vector = NDArray[np.float32]
Status = Literal["warming", "ok", "alarm"]


class ChannelStats(msgspec.Struct, frozen=True, gc=False):
    """One channel over one window: mean, standard deviation, extremes, number of values."""

    mean: float
    std: float
    low: float
    high: float
    n: int
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """One fused window, as the detector sees it. `vectors` holds `joint` and the present modalities."""

    stream: str
    window: str  # window id
    start_ms: int
    end_ms: int
    mask: int  # modality bit mask
    vectors: Mapping[str, Vector]
    channels: Mapping[str, ChannelStats]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the detector says of one window. `score` is in units of the threshold: 1.0 is the alarm line."""

    status: Status
    score: float | None  # None while nothing can be said
    severity: int  # 0-100
    incident: str | None  # id of the incident this window belongs to
    steps: tuple[IncidentEvent, ...]  # life steps this window caused, in order
    parts: Mapping[str, float]  # every component score, e.g. knn, cusum, channel, cross
    modalities: Mapping[str, float]  # shares, sum to 1 (empty while warming)
