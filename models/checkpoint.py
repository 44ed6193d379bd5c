"""A model folder: model.safetensors, config.json, card.md. No pickle anywhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from models.config import ModelConfig
from models.errors import ModelError
from models.network import Network

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "card.md"
_MEND = "give a folder made by `python -m models.training --out DIR`, or no folder for the weights that ship"


def write_checkpoint(folder: Path, network: Network, card: str) -> str:
    """Weights as float16 (half the size; read back as float32), config and card. Returns the version."""
    folder.mkdir(parents=True, exist_ok=True)
    halves = {
        name: tensor.to(torch.float16).contiguous() if tensor.is_floating_point() else tensor.contiguous()
        for name, tensor in network.state_dict().items()
    }
    weights, config = save_tensors(halves), network.config.to_json()
    (folder / WEIGHTS).write_bytes(weights)
    (folder / CONFIG).write_text(config)
    (folder / CARD).write_text(card)
    return _version(network.config, weights, config)


def read_checkpoint(folder: Path) -> tuple[Network, str]:
    """The network, in eval mode and float32, and its version. Raises ModelError saying what mends it."""
    missing = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"no model in {folder}: {' and '.join(missing)} missing; {_MEND}")
    config_text = (folder / CONFIG).read_text()
    config = ModelConfig.from_json(config_text, str(folder / CONFIG))
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
        raise ModelError(f"{folder / WEIGHTS} holds NaN or infinite weights; {_MEND}")
    return network.eval().requires_grad_(False), _version(config, weights, config_text)


def _version(config: ModelConfig, weights: bytes, config_text: str) -> str:
    digest = hashlib.sha256(weights + b"\0" + config_text.encode()).hexdigest()
    return f"{config.preset}-{digest[:10]}"
