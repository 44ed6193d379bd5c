"""The state of a training run between two epochs, saved as safetensors with JSON metadata; no pickle."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.errors import ModelError
from models.network import Network

STATE, FACTS = "state.safetensors", "state.json"


class RunState:
    """The network being trained, the moving average of its weights, the best average so far, the optimizer.

    Attributes are saved under their names: a new name makes interrupted runs of older versions unreadable.
    """

    def __init__(self, network: Network, average: Network, optimizer: torch.optim.Optimizer, fingerprint: str) -> None:
        self.network, self.average, self.optimizer = network, average, optimizer
        self.fingerprint = fingerprint
        self.epoch = 0  # epochs done
        self.waited = 0  # epochs since the best one
        self.best, self.best_epoch, self.before = -1.0, 0, 0.0
        self.latest: float | None = None
        self._best_weights: dict[str, Tensor] = {}

    def record(self, score: float) -> None:
        """The validation of the average after `epoch` epochs; higher is better."""
        self.latest = score
        if score > self.best:
            self.best, self.best_epoch, self.waited = score, self.epoch, 0
            self._best_weights = {k: v.detach().clone() for k, v in self.average.state_dict().items()}
        else:
            self.waited += 1

    def best_network(self) -> Network:
        """A copy of the average of the best epoch; raises RuntimeError before the first `record`."""
        best = copy.deepcopy(self.average)
        best.load_state_dict(self._best_weights)
        return best

    def save(self, folder: Path) -> None:
        """Write to a new file and rename it: an interrupted write leaves the previous state."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self._best_weights.items()}
        for index, parameter in enumerate(self._parameters()):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
        facts = {
            name: getattr(self, name)
            for name in ("fingerprint", "epoch", "waited", "best", "best_epoch", "before", "latest")
        }
        new = folder / f"{STATE}.new"
        plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        save_file(plain, new, metadata={FACTS: json.dumps(facts)})
        os.replace(new, folder / STATE)

    def load(self, folder: Path) -> None:
        """Raises ModelError where there is no state, it is damaged, or it belongs to another run."""
        from safetensors import safe_open

        path = folder / STATE
        if not path.is_file():
            raise ModelError(f"there is no interrupted training in {folder}; start it without --resume")
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})[FACTS])
            tensors = load_file(path)
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise ModelError(f"{path} is damaged ({error}); remove it and train without --resume") from error
        if facts["fingerprint"] != self.fingerprint:
            raise ModelError(
                f"{path} belongs to a training with other data, options or weights; give the same ones, or train "
                f"without --resume"
            )
        device = self.network.logit_bias.device
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "best": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, key = name.partition(".")
            parts[part][key] = tensor.to(device)
        self.network.load_state_dict(parts["network"])
        self.average.load_state_dict(parts["average"])
        self._best_weights = parts["best"]
        parameters = self._parameters()
        for name, tensor in parts["optimizer"].items():
            index, _, key = name.partition(".")
            self.optimizer.state[parameters[int(index)]][key] = tensor.cpu() if key == "step" else tensor
        for name in ("epoch", "waited", "best", "best_epoch", "before", "latest"):
            setattr(self, name, facts[name])

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]
