"""The shape of a model: one frozen dataclass, read from a preset or from the config.json beside the weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from models.errors import ModelError
from models.interface import DIM

FusionKind = Literal["attention", "concat", "mean"]
PRESETS = Path(__file__).parent / "presets"
SHARED_DIM = 192  # aligned across modalities by training; what a search compares
PRIVATE_DIM = DIM - SHARED_DIM  # a sketch of the modality's own features, which alignment cannot erase


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes are counts of units. `*_private` is the share of a vector's squared length that its sketch is given."""

    preset: str
    fusion: FusionKind
    sensor_dim: int
    sensor_layers: int
    channel_buckets: int  # rows of the hashed channel-name table
    channel_dim: int
    audio_dims: tuple[int, ...]  # channels of the CNN's stages
    audio_depths: tuple[int, ...]  # blocks of each stage
    text_buckets: int  # rows of the hashed word and 3-gram table
    text_dim: int
    text_layers: int
    fusion_dim: int
    fusion_layers: int
    latents: int
    sensor_private: float
    audio_private: float
    caption_private: float
    joint_private: float

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> ModelConfig:
        """`source` names the file in the error. Raises ModelError on anything but exactly the fields above."""
        try:
            raw: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise ModelError(f"{source} is not JSON ({error}); rebuild it: python -m models.training --help") from error
        names = {f.name for f in fields(cls)}
        if not isinstance(raw, dict) or set(raw) != names:
            odd = sorted(names.symmetric_difference(raw)) if isinstance(raw, dict) else ["not an object"]
            raise ModelError(
                f"{source} does not fit this version ({', '.join(odd)}); rebuild it: python -m models.training --help"
            )
        if raw["fusion"] not in ("attention", "concat", "mean"):
            raise ModelError(f"{source}: fusion must be attention, concat or mean, not {raw['fusion']!r}")
        raw["audio_dims"] = tuple(raw["audio_dims"])
        raw["audio_depths"] = tuple(raw["audio_depths"])
        return cls(**raw)


def preset(name: str) -> ModelConfig:
    """The preset `name` ("small", "tiny"). Raises ModelError with the names there are."""
    path = PRESETS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.json")))
        raise ModelError(f"no preset named {name!r}; there are: {known}")
    return ModelConfig.from_json(path.read_text(), str(path))
