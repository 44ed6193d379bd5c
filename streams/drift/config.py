"""Numbers of the detector. The user turns one knob; the others were chosen by measurement on recordings."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.settings import Settings


@dataclass(frozen=True, slots=True)
class DriftConfig:
    """Times in milliseconds of event time; distances are 1 - cosine; scales are standard deviations."""

    false_incidents_per_week: float = 1.0  # the user's knob: per stream
    warm_windows: int = 24  # windows before anything but `warming` is said
    warm_modality: int = 8  # windows with a modality before that modality is scored
    bank_size: int = 32  # reference vectors per modality
    recent_size: int = 16  # recent vectors per modality
    quarantine_ms: int = 60_000  # a window enters the recent bank only this long after, and with no incident around
    neighbours: int = 2
    knn_sigmas: float = 7.0  # alarm line of a distance, at one false incident a week
    knn_floor: float = 0.02  # smallest scale of a distance: nearer than this is the same
    channel_sigmas: float = 5.0
    channel_tau_ms: int = 600_000  # memory of a channel's baseline
    channel_floor: float = 0.003  # smallest scale of a channel, relative to its level
    cusum_slack: float = 1.0  # in scales of the distance to the reference bank
    cusum_limit: float = 25.0
    open_windows: int = 3  # consecutive windows above the line that open an incident
    open_at_once: float = 2.0  # or one window this far above it
    close_below: float = 0.8
    close_ms: int = 60_000  # calm for this long closes
    update_ms: int = 60_000  # at most one update in this time
    adopt_ms: int = 3_600_000  # an incident open for this long is the new normal
    alarm_learning: float = 0.05  # how much slower baselines learn while alarmed

    @classmethod
    def from_settings(cls, settings: Settings) -> DriftConfig:
        return cls(false_incidents_per_week=settings.drift.false_incidents_per_week)

    @property
    def extra_sigmas(self) -> float:
        """What the knob adds to every alarm line: tails fall off exponentially, one scale for a factor of e."""
        return -math.log(self.false_incidents_per_week)

    @property
    def version(self) -> str:
        """Part of every incident's id: other numbers, other incidents."""
        text = "\x1f".join(f"{key}={value!r}" for key, value in sorted(asdict(self).items()))
        return hashlib.sha256(text.encode()).hexdigest()[:8]
