"""Names of the topics, and which modality each input topic carries."""

from __future__ import annotations

from streams.events.types import Modality

TOPICS: dict[Modality, str] = {
    Modality.SENSOR: "sensor-readings",
    Modality.AUDIO: "audio-clips",
    Modality.CAPTION: "captions",
}
INPUTS: tuple[str, ...] = tuple(TOPICS.values())
MODALITY_OF: dict[str, Modality] = {topic: modality for modality, topic in TOPICS.items()}
