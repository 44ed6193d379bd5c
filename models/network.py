"""The whole network: an encoder for each modality, a fusion, and scale and bias of the contrastive loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from models.calibration import Calibration
from models.config import PRIVATE_DIM, SHARED_DIM, ModelConfig
from models.encoders.base import Encoded, Encoder
from models.encoders.registry import encoder_class
from models.fusion import Fusion, FusionInput


class Network(nn.Module):
    """Encoders by modality (`config.modalities`), fusion, and scale and bias of the contrastive loss."""

    def __init__(self, config: ModelConfig) -> None:
        """Raises ModelError where the config names an unknown encoder."""
        super().__init__()
        self.config = config
        self.modalities = config.modalities
        chosen = {modality: config.encoders[modality] for modality in self.modalities}
        self.encoders = nn.ModuleDict({m: encoder_class(m, o["name"])(config, m, o) for m, o in chosen.items()})
        sizes = {m: (self.encoder(m).tokens, self.encoder(m).width) for m in self.modalities}
        self.fusion = Fusion(config, sizes)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-2.0))
        self.calibration: Calibration | None = None  # measured after training, see models.calibration

    def encoder(self, modality: str) -> Encoder:
        return cast(Encoder, self.encoders[modality])

    def scale(self) -> Tensor:
        """Scale of the logits (a scalar, 1..60), the inverse temperature."""
        return self.logit_scale.clamp(0.0, math.log(60.0)).exp()

    def gather(self, rows: int, parts: Mapping[str, tuple[Tensor, Encoded]]) -> FusionInput:
        """The input of fusion for a batch of `rows` windows. parts: modality -> the rows (K,) that have it, and their
        encodings; a modality that is left out is absent everywhere."""
        device = self.logit_bias.device
        tokens = {}
        whens, masks, vectors, sketches, presents = [], [], [], [], []
        for modality in self.modalities:
            count, width = self.encoder(modality).tokens, self.encoder(modality).width
            held = torch.zeros(rows, count, width, device=device)
            when = torch.zeros(rows, count, device=device)
            mask = torch.zeros(rows, count, dtype=torch.bool, device=device)
            vector = torch.zeros(rows, SHARED_DIM, device=device)
            sketch = torch.zeros(rows, PRIVATE_DIM, device=device)
            present = torch.zeros(rows, dtype=torch.bool, device=device)
            if modality in parts:
                index, encoded = parts[modality]
                there = encoded.tokens.shape[1]
                held[index, :there] = encoded.tokens.to(held.dtype)
                when[index, :there] = encoded.when
                mask[index, :there] = encoded.mask
                vector[index] = encoded.shared.to(vector.dtype)
                sketch[index] = encoded.private.to(sketch.dtype)
                present[index] = True
            tokens[modality] = held
            whens.append(when)
            masks.append(mask)
            vectors.append(vector)
            sketches.append(sketch)
            presents.append(present)
        return FusionInput(
            tokens,
            torch.cat(whens, 1),
            torch.cat(masks, 1),
            torch.stack(vectors, 1),
            torch.stack(sketches, 1),
            torch.stack(presents, 1),
        )
