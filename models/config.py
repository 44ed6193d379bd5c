"""The shape of a model: one frozen dataclass, read from a preset or from the config.json beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from models.errors import ModelError
from models.interface import DIM, MODALITY_NAMES

FusionKind = Literal["attention", "concat", "mean"]
BalanceKind = Literal["none", "centre", "whiten"]
Options = Mapping[str, Any]
FUSIONS, BALANCES = get_args(FusionKind), get_args(BalanceKind)
PRESETS = Path(__file__).parent / "presets"
SHARED_DIM = 192  # aligned across modalities by training; what a search compares
PRIVATE_DIM = DIM - SHARED_DIM  # a sketch of the modality's own features, which alignment cannot erase
DEFAULT_PRIVATE = 0.15  # for a modality without a setting of its own
LOCATION_OPTIONS = ("path",)  # encoder options that locate something without defining it: no part of a version


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes are counts of units. `*_private`: the share of a vector's squared length that its private part has.

    encoders: modality -> {"name": ..., its options}; `sensor`, `audio` and `caption` are always among them.
    """

    preset: str
    encoders: Mapping[str, Options]
    balance: BalanceKind  # how the calibration beside the weights is applied to shared parts
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
    whitened: bool = False  # attention's own values see whitened vectors too, see models.fusion

    @property
    def modalities(self) -> tuple[str, ...]:
        """The built-in ones in their order, then the others by name."""
        return (*MODALITY_NAMES, *sorted(set(self.encoders) - set(MODALITY_NAMES)))

    def identity(self) -> str:
        """JSON of all that decides a vector: the path of a pretrained encoder is left out, its checksum is not."""
        plain = self._plain()
        plain["encoders"] = {
            modality: {key: value for key, value in options.items() if key not in LOCATION_OPTIONS}
            for modality, options in self.encoders.items()
        }
        return json.dumps(plain, sort_keys=True)

    def to_json(self) -> str:
        return json.dumps(self._plain(), indent=2, sort_keys=True) + "\n"

    def _plain(self) -> dict[str, Any]:
        """Without fields at their defaults: a field added later changes no older version's name."""
        plain = asdict(self)
        return {f.name: plain[f.name] for f in fields(self) if plain[f.name] != f.default}

    @classmethod
    def from_json(cls, text: str, source: str) -> ModelConfig:
        """`source` names the file in the error. Raises ModelError on anything but the fields above; those with a
        default may be missing."""
        try:
            raw: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise ModelError(f"{source} is not JSON ({error}); rebuild it: python -m models.training --help") from error
        names = {f.name for f in fields(cls)}
        needed = {f.name for f in fields(cls) if f.default is MISSING}
        if not isinstance(raw, dict) or not needed <= set(raw) <= names:
            odd = sorted((needed - set(raw)) | (set(raw) - names)) if isinstance(raw, dict) else ["not an object"]
            raise ModelError(
                f"{source} does not fit this version ({', '.join(odd)}); rebuild it: python -m models.training --help"
            )
        for name, known in (("fusion", FUSIONS), ("balance", BALANCES)):
            if raw[name] not in known:
                raise ModelError(f"{source}: {name} must be one of {', '.join(known)}, not {raw[name]!r}")
        specs = raw["encoders"]
        if not isinstance(specs, dict) or not all(isinstance(s, dict) and "name" in s for s in specs.values()):
            raise ModelError(f'{source}: encoders must be an object of {{modality: {{"name": ...}}}}')
        if not specs.keys() >= set(MODALITY_NAMES):
            raise ModelError(f"{source}: encoders must name one for each of {', '.join(MODALITY_NAMES)}")
        raw["audio_dims"] = tuple(raw["audio_dims"])
        raw["audio_depths"] = tuple(raw["audio_depths"])
        return cls(**raw)


def preset(name: str) -> ModelConfig:
    """The preset `name` ("small", "tiny"). Raises ModelError with the known names."""
    path = PRESETS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.json")))
        raise ModelError(f"no preset named {name!r}; known: {known}")
    return ModelConfig.from_json(path.read_text(), str(path))
