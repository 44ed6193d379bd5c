"""Numbers of the detector. The user turns one knob; the others were chosen by measurement on recordings."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass

FORMAT = 1  # of what a drift state means; a state of another format cannot be continued
_NOT_LEARNT = ("size_ms", "hop_ms", "false_incidents_per_week")


@dataclass(frozen=True, slots=True)
class DriftConfig:
    """Times in milliseconds of event time; distances are 1 - cosine; scales are standard deviations."""

    false_incidents_per_week: float = 1.0  # the user's knob: per stream
    size_ms: int = 10_000  # of a window
    hop_ms: int = 10_000  # from the start of a window to the start of the next
    warm_windows: int = 24  # windows before there is any verdict but `warming`
    warm_modality: int = 8  # windows with a modality before that modality is scored
    bank_size: int = 32  # reference vectors per modality
    recent_size: int = 16  # recent vectors per modality
    quarantine_ms: int = 60_000  # a window enters the recent bank only this long after, and with no incident around
    neighbours: int = 2
    knn_sigmas: float = 7.0  # alarm line of a distance, at one false incident a week
    knn_floor: float = 0.02  # smallest scale of a distance: nearer than this is the same
    channels_max: int = 128  # channels watched per stream: their baselines travel in the payload of every window
    channel_sigmas: float = 5.0
    channel_tau_ms: int = 600_000  # memory of a channel's baseline
    channel_floor: float = 0.003  # smallest scale of a channel, relative to its level
    cusum_slack: float = 1.0  # in scales of the distance to the reference bank
    cusum_limit: float = 25.0
    open_windows: int = 3  # consecutive windows above the line that open an incident
    open_at_once: float = 2.0  # or one window this far above it
    close_below: float = 0.8
    close_ms: int = 60_000  # calm for this long closes
    rare_close_ms: int = 180_000  # the rest calm for this long closes an incident of a modality that seldom comes
    absent_close_ms: int = 1_800_000  # the same for a modality that used to come in most windows and stays away
    update_ms: int = 60_000  # at most one update in this time
    adopt_ms: int = 3_600_000  # an incident open for this long is the new normal
    alarm_learning: float = 0.05  # how much slower baselines learn while alarmed

    @property
    def extra_sigmas(self) -> float:
        """What the knob adds to every alarm line: tails fall off exponentially, one scale for a factor of e."""
        return -math.log(self.false_incidents_per_week)

    @property
    def version(self) -> str:
        """Part of every incident's id: other numbers, other incidents."""
        return _digest(asdict(self))

    @property
    def fingerprint(self) -> str:
        """What the learnt numbers of a state depend on: `format:size:hop:other numbers`.

        The knob is left out: it moves the alarm lines and not what is normal, so turning it costs no learning.
        """
        others = {name: number for name, number in asdict(self).items() if name not in _NOT_LEARNT}
        return f"{FORMAT}:{self.size_ms}:{self.hop_ms}:{_digest(others)}"

    def why_not(self, fingerprint: str) -> str | None:
        """Why a state with this fingerprint cannot be continued under these numbers; None if it can."""
        if fingerprint == self.fingerprint:
            return None
        parts = fingerprint.split(":")
        if len(parts) != 4 or parts[0] != str(FORMAT):
            return "the drift state was written by another version of the detector: learning anew"
        if parts[1] != str(self.size_ms):
            return f"window size changed from {parts[1]} to {self.size_ms} ms: learning anew"
        if parts[2] != str(self.hop_ms):
            return f"window hop changed from {parts[2]} to {self.hop_ms} ms: learning anew"
        return "settings of the detector changed: learning anew"


def _digest(numbers: dict[str, float]) -> str:
    text = "\x1f".join(f"{name}={number!r}" for name, number in sorted(numbers.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
