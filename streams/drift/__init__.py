"""Streams that drift away from their own past: baselines, scores, incidents. Pure."""

from streams.drift.channel_stats import ChannelStats, channel_stats
from streams.drift.config import DriftConfig
from streams.drift.detector import Detector
from streams.drift.incidents import close_for
from streams.drift.scoring import severity_of
from streams.drift.state import DriftState
from streams.drift.types import Observation, Verdict

__all__ = [
    "ChannelStats",
    "Detector",
    "DriftConfig",
    "DriftState",
    "Observation",
    "Verdict",
    "channel_stats",
    "close_for",
    "severity_of",
]
