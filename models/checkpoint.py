"""A model folder: model.safetensors, config.json, calibration.safetensors (if it has one), card.md. No pickle."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from models.calibration import Calibration
from models.config import ModelConfig
from models.errors import ModelError
from models.network import Network

WEIGHTS, CONFIG, CARD, CALIBRATION = "model.safetensors", "config.json", "card.md", "calibration.safetensors"
_MEND = "give a folder made by `sensorium train` or `python -m models.training`, or none for the weights that ship"


def write_checkpoint(folder: Path, network: Network, card: str) -> str:
    """Weights as float16 (half the size; read back as float32), config, calibration and card. Returns the version."""
    folder.mkdir(parents=True, exist_ok=True)
    halves = {
        name: tensor.detach().cpu().to(torch.float16).contiguous()
        if tensor.is_floating_point()
        else tensor.detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
    }
    weights, config = save_tensors(halves), network.config.to_json()
    calibration = b"" if network.calibration is None else save_arrays(dict(network.calibration.to_tensors()))
    (folder / WEIGHTS).write_bytes(weights)
    (folder / CONFIG).write_text(config)
    if calibration:
        (folder / CALIBRATION).write_bytes(calibration)
    else:
        (folder / CALIBRATION).unlink(missing_ok=True)
    (folder / CARD).write_text(card)
    return _version(network.config, weights, calibration)


def read_checkpoint(folder: Path) -> tuple[Network, str]:
    """The network, in eval mode and float32, and its version. Raises ModelError where a file is missing or damaged or
    does not fit the others."""
    missing = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"no model in {folder}: {' and '.join(missing)} missing; {_MEND}")
    config = ModelConfig.from_json((folder / CONFIG).read_text(), str(folder / CONFIG))
    weights = (folder / WEIGHTS).read_bytes()
    try:
        tensors = load_tensors(weights)
    except SafetensorError as error:
        raise ModelError(f"{folder / WEIGHTS} is damaged ({error}); {_MEND}") from error
    network = Network(config)
    full = {name: t.to(torch.float32) if t.is_floating_point() else t for name, t in tensors.items()}
    try:
        network.load_state_dict(full)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder / WEIGHTS} does not fit its config.json ({first}); {_MEND}") from error
    if not all(bool(t.isfinite().all()) for t in full.values()):
        raise ModelError(f"{folder / WEIGHTS} has NaN or infinite weights; {_MEND}")
    calibration = (folder / CALIBRATION).read_bytes() if (folder / CALIBRATION).is_file() else b""
    if calibration:
        try:
            arrays = load_arrays(calibration)
        except SafetensorError as error:
            raise ModelError(f"{folder / CALIBRATION} is damaged ({error}); {_MEND}") from error
        network.calibration = Calibration.from_tensors(arrays, str(folder / CALIBRATION))
    return network.eval().requires_grad_(False), _version(config, weights, calibration)


def _version(config: ModelConfig, weights: bytes, calibration: bytes) -> str:
    """Preset and a hash of all that decides a vector; the path of a pretrained encoder is no part of it."""
    digest = hashlib.sha256(b"\0".join((weights, config.identity().encode(), calibration))).hexdigest()
    return f"{config.preset}-{digest[:10]}"
