"""Streams that drift away from their own past: baselines, scores, incidents. Pure."""

from streams.drift.config import DriftConfig
from streams.drift.detector import Detector, severity_of
from streams.drift.state import DriftState
from streams.drift.types import ChannelStats, Observation, Verdict

__all__ = ["ChannelStats", "Detector", "DriftConfig", "DriftState", "Observation", "Verdict", "severity_of"]
